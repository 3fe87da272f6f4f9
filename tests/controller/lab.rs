//! A daemon with simulated guests, and what it is asked to build.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use preheat::api::service::Service as _;
use preheat::api::wire::{BuildView, ControllerView};
use preheat::config::load::{self, Inputs};
use preheat::config::{Config, Home};
use preheat::runtime::sim::Sim;
use preheat::store::Store;
use preheat::supervisor::{Daemon, Outside};
use preheat::telemetry::export;
use preheat::upload::sink::Sinks;

use crate::fake_controller::{KEY, zipped};

/// The result of [`app`]: what the simulated guest makes.
pub const APP: &str = "app.bin";

/// A project whose build does this and leaves an app.
pub fn app(command: &str) -> Vec<u8> {
    let text = format!("steps = [{command:?}]\nartifacts = [\"build.log\", \"{APP}\"]\n");
    zipped(&[(".preheat.toml", &text), ("App.tsx", "export default 1\n")])
}

/// An installation, its daemon running or not.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub sim: Sim,
    more: String,
    daemon: Option<Daemon>,
}

impl Lab {
    /// One that asks the controller at `url`, its daemon started.
    pub async fn asking(url: &str, lanes: u16) -> Self {
        let mut lab = Self::closed(url, lanes);
        lab.start().await;
        lab
    }

    /// The same, its daemon not started yet.
    pub fn closed(url: &str, lanes: u16) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let dir = tempfile::tempdir().expect("a folder");
        let more = format!(
            "[[controllers]]\nname = \"mesh\"\nurl = \"{url}\"\napi_key_file = \"mesh.key\"\nlanes = {lanes}\n\
             poll_interval = \"500ms\"\nheartbeat_interval = \"500ms\"\n"
        );
        let lab = Self { dir, sim: Sim::new(), more, daemon: None };
        lab.write_key(KEY, 0o600);
        lab
    }

    pub fn write_key(&self, key: &str, mode: u32) {
        let path = self.dir.path().join("mesh.key");
        std::fs::write(&path, format!("{key}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
    }

    pub fn config(&self) -> Config {
        let text = format!(
            "[host]\ndisk_free_min = \"64 MiB\"\n[pool.linux]\nimage = \"linux\"\nwarm = 2\nmax = 2\n{}",
            self.more
        );
        std::fs::write(self.dir.path().join("preheat.toml"), text).expect("written");
        let inputs = Inputs {
            home: Home::new(self.dir.path().to_owned()),
            file: None,
            hostname: "studio".into(),
            env: [("HOME", "/nonexistent")].into_iter().collect(),
        };
        load::load(&inputs).unwrap_or_else(|mistakes| panic!("{mistakes}")).config
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal.sqlite")
    }

    /// Starts the daemon.
    pub async fn start(&mut self) {
        let config = self.config();
        for folder in [config.home.spool(), config.home.builds()] {
            std::fs::create_dir_all(folder).expect("a folder");
        }
        let store = Store::open(&config.home.journal()).expect("a journal");
        let outside = Outside {
            runtime: Arc::new(self.sim.clone()),
            connector: Arc::new(self.sim.clone()),
            courier: Arc::new(Sinks),
        };
        let begun = Daemon::begin(Arc::new(config), store, outside, export::install()).await;
        let daemon = begun.unwrap_or_else(|error| panic!("{error}"));
        daemon.ask_controllers().await.expect("the journal");
        self.daemon = Some(daemon);
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    /// The daemon ends at once: whatever it was doing is cut short.
    pub async fn cut(&mut self) {
        let daemon = self.daemon.take().expect("it runs");
        daemon.sources.end().await;
        daemon.stop().await;
    }

    /// The daemon ends as after a signal.
    pub async fn end(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        let sources = daemon.sources.clone();
        daemon.drain(std::future::pending::<()>()).await;
        daemon.stop().await;
        sources.end().await;
    }

    /// Every build, oldest first.
    pub async fn builds(&self) -> Vec<BuildView> {
        let mut builds = self.daemon().core.builds(100).await.expect("read");
        builds.reverse();
        builds
    }

    /// Waits until the builds are as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[BuildView]) -> bool) -> Vec<BuildView> {
        until(what, async || Some(self.builds().await).filter(|builds| wanted(builds))).await
    }

    /// How it stands with the controller, when that is as wanted.
    pub async fn until_stands(&self, what: &str, wanted: impl Fn(&ControllerView) -> bool) -> ControllerView {
        let look = async || self.daemon().core.status().controllers.into_iter().find(|c| wanted(c));
        until(what, look).await
    }

    /// An operator drains it, or lets it go on.
    pub async fn set_draining(&self, draining: bool) {
        let core = &self.daemon().core;
        let done = if draining { core.drain().await } else { core.resume().await };
        done.unwrap_or_else(|refused| panic!("{refused}"));
    }
}

/// Looks until there is something to see.
pub async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::fake_controller::LONG, looking)
        .await
        .unwrap_or_else(|_| panic!("never {what}"))
}
