//! The simulation for as long as one likes: `cargo run --release --example simulate -- --seeds 1000`.

#![expect(clippy::disallowed_macros, reason = "it is a program that reports on its output")]

mod clients;
mod courier;
mod dice;
mod guest;
mod host;
mod life;
mod operators;
mod plan;
mod report;
mod step;
mod traces;
mod verdict;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use life::{Outcome, play};
use plan::Settings;
use report::Sum;

/// Plays the whole daemon in a simulated world, a history a seed.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds are played.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// This one alone.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Builds of each.
    #[arg(long, default_value_t = 30)]
    builds: u64,
    /// The probability of a fault at each step.
    #[arg(long, default_value_t = 0.05)]
    rate: f64,
    /// Seeds at a time; each has a thread of its own.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// Seeds are played on after one has failed.
    #[arg(long)]
    keep_going: bool,
    /// Shows the last events, those of the disk too, also where nothing broke.
    #[arg(long)]
    verbose: bool,
}

fn show(outcome: &Outcome, args: &Args) {
    let Some((text, recent)) = &outcome.broken else { return };
    for line in recent {
        println!("  {line}");
    }
    let seed = outcome.seed;
    println!("seed {seed}: {text}");
    println!(
        "hint: --seed {seed} --builds {} --rate {} --verbose shows the same again",
        args.builds, args.rate
    );
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (first, last) = match args.seed {
        Some(seed) => (seed, seed),
        None => (args.from, args.from + args.seeds.max(1) - 1),
    };
    let settings = Settings { builds: args.builds, rate: args.rate };
    let (next, sum) = (AtomicU64::new(first), Mutex::new(Sum::default()));
    let began = preheat::clock::now();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    let outcome = play(seed, settings, args.verbose);
                    let mut sum = sum.lock().expect("no thread panicked");
                    sum.add(&outcome);
                    show(&outcome, &args);
                    if outcome.broken.is_some() && !args.keep_going {
                        next.store(last + 1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().expect("no thread panicked");
    let seconds = began.elapsed().as_secs_f64();
    println!("{sum}");
    println!("never happened: {:?}", sum.unseen());
    let (seeds, builds) = (sum.seeds as f64 / seconds, sum.builds as f64 / seconds);
    println!("{seconds:.1} s: {seeds:.1} seeds/s, {builds:.0} builds/s");
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
