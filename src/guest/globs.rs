//! Which files of the work folder are meant by a build's globs, and where in it they can be. Pure.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

/// The globs of one take.
#[derive(Debug)]
pub(super) struct Globs {
    all: Vec<(String, GlobMatcher)>,
}

/// A name that was found, and what the globs say to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No glob means it.
    No,
    /// It is meant; its checked name.
    Yes(String),
    /// It is meant, and must not be written to this host under its name.
    Hostile(String),
}

impl Globs {
    /// Reads globs. The error is the one that cannot match anything: it does not parse, is empty, or leaves the folder.
    pub(super) fn new(globs: &[String]) -> Result<Self, String> {
        let all = globs.iter().map(|glob| {
            let plain = plain(glob);
            let leaves = plain.starts_with('/') || plain.split('/').any(|part| part == "..");
            let matcher = GlobBuilder::new(plain).literal_separator(true).backslash_escape(true).build();
            match matcher {
                Ok(glob) if !plain.is_empty() && !leaves => Ok((plain.to_owned(), glob.compile_matcher())),
                Ok(_) | Err(_) => Err(glob.clone()),
            }
        });
        Ok(Self { all: all.collect::<Result<_, _>>()? })
    }

    /// The folders or files below which everything meant is to be found, none inside another. `.` is the work folder.
    pub(super) fn roots(&self) -> Vec<String> {
        let all: BTreeSet<String> = self.all.iter().map(|(glob, _)| prefix(glob)).collect();
        if all.contains(".") {
            return vec![".".into()];
        }
        let inside = |root: &String| root.match_indices('/').any(|(at, _)| all.contains(&root[..at]));
        all.iter().filter(|root| !inside(root)).cloned().collect()
    }

    /// Whether a file of this name is meant: by itself, or because a folder above it is.
    pub(super) fn judge(&self, name: &[u8]) -> Verdict {
        if !self.all.iter().any(|(_, glob)| means(glob, name)) {
            return Verdict::No;
        }
        match checked(name) {
            Some(name) => Verdict::Yes(name),
            None => Verdict::Hostile(String::from_utf8_lossy(name).escape_debug().to_string()),
        }
    }

    /// The first glob that means none of these.
    pub(super) fn unmatched<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
        let missing = |glob: &GlobMatcher| !names.clone().any(|name| means(glob, name.as_bytes()));
        self.all.iter().find(|(_, glob)| missing(glob)).map(|(text, _)| text.clone())
    }
}

fn means(glob: &GlobMatcher, name: &[u8]) -> bool {
    let ends = name.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    ends.chain([name.len()]).any(|end| glob.is_match(Path::new(OsStr::from_bytes(&name[..end]))))
}

fn plain(glob: &str) -> &str {
    let mut plain = glob.trim_end_matches('/');
    while let Some(rest) = plain.strip_prefix("./") {
        plain = rest.trim_start_matches('/');
    }
    if plain == "." { "**" } else { plain }
}

/// The part of a glob before its first part with a sign in it.
fn prefix(glob: &str) -> String {
    let literal: Vec<&str> = glob
        .split('/')
        .filter(|p| *p != ".")
        .take_while(|part| !part.contains(['*', '?', '[', '{', '\\']))
        .collect();
    // A brace may hold a slash, and then its parts are no parts; the ones before it are.
    if literal.is_empty() { ".".into() } else { literal.join("/") }
}

/// A name that may be written below a folder of this host: relative, in plain parts, printable.
pub(crate) fn checked(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let fine =
        name.split('/').all(|part| !matches!(part, "" | "." | "..")) && !name.chars().any(char::is_control);
    fine.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn globs(all: &[&str]) -> Globs {
        Globs::new(&all.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>()).expect("good globs")
    }

    fn meant(glob: &str, name: &str) -> bool {
        globs(&[glob]).judge(name.as_bytes()) == Verdict::Yes(name.into())
    }

    #[test]
    fn a_glob_means_files_and_folders_with_all_below() {
        for (glob, name) in [
            ("*.ipa", "App.ipa"),
            ("build/**/*.ipa", "build/a/b/App.ipa"),
            ("build/**/*.ipa", "build/App.ipa"),
            ("build", "build/a/b"),
            ("./build/", "build/a/b"),
            ("*.xcarchive", "App.xcarchive/dSYMs/App"),
            ("{out,dist}/a?", "dist/ab"),
            ("**", ".hidden/x"),
            (".", "x"),
            ("a[bc]", "ac"),
        ] {
            assert!(meant(glob, name), "{glob} {name}");
        }
        for (glob, name) in
            [("*.ipa", "build/App.ipa"), ("build", "builds/a"), ("a/*", "b/a/c"), ("{a,b}", "c")]
        {
            assert!(!meant(glob, name), "{glob} {name}");
        }
    }

    #[test]
    fn a_glob_that_leaves_the_folder_is_no_glob() {
        for glob in ["", "/", "/etc/passwd", "../x", "a/../../x", "a["] {
            assert_eq!(Globs::new(&[glob.into()]).map(|_| ()), Err(glob.to_owned()));
        }
    }

    #[test]
    fn a_hostile_name_is_named() {
        let all = globs(&["**"]);
        for name in ["../x", "a/../../x", "a//b", "a\nb", "./a"] {
            assert!(matches!(all.judge(name.as_bytes()), Verdict::Hostile(_)), "{name}");
        }
        assert!(matches!(all.judge(b"a\xFF"), Verdict::Hostile(_)));
    }

    #[test]
    fn roots_are_where_to_look_and_no_further() {
        assert_eq!(globs(&["build/out/*.ipa", "build/**", "dist/a.zip"]).roots(), ["build", "dist/a.zip"]);
        assert_eq!(globs(&["build/*.ipa", "*.log"]).roots(), ["."]);
        assert_eq!(globs(&["a-b/x", "a/x", "a"]).roots(), ["a", "a-b/x"]);
    }

    #[test]
    fn a_glob_without_a_file_is_found() {
        let all = globs(&["a*", "b*"]);
        assert_eq!(all.unmatched(["ax"].into_iter()), Some("b*".into()));
        assert_eq!(all.unmatched(["ax", "bx/y"].into_iter()), None);
    }

    proptest! {
        #[test]
        fn whatever_is_meant_lies_below_a_root(
            glob in "(\\./)?([ab{}*?,\\\\]{1,3}/){0,3}([ab*]{1,2}|\\*\\*)",
            name in "([ab]{1,2}/){0,4}[ab]{1,2}",
        ) {
            let Ok(all) = Globs::new(&[glob]) else { return Ok(()) };
            if all.judge(name.as_bytes()) != Verdict::No {
                let below = |root: &String| root == "." || name == *root || name.starts_with(&format!("{root}/"));
                prop_assert!(all.roots().iter().any(below), "{:?}", all.roots());
            }
        }

        #[test]
        fn a_checked_name_never_leaves_its_folder(name in "[a./\\\\\n]{0,12}") {
            if let Some(name) = checked(name.as_bytes()) {
                let normal = Path::new(&name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
                prop_assert!(normal && !name.is_empty());
            }
        }
    }
}
