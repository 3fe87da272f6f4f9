//! The configuration as an operator meets it: what is documented, what a mistake says, which layer wins.

mod documented;
mod layered;
mod mistaken;

use std::path::Path;

use tempfile::TempDir;

use super::file::Env;
use super::load::load;
use super::{Home, Inputs, Loaded, Mistakes};

/// An installation in a folder of its own.
pub struct Installation {
    folder: TempDir,
    vars: Vec<(String, String)>,
}

impl Installation {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { folder, vars: vec![("HOME".into(), "/Users/ci".into())] }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// With a file in it.
    pub fn file(self, name: &str, text: &str) -> Self {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("written");
        self
    }

    /// With a variable.
    pub fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.into(), value.into()));
        self
    }

    pub fn inputs(&self) -> Inputs {
        Inputs {
            home: Home::new(self.path().into()),
            file: None,
            hostname: "studio-1.local".into(),
            env: self.vars.iter().cloned().collect::<Env>(),
        }
    }

    pub fn load(&self) -> Result<Loaded, Mistakes> {
        load(&self.inputs())
    }

    /// What goes wrong, with the installation's folder written `$H`.
    pub fn mistakes(&self) -> String {
        let text =
            self.load().map(|loaded| format!("{:#?}", loaded.config)).expect_err("a mistake").to_string();
        text.replace(&self.path().display().to_string(), "$H")
    }

    /// What is warned of.
    pub fn warnings(&self) -> String {
        let loaded = self.load().expect("no mistake");
        let text = Mistakes(loaded.warnings).to_string();
        text.replace(&self.path().display().to_string(), "$H")
    }
}

/// One pool that is right.
pub const LINUX: &str = "[pool.linux]\nimage = \"linux\"\n";
