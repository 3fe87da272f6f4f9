//! How an error reads: `error: what`, `hint: what to do`, and the exit code.

use super::exit::Exit;
use super::text::clean;
use crate::api::wire::{ErrorBody, ErrorView};

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub exit: Exit,
    /// The word for programs.
    pub code: String,
    pub what: String,
    pub hint: Option<String>,
    /// Each thing that is wrong, where it is more than one.
    pub mistakes: Vec<String>,
}

impl Problem {
    /// The user's.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, code: "usage".into(), what: what.into(), hint: None, mistakes: Vec::new() }
    }

    /// The system's.
    pub fn system(what: impl Into<String>) -> Self {
        Self {
            exit: Exit::System,
            code: "system".into(),
            what: what.into(),
            hint: None,
            mistakes: Vec::new(),
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With a word of its own.
    #[must_use]
    pub fn code(mut self, code: &str) -> Self {
        self.code = code.into();
        self
    }

    /// What the daemon refused. Its word decides whose fault it is.
    pub fn refused(status: u16, view: ErrorView) -> Self {
        let exit = if status >= 500 || status == 429 || status == 408 { Exit::System } else { Exit::Usage };
        Self { exit, code: view.code, what: view.message, hint: view.hint, mistakes: view.mistakes }
    }

    /// For people to stderr, and with `json` for programs to stdout.
    pub fn print(&self, json: bool) {
        for mistake in &self.mistakes {
            super::say(&clean(mistake));
        }
        super::say(&format!("error: {}", clean(&self.what)));
        if let Some(hint) = &self.hint {
            super::say(&format!("hint: {}", clean(hint)));
        }
        if json {
            let Self { code, what, hint, mistakes, exit: _ } = self.clone();
            let view = ErrorView { code, message: what, hint, mistakes };
            super::out_json(&ErrorBody { error: view }).ok();
        }
    }
}
