//! Follows a build over dropped connections and restarts of the daemon: each line once, none left out.
//!
//! `connected -> (dropped | silent) -> waiting -> connected ... -> end`, or given up when nobody answered for `patience`.
//! A connection that is lost is taken up at the last line that was handed on.

use std::time::Duration;

use reqwest::Response;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::client::{Client, Failure};
use super::problem::Problem;
use super::sse::{Event, Parser};
use crate::api::wire::{BuildView, LogLine};
use crate::clock::Deadline;
use crate::ids::BuildId;

/// Four signs of life missed: the connection is dead, whatever the system thinks of it.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Lines that are read ahead of the terminal.
const AHEAD: usize = 1024;
/// Between two looks at the build's record: it says which phase it is in.
const LOOK: Duration = Duration::from_millis(500);

/// What is heard of a build.
#[derive(Debug)]
pub enum Heard {
    Line(LogLine),
    /// The build's record, as it stands.
    View(Box<BuildView>),
    /// The connection is lost and is being tried again.
    Lost(String),
    /// It is back.
    Back,
    /// The build is over.
    End(Box<BuildView>),
    /// It is not heard of any more.
    GivenUp(Problem),
}

/// Starts to follow. Dropping the receiver ends it.
pub fn follow(client: &Client, id: BuildId, patience: Duration) -> mpsc::Receiver<Heard> {
    let (heard, receiver) = mpsc::channel(AHEAD);
    let ear = Ear { client: client.clone(), id, after: 0, lost: None, patience, heard };
    tokio::spawn(look(ear.client.clone(), id, ear.heard.clone()));
    tokio::spawn(ear.listen());
    receiver
}

/// Looks at the record until nobody wants to know.
async fn look(client: Client, id: BuildId, heard: mpsc::Sender<Heard>) {
    loop {
        // First of all a pause: what is over by then is told by the log's end.
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = heard.closed() => return,
        }
        if let Ok(view) = client.build(id).await
            && heard.send(Heard::View(Box::new(view))).await.is_err()
        {
            return;
        }
    }
}

struct Ear {
    client: Client,
    id: BuildId,
    /// The last line that was handed on.
    after: u64,
    /// Since the connection is lost: when to give up.
    lost: Option<Deadline>,
    patience: Duration,
    heard: mpsc::Sender<Heard>,
}

/// The other side of the channel is gone, or the end was sent: nothing is left to do.
struct Over;

impl Ear {
    async fn listen(mut self) {
        let mut pause = BACKOFF;
        loop {
            let before = self.after;
            let why = match self.client.log(self.id, self.after, true).await {
                Ok(response) => match self.read(response).await {
                    Ok(why) => why,
                    Err(Over) => return,
                },
                Err(failure) if failure.passes() => Problem::from(failure),
                Err(failure) => return self.say(Heard::GivenUp(failure.into())).await.unwrap_or(()),
            };
            if self.after > before {
                pause = BACKOFF;
            }
            if self.wait(why, pause).await.is_err() {
                return;
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// After a lost connection: says so once, and pauses, or gives up.
    async fn wait(&mut self, why: Problem, pause: Duration) -> Result<(), Over> {
        let until = match self.lost {
            Some(until) => until,
            None => {
                self.say(Heard::Lost(why.what.clone())).await?;
                *self.lost.insert(Deadline::after(self.patience))
            }
        };
        if until.left().is_zero() {
            let id = self.id;
            let hint = format!("build {id} goes on; `preheat logs -f {id}` takes it up again");
            self.say(Heard::GivenUp(Problem { hint: Some(hint), ..why })).await?;
            return Err(Over);
        }
        tokio::time::sleep(pause.min(until.left())).await;
        Ok(())
    }

    /// Reads one connection to its end; returns why it ended.
    async fn read(&mut self, mut response: Response) -> Result<Problem, Over> {
        let mut parser = Parser::default();
        loop {
            let piece = match timeout(SILENCE_MAX, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ok(lost("the daemon ended the log")),
                Ok(Err(e)) => match self.client.unreachable(&e) {
                    Failure::Unreachable(problem) => return Ok(problem),
                    Failure::Refused { .. } => return Ok(lost("the daemon ended the log")),
                },
                Err(_) => return Ok(lost("the daemon fell silent")),
            };
            let Ok(events) = parser.push(&piece) else { return Ok(lost("the daemon sent an endless line")) };
            for event in events {
                self.hear(event).await?;
            }
        }
    }

    async fn hear(&mut self, event: Event) -> Result<(), Over> {
        if self.lost.take().is_some() {
            self.say(Heard::Back).await?;
        }
        match event.name.as_str() {
            "" | "message" => match serde_json::from_str::<LogLine>(&event.data) {
                // What was handed on before the connection broke is not handed on again.
                Ok(line) if line.n > self.after => {
                    self.after = line.n;
                    self.say(Heard::Line(line)).await
                }
                Ok(_) | Err(_) => Ok(()),
            },
            "end" => match serde_json::from_str(&event.data) {
                Ok(view) => {
                    self.say(Heard::End(Box::new(view))).await?;
                    Err(Over)
                }
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn say(&self, heard: Heard) -> Result<(), Over> {
        self.heard.send(heard).await.map_err(|_| Over)
    }
}

fn lost(why: &str) -> Problem {
    Problem::system(why).code("unreachable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_comes_again_is_not_handed_on_again() {
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = Client::new("http://127.0.0.1:1", None).expect("a client");
        let (heard, mut hears) = mpsc::channel(AHEAD);
        let (id, lost) = (BuildId(1), Some(Deadline::after(Duration::ZERO)));
        let mut ear = Ear { client, id, after: 2, lost, patience: Duration::ZERO, heard };
        // A server that does not know of resuming sends all of it again.
        for n in [1, 2, 3, 2, 3, 4] {
            let data = format!(r#"{{"n":{n},"at_ms":0,"stream":"out","text":"{n}"}}"#);
            assert!(ear.hear(Event { name: String::new(), data }).await.is_ok());
        }
        drop(ear);
        let mut seen = Vec::new();
        while let Some(heard) = hears.recv().await {
            seen.push(if let Heard::Line(line) = heard { line.text } else { "back".into() });
        }
        assert_eq!(seen, ["back", "3", "4"]);
    }
}
