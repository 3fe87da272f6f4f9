//! What `run` shows while a build goes on: a line for each phase that ended, what it waits for, and the steps' output.
//! On a terminal a last line says what goes on; elsewhere there are plain lines only.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::text::{clean, took};
use crate::api::wire::{BuildState, BuildView, LogLine, LogStream, PhaseView};

/// Says each thing about a build once. Pure.
#[derive(Debug, Default)]
pub struct Tracker {
    ended: BTreeSet<(u16, usize)>,
    waits_for: Option<String>,
    attempt: u16,
}

impl Tracker {
    /// What is new in `view`, a line each.
    pub fn news(&mut self, view: &BuildView) -> Vec<String> {
        let mut news = Vec::new();
        if view.attempt > self.attempt {
            if self.attempt > 0 {
                news.push(format!("attempt {}: the system was at fault, the build runs again", view.attempt));
            }
            self.attempt = view.attempt;
        }
        let waits_for = view.waiting_for.clone().filter(|_| view.state == BuildState::Queued);
        if waits_for != self.waits_for {
            news.extend(waits_for.iter().map(|what| format!("waiting for {}", clean(what))));
            self.waits_for = waits_for;
        }
        for (index, phase) in view.phases.iter().enumerate() {
            if phase.took_ms.is_some() && self.ended.insert((phase.attempt, index)) {
                news.push(phase_line(phase));
            }
        }
        news
    }
}

/// `step test     12.4 s  exit 1`
pub fn phase_line(phase: &PhaseView) -> String {
    let mut line =
        format!("{:<14} {:>8}", phase_name(phase), took(Duration::from_millis(phase.took_ms.unwrap_or(0))));
    if let Some(code) = phase.exit_code {
        write!(line, "  exit {code}").ok();
    }
    line
}

fn phase_name(phase: &PhaseView) -> String {
    match &phase.step {
        Some(step) => format!("{} {}", clean(&phase.phase), clean(step)),
        None => clean(&phase.phase),
    }
}

/// The terminal, or what stands in for it.
#[derive(Debug)]
pub struct Progress {
    tracker: Tracker,
    bar: Option<ProgressBar>,
    /// stdout is for one JSON object only.
    json: bool,
}

impl Progress {
    /// For this process's stderr.
    pub fn new(json: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { tracker: Tracker::default(), bar, json }
    }

    /// Without a last line that changes.
    pub fn plain() -> Self {
        Self { tracker: Tracker::default(), bar: None, json: false }
    }

    /// Something preheat has to say.
    pub fn note(&self, text: &str) {
        self.aside(|| super::say(&format!("preheat: {}", clean(text))));
    }

    /// What goes on now.
    pub fn now(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(clean(text));
            bar.reset_elapsed();
        }
    }

    /// The build's record has been looked at.
    pub fn view(&mut self, view: &BuildView) {
        for line in self.tracker.news(view) {
            self.note(&line);
        }
        if let Some(bar) = &self.bar {
            let goes_on = view.phases.iter().rev().find(|p| p.took_ms.is_none()).map(phase_name);
            let text = match (&view.waiting_for, goes_on) {
                (Some(what), _) if view.state == BuildState::Queued => format!("waiting for {}", clean(what)),
                (_, Some(phase)) => phase,
                (_, None) => format!("build {}", view.id),
            };
            if bar.message() != text {
                self.now(&text);
            }
        }
    }

    /// The steps' output goes where they sent it; what preheat says goes to stderr.
    pub fn lines(&self, lines: &[LogLine]) {
        if lines.is_empty() {
            return;
        }
        let json = self.json;
        self.aside(|| {
            let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
            for line in lines {
                // A reader that left does not end the build.
                match line.stream {
                    LogStream::Out if !json => writeln!(out, "{}", line.text).ok(),
                    LogStream::Out | LogStream::Err => writeln!(err, "{}", line.text).ok(),
                    LogStream::Sys => writeln!(err, "preheat: {}", clean(&line.text)).ok(),
                };
            }
            out.flush().ok();
        });
    }

    /// Takes the last line away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}
