//! What an archive's entries come to: their clean names, which of them count, the common folder, and where every link
//! leads. Pure. Names are bytes, as in a tar; only `/` divides them.

use std::collections::{BTreeMap, BTreeSet};

/// How many links one path may go through; Linux' own limit.
const HOPS_MAX: usize = 40;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) enum Kind {
    Folder,
    File,
    /// A symbolic link with its target, as it was written.
    Symlink(Vec<u8>),
    /// Another name of an earlier file.
    Hardlink(Vec<u8>),
}

/// An entry of the archive: its clean name (empty for the root itself) and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) struct Item {
    pub name: Vec<u8>,
    pub kind: Kind,
}

/// What is to be written. Items are known by their index in the archive.
#[derive(Debug, Default)]
pub(in crate::build) struct Layout {
    /// The folder that everything was in and that is left out.
    pub top: Option<Vec<u8>>,
    /// Folders by name, with the item that describes them, if one does.
    pub folders: BTreeMap<Vec<u8>, Option<usize>>,
    /// Everything else that counts, by index, with its final name.
    pub rest: BTreeMap<usize, Vec<u8>>,
}

/// Why an entry cannot be taken: its name, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) struct Offence {
    pub name: Vec<u8>,
    pub why: &'static str,
}

/// Cleans a name: no `.`, no empty part, no trailing slash.
pub(in crate::build) fn clean(raw: &[u8]) -> Result<Vec<u8>, Offence> {
    let offence = |why| Err(Offence { name: raw.to_owned(), why });
    if raw.first() == Some(&b'/') {
        return offence("an absolute path");
    }
    if raw.contains(&0) {
        return offence("a NUL byte in its name");
    }
    // Windows reads a backslash as a slash, and a letter with a colon as a disk.
    let as_windows_does: Vec<u8> = raw.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
    if as_windows_does.first() == Some(&b'/')
        || matches!(as_windows_does.as_slice(), [l, b':', b'/', ..] if l.is_ascii_alphabetic())
    {
        return offence("an absolute path");
    }
    if as_windows_does.split(|b| *b == b'/').any(|part| part == b"..") {
        return offence("`..` in its path");
    }
    let parts: Vec<&[u8]> = raw.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    Ok(parts.join(&b'/'))
}

impl Layout {
    /// Lays the items out, or names the first that cannot be.
    pub(in crate::build) fn new(items: &[Item]) -> Result<Self, Offence> {
        let top = common_top(items);
        let strip = |name: &[u8]| match &top {
            Some(top) => name[(top.len() + 1).min(name.len())..].to_owned(),
            None => name.to_owned(),
        };
        let mut layout = Self { top: top.clone(), ..Self::default() };
        let mut last: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let name = strip(&item.name);
            if name.is_empty() {
                if item.kind == Kind::Folder {
                    continue;
                }
                return Err(Offence { name: item.name.clone(), why: "an empty name" });
            }
            // As tar does: the last of several entries of one name counts.
            last.insert(name, index);
        }
        let mut links: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
        for (name, index) in &last {
            match &items[*index].kind {
                Kind::Folder => {
                    layout.folders.insert(name.clone(), Some(*index));
                }
                Kind::Symlink(target) => {
                    links.insert(name, target);
                    layout.rest.insert(*index, name.clone());
                }
                Kind::File | Kind::Hardlink(_) => {
                    layout.rest.insert(*index, name.clone());
                }
            }
        }
        layout.add_parents(&last, items)?;
        for (name, target) in &links {
            follow(&links, name, target).map_err(|why| Offence { name: name.to_vec(), why })?;
        }
        layout.check_hardlinks(&last, items, strip)?;
        Ok(layout)
    }

    /// Folders that are only implied are made explicit, and nothing may lie below what is no folder.
    fn add_parents(&mut self, last: &BTreeMap<Vec<u8>, usize>, items: &[Item]) -> Result<(), Offence> {
        let mut implied: BTreeSet<Vec<u8>> = BTreeSet::new();
        for name in last.keys() {
            for (at, _) in name.iter().enumerate().filter(|(_, b)| **b == b'/') {
                implied.insert(name[..at].to_owned());
            }
        }
        for folder in implied {
            if last.get(&folder).is_some_and(|index| items[*index].kind != Kind::Folder) {
                return Err(Offence { name: folder, why: "files below it, though it is no folder" });
            }
            self.folders.entry(folder).or_insert(None);
        }
        Ok(())
    }

    fn check_hardlinks(
        &self,
        last: &BTreeMap<Vec<u8>, usize>,
        items: &[Item],
        strip: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Result<(), Offence> {
        for (index, name) in &self.rest {
            if let Kind::Hardlink(target) = &items[*index].kind {
                let earlier =
                    last.get(&strip(target)).is_some_and(|t| t < index && items[*t].kind == Kind::File);
                if !earlier {
                    return Err(Offence {
                        name: name.clone(),
                        why: "a hard link to what is no earlier file of it",
                    });
                }
            }
        }
        Ok(())
    }

    /// The final name of a hard link's target.
    pub(in crate::build) fn stripped<'a>(&self, name: &'a [u8]) -> &'a [u8] {
        match &self.top {
            Some(top) => &name[(top.len() + 1).min(name.len())..],
            None => name,
        }
    }
}

/// The one folder that everything is in. An archive that names its root (`./`) means what it says, and has none.
fn common_top(items: &[Item]) -> Option<Vec<u8>> {
    let first = items.first()?.name.split(|b| *b == b'/').next().filter(|part| !part.is_empty())?;
    let inside = |item: &Item| match item.name.strip_prefix(first) {
        Some([]) => item.kind == Kind::Folder,
        Some([b'/', ..]) => true,
        Some(_) | None => false,
    };
    let deeper = items.iter().any(|item| item.name.len() > first.len());
    (deeper && items.iter().all(inside)).then(|| first.to_owned())
}

/// Walks a link's target as the system would, through the other links; it may lead nowhere, but not out.
pub(in crate::build) fn follow(
    links: &BTreeMap<&[u8], &[u8]>,
    name: &[u8],
    target: &[u8],
) -> Result<(), &'static str> {
    const LEAVES: &str = "a symbolic link that leads out of the folder";
    let mut here: Vec<&[u8]> = name.split(|b| *b == b'/').collect();
    here.pop();
    // What is still to be walked, the next part last.
    let mut ahead: Vec<&[u8]> = parts_reversed(target);
    let mut hops = 0;
    if target.contains(&0) {
        return Err("a NUL byte in its target");
    }
    if target.first() == Some(&b'/') {
        return Err(LEAVES);
    }
    while let Some(part) = ahead.pop() {
        match part {
            b"" | b"." => {}
            b".." => {
                here.pop().ok_or(LEAVES)?;
            }
            part => {
                here.push(part);
                if let Some(target) = links.get(here.join(&b'/').as_slice()) {
                    hops += 1;
                    if hops > HOPS_MAX {
                        return Err("a symbolic link that leads round in circles");
                    }
                    if target.first() == Some(&b'/') {
                        return Err(LEAVES);
                    }
                    here.pop();
                    ahead.extend(parts_reversed(target));
                }
            }
        }
    }
    Ok(())
}

fn parts_reversed(path: &[u8]) -> Vec<&[u8]> {
    path.split(|b| *b == b'/').rev().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(name: &str, kind: Kind) -> Item {
        Item { name: name.into(), kind }
    }

    fn file(name: &str) -> Item {
        item(name, Kind::File)
    }

    fn link(name: &str, target: &str) -> Item {
        item(name, Kind::Symlink(target.into()))
    }

    fn names(layout: &Layout) -> Vec<String> {
        layout.rest.values().map(|n| String::from_utf8_lossy(n).into_owned()).collect()
    }

    #[test]
    fn a_single_folder_on_top_is_left_out_and_nothing_else_is() {
        let layout =
            Layout::new(&[item("p-1", Kind::Folder), file("p-1/a"), file("p-1/src/b")]).expect("fine");
        assert_eq!(
            (layout.top.as_deref(), names(&layout)),
            (Some(&b"p-1"[..]), vec!["a".into(), "src/b".into()])
        );
        assert_eq!(layout.folders.keys().collect::<Vec<_>>(), [b"src"]);
        for kept in [
            vec![file("p/a"), file("q/a")],
            vec![file("p/a"), file("b")],
            vec![file("p/a"), file("pq/b")],
            vec![item("", Kind::Folder), file("p/a")],
            vec![item("p", Kind::Folder)],
            vec![file("p")],
        ] {
            assert_eq!(Layout::new(&kept).expect("fine").top, None, "{kept:?}");
        }
    }

    #[test]
    fn the_last_of_a_name_counts() {
        let layout =
            Layout::new(&[file("a"), link("b", "a"), item("a", Kind::Folder), file("a/c")]).expect("fine");
        assert_eq!(layout.rest.keys().copied().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn links_may_lead_anywhere_but_out() {
        for (name, target) in
            [("a/l", "../b"), ("l", "nowhere"), ("a/b/l", "../../x/y"), ("l", "."), ("l", "a/../b")]
        {
            Layout::new(&[file("z"), link(name, target)]).expect(target);
        }
        for items in [
            vec![link("l", "/etc")],
            vec![link("l", "..")],
            vec![link("a/l", "../../x")],
            vec![link("here", "."), link("l", "here/..")],
            vec![link("a/up", ".."), link("l", "a/up/../x")],
            vec![link("l", "l")],
            vec![link("l", "sub"), file("l/x"), file("y")],
            vec![item("h", Kind::Hardlink(b"later".to_vec())), file("later")],
            vec![link("l", "x"), item("h", Kind::Hardlink(b"l".to_vec()))],
            vec![file("top/a"), link("top/l", "../top/a")],
        ] {
            assert!(Layout::new(&items).is_err(), "{items:?}");
        }
    }

    #[test]
    fn a_name_that_leaves_is_refused_on_any_system() {
        for name in ["/a", "../a", "a/../b", "a/..", "..\\a", "a\\..\\b", "\\a", "C:\\a", "c:/a", "a\0b"] {
            assert!(clean(name.as_bytes()).is_err(), "{name}");
        }
        for (name, want) in [("./a//b/", "a/b"), (".", ""), ("..a/b..", "..a/b.."), ("a\\x2d", "a\\x2d")] {
            assert_eq!(clean(name.as_bytes()).as_deref(), Ok(want.as_bytes()));
        }
    }

    fn any_item() -> impl Strategy<Value = (String, Option<String>)> {
        ("[ab./]{1,6}", prop::option::of("[ab./]{1,8}"))
    }

    proptest! {
        /// The promise, against the real file system: what a layout accepts is made below a folder, and no name or link
        /// of it resolves to a place outside.
        #[test]
        fn nothing_ever_lands_outside(raw in prop::collection::vec(any_item(), 1..7)) {
            let items: Result<Vec<Item>, Offence> = raw.iter().map(|(name, target)| {
                let kind = target.as_ref().map_or(Kind::File, |t| Kind::Symlink(t.clone().into()));
                clean(name.as_bytes()).map(|name| Item { name, kind })
            }).collect();
            let Ok(layout) = items.as_ref().map_err(|_| ()).and_then(|i| Layout::new(i).map_err(|_| ())) else {
                return Ok(());
            };
            let items = items.expect("clean");
            let outer = tempfile::tempdir().expect("a folder");
            let root = outer.path().canonicalize().expect("there").join("r");
            std::fs::create_dir(&root).expect("made");
            let at = |name: &[u8]| root.join(std::str::from_utf8(name).expect("ascii"));
            for folder in layout.folders.keys() {
                std::fs::create_dir_all(at(folder)).expect("made");
            }
            for (index, name) in &layout.rest {
                match &items[*index].kind {
                    Kind::Symlink(t) => {
                        std::os::unix::fs::symlink(std::str::from_utf8(t).expect("ascii"), at(name)).expect("made");
                    }
                    Kind::File | Kind::Folder | Kind::Hardlink(_) => std::fs::write(at(name), "x").expect("made"),
                }
            }
            for name in layout.rest.values() {
                if let Ok(real) = at(name).canonicalize() {
                    prop_assert!(real.starts_with(&root), "{:?} is {real:?}", at(name));
                }
            }
            prop_assert_eq!(std::fs::read_dir(outer.path()).expect("there").count(), 1);
        }
    }
}
