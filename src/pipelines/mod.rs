//! How a kind of project is built, as data: steps with their time-outs and retries, variables, artifacts, and what a source
//! must be like. `over`* lays one description over another (built in, the operator's), `choose`* makes steps of one for a
//! source, whose names are in `files`*. Reading them is the configuration's; nothing of a pipeline is left in a build but
//! its steps.

pub mod choose;
pub mod files;
pub mod over;

use std::collections::BTreeMap;
use std::time::Duration;

/// The word that leaves the choice to the source's files.
pub const AUTO: &str = "auto";

/// The names of those that are built in, in the order in which `auto` tries them: what says more comes first.
pub const BUILT_IN: [&str; 6] = ["expo", "react-native", "flutter", "xcode", "eas", "shell"];

/// One pipeline, complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// One line for people.
    pub about: String,
    /// What the files must be like for `auto`; without, it is taken by name only.
    pub found: Option<When>,
    pub env: BTreeMap<String, String>,
    pub steps: Vec<PipelineStep>,
    /// Globs in the build's folder.
    pub artifacts: Vec<String>,
    /// For the whole build.
    pub timeout: Option<Duration>,
}

/// One step of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PipelineStep {
    pub name: String,
    /// The first that holds is run; where none does, the step is left out.
    pub ways: Vec<Way>,
    /// Below the build's folder.
    pub dir: Option<String>,
    pub timeout: Option<Duration>,
    pub retries: Option<u16>,
    pub when: When,
}

/// One way to do a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    pub when: When,
    pub command: String,
}

/// A condition: everything in it must hold, and each list holds when one of it does. An empty one always holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct When {
    /// Globs for files in the build's folder.
    pub exists: Vec<String>,
    /// The same, of which none may mean a file.
    pub missing: Vec<String>,
    /// Names of files, in the build's folder or one above it.
    pub above: Vec<String>,
    /// Dependencies in the build's `package.json`.
    pub dependency: Vec<String>,
    /// Variables: `NAME`, or `NAME=VALUE`.
    pub env: Vec<String>,
    /// For the guest's shell, when the step's turn has come.
    pub test: Option<String>,
}

/// Every pipeline by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pipelines(pub BTreeMap<String, Pipeline>);

impl Pipelines {
    /// In the order in which `auto` tries them: the operator's own before those that are built in.
    pub fn in_order(&self) -> impl Iterator<Item = (&str, &Pipeline)> {
        let own = self.0.iter().filter(|(name, _)| !BUILT_IN.contains(&name.as_str()));
        let built_in = BUILT_IN.iter().filter_map(|name| self.0.get_key_value(*name));
        own.chain(built_in).map(|(name, pipeline)| (name.as_str(), pipeline))
    }

    /// Their names, for whoever named another.
    pub fn known(&self) -> String {
        let names: Vec<String> = self.in_order().map(|(name, _)| format!("`{name}`")).collect();
        names.join(", ")
    }
}
