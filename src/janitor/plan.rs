//! The table: what is expected of a VM, and how it was found, to what is done.
//!
//! | name | expected | running | suspended, stopped | not there |
//! |---|---|---|---|---|
//! | ours | to run | keep | tell its actor | tell its actor |
//! | ours | to be there | keep | keep | tell its actor |
//! | ours | to come or to go | keep | keep | keep |
//! | ours | quarantined | try again | try again | try again: then it is known to be gone |
//! | ours | not | stop, then delete | delete | - |
//! | malformed | - | report, leave alone | report, leave alone | - |
//! | not ours | - | leave alone | leave alone | - |

use std::collections::BTreeMap;

use crate::runtime::{Listed, ListedState, Parsed, VmName};

/// What the books say of a VM of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Its guest runs.
    Runs,
    /// Its files are there, and it may run.
    There,
    /// It is being made or taken away: anything may be found.
    Changing,
    /// It could not be removed.
    Quarantined,
}

/// What is done about one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Keep,
    StopAndDelete(VmName),
    Delete(VmName),
    Report,
    LeaveAlone,
    /// Its actor believes in something that is not there, and is to learn it.
    Tell(VmName),
    /// Its actor is to try once more to remove it.
    TryAgain(VmName),
}

/// What the books say, before and after the host was listed.
#[derive(Debug, Clone, Default)]
pub struct Books {
    pub before: BTreeMap<String, Expected>,
    pub after: BTreeMap<String, Expected>,
}

impl Books {
    /// What is expected of a VM. A listing is as old as its beginning and as new as its end, so what changed meanwhile is
    /// in change; and what is new in the books was written there before anything of it existed.
    fn expected(&self, name: &str) -> Option<Expected> {
        let after = self.after.get(name).copied()?;
        Some(if self.before.get(name) == Some(&after) { after } else { Expected::Changing })
    }
}

/// The action for each VM that was found, and for each that was not and should have been.
pub fn plan(books: &Books, found: &[Listed]) -> Vec<(String, Action)> {
    let there = found.iter().map(|row| (row.name.clone(), action(books, &row.name, Some(row.state))));
    let missing = books.after.keys().filter(|name| !found.iter().any(|row| row.name == **name));
    there.chain(missing.map(|name| (name.clone(), action(books, name, None)))).collect()
}

fn action(books: &Books, name: &str, found: Option<ListedState>) -> Action {
    use Expected::{Changing, Quarantined, Runs, There};
    use ListedState::{Running, Stopped, Suspended};
    let vm = match VmName::parse(name) {
        Parsed::NotOurs => return Action::LeaveAlone,
        Parsed::Malformed => return Action::Report,
        Parsed::Ours(vm) => vm,
    };
    match (books.expected(name), found) {
        (Some(Runs), Some(Running)) => Action::Keep,
        (Some(Runs), Some(Suspended | Stopped) | None) => Action::Tell(vm),
        (Some(There), Some(Running | Suspended | Stopped)) => Action::Keep,
        (Some(There), None) => Action::Tell(vm),
        (Some(Changing), Some(Running | Suspended | Stopped) | None) => Action::Keep,
        (Some(Quarantined), Some(Running | Suspended | Stopped) | None) => Action::TryAgain(vm),
        (None, Some(Running)) => Action::StopAndDelete(vm),
        (None, Some(Suspended | Stopped)) => Action::Delete(vm),
        (None, None) => Action::LeaveAlone,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = ListedState> {
        prop_oneof![Just(ListedState::Running), Just(ListedState::Suspended), Just(ListedState::Stopped)]
    }

    fn any_expected() -> impl Strategy<Value = Option<Expected>> {
        use Expected::{Changing, Quarantined, Runs, There};
        proptest::option::of(prop_oneof![Just(Runs), Just(There), Just(Changing), Just(Quarantined)])
    }

    #[test]
    fn a_vm_whose_process_or_files_vanished_is_told_and_one_in_change_is_not() {
        let name = "preheat-a-0-1".to_owned();
        let says = |before, after, found: Option<ListedState>| {
            let map = |expected: Option<Expected>| expected.map(|e| (name.clone(), e)).into_iter().collect();
            let books = Books { before: map(before), after: map(after) };
            let found: Vec<_> = found.map(|state| Listed { name: name.clone(), state }).into_iter().collect();
            plan(&books, &found).pop().map(|(_, action)| action)
        };
        let Parsed::Ours(vm) = VmName::parse(&name) else { panic!("ours") };
        let (runs, there) = (Some(Expected::Runs), Some(Expected::There));
        assert_eq!(says(runs, runs, Some(ListedState::Stopped)), Some(Action::Tell(vm.clone())));
        assert_eq!(says(runs, runs, None), Some(Action::Tell(vm.clone())));
        assert_eq!(says(there, there, None), Some(Action::Tell(vm.clone())));
        assert_eq!(says(there, runs, Some(ListedState::Stopped)), Some(Action::Keep), "it started meanwhile");
        assert_eq!(says(None, there, None), Some(Action::Keep), "it is new");
        let lost = Some(Expected::Quarantined);
        assert_eq!(says(lost, lost, None), Some(Action::TryAgain(vm.clone())));
        assert_eq!(says(None, None, Some(ListedState::Running)), Some(Action::StopAndDelete(vm)));
    }

    proptest! {
        #[test]
        fn what_is_not_ours_or_is_expected_is_never_touched(
            rows in proptest::collection::btree_map(
                "(preheat-)?[a-z]{1,4}-[0-9]{1,2}-[0-9]{1,2}",
                (proptest::option::of(any_state()), any_expected(), any_expected()),
                0..20,
            )
        ) {
            let mut books = Books::default();
            let mut found = Vec::new();
            for (name, (state, before, after)) in &rows {
                books.before.extend(before.map(|e| (name.clone(), e)));
                books.after.extend(after.map(|e| (name.clone(), e)));
                found.extend(state.map(|state| Listed { name: name.clone(), state }));
            }
            for (name, action) in plan(&books, &found) {
                let (state, _, after) = &rows[&name];
                let touched = matches!(action, Action::Delete(_) | Action::StopAndDelete(_));
                let ours = matches!(VmName::parse(&name), Parsed::Ours(_));
                prop_assert_eq!(touched, ours && after.is_none() && state.is_some());
                if matches!(action, Action::Tell(_) | Action::TryAgain(_)) {
                    prop_assert!(ours && after.is_some(), "nobody to tell");
                }
            }
        }
    }
}
