//! Who had each millisecond. `chronicle` takes down what VMs and deliveries go through, behind everybody's back; `timeline`*
//! makes spans of that and of a build's record, `chrome`* writes them as a Chrome trace. Phases of a build are in its record.

pub mod chrome;
pub mod chronicle;
pub mod timeline;
