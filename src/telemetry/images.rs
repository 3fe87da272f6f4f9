//! What becomes of images' generations, as typed events.

use metrics::counter;
use tracing::{info, warn};

use super::names;

/// Why an image's name means another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChosenBy {
    /// An operator asked for it.
    Asked,
    /// An operator went back.
    RolledBack,
    /// The one before did not come up.
    Failed,
    /// Nobody had chosen, and the VM of the image's name was not there.
    Adopted,
}

impl ChosenBy {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Asked, Self::RolledBack, Self::Failed, Self::Adopted];

    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::Adopted => "adopted",
        }
    }
}

/// An image's name means another VM from now on.
pub struct ImageChosen<'a> {
    pub image: &'a str,
    pub from: &'a str,
    pub to: &'a str,
    pub by: ChosenBy,
    /// Pools that are rolled over.
    pub pools: usize,
}
impl ImageChosen<'_> {
    /// Logs and counts it.
    pub fn emit(self) {
        let Self { image, from, to, by, pools } = self;
        let why = by.as_str();
        counter!(names::IMAGE_CHOICES, "why" => why).increment(1);
        info!(image, from, to, why, pools, "image means another generation");
    }
}

/// VMs of an image's generation do not come up.
pub struct ImageFailed<'a> {
    pub vm: &'a str,
    pub why: &'a str,
    /// There is one to go back to.
    pub goes_back: bool,
}
impl ImageFailed<'_> {
    /// Logs it.
    pub fn emit(self) {
        let Self { vm, why, goes_back } = self;
        let hint = if goes_back {
            "`preheat image list` shows it; boot it by hand to see why"
        } else {
            "no earlier one is left to go back to: make another with vm-setup/mac-image, then `preheat image use`"
        };
        warn!(vm, why, goes_back, hint, "image does not come up");
    }
}

/// VMs of an image's generation come up.
pub struct ImageProven<'a> {
    pub vm: &'a str,
}
impl ImageProven<'_> {
    /// Logs it.
    pub fn emit(self) {
        info!(vm = self.vm, "image is good: a VM of it is warm");
    }
}
