//! The JSON of the HTTP API, as the daemon writes it and the command line reads it. Fields are added, never renamed.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::zeroize::Zeroize as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::build::spec::{BuildResult, human};
use crate::clock::{UnixMicros, UnixMillis};
use crate::ids::{BuildId, RunId};

/// The `spec` part of a submission: what is given overrides `.preheat.toml` in the source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SubmitSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What its pool must provide: `xcode` = `>=26`. Added to the project's, and winning over it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub needs: BTreeMap<String, String>,
    /// How it is built; `auto` is found from the source's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// The folder of the source that is built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Replaces the project's steps when it is not empty; with a pipeline they are laid over its steps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepSpec>,
    /// Added to the project's, and winning over it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Values by name; they are kept in memory, and on the disk only sealed and until the build is over.
    #[serde(skip_serializing_if = "no_secrets")]
    pub secrets: SecretValues,
    /// What the build signs with. It is checked when the build is accepted, and kept as secrets are.
    #[serde(default, deserialize_with = "signing", skip_serializing_if = "Option::is_none")]
    pub signing: Option<SigningSpec>,
    /// Replaces the project's globs when it is not empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
    /// Replaces the project's when it is given; an empty list is no cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caches: Option<Vec<CacheSpec>>,
    #[serde(with = "human::option", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u16>,
}

fn no_secrets(secrets: &SecretValues) -> bool {
    secrets.is_empty()
}

/// Secrets on their way: readable as JSON by the daemon, and by nobody who prints them.
#[derive(Clone, Default)]
pub struct SecretValues(pub BTreeMap<String, SecretString>);

impl std::ops::Deref for SecretValues {
    type Target = BTreeMap<String, SecretString>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<BTreeMap<String, SecretString>> for SecretValues {
    fn from(values: BTreeMap<String, SecretString>) -> Self {
        Self(values)
    }
}

impl PartialEq for SecretValues {
    fn eq(&self, other: &Self) -> bool {
        let same = |((a, x), (b, y)): ((&String, &SecretString), (&String, &SecretString))| {
            a == b && x.expose_secret() == y.expose_secret()
        };
        self.len() == other.len() && self.iter().zip(other.iter()).all(same)
    }
}

impl Eq for SecretValues {}

impl Serialize for SecretValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, value)| (name, value.expose_secret())))
    }
}

impl<'de> Deserialize<'de> for SecretValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The usual error would quote what it found.
        BTreeMap::deserialize(deserializer)
            .map(Self)
            .map_err(|_| D::Error::custom("`secrets` must be an object of strings"))
    }
}

impl std::fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A certificate with its key, and provisioning profiles. Prints nothing of them, and is wiped when it is dropped.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningSpec {
    /// PKCS #12, in base64.
    pub p12: String,
    /// Of the PKCS #12; may be empty.
    #[serde(default)]
    pub password: String,
    /// `*.mobileprovision`, each in base64.
    #[serde(default)]
    pub profiles: Vec<String>,
}

impl Drop for SigningSpec {
    fn drop(&mut self) {
        self.p12.zeroize();
        self.password.zeroize();
    }
}

impl std::fmt::Debug for SigningSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningSpec").field("profiles", &self.profiles.len()).finish_non_exhaustive()
    }
}

fn signing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SigningSpec>, D::Error> {
    // The usual error would quote what it found.
    Option::deserialize(deserializer).map_err(|_| {
        D::Error::custom(
            "`signing` must be an object of `p12` and `password`, texts, and `profiles`, a list of texts",
        )
    })
}

/// One step, in a submission and in `.preheat.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// May only be missing where a pipeline has a step of the name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Of each run of it.
    #[serde(default, with = "human::option", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// How often it is run again when it fails; absent is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u16>,
    /// In a pipeline: the step that it comes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// In a pipeline: the step that it comes after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The pipeline's step of the name is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
}

/// One cache, in a submission and in `.preheat.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSpec {
    /// With values between braces: `pods-{{ hash 'Podfile.lock' }}`.
    pub key: String,
    /// Beginnings of keys that will do where the key has no entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_keys: Vec<String>,
    /// Relative to the source's root, or below the user's home with `~/`.
    pub paths: Vec<String>,
}

/// Where a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// Accepted; waits for a VM.
    Queued,
    /// In a VM.
    Running,
    /// Its result stands and its VM is gone; the artifacts are on their way to the sinks.
    Uploading,
    /// Over.
    Done,
}

/// How the VM was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Claim {
    /// From a VM that was warm when it was asked for.
    Hit,
    /// After a wait.
    Miss,
}

/// A stretch of a build's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseView {
    /// `queue`, `probe`, `source`, `cache_restore`, `signing`, `step`, `signing_removal`, `artifacts`, `cache_save`, `teardown`,
    /// `upload`.
    pub phase: String,
    /// The step's name, where the phase is a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Which attempt it belongs to, from 1.
    pub attempt: u16,
    pub started_ms: UnixMillis,
    /// Absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// The same in microseconds, by a clock that nobody sets. Builds of earlier daemons have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_us: Option<UnixMicros>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// A step's exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// A file that came out of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactView {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
    /// Where it is an app: what it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppView>,
}

/// What an app's package says of itself. None of it is proven but that the package is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppView {
    pub kind: AppKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_id: Option<String>,
    /// For people: `1.4.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// For stores: `214`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_number: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_os: Option<String>,
    /// Of the provisioning profile in it; absent where it has none, as an unsigned one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// What kind of package it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppKind {
    Ipa,
    Apk,
    Aab,
}

impl AppKind {
    /// The word, which is the end of its file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ipa => "ipa",
            Self::Apk => "apk",
            Self::Aab => "aab",
        }
    }
}

/// Why a build failed, for whoever has to mend it. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureView {
    pub kind: FailureKind,
    /// The step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// In one line.
    pub message: String,
    /// The lines of the step's output that say why, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

/// Who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// What was built, or how.
    User,
    /// Nothing of the build: the VM, the host, or a server that the guest could not reach.
    System,
    /// A step's or the build's time was over.
    Timeout,
    /// Certificates, profiles, keychains.
    Signing,
}

impl FailureKind {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::System => "system",
            Self::Timeout => "timeout",
            Self::Signing => "signing",
        }
    }
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildView {
    pub id: BuildId,
    pub project: String,
    pub pool: String,
    pub state: BuildState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<BuildResult>,
    /// Why it ended as it did, in one line: the failing step and its exit code, the fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureView>,
    /// The pipeline that its steps are from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// While it is queued: what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    pub attempt: u16,
    pub submitted_ms: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<UnixMillis>,
    pub phases: Vec<PhaseView>,
    pub artifacts: Vec<ArtifactView>,
    /// What became of its caches, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheView>,
    /// How its guest was when it was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
}

/// How a build's guest is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// Of all its processors together, in the seconds before; from 0 to 100.
    pub cpu_percent: u8,
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    /// Where the work is; what is reserved counts as used.
    pub disk_used_bytes: u64,
    pub disk_free_bytes: u64,
    pub at_ms: UnixMillis,
}

/// What became of one cache of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheView {
    /// With its values.
    pub key: String,
    pub restore: CacheRestore,
    /// The key of what was restored, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Of what was restored, and how long that took.
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub took_ms: u64,
    /// Present when it had to be saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<CacheSavedView>,
}

/// How a cache was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSavedView {
    pub result: CacheSave,
    #[serde(default)]
    pub bytes: u64,
    #[serde(default)]
    pub took_ms: u64,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a cache was restored: also a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheRestore {
    /// Its key had an entry.
    Hit,
    /// One of its `restore_keys` had.
    Prefix,
    /// Nothing had.
    Miss,
    /// There was something, and it could not be restored.
    Failed,
}

impl CacheRestore {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Hit, Self::Prefix, Self::Miss, Self::Failed];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Prefix => "prefix",
            Self::Miss => "miss",
            Self::Failed => "failed",
        }
    }
}

/// What became of a cache that had to be saved: also a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheSave {
    Saved,
    /// Another build was first.
    Present,
    /// It was not.
    Failed,
}

impl CacheSave {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Saved, Self::Present, Self::Failed];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Saved => "saved",
            Self::Present => "present",
            Self::Failed => "failed",
        }
    }
}

/// `GET /api/v1/caches`, the last used first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheList {
    pub caches: Vec<CacheEntryView>,
}

/// A cache that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntryView {
    pub id: String,
    pub project: String,
    pub pool: String,
    pub key: String,
    pub paths: Vec<String>,
    pub bytes: u64,
    pub saved_ms: UnixMillis,
    /// When it was restored last; when it was saved, where it was not.
    pub used_ms: UnixMillis,
    /// The build that saved it.
    pub build: BuildId,
}

/// `GET /api/v1/builds/{id}/artifacts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactList {
    pub artifacts: Vec<ArtifactView>,
}

/// `GET /api/v1/builds`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildList {
    pub builds: Vec<BuildView>,
}

/// One line of a build's log: a file of these, one a line, is the log on disk, and the `data` of a log event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// From 1, without a gap; the id of the event.
    pub n: u64,
    pub at_ms: UnixMillis,
    /// `out`, `err` of a step; `sys` where preheat speaks.
    pub stream: LogStream,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    pub text: String,
    /// The run of the step that printed it, and how many bytes of its stream there were up to the end of this line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<u64>,
}

/// Who said a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    Out,
    Err,
    Sys,
}

/// `GET /api/v1/pools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolList {
    pub pools: Vec<PoolView>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    pub name: String,
    pub image: String,
    /// What the pool is asked to keep ready.
    pub warm_target: u16,
    pub max: u16,
    /// VMs by state.
    pub vms: BTreeMap<String, u16>,
    pub waiting: u16,
    /// Slots that are lost until somebody looks: a guest that does not die, a place that macOS does not give back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u16,
    /// Present while VMs of this pool fail to come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<TroubleView>,
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}

/// Why a pool has fewer VMs than it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleView {
    /// A [`crate::runtime::Reason`].
    pub reason: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    pub next_try_ms: UnixMillis,
    /// `host` where it is the host's, and every pool has it; else `pool`.
    #[serde(default)]
    pub scope: TroubleScope,
}

/// Whose trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TroubleScope {
    #[default]
    Pool,
    Host,
}

/// `GET /api/v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    pub images: Vec<ImageView>,
}

/// An image, and the VMs that its name may mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    pub name: String,
    /// Pools of this image.
    pub pools: Vec<String>,
    /// What is cloned.
    pub base: String,
    /// What there is, the newest generation last.
    pub generations: Vec<GenerationView>,
}

/// One generation of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationView {
    /// Absent for the VM of just the image's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The VM of the runtime.
    pub vm: String,
    pub state: GenerationState,
    /// Why it did not come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What is in it, as whoever made it wrote down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

/// What a generation is to its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GenerationState {
    /// In use, and its VMs come up.
    Current,
    /// In use, and none of its VMs has come up yet.
    Trying,
    /// It was good and is what a rollback goes to, or one after it.
    Before,
    /// Its VMs did not come up.
    Failed,
    Unused,
}

impl GenerationState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Trying => "trying",
            Self::Before => "before",
            Self::Failed => "failed",
            Self::Unused => "unused",
        }
    }
}

/// `GET /api/v1/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmList {
    pub vms: Vec<VmView>,
}

/// A VM of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    pub name: String,
    pub pool: String,
    pub slot: u16,
    pub state: String,
    pub since_ms: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
    /// The process that owns the guest on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// What the daemon does as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonState {
    /// Builds are taken and run.
    Serving,
    /// No builds are taken or begun; some still run, or VMs are on their way out.
    Draining,
    /// The same, and nothing runs any more: no VM is left.
    Drained,
    /// It ends.
    Stopping,
}

impl DaemonState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Stopping => "stopping",
        }
    }
}

/// `GET /api/v1/status`, and the answer of `POST /api/v1/drain` and `/api/v1/resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    pub state: DaemonState,
    /// Builds that hold a VM, or whose result is being written down.
    pub builds_running: u32,
    /// Builds that wait.
    pub builds_waiting: u32,
    /// VMs that are there, but for those that are quarantined.
    pub vms: u32,
    /// VMs that could not be removed.
    pub vms_quarantined: u32,
    pub config: ConfigView,
    /// Where builds come from by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<ControllerView>,
}

/// A controller, as the daemon stands with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerView {
    pub name: String,
    pub url: String,
    pub state: ControllerState,
    /// Since when.
    pub since_ms: UnixMillis,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub lanes: u16,
    /// Lanes that have a build of it.
    pub busy: u16,
}

/// How the daemon stands with a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControllerState {
    /// Nothing was heard of it yet.
    Connecting,
    /// It answered the last call.
    Connected,
    /// It did not, or refused it.
    Failing,
}

impl ControllerState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Failing => "failing",
        }
    }
}

/// Which configuration is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigView {
    /// When it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_ms: Option<UnixMillis>,
    /// The files that are read, or looked for in vain.
    pub files: Vec<String>,
    /// When a later one was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_ms: Option<UnixMillis>,
    /// Why it was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<String>,
}

/// The answer of `POST /api/v1/config/reload`: what differs, and how it applies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    pub changes: Vec<ChangeView>,
    pub pools_added: Vec<String>,
    /// Their idle VMs go at once, those in use when their build is over.
    pub pools_removed: Vec<String>,
    /// Builds that waited for a pool that was removed: they end in `error`.
    pub builds_ended: u32,
    pub warnings: Vec<String>,
}

/// One key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeView {
    pub key: String,
    /// As it would be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// `live`: from now on; `new_vms`: idle VMs are replaced, those in use end as they began; `restart`: not before one.
    pub applies: String,
}

/// Every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorView,
}

/// What went wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// A word for programs: `pool_unknown`, `queue_full`, `body_too_large` ...
    pub code: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Each thing that is wrong, where it is more than one: `bad_config`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<String>,
}
