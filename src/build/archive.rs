//! Archives that come in, made safe and plain.
