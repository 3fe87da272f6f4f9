//! The files of a source as a pipeline sees them: their names, and what its `package.json` files depend on.

use std::collections::{BTreeMap, BTreeSet};

use globset::{GlobBuilder, GlobMatcher};

/// The manifest of a Node project.
pub const MANIFEST: &str = "package.json";

/// A folder with one of these names holds what others made.
const NOT_THE_PROJECTS: [&str; 5] = ["node_modules", "Pods", "vendor", ".git", "build"];

/// A project is looked for this deep below the source's root.
const DEPTH_MAX: usize = 3;

/// And in so many folders.
const FOLDERS_MAX: usize = 400;

/// What is known of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    names: BTreeSet<String>,
    /// By the folder of the manifest.
    dependencies: BTreeMap<String, BTreeSet<String>>,
}

impl Files {
    /// From the names of all files, and the texts of those manifests that were read, by their names.
    pub fn new(names: impl IntoIterator<Item = String>, manifests: &BTreeMap<String, String>) -> Self {
        let folder = |name: &str| name.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        let dependencies = manifests.iter().map(|(name, text)| (folder(name), dependencies(text)));
        Self { dependencies: dependencies.collect(), names: names.into_iter().collect() }
    }

    /// The names of the files in a folder and below it, as they are called from there.
    fn below<'a>(&'a self, dir: &str) -> impl Iterator<Item = &'a str> + 'a {
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let bytes = prefix.len();
        let names = self.names.range(prefix.clone()..).take_while(move |name| name.starts_with(&prefix));
        names.filter_map(move |name| name.get(bytes..))
    }

    /// Whether nothing is known of the source.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the source has the folder.
    pub fn has_folder(&self, dir: &str) -> bool {
        dir.is_empty() || self.below(dir).next().is_some()
    }

    /// The first file below a folder that one of the globs means.
    pub fn any(&self, dir: &str, globs: &[String]) -> Option<&str> {
        let globs: Vec<GlobMatcher> = globs.iter().filter_map(|glob| matcher(glob)).collect();
        self.below(dir).find(|name| globs.iter().any(|glob| glob.is_match(name)))
    }

    /// The nearest folder, `dir` or one above it, that has one of the files, and which one.
    pub fn above<'a>(&self, dir: &str, files: &'a [String]) -> Option<(String, &'a str)> {
        let mut folder = dir;
        loop {
            let at =
                |file: &str| if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
            if let Some(file) = files.iter().find(|file| self.names.contains(&at(file))) {
                return Some((folder.to_owned(), file.as_str()));
            }
            if folder.is_empty() {
                return None;
            }
            folder = folder.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }

    /// The first of these that the folder's manifest depends on.
    pub fn depends<'a>(&self, dir: &str, names: &'a [String]) -> Option<&'a str> {
        let all = self.dependencies.get(dir)?;
        names.iter().find(|name| all.contains(*name)).map(String::as_str)
    }

    /// Folders below the root in which a project may be.
    pub fn folders(&self) -> Vec<&str> {
        let mut found = BTreeSet::new();
        for name in &self.names {
            let ends = name.match_indices('/').map(|(at, _)| at).take(DEPTH_MAX);
            for folder in ends.map(|end| &name[..end]) {
                if is_the_projects(folder) && found.len() < FOLDERS_MAX {
                    found.insert(folder);
                }
            }
        }
        found.into_iter().collect()
    }
}

/// Whether what is in the folder is the project's own.
pub fn is_the_projects(folder: &str) -> bool {
    !folder.split('/').any(|part| NOT_THE_PROJECTS.contains(&part))
}

/// A glob, as the globs of artifacts are: `*` stays in its folder.
pub fn matcher(glob: &str) -> Option<GlobMatcher> {
    GlobBuilder::new(glob).literal_separator(true).build().ok().map(|glob| glob.compile_matcher())
}

/// A manifest that is none depends on nothing.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(manifest) else { return BTreeSet::new() };
    let tables = ["dependencies", "devDependencies"].into_iter().filter_map(|key| json.get(key)?.as_object());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(all: &[&str]) -> Vec<String> {
        all.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn files_are_called_from_the_builds_folder_and_looked_for_above_it() {
        let names = ["apps/mobile/app.json", "apps/mobile/ios/App.xcodeproj/project.pbxproj", "yarn.lock"];
        let manifest = r#"{"dependencies":{"expo":"1"},"devDependencies":{"jest":"2"}}"#;
        let manifests = BTreeMap::from([("apps/mobile/package.json".to_owned(), manifest.to_owned())]);
        let files = Files::new(texts(&names), &manifests);
        assert_eq!(files.any("apps/mobile", &texts(&["app.json"])), Some("app.json"));
        assert_eq!(files.any("apps", &texts(&["app.json"])), None);
        assert_eq!(files.any("", &texts(&["*.json"])), None, "`*` stays in its folder");
        let project = texts(&["ios/*.xcodeproj/project.pbxproj"]);
        assert!(files.any("apps/mobile", &project).is_some());
        let locks = texts(&["package-lock.json", "yarn.lock"]);
        assert_eq!(files.above("apps/mobile", &locks), Some((String::new(), "yarn.lock")));
        assert_eq!(files.depends("apps/mobile", &texts(&["react", "expo"])), Some("expo"));
        assert_eq!(files.depends("", &texts(&["expo"])), None);
        assert!(files.has_folder("apps") && files.has_folder("") && !files.has_folder("app"));
        assert!(files.folders().contains(&"apps/mobile"));
    }

    #[test]
    fn a_manifest_that_is_none_depends_on_nothing() {
        for text in ["", "{", "[]", r#"{"dependencies":["expo"]}"#, r#"{"dependencies":null}"#] {
            assert!(dependencies(text).is_empty(), "{text}");
        }
    }
}
