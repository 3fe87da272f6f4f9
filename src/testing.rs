//! What unit tests of several rooms share: a configuration without pools, a pool, and a build.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::build::spec::{BuildSpec, Step};
use crate::clock::UnixMillis;
use crate::config::{
    Api, Builds, ByteSize, Caches, Config, Home, Host, Log, Network, Pool, RuntimeConfig, Stop, VerbDeadlines,
};
use crate::signing::{Checked, Kit, Profile, Signer};

/// A host with much room, and no pools.
pub fn config() -> Config {
    let home = Home::new(PathBuf::from("/nonexistent"));
    let seconds = Duration::from_secs;
    Config {
        host: Host {
            vms: 8,
            macos_guests: 2,
            cores: None,
            memory: None,
            disk_free_min: ByteSize(0),
            disk_free_low: ByteSize(0),
            builds_max: 100,
        },
        runtime: RuntimeConfig {
            program: "tart".into(),
            tart_home: home.tart(),
            image_keep_age: Duration::from_secs(30 * 86400),
            deadlines: VerbDeadlines {
                clone: seconds(60),
                set: seconds(60),
                stop: seconds(30),
                delete: seconds(60),
                query: seconds(30),
            },
        },
        api: Api {
            listen: ([127, 0, 0, 1], 0).into(),
            source_max: ByteSize(1 << 30),
            source_keep_bytes: Some(ByteSize(1 << 30)),
            source_keep_age: Duration::from_secs(7 * 86400),
            token_file: None,
        },
        builds: Builds {
            timeout: seconds(3600),
            step_timeout: seconds(3600),
            retries: 2,
            kill_grace: seconds(5),
            guest_health: true,
            log_max: ByteSize(1 << 20),
            artifacts_max: ByteSize(1 << 30),
            keep: 100,
            keep_age: Duration::from_secs(90 * 86400),
            keep_bytes: None,
        },
        caches: Caches {
            bytes_max: ByteSize(1 << 30),
            entry_max: ByteSize(1 << 20),
            keep_age: Duration::from_secs(14 * 86400),
            timeout: seconds(600),
        },
        stop: Stop { drain_timeout: seconds(10) },
        pools: BTreeMap::new(),
        pipelines: crate::config::pipelines::built_in(),
        uploads: Vec::new(),
        controllers: Vec::new(),
        log: Log {
            filter: "info".into(),
            json: false,
            file: None,
            vm_keep: 100,
            vm_keep_age: Duration::from_secs(14 * 86400),
            vm_keep_bytes: None,
        },
        home,
    }
}

/// A pool of `image`: one warm, two at most.
pub fn pool(image: &str) -> Pool {
    Pool {
        image: image.into(),
        generation: None,
        warm: 1,
        max: 2,
        cpu: None,
        memory: None,
        disk: None,
        user: "admin".into(),
        key: PathBuf::from("/nonexistent/key"),
        port: 22,
        network: Network::Nat,
        provides: BTreeMap::new(),
        boot_timeout: Duration::from_secs(120),
        probe_timeout: Duration::from_secs(5),
        probe_interval: Duration::from_secs(30),
        warmup: None,
        warmup_timeout: Duration::from_secs(600),
        max_age: Duration::from_secs(8 * 3600),
        run_args: Vec::new(),
        resume: false,
        resume_timeout: Duration::from_secs(60),
    }
}

/// A build of one step in the pool `linux`, with two retries.
pub fn spec() -> BuildSpec {
    BuildSpec {
        project: "p".into(),
        pool: "linux".parse().expect("a name"),
        pipeline: None,
        said: Vec::new(),
        steps: vec![step("step", "echo")],
        env: BTreeMap::new(),
        secrets: Vec::new(),
        signing: None,
        artifacts: Vec::new(),
        caches: Vec::new(),
        timeout: Duration::from_secs(3600),
        retries: 2,
    }
}

/// Who signs, in a build that does.
pub fn signer() -> Signer {
    let profile = Profile {
        uuid: "0f3c1e7a-5b1d-4e1c-9f0e-7d2a6b8c9d10".into(),
        name: "Acme".into(),
        app_id: "AB12CD34EF.com.acme.app".into(),
        expires_ms: UnixMillis(4_000_000_000_000),
    };
    Signer {
        identity: "00".repeat(20),
        name: "Apple Distribution: Acme (AB12CD34EF)".into(),
        team: "AB12CD34EF".into(),
        expires_ms: UnixMillis(4_000_000_000_000),
        profiles: vec![profile],
    }
}

/// With what: nothing that a real guest could use.
pub fn signing() -> Checked {
    let signer = signer();
    let kit = Kit {
        identity: signer.identity.clone(),
        p12: b"a file".to_vec().into(),
        p12_password: "filepass".into(),
        keychain_password: "keychainpass".into(),
        profiles: signer
            .profiles
            .iter()
            .map(|profile| (profile.uuid.clone(), b"a profile".to_vec()))
            .collect(),
    };
    Checked { signer, kit, password: "userpass".into() }
}

/// A step of ten minutes at most.
pub fn step(name: &str, command: &str) -> Step {
    Step {
        name: name.into(),
        command: command.into(),
        dir: String::new(),
        timeout: Duration::from_secs(600),
        retries: 0,
    }
}
