//! What is wrong with a configuration, said so that the reader can mend it: where, what was found, what is allowed, and
//! what to do. Mistakes are gathered, never thrown at the first.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the program itself: `config/default.toml`.
    Default,
    /// In the operator's file, or in a project's `.preheat.toml`.
    File { path: PathBuf, line: usize },
    /// In the file of this host.
    HostFile { path: PathBuf, line: usize },
    /// In a variable of the environment.
    Environment { variable: String },
    /// In the request for a build.
    Request,
}

impl Origin {
    /// Of two places that set the same key, the one with the higher rank wins.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::HostFile { .. } => 2,
            Self::Environment { .. } => 3,
            Self::Request => 4,
        }
    }

    /// The file, the variable, or what else holds the value; without the line.
    pub fn place(&self) -> String {
        match self {
            Self::Default => "built-in default".into(),
            Self::File { path, .. } | Self::HostFile { path, .. } => path.display().to_string(),
            Self::Environment { variable } => variable.clone(),
            Self::Request => "request".into(),
        }
    }

    /// The line, where the place has lines.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::File { line, .. } | Self::HostFile { line, .. } => Some(*line),
            Self::Default | Self::Environment { .. } | Self::Request => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())?;
        self.line().map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// One thing that is wrong, or (as a warning) that is surely not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, the variable, `request`; for a file that does not parse also line and column.
    pub place: String,
    /// The key, dotted; empty where it is the whole place.
    pub key: String,
    /// What was found and what is allowed.
    pub text: String,
    /// The line of the key, where its place has lines.
    pub line: Option<usize>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Mistake {
    /// About the value of `key`.
    pub fn at(origin: &Origin, key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { place: origin.place(), key: key.into(), text: text.into(), line: origin.line(), hint: None }
    }

    /// About a whole place: a file that cannot be read, say.
    pub fn of(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self { place: place.into(), key: String::new(), text: text.into(), line: None, hint: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The mistake in one line, without its hint: `file:key: what was found, what is allowed`.
    pub fn line_text(&self) -> String {
        let Self { place, key, text, line, .. } = self;
        let colon = if key.is_empty() { "" } else { ":" };
        let line = line.map_or(String::new(), |n| format!(" (line {n})"));
        format!("{place}{colon}{key}: {text}{line}")
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line_text())?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n    hint: {hint}"))
    }
}

/// Every mistake that was found; never empty when it is returned as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// In the order in which somebody who mends them meets them: file by file, from the top.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.0.sort_by(|a, b| (&a.place, a.line).cmp(&(&b.place, b.line)));
        self
    }

    /// Each mistake in one line, without hints.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(Mistake::line_text).collect()
    }

    /// The first hint, for where there is room for one only.
    pub fn hint(&self) -> Option<String> {
        self.0.iter().find_map(|m| m.hint.clone())
    }

    /// Every hint, once.
    pub fn hints(&self) -> String {
        let mut hints: Vec<&str> = Vec::new();
        for hint in self.0.iter().filter_map(|mistake| mistake.hint.as_deref()) {
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
        hints.join("; ")
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mistake) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
