//! The wrapper under which a script runs in the guest.
