//! `preheat doctor`: `gather` looks, `facts` is what was seen, `evaluate` judges, and is pure.

pub mod evaluate;
pub mod facts;
pub mod gather;

use std::path::Path;

use serde::Serialize;

use super::exit::Exit;
use super::problem::Problem;
use super::text::clean;
use super::{out, out_json};
use evaluate::{Check, Status, evaluate};

#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Check],
}

/// Looks at this host.
pub async fn command(config: Option<&Path>, json: bool) -> Result<Exit, Problem> {
    let checks = evaluate(&gather::gather(config).await);
    let failed = checks.iter().filter(|c| c.status == Status::Fail).count();
    if json {
        out_json(&Report { ok: failed == 0, checks: &checks })?;
    } else {
        let warned = checks.iter().filter(|c| c.status == Status::Warn).count();
        for check in &checks {
            out(&render(check));
        }
        out(&format!("\n{} checks, {warned} warnings, {failed} failed\n", checks.len()));
    }
    Ok(if failed == 0 { Exit::Success } else { Exit::System })
}

fn render(check: &Check) -> String {
    let mut text =
        format!("{:<5} {:<16} {}\n", check.status.as_str(), clean(&check.check), clean(&check.what));
    if let Some(hint) = &check.hint {
        text.push_str(&format!("{:22} hint: {}\n", "", clean(hint)));
    }
    text
}
