//! `preheat logs`

use std::time::Duration;

use futures::StreamExt;

use super::client::Client;
use super::exit::Exit;
use super::follow::{Heard, follow};
use super::out;
use super::problem::Problem;
use super::progress::Progress;
use super::sse::Parser;
use crate::api::wire::LogLine;
use crate::ids::BuildId;

/// Prints what is there, or with `follow` all that comes.
pub async fn command(
    client: &Client,
    id: BuildId,
    follow: bool,
    json: bool,
    reconnect: Duration,
) -> Result<Exit, Problem> {
    let printer = Printer { json, progress: Progress::plain() };
    if follow { followed(client, id, &printer, reconnect).await } else { stored(client, id, &printer).await }
}

struct Printer {
    json: bool,
    progress: Progress,
}

impl Printer {
    fn line(&self, line: LogLine) -> Result<(), Problem> {
        if self.json {
            let text = serde_json::to_string(&line)
                .map_err(|e| Problem::system(format!("cannot write JSON: {e}")))?;
            out(&format!("{text}\n"));
        } else {
            self.progress.lines(&[line]);
        }
        Ok(())
    }
}

async fn stored(client: &Client, id: BuildId, printer: &Printer) -> Result<Exit, Problem> {
    let mut body = client.log(id, 0, false).await?.bytes_stream();
    let mut parser = Parser::default();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| Problem::from(client.unreachable(&e)))?;
        let events = parser.push(&piece).map_err(|e| Problem::system(e.to_string()))?;
        for event in events.iter().filter(|e| e.name.is_empty()) {
            if let Ok(line) = serde_json::from_str(&event.data) {
                printer.line(line)?;
            }
        }
    }
    Ok(Exit::Success)
}

async fn followed(
    client: &Client,
    id: BuildId,
    printer: &Printer,
    reconnect: Duration,
) -> Result<Exit, Problem> {
    let mut heard = follow(client, id, reconnect);
    while let Some(heard) = heard.recv().await {
        match heard {
            Heard::Line(line) => printer.line(line)?,
            Heard::View(_) => {}
            Heard::Lost(why) => printer.progress.note(&format!("{why}; trying again")),
            Heard::Back => printer.progress.note("connected again"),
            Heard::End(_) => break,
            Heard::GivenUp(problem) => return Err(problem),
        }
    }
    Ok(Exit::Success)
}
