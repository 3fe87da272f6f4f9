//! The runtime's verbs, as words for the log and as labels.

/// A verb of the runtime, which are Tart's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Clone,
    Set,
    Run,
    Ip,
    Suspend,
    Stop,
    Delete,
    List,
    Get,
    Prune,
    Version,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 11] = [
        Self::Clone,
        Self::Set,
        Self::Run,
        Self::Ip,
        Self::Suspend,
        Self::Stop,
        Self::Delete,
        Self::List,
        Self::Get,
        Self::Prune,
        Self::Version,
    ];

    /// As it stands on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Set => "set",
            Self::Run => "run",
            Self::Ip => "ip",
            Self::Suspend => "suspend",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Get => "get",
            Self::Prune => "prune",
            Self::Version => "--version",
        }
    }
}
