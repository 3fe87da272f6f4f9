//! A build's log: one JSON object a line in a file, numbered without a gap. One task writes; followers read the file and
//! wait on its head, so a slow follower costs nothing and a late one misses nothing.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use futures::stream::{self, BoxStream, StreamExt};
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::sync::{mpsc, watch};

use super::redact::Redactor;
use crate::api::wire::{LogLine, LogStream};
use crate::blocking::{self, File};
use crate::clock::UnixMillis;
use crate::guest::Position;
use crate::ids::RunId;

/// Lines that may wait for the disk; a step that prints faster is slowed down.
const LINES_WAITING_MAX: usize = 1024;

/// Lines that a follower is given at a time.
const BATCH_LINES: usize = 512;

/// How far the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogHead {
    /// Lines that can be read.
    pub lines: u64,
    /// No more will come.
    pub closed: bool,
}

/// A line to be written.
#[derive(Debug)]
pub struct LogItem {
    pub stream: LogStream,
    pub step: Option<String>,
    pub text: String,
    /// The run that printed it, and how far its stream reaches with this line: kept with the line, so that a later daemon
    /// goes on exactly behind it.
    pub run: Option<(RunId, u64)>,
    /// The next line of the run's stream goes on with it.
    pub split: bool,
}

/// The way into a log. Clones share it; when the last is dropped, the log is closed.
#[derive(Debug, Clone)]
pub struct LogWriter {
    lines: mpsc::Sender<LogItem>,
}

impl LogWriter {
    /// Opens the log at `path`, after the lines that are there, and writes until every writer is dropped. After
    /// `bytes_max` the rest is counted and dropped, and the log says so.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(
        path: &Path,
        redactor: Redactor,
        bytes_max: u64,
    ) -> std::io::Result<(Self, watch::Receiver<LogHead>)> {
        let (lines, bytes) = mend(path)?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        let (head, follow) = watch::channel(LogHead { lines, closed: false });
        let (sender, receiver) = mpsc::channel(LINES_WAITING_MAX);
        let file = BufWriter::new(File::new(file));
        let sink = Sink { file, lines, bytes, bytes_max, dropped: 0, redactor, held: [None, None] };
        tokio::spawn(write_all(sink, receiver, head));
        Ok((Self { lines: sender }, follow))
    }

    /// Writes a line; waits while the disk is behind.
    pub async fn write(&self, item: LogItem) {
        self.lines.send(item).await.ok();
    }

    /// preheat's own words.
    pub async fn say(&self, text: impl Into<String>) {
        self.write(ours(text.into())).await;
    }
}

/// preheat's own words.
fn ours(text: String) -> LogItem {
    LogItem { stream: LogStream::Sys, step: None, text, run: None, split: false }
}

/// The last word in the log of a build whose daemon ended before it, or just after it: it stands there once.
///
/// # Errors
/// When the file cannot be written.
pub async fn conclude(path: &Path, text: String) -> std::io::Result<()> {
    let (writer, mut head) = LogWriter::open(path, Redactor::none(), u64::MAX)?;
    let lines = read(path.to_owned(), head.borrow().lines.saturating_sub(1), None);
    let last = lines.collect::<Vec<_>>().await.pop();
    if last.is_none_or(|line| line.stream != LogStream::Sys || line.text != text) {
        writer.say(text).await;
    }
    drop(writer);
    head.wait_for(|head| head.closed).await.map_err(std::io::Error::other)?;
    Ok(())
}

/// How far the outputs of a run are in the log at `path`: behind the last line of each. `each` is told what stands there.
///
/// # Errors
/// When the file cannot be read.
pub fn position(path: &Path, run: &RunId, mut each: impl FnMut(&str)) -> std::io::Result<Position> {
    let mut at = Position::default();
    for raw in BufReader::new(std::fs::File::open(path)?).split(b'\n') {
        let Ok(line) = serde_json::from_slice::<LogLine>(&raw?) else { continue };
        if let (Some(end), true) = (line.end, line.run.as_ref() == Some(run)) {
            each(&line.text);
            match line.stream {
                LogStream::Out => at.out = at.out.max(end),
                LogStream::Err => at.err = at.err.max(end),
                LogStream::Sys => {}
            }
        }
    }
    Ok(at)
}

/// Counts the whole lines of a log and cuts off a last one that a crash left half-written.
fn mend(path: &Path) -> std::io::Result<(u64, u64)> {
    let file = match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((0, 0)),
        Err(e) => return Err(e),
    };
    let (mut lines, mut whole) = (0, 0);
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        lines += 1;
        whole += read as u64;
    }
    file.set_len(whole)?;
    Ok((lines, whole))
}

struct Sink {
    file: BufWriter<File>,
    lines: u64,
    bytes: u64,
    bytes_max: u64,
    dropped: u64,
    redactor: Redactor,
    /// Of each of a step's outputs: what may be the beginning of a secret, where a line was cut.
    held: [Option<LogItem>; 2],
}

impl Sink {
    async fn put(&mut self, item: LogItem) -> std::io::Result<()> {
        let LogItem { stream, step, text, run, split: _ } = item;
        let (run, end) = run.unzip();
        let line = LogLine { n: self.lines + 1, at_ms: UnixMillis::now(), stream, step, text, run, end };
        let mut json = serde_json::to_vec(&line)?;
        json.push(b'\n');
        self.file.write_all(&json).await?;
        self.lines += 1;
        self.bytes += json.len() as u64;
        Ok(())
    }

    /// Takes a line. The end of a piece that may be the beginning of a secret waits for the next piece, and is not counted
    /// as being in the log: after a crash it is read again.
    async fn item(&mut self, mut item: LogItem) -> std::io::Result<()> {
        let slot = match item.stream {
            LogStream::Out => 0,
            LogStream::Err => 1,
            LogStream::Sys => {
                self.let_go().await?;
                return self.redacted(item).await;
            }
        };
        if let Some(held) = self.held[slot].take() {
            if same_run(&held, &item) {
                item.text.insert_str(0, &held.text);
            } else {
                self.redacted(held).await?;
            }
        }
        if item.split {
            let rest = item.text.split_off(self.redactor.settled(&item.text));
            if !rest.is_empty() {
                let (step, run) = (item.step.clone(), item.run.clone());
                self.held[slot] = Some(LogItem { stream: item.stream, step, text: rest, run, split: true });
                if let (Some((_, end)), Some(held)) = (&mut item.run, &self.held[slot]) {
                    *end = end.saturating_sub(held.text.len() as u64);
                }
            }
            if item.text.is_empty() {
                return Ok(());
            }
        }
        self.redacted(item).await
    }

    /// Nothing more comes of what was held.
    async fn let_go(&mut self) -> std::io::Result<()> {
        for slot in 0..self.held.len() {
            if let Some(held) = self.held[slot].take() {
                self.redacted(held).await?;
            }
        }
        Ok(())
    }

    async fn redacted(&mut self, item: LogItem) -> std::io::Result<()> {
        // preheat's own words are few, and the last of them say how it ended.
        if self.bytes >= self.bytes_max && item.stream != LogStream::Sys {
            if self.dropped == 0 {
                let text = format!(
                    "the log is larger than {} bytes (builds.log_max): the rest is dropped",
                    self.bytes_max
                );
                self.put(ours(text)).await?;
            }
            self.dropped += 1;
            return Ok(());
        }
        let text = self.redactor.redact(&item.text).into_owned();
        self.put(LogItem { text, ..item }).await
    }
}

/// Whether the second goes on where the first ends.
fn same_run(held: &LogItem, item: &LogItem) -> bool {
    let run = |item: &LogItem| item.run.as_ref().map(|(run, _)| run.clone());
    held.step == item.step && run(held) == run(item)
}

async fn write_all(mut sink: Sink, mut receiver: mpsc::Receiver<LogItem>, head: watch::Sender<LogHead>) {
    let mut items = Vec::new();
    while receiver.recv_many(&mut items, BATCH_LINES).await > 0 {
        let mut written = Ok(());
        for item in items.drain(..) {
            if written.is_ok() {
                written = sink.item(item).await;
            }
        }
        // One flush for all that had come: a follower sees a line as soon as there is no other behind it.
        if written.is_err() || sink.file.flush().await.is_err() {
            crate::telemetry::events::Degraded { what: "build log", error: "it cannot be written".into() }
                .emit();
            break;
        }
        head.send_replace(LogHead { lines: sink.lines, closed: false });
    }
    sink.let_go().await.ok();
    if sink.dropped > 0 {
        let text = format!("{} lines were dropped", sink.dropped);
        sink.put(ours(text)).await.ok();
    }
    sink.file.flush().await.ok();
    sink.file.get_ref().sync_data().await.ok();
    head.send_replace(LogHead { lines: sink.lines, closed: true });
}

/// Where a reader is in the file.
struct Cursor {
    path: PathBuf,
    offset: u64,
    after: u64,
}

impl Cursor {
    /// The next lines, at most a batch. Only whole lines are taken.
    fn read(mut self) -> std::io::Result<(Self, Vec<LogLine>)> {
        let mut lines = Vec::new();
        let mut file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((self, lines)),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut raw = Vec::new();
        while lines.len() < BATCH_LINES {
            raw.clear();
            let read = reader.read_until(b'\n', &mut raw)?;
            if read == 0 || raw.last() != Some(&b'\n') {
                break;
            }
            self.offset += read as u64;
            if let Ok(line) = serde_json::from_slice::<LogLine>(&raw)
                && line.n > self.after
            {
                self.after = line.n;
                lines.push(line);
            }
        }
        Ok((self, lines))
    }
}

/// The lines after number `after`. With a head it goes on until the log is closed; without, it ends with the file.
pub fn read(
    path: PathBuf,
    after: u64,
    head: Option<watch::Receiver<LogHead>>,
) -> BoxStream<'static, LogLine> {
    let start = Some((Cursor { path, offset: 0, after }, head));
    stream::unfold(start, |state| async move {
        let (mut cursor, mut head) = state?;
        loop {
            let seen = head.as_mut().map(|h| *h.borrow_and_update());
            let read = blocking::run(move || cursor.read()).await;
            let Ok(Ok((next, lines))) = read else { return None };
            cursor = next;
            if !lines.is_empty() {
                return Some((stream::iter(lines), Some((cursor, head))));
            }
            // Nothing new up to the head that was read before: wait for the head to move, unless it never will.
            let follow = head.as_mut().filter(|_| seen.is_some_and(|s| !s.closed))?;
            follow.changed().await.ok()?;
        }
    })
    .flatten()
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::lines::LINE_BYTES_MAX;

    async fn texts(path: &Path, after: u64) -> Vec<(u64, String)> {
        read(path.to_owned(), after, None).map(|l| (l.n, l.text)).collect().await
    }

    async fn closed(mut head: watch::Receiver<LogHead>) -> u64 {
        head.wait_for(|h| h.closed).await.expect("it closes").lines
    }

    #[tokio::test]
    async fn a_follower_gets_every_line_once_and_then_the_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let (writer, head) = LogWriter::open(&path, Redactor::none(), 1 << 20).expect("it opens");
        let follower = tokio::spawn(read(path.clone(), 0, Some(head)).map(|l| l.n).collect::<Vec<_>>());
        for n in 0..3000 {
            writer.say(format!("line {n}")).await;
        }
        drop(writer);
        assert_eq!(follower.await.expect("it ends"), (1..=3000).collect::<Vec<_>>());
        assert_eq!(texts(&path, 2998).await, [(2999, "line 2998".into()), (3000, "line 2999".into())]);
    }

    #[tokio::test]
    async fn a_log_goes_on_after_a_crash_without_a_gap() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let (writer, head) = LogWriter::open(&path, Redactor::none(), 1 << 20).expect("it opens");
        writer.say("one").await;
        drop(writer);
        closed(head).await;
        let half = std::fs::OpenOptions::new().append(true).open(&path).expect("opens");
        std::io::Write::write_all(&mut &half, b"{\"n\":2,\"at_").expect("written");
        let (writer, head) = LogWriter::open(&path, Redactor::none(), 1 << 20).expect("it opens again");
        writer.say("two").await;
        drop(writer);
        closed(head).await;
        assert_eq!(texts(&path, 0).await, [(1, "one".into()), (2, "two".into())]);
    }

    /// The lines of a log whose redactor knows `hunter2-secret`, with their ends.
    async fn masked(items: Vec<LogItem>) -> Vec<(String, Option<u64>)> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let redactor = Redactor::new(&[secrecy::SecretString::from("hunter2-secret")]);
        let (writer, head) = LogWriter::open(&path, redactor, 1 << 20).expect("it opens");
        for item in items {
            writer.write(item).await;
        }
        drop(writer);
        closed(head).await;
        read(path, 0, None).map(|line| (line.text, line.end)).collect().await
    }

    fn printed(stream: LogStream, run: &RunId, text: String, end: usize) -> LogItem {
        LogItem { stream, step: None, text, run: Some((run.clone(), end as u64)), split: false }
    }

    fn piece(stream: LogStream, run: &RunId, text: String) -> LogItem {
        let end = text.len();
        LogItem { split: true, ..printed(stream, run, text, end) }
    }

    #[tokio::test]
    async fn a_secret_that_a_long_line_was_cut_in_is_masked_wherever_the_cut_is() {
        let run = RunId::new();
        for at in 1.."hunter2-secret".len() {
            let (head, tail) = "hunter2-secret".split_at(at);
            let first = format!("{}{head}", "x".repeat(LINE_BYTES_MAX - at));
            let second = format!("{tail} and more");
            let end = first.len() + second.len() + 1;
            let lines = masked(vec![
                piece(LogStream::Out, &run, first),
                printed(LogStream::Err, &run, "between".into(), 8),
                printed(LogStream::Out, &run, second, end),
            ])
            .await;
            let want = [
                // What is held is not covered by the position.
                ("x".repeat(LINE_BYTES_MAX - at), Some((LINE_BYTES_MAX - at) as u64)),
                ("between".into(), Some(8)),
                ("*** and more".into(), Some(end as u64)),
            ];
            assert_eq!(lines, want, "cut at {at}");
        }
    }

    #[tokio::test]
    async fn what_was_held_comes_out_when_no_secret_follows() {
        let (run, other) = (RunId::new(), RunId::new());
        let long = format!("{}hunter2", "x".repeat(LINE_BYTES_MAX - 7));
        let cut = || piece(LogStream::Out, &run, long.clone());
        let whole = |lines: Vec<(String, Option<u64>)>| {
            assert_eq!(lines[1], ("hunter2".to_owned(), Some(LINE_BYTES_MAX as u64)));
        };
        whole(masked(vec![cut()]).await);
        whole(masked(vec![cut(), ours("the step is over".into())]).await);
        whole(masked(vec![cut(), printed(LogStream::Out, &other, "-secret".into(), 8)]).await);
        let lines =
            masked(vec![cut(), printed(LogStream::Out, &run, "-sec".into(), LINE_BYTES_MAX + 5)]).await;
        assert_eq!(lines[1], ("hunter2-sec".to_owned(), Some(LINE_BYTES_MAX as u64 + 5)));
        // A line with an end of its own is not held, whatever its length.
        for before in [0, LINE_BYTES_MAX - 7] {
            let first = format!("{}hunter2", "x".repeat(before));
            let lines = masked(vec![
                printed(LogStream::Out, &run, first.clone(), before + 8),
                printed(LogStream::Out, &run, "-secret".into(), before + 16),
            ])
            .await;
            let end = before as u64;
            assert_eq!(lines, [(first, Some(end + 8)), ("-secret".to_owned(), Some(end + 16))]);
        }
    }

    #[tokio::test]
    async fn the_last_word_stands_once_however_often_it_is_said() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        for _ in 0..3 {
            conclude(&path, "success".into()).await.expect("written");
        }
        assert_eq!(texts(&path, 0).await, [(1, "success".into())]);
        let half = std::fs::OpenOptions::new().append(true).open(&path).expect("opens");
        std::io::Write::write_all(&mut &half, b"{\"n\":2,\"at_").expect("written");
        conclude(&path, "error: x".into()).await.expect("written");
        assert_eq!(texts(&path, 1).await, [(2, "error: x".into())]);
    }

    #[tokio::test]
    async fn a_log_over_its_limit_says_so_and_keeps_our_words() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let (writer, head) = LogWriter::open(&path, Redactor::none(), 200).expect("it opens");
        for _ in 0..100 {
            let item =
                LogItem { stream: LogStream::Out, step: None, text: "x".repeat(50), run: None, split: false };
            writer.write(item).await;
        }
        writer.say("result: success").await;
        drop(writer);
        assert!(closed(head).await < 10);
        let said: Vec<String> = texts(&path, 0).await.into_iter().map(|(_, t)| t).collect();
        assert!(said.iter().any(|t| t.contains("builds.log_max")), "{said:?}");
        assert!(said.iter().any(|t| t == "result: success"), "{said:?}");
        assert!(said.last().expect("lines").ends_with("lines were dropped"), "{said:?}");
    }
}
