//! What a controller's word on a build means for us. Its words are taken with care: it fails builds that live, and offers
//! builds that are none.

use super::wire::Remote;

/// How a build stands with its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is this worker's.
    Ours,
    /// Somebody over there cancelled it.
    Cancelled,
    /// It was given up because no heartbeat came, or none was noted. The result is taken all the same.
    Swept,
    /// Its result is there.
    Completed,
    /// It waits again, or is another worker's.
    Elsewhere,
    /// It failed, with these words.
    Failed(String),
    /// A word that we do not know.
    Unknown(String),
}

/// Reads it.
pub fn of(remote: &Remote, worker: &str) -> Standing {
    let said = remote.error_message.clone().unwrap_or_default();
    let lower = said.to_ascii_lowercase();
    match remote.status.to_ascii_lowercase().as_str() {
        "assigned" | "building" | "running" => match &remote.worker_id {
            Some(other) if other != worker => Standing::Elsewhere,
            Some(_) | None => Standing::Ours,
        },
        "pending" | "queued" => Standing::Elsewhere,
        "completed" => Standing::Completed,
        "cancelled" | "canceled" => Standing::Cancelled,
        "failed" if lower.contains("cancelled by") || lower.contains("canceled by") => Standing::Cancelled,
        "failed" if lower.contains("no heartbeat") => Standing::Swept,
        "failed" => Standing::Failed(said),
        other => Standing::Unknown(other.to_owned()),
    }
}

/// What becomes of a job that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Holds,
    /// It is over, and is offered until somebody says so.
    Clear,
    /// It is somebody else's, or has its result: whatever is said of it would do harm.
    Leave,
}

/// Decides about an offer.
pub fn claim(standing: &Standing) -> Claim {
    match standing {
        Standing::Ours => Claim::Holds,
        Standing::Cancelled | Standing::Swept | Standing::Failed(_) => Claim::Clear,
        Standing::Completed | Standing::Elsewhere | Standing::Unknown(_) => Claim::Leave,
    }
}

/// What becomes of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It is to be brought.
    Bring,
    /// It is there.
    There,
    /// Nobody wants it any more.
    Cancelled,
    /// Another worker has the build, or brought it home.
    Overtaken,
}

/// Decides about a result, a success or not, that was `sent` before, perhaps in vain. A build that has a success is never made
/// a failure.
pub fn delivery(standing: &Standing, success: bool, sent: Option<&str>) -> Delivery {
    match standing {
        Standing::Completed if success => Delivery::There,
        Standing::Completed | Standing::Elsewhere => Delivery::Overtaken,
        Standing::Cancelled => Delivery::Cancelled,
        Standing::Failed(said) if !success && sent == Some(said) => Delivery::There,
        Standing::Ours | Standing::Swept | Standing::Failed(_) | Standing::Unknown(_) => Delivery::Bring,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(status: &str, worker: Option<&str>, error: Option<&str>) -> Standing {
        let text = |t: &str| t.to_owned();
        let remote = Remote {
            id: "j".into(),
            status: status.into(),
            worker_id: worker.map(text),
            error_message: error.map(text),
        };
        of(&remote, "me")
    }

    #[test]
    fn a_sweep_is_told_from_a_cancel_and_both_from_a_failure() {
        let failed = |text| standing("failed", None, Some(text));
        assert_eq!(failed("Build cancelled by user"), Standing::Cancelled);
        assert_eq!(failed("Build timeout - no heartbeat from worker for 125s"), Standing::Swept);
        assert_eq!(failed("Build timeout - no heartbeat received"), Standing::Swept);
        assert_eq!(failed("Build failed"), Standing::Failed("Build failed".into()));
        assert_eq!(standing("cancelled", None, None), Standing::Cancelled);
    }

    #[test]
    fn only_what_is_assigned_to_this_worker_is_ours() {
        assert_eq!(standing("assigned", Some("me"), None), Standing::Ours);
        assert_eq!(standing("building", Some("me"), None), Standing::Ours);
        assert_eq!(standing("assigned", Some("other"), None), Standing::Elsewhere);
        assert_eq!(standing("pending", None, None), Standing::Elsewhere);
    }

    #[test]
    fn a_ghost_is_cleared_and_what_is_anothers_or_done_is_left_alone() {
        assert_eq!(claim(&standing("assigned", Some("me"), None)), Claim::Holds);
        assert_eq!(claim(&standing("failed", None, Some("Build cancelled by user"))), Claim::Clear);
        assert_eq!(claim(&standing("assigned", Some("other"), None)), Claim::Leave);
        assert_eq!(claim(&standing("completed", Some("me"), None)), Claim::Leave);
    }

    #[test]
    fn a_late_success_is_brought_and_a_late_failure_spoils_nothing() {
        let swept = standing("failed", None, Some("Build timeout - no heartbeat from worker for 125s"));
        assert_eq!(delivery(&swept, true, None), Delivery::Bring);
        let completed = standing("completed", Some("me"), None);
        assert_eq!(delivery(&completed, true, Some("")), Delivery::There);
        assert_eq!(delivery(&completed, false, None), Delivery::Overtaken);
        let failed = standing("failed", None, Some("user: it failed"));
        assert_eq!(delivery(&failed, false, Some("user: it failed")), Delivery::There);
        assert_eq!(delivery(&failed, false, None), Delivery::Bring);
        assert_eq!(delivery(&standing("cancelled", None, None), true, None), Delivery::Cancelled);
    }
}
