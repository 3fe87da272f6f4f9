//! Projects to build.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A folder with these files.
pub fn folder(at: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let root = at.join(name);
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("in the folder")).expect("made");
        fs::write(path, text).expect("written");
    }
    root
}

/// A folder that is only there because a build needs one.
pub fn tiny(at: &Path) -> String {
    folder(at, "tiny", &[("README", "tiny\n")]).display().to_string()
}

/// A program in C with all that makes a source awkward: dotfiles, ignored files, a script that must stay executable.
pub fn hello(at: &Path, name: &str) -> PathBuf {
    let root = folder(
        at,
        name,
        &[
            ("main.c", "#include <stdio.h>\nint main(void) { puts(\"hello from a warm VM\"); return 0; }\n"),
            ("Makefile", "out/hello: main.c\n\tmkdir -p out\n\tcc -static -o $@ main.c\n"),
            (".gitignore", "ignored/\n*.o\n"),
            (".hidden/rc", "dot\n"),
            ("ignored/large", "not sent\n"),
            ("old.o", "not sent\n"),
            ("check.sh", "#!/bin/sh\ntest ! -e ignored && test ! -e old.o && cat .hidden/rc\n"),
            (
                ".preheat.toml",
                "project = \"hello\"\npool = \"linux\"\n\
                 steps = [{ name = \"check\", command = \"./check.sh\" }, { name = \"make\", command = \"make\" }, \
                 { name = \"count\", command = \"seq 3000; cp check.sh out/\" }]\nartifacts = [\"out/*\"]\n",
            ),
        ],
    );
    fs::set_permissions(root.join("check.sh"), fs::Permissions::from_mode(0o755)).expect("set");
    root
}

/// The hex digest of a file.
pub fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).expect("there"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
