//! The way of a build's output: from the step's lines through redaction into the file, and from the file to a follower.
//! Beside it, in turns, the same bytes written to a file and read back by nothing of ours.

mod common;

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use common::{Spread, figure, say};
use futures::StreamExt;
use preheat::api::wire::LogStream;
use preheat::build::log::{self, LogItem, LogWriter};
use preheat::build::redact::Redactor;
use preheat::clock::now;
use secrecy::SecretString;

const ROUNDS: usize = 9;

/// What a compiler prints: lines of about so many bytes, and so many of them.
const LINE_BYTES: usize = 120;
const LINES: usize = 100_000;

const MIB: f64 = (1 << 20) as f64;

fn main() -> std::process::ExitCode {
    common::main(bench())
}

async fn bench() -> Result<()> {
    common::machine("none");
    let (mut ours, mut bare) = (Spread::default(), Spread::default());
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir()?;
        ours.add(pipeline(&dir.path().join("log")).await?);
        bare.add(plain(&dir.path().join("plain"))?);
    }
    say(&format!("{LINES} lines of {LINE_BYTES} bytes; MiB of output per second, median [min - max]"));
    say(&format!("  writer, file, follower   {ours}"));
    say(&format!("  a plain file             {bare}"));
    figure("log_mib_per_second", ours.median());
    figure("log_over_plain_file", ours.median() / bare.median());
    Ok(())
}

fn text() -> String {
    "clang -c -o build/a.o a.c ".chars().cycle().take(LINE_BYTES).collect()
}

fn rate(took: std::time::Duration) -> f64 {
    (LINES * LINE_BYTES) as f64 / MIB / took.as_secs_f64()
}

/// Until the follower has the last line.
async fn pipeline(path: &Path) -> Result<f64> {
    let secret = SecretString::from("s3cret-that-is-not-printed");
    let (writer, head) = LogWriter::open(path, Redactor::new([&secret]), u64::MAX)?;
    let mut lines = log::read(path.to_owned(), 0, Some(head));
    let text = text();
    let begun = now();
    let follower = tokio::spawn(async move {
        let mut seen = 0;
        while lines.next().await.is_some() {
            seen += 1;
        }
        seen
    });
    for _ in 0..LINES {
        let item = LogItem {
            stream: LogStream::Out,
            step: Some("make".into()),
            text: text.clone(),
            run: None,
            split: false,
        };
        writer.write(item).await;
    }
    drop(writer);
    let seen = follower.await.context("the follower ends")?;
    let took = begun.elapsed();
    if seen != LINES {
        bail!("the follower saw {seen} lines of {LINES}");
    }
    Ok(rate(took))
}

fn plain(path: &Path) -> Result<f64> {
    let text = text();
    let begun = now();
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for _ in 0..LINES {
        writeln!(file, "{text}")?;
    }
    file.into_inner()?.sync_data()?;
    let mut read = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut read)?;
    if read.len() < LINES * LINE_BYTES {
        bail!("the file is too short");
    }
    Ok(rate(begun.elapsed()))
}
