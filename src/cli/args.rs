//! What may be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use super::exit::EXIT_CODES;
use crate::api::wire::CacheSpec;
use crate::ids::BuildId;

const EXAMPLES: &str = "\
Examples:
  preheat serve                                  keep the pool warm (on the Mac)
  preheat run ./my-app --pool xcode              build a folder, stream its log, bring its artifacts back
  preheat run ./my-app --pipeline expo --need 'xcode=>=26'
  preheat run ./my-app --step 'make test' --artifact 'build/*.log' --out ./result
  DEPLOY_KEY=... preheat run ./my-app --secret DEPLOY_KEY
  preheat submit app.tar.gz                      submit only; prints the build's number
  preheat logs -f 17                             follow a build's log
  preheat trace 17                               where its time went, as a table and as a file for Perfetto
  preheat ssh 17                                 a shell in the VM of a running build
  preheat drain --wait --timeout 2h              empty this host for maintenance; `preheat resume` goes on
  preheat reload                                 follow a changed preheat.toml without a restart
  preheat doctor                                 what is wrong with this host, and how to mend it
";

fn after_help() -> String {
    format!("{EXAMPLES}\n{EXIT_CODES}")
}

/// Keeps a pool of warm VMs and runs each build in a fresh one.
#[derive(Debug, Parser)]
#[command(name = "preheat", version, after_long_help = after_help(), after_help = EXIT_CODES, max_term_width = 100)]
pub struct Args {
    /// The daemon's address.
    #[arg(
        long,
        global = true,
        help_heading = "Daemon",
        env = "PREHEAT_URL",
        default_value = "http://127.0.0.1:7780"
    )]
    pub url: String,
    /// The file with the daemon's token (its `api.token_file`).
    #[arg(long, global = true, help_heading = "Daemon", env = "PREHEAT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    Serve {
        /// Instead of `$PREHEAT_HOME/preheat.toml`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Build a folder or an archive: submit it, stream its log, bring its artifacts back.
    ///
    /// The folder's `.preheat.toml` describes the build; flags override it. A folder is packed without what `.gitignore`
    /// names. The steps' output goes to stdout and stderr as they wrote it; everything that preheat says goes to stderr.
    /// Ctrl-C cancels the build and waits for its end; a second one leaves at once.
    #[command(after_help = EXIT_CODES)]
    Run(Run),
    /// Submit a build, print its number, and leave.
    #[command(after_help = EXIT_CODES)]
    Submit {
        #[command(flatten)]
        inputs: Inputs,
        /// Print the build as JSON instead of its number.
        #[arg(long)]
        json: bool,
    },
    /// List builds, newest first.
    Builds {
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a build's log.
    Logs {
        /// Go on until the build is over.
        #[arg(short, long)]
        follow: bool,
        /// The build's number.
        build: BuildId,
        /// Print each line as a JSON object.
        #[arg(long)]
        json: bool,
        /// How long to try to reach a daemon that went away.
        #[arg(long, value_parser = humantime::parse_duration, default_value = "5m", value_name = "TIME")]
        reconnect: Duration,
    },
    /// Cancel a build.
    Cancel {
        /// The build's number.
        build: BuildId,
    },
    /// List a build's artifacts, or with --out fetch them.
    Artifacts {
        /// The build's number.
        build: BuildId,
        /// The folder to fetch them into.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show where a build's time went, with its VM and its slot; write it down as a trace.
    ///
    /// The trace is a file for https://ui.perfetto.dev or chrome://tracing: every phase of the build, of its VM, and of the
    /// slot before and after it. Time that nobody answers for is a span of its own.
    Trace {
        /// The build's number.
        build: BuildId,
        /// Where the trace goes, `-` for stdout [default: ./preheat-trace-BUILD.json].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print the figures as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List or remove what builds left for later ones: their caches.
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// List the generations of images, choose one, or go back to the one before.
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// List the pipelines that a build can name, or print one.
    ///
    /// They are built in, and this host's preheat.toml may change them and add more. What is printed of one can be put into a
    /// preheat.toml.
    Pipelines {
        /// One of them.
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Instead of `$PREHEAT_HOME/preheat.toml`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Show the pools: what is warm, who waits, what is wrong.
    Pool {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the VMs.
    Vms {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Open a shell in a VM, or run a command there (on the daemon's host).
    Ssh {
        /// A build's number, or a VM's name from `preheat vms`.
        #[arg(value_name = "BUILD-OR-VM")]
        vm: String,
        /// Instead of `$PREHEAT_HOME/preheat.toml`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// A command instead of a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show what the daemon does: serving, draining, drained or stopping; how many builds and VMs there are.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Empty the daemon, as for maintenance of its host.
    ///
    /// New builds are refused, those that wait go on waiting, those that run go on to their end, and every VM that no build
    /// has is taken away. Drained, the daemon has no VM left, and a restart of it does not end that: `preheat resume` does.
    #[command(after_help = EXIT_CODES)]
    Drain {
        /// Wait until nothing runs and no VM is left.
        #[arg(long)]
        wait: bool,
        /// How long to wait; then exit with 5. The daemon goes on draining.
        #[arg(long, requires = "wait", value_parser = humantime::parse_duration, value_name = "TIME")]
        timeout: Option<Duration>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Go on after `preheat drain`: take builds, begin those that wait, keep VMs warm.
    Resume {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have the daemon read its configuration anew, as SIGHUP does.
    ///
    /// What can change while it runs does so at once; where new VMs are needed, idle ones are replaced one by one and those
    /// in use end as they began; what needs a restart is named and stays as it was. With a mistake in it nothing changes:
    /// every mistake is named, and the exit code is 2.
    #[command(after_help = EXIT_CODES)]
    Reload {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check this host: what is wrong, and how to mend it.
    ///
    /// Exits with 0 when nothing fails, with 3 otherwise.
    Doctor {
        /// Instead of `$PREHEAT_HOME/preheat.toml`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check or show the configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// `preheat cache ...`
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List them, the last used first.
    List {
        /// Of this project only.
        #[arg(long)]
        project: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove some. A build that needs one makes it again.
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Remove {
        /// Their names in `preheat cache list`.
        #[arg(value_name = "CACHE", group = "which")]
        caches: Vec<String>,
        /// All of this project.
        #[arg(long, group = "which")]
        project: Option<String>,
        /// All of them.
        #[arg(long, group = "which")]
        all: bool,
        /// Print what was removed as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `preheat image ...`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images and their generations: which is in use, which is gone back to, which did not come up.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have an image's name mean this generation, also after a restart.
    ///
    /// Its pools roll over: VMs of the one before serve until new ones are warm, and builds that run end as they began. Where
    /// three VMs in a row do not come up and none has, the name means again what it meant before.
    Use {
        /// As `macos@3`; `macos@0` is the VM that is called just so.
        #[arg(value_name = "NAME@GENERATION", value_parser = image_generation)]
        image: (String, u32),
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have an image's name mean the good generation that it meant before.
    Rollback {
        /// The image's name.
        #[arg(value_name = "NAME")]
        image: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `preheat config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Name every mistake; exit with 2 when there is one.
    Check {
        /// Instead of `$PREHEAT_HOME/preheat.toml`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the configuration as it takes effect: defaults, file, host's file and environment put together.
    Show {
        /// Instead of `$PREHEAT_HOME/preheat.toml`.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// `preheat run`
#[derive(Debug, clap::Args)]
pub struct Run {
    #[command(flatten)]
    pub inputs: Inputs,
    /// Where the artifacts go [default: ./preheat-out/BUILD/].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print exactly one JSON object to stdout: the build and `out`. Everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
    /// How long to try to reach a daemon that went away.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5m", value_name = "TIME")]
    pub reconnect: Duration,
}

/// What describes a build.
#[derive(Debug, Clone, clap::Args)]
pub struct Inputs {
    /// The folder, or an archive of it (tar, tar.gz, tar.zst, zip).
    #[arg(value_name = "DIR|ARCHIVE")]
    pub source: PathBuf,
    /// The pool whose VM it gets.
    #[arg(long)]
    pub pool: Option<String>,
    /// What its pool must provide, as `xcode=>=26` or `macos=tahoe`. May be given again.
    #[arg(long = "need", value_name = "NAME=VERSION", value_parser = need)]
    pub needs: Vec<(String, String)>,
    /// How it is built: one of `preheat pipelines`, or `auto` to find it from the files.
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// The folder that is built, below the source's root.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// A command; replaces the project's steps. May be given again.
    #[arg(long = "step", value_name = "COMMAND")]
    pub steps: Vec<String>,
    /// Files to bring back; replaces the project's. May be given again.
    #[arg(long = "artifact", value_name = "GLOB")]
    pub artifacts: Vec<String>,
    /// A variable for the steps. May be given again.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// A secret variable; its value is taken from this command's environment. May be given again.
    #[arg(long = "secret", value_name = "NAME", value_parser = variable_name)]
    pub secrets: Vec<String>,
    /// What it signs with: a zip of one *.p12, its password as `password.txt`, and the app's *.mobileprovision.
    #[arg(long, value_name = "ZIP")]
    pub certs: Option<PathBuf>,
    /// Folders that are kept for the next build with the same key; replaces the project's. May be given again.
    #[arg(long = "cache", value_name = "KEY=PATH[,PATH..]", value_parser = cache)]
    pub caches: Vec<CacheSpec>,
    /// Restore and save nothing, whatever the project says.
    #[arg(long, conflicts_with = "caches")]
    pub no_cache: bool,
    /// For the whole build, as `90s` or `30m`.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// How often it is attempted again when the system was at fault.
    #[arg(long, value_name = "N")]
    pub retries: Option<u16>,
}

impl Command {
    /// Whether its process holds secrets of builds.
    pub fn holds_secrets(&self) -> bool {
        matches!(self, Self::Serve { .. } | Self::Run(_) | Self::Submit { .. })
    }

    /// Whether a program reads our stdout.
    pub fn json(&self) -> bool {
        match self {
            Self::Run(Run { json, .. })
            | Self::Submit { json, .. }
            | Self::Builds { json, .. }
            | Self::Artifacts { json, .. }
            | Self::Trace { json, .. }
            | Self::Cache { command: CacheCommand::List { json, .. } | CacheCommand::Remove { json, .. } }
            | Self::Image { command: ImageCommand::List { json } }
            | Self::Image { command: ImageCommand::Use { json, .. } | ImageCommand::Rollback { json, .. } }
            | Self::Pool { json }
            | Self::Vms { json }
            | Self::Status { json }
            | Self::Drain { json, .. }
            | Self::Resume { json }
            | Self::Reload { json }
            | Self::Doctor { json, .. } => *json,
            // Its JSON is one object a line; an error among them would be taken for one.
            Self::Logs { .. } => false,
            Self::Serve { .. } | Self::Cancel { .. } | Self::Ssh { .. } | Self::Config { .. } => false,
            Self::Pipelines { .. } => false,
        }
    }
}

/// The last `=` parts the two: a glob in the key may have one.
fn cache(text: &str) -> Result<CacheSpec, String> {
    let (key, paths) = text.rsplit_once('=').ok_or("write KEY=PATH, or KEY=PATH,PATH")?;
    let paths = paths.split(',').map(str::to_owned).collect();
    Ok(CacheSpec { key: key.to_owned(), restore_keys: Vec::new(), paths })
}

fn image_generation(text: &str) -> Result<(String, u32), String> {
    let wrong = "write NAME@GENERATION, as `macos@3`";
    let (name, generation) = text.rsplit_once('@').filter(|(name, _)| !name.is_empty()).ok_or(wrong)?;
    let number = generation.strip_prefix('g').unwrap_or(generation).parse();
    Ok((name.to_owned(), number.map_err(|_| wrong)?))
}

fn need(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VERSION, as xcode=>=26")?;
    if name.is_empty() || value.is_empty() {
        Err("write NAME=VERSION, as xcode=>=26".into())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((variable_name(name)?, value.to_owned()))
}

fn variable_name(name: &str) -> Result<String, String> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if plain && name.bytes().next().is_some_and(|b| !b.is_ascii_digit()) {
        Ok(name.to_owned())
    } else {
        Err(format!("`{name}` is not a variable's name"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_build_is_described_by_flags() {
        let argv = "preheat run . --step make --step test --env A=b=c --secret KEY --timeout 90s --retries 2";
        let args = Args::try_parse_from(argv.split(' ')).expect("right");
        let Command::Run(run) = args.command else { panic!("not run") };
        assert_eq!(run.inputs.steps, ["make", "test"]);
        assert_eq!(run.inputs.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(run.inputs.timeout, Some(Duration::from_secs(90)));
    }

    #[test]
    fn a_pipeline_and_needs_are_named_by_flags() {
        let argv = "preheat run . --pipeline expo --dir apps/mobile --need xcode=>=26 --need macos=tahoe";
        let args = Args::try_parse_from(argv.split(' ')).expect("right");
        let Command::Run(run) = args.command else { panic!("not run") };
        let need = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(run.inputs.needs, [need("xcode", ">=26"), need("macos", "tahoe")]);
        assert_eq!(
            (run.inputs.pipeline.as_deref(), run.inputs.dir.as_deref()),
            (Some("expo"), Some("apps/mobile"))
        );
        for bad in ["--need=xcode", "--need==26", "--need=xcode="] {
            assert!(Args::try_parse_from(["preheat", "run", ".", bad]).is_err(), "{bad}");
        }
        assert!(Args::try_parse_from(["preheat", "pipelines", "expo"]).is_ok());
    }

    #[test]
    fn caches_are_named_by_flags_or_left_out() {
        let run = |argv: &[&str]| {
            let args =
                Args::try_parse_from([&["preheat", "run", "."], argv].concat()).map_err(|e| e.to_string())?;
            if let Command::Run(run) = args.command { Ok(run.inputs) } else { Err("not run".to_owned()) }
        };
        let inputs = run(&["--cache", "k-{{ hash 'a=b' }}=Pods,~/.pods", "--cache=x=y"]).expect("right");
        assert_eq!(inputs.caches[0].key, "k-{{ hash 'a=b' }}");
        assert_eq!(inputs.caches[0].paths, ["Pods", "~/.pods"]);
        assert_eq!(inputs.caches.len(), 2);
        assert!(run(&["--no-cache"]).expect("right").no_cache);
        assert!(run(&["--no-cache", "--cache=x=y"]).is_err() && run(&["--cache=x"]).is_err());
        let remove = |argv: &str| Args::try_parse_from(argv.split(' ')).is_ok();
        assert!(remove("preheat cache remove a b") && remove("preheat cache remove --all"));
        assert!(remove("preheat cache remove --project p --json"));
        assert!(!remove("preheat cache remove") && !remove("preheat cache remove --all a"));
    }

    #[test]
    fn a_generation_is_named_with_its_image() {
        assert_eq!(image_generation("macos@3"), Ok(("macos".into(), 3)));
        assert_eq!(image_generation("macos@g12"), Ok(("macos".into(), 12)));
        for wrong in ["macos", "@3", "macos@", "macos@-1", "macos@x"] {
            assert!(image_generation(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_a_variable_is_refused() {
        for bad in
            ["--env=A", "--env=1A=b", "--env==b", "--secret=A=b", "--secret=", "--timeout=90", "--retries=-1"]
        {
            assert!(Args::try_parse_from(["preheat", "run", ".", bad]).is_err(), "{bad}");
        }
    }
}
