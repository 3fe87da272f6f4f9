//! What the command line needs of other rooms, each as one function.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::problem::Problem;
use crate::config::Config;
use crate::runtime::Runtime;

/// What `.preheat.toml` says that the client must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    pub name: Option<String>,
    /// Names of secrets that the build needs.
    pub secrets: Vec<String>,
}

/// CONNECT: the layers of `config::load`. `Err` is every mistake, one a line.
pub fn load_config(file: Option<&Path>) -> Result<Config, Vec<String>> {
    let file = file.map_or("preheat.toml".into(), |f| f.display().to_string());
    Err(vec![format!("{file}: not connected")])
}

/// CONNECT: `config`'s own rendering, as TOML.
pub fn show_config(config: &Config) -> String {
    format!("{config:#?}\n")
}

/// CONNECT: `build::project`.
pub fn project(_folder: &Path) -> Result<Project, Problem> {
    Ok(Project::default())
}

/// CONNECT: `build::pack`.
pub fn pack(folder: &Path, into: &mut File) -> Result<(), Problem> {
    let mut tar = tar::Builder::new(into);
    let cannot = |e: std::io::Error| Problem::usage(format!("cannot pack `{}`: {e}", folder.display()));
    tar.append_dir_all(".", folder).map_err(cannot)?;
    tar.finish().map_err(cannot)
}

/// CONNECT: the runtime adapter for `runtime.program`.
pub fn runtime(_config: &Config) -> Option<Arc<dyn Runtime>> {
    None
}

/// CONNECT: the longest path of a control socket that `guest::ssh` makes.
pub fn control_socket(_config: &Config) -> PathBuf {
    PathBuf::from("/tmp/preheat-ssh-XXXXXXXX/s")
}

/// CONNECT: `supervisor::run`, which serves until it is asked to stop.
pub async fn serve(_config: Config) -> Result<(), Problem> {
    Err(Problem::system("not connected"))
}
