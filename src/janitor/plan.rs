//! The table: whose it is, whether it is expected, and how it was found, to what is done.
//!
//! | name | expected | found | action |
//! |---|---|---|---|
//! | ours | yes | any | keep: its actor knows |
//! | ours | no | running | stop, then delete |
//! | ours | no | suspended, stopped | delete |
//! | malformed | - | any | report, leave alone |
//! | not ours | - | any | leave alone |

use std::collections::BTreeSet;

use crate::runtime::{Listed, ListedState, Parsed, VmName};

/// What is done about one VM that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Keep,
    StopAndDelete(VmName),
    Delete(VmName),
    Report,
    LeaveAlone,
}

/// The action for each VM that was found.
pub fn plan<'f>(expected: &BTreeSet<String>, found: &'f [Listed]) -> Vec<(&'f Listed, Action)> {
    found.iter().map(|row| (row, action(expected, row))).collect()
}

fn action(expected: &BTreeSet<String>, row: &Listed) -> Action {
    match (VmName::parse(&row.name), row.state) {
        (Parsed::NotOurs, _) => Action::LeaveAlone,
        (Parsed::Malformed, _) => Action::Report,
        (Parsed::Ours(_), _) if expected.contains(&row.name) => Action::Keep,
        (Parsed::Ours(vm), ListedState::Running) => Action::StopAndDelete(vm),
        (Parsed::Ours(vm), ListedState::Suspended | ListedState::Stopped) => Action::Delete(vm),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = ListedState> {
        prop_oneof![Just(ListedState::Running), Just(ListedState::Suspended), Just(ListedState::Stopped)]
    }

    proptest! {
        #[test]
        fn what_is_not_ours_or_is_expected_is_never_touched(
            rows in proptest::collection::vec(("(preheat-)?[a-z]{1,4}-[0-9]{1,2}-[0-9]{1,2}", any_state(), any::<bool>()), 0..20)
        ) {
            let expected = rows.iter().filter(|(.., e)| *e).map(|(n, ..)| n.clone()).collect();
            let found: Vec<Listed> =
                rows.iter().map(|(n, state, _)| Listed { name: n.clone(), state: *state }).collect();
            for (row, action) in plan(&expected, &found) {
                let touched = matches!(action, Action::Delete(_) | Action::StopAndDelete(_));
                let ours = matches!(VmName::parse(&row.name), Parsed::Ours(_));
                prop_assert_eq!(touched, ours && !expected.contains(&row.name));
            }
        }
    }
}
