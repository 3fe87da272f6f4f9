//! A build's log on its way to the controller: in order, a bounded batch at a time, each until it is taken. What the controller
//! has is noted in the journal, so that a restart goes on behind it. The log itself is the buffer: nothing piles up here.

use std::ops::ControlFlow;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::StatusCode;
use tokio::time::sleep;

use super::client::{CallError, Said, Session};
use super::desk::Desk;
use super::told;
use super::wire::Dialect;
use crate::api::wire::LogLine;
use crate::ids::BuildId;
use crate::jitter;
use crate::telemetry::events::Degraded;

/// Lines of one call.
const BATCH_LINES: usize = 500;
/// Bytes of one call, but for a single line that is longer.
const BATCH_BYTES: usize = 256 << 10;
/// Lines that come one by one wait for each other so long.
const GATHER: Duration = Duration::from_millis(500);
/// The pause after the first call that failed; it doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// And is not longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Times in a row that we may not be let in: a controller that has given the build up hears no more of it.
const CLOSED_MAX: u32 = 6;

/// Forwards what comes behind line `from`; returns when the log has ended and all of it was taken.
pub async fn forward(desk: &Desk, session: &Session, job: &str, build: BuildId, from: u64) {
    if session.dialect == Dialect::Tokened && session.job_token.is_none() {
        // Without the job's token nobody listens.
        return;
    }
    let Ok(lines) = desk.service.log(build, from, true).await else { return };
    let mut chunks = lines.ready_chunks(BATCH_LINES);
    while let Some(chunk) = chunks.next().await {
        for batch in batches(&chunk) {
            if bring(desk, session, job, batch).await.is_break() {
                return;
            }
        }
        if let Some(last) = chunk.last()
            && let Err(error) = desk.store.note_logged(desk.name(), job, last.n).await
        {
            Degraded { what: "journal", error: error.to_string() }.emit();
        }
        if chunk.len() < BATCH_LINES {
            sleep(GATHER).await;
        }
    }
}

/// Cuts lines into what one call may hold.
fn batches(lines: &[LogLine]) -> Vec<Vec<Said>> {
    let (mut batches, mut bytes) = (Vec::<Vec<Said>>::new(), usize::MAX);
    for line in lines.iter().map(told::line) {
        let more = bytes.saturating_add(line.message.len());
        if more > BATCH_BYTES {
            batches.push(Vec::new());
        }
        bytes = if more > BATCH_BYTES { line.message.len() } else { more };
        if let Some(last) = batches.last_mut() {
            last.push(line);
        }
    }
    batches
}

/// Brings a batch until it is taken; a break says that no other will be.
async fn bring(desk: &Desk, session: &Session, job: &str, batch: Vec<Said>) -> ControlFlow<()> {
    let (mut failures, mut closed) = (0, 0);
    while let Err(error) = desk.client.log(session, job, &batch).await {
        if is_its_own_fault(&error) {
            break;
        }
        closed = if error.is_about_us() { closed + 1 } else { 0 };
        if closed >= CLOSED_MAX {
            return ControlFlow::Break(());
        }
        failures += 1;
        sleep(jitter::backoff(PAUSE_FIRST, PAUSE_MAX, failures, jitter::next())).await;
    }
    ControlFlow::Continue(())
}

/// What the controller will never take must not hold up what comes behind it.
fn is_its_own_fault(error: &CallError) -> bool {
    let never = [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNPROCESSABLE_ENTITY];
    error.status().is_some_and(|status| never.contains(&status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::LogStream;
    use crate::clock::UnixMillis;

    fn lines(texts: &[String]) -> Vec<LogLine> {
        let line = |(n, text): (u64, &String)| LogLine {
            n,
            at_ms: UnixMillis(1),
            stream: LogStream::Out,
            step: None,
            text: text.clone(),
            run: None,
            end: None,
        };
        (1..).zip(texts).map(line).collect()
    }

    #[test]
    fn batches_keep_the_order_and_their_bounds() {
        let texts: Vec<String> = (0..500).map(|n| format!("{n} {}", "x".repeat(n * 15))).collect();
        let cut = batches(&lines(&texts));
        assert!(
            cut.len() > 2
                && cut.iter().all(|b| b.iter().map(|l| l.message.len()).sum::<usize>() <= BATCH_BYTES)
        );
        let all: Vec<String> = cut.into_iter().flatten().map(|line| line.message).collect();
        assert_eq!(all, texts);
        assert!(batches(&[]).is_empty());
    }
}
