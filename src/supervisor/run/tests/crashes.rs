//! The daemon is killed in every phase of a build and started again: one result, each line of the log once, the same VM where
//! its guest still lives, no VM of ours left over, and what is not ours untouched.

use super::*;
use crate::api::wire::{LogLine, LogStream};
use crate::build::actor::{artifacts_path, log_path};
use crate::build::place::Doing;
use crate::config::{Upload, UploadSink};
use crate::runtime::{Parsed, VmName};

/// Somebody's VM, made by hand.
const FOREIGN: &str = "somebodys";
/// Each line once, whatever happens; long enough to be caught in the middle.
const COUNT: &str = "echo 1; sleep 10; echo 2; sleep 10; echo 3; sleep 10; echo 4";

/// A host without a daemon.
pub(super) struct Fallen {
    sim: Sim,
    config: Arc<Config>,
    dir: tempfile::TempDir,
}

impl World {
    /// As `kill -9` of the daemon: the guests and the disk stay as they are.
    pub(super) async fn crash(self) -> Fallen {
        let World { daemon, sim, config, dir } = self;
        let store = daemon.context.store.clone();
        daemon.supervisor.crash().await;
        drop(daemon);
        // What had been handed to the disk gets there before a new daemon reads it.
        store.answers().await.expect("the journal");
        tokio::time::sleep(Duration::from_millis(1)).await;
        Fallen { sim, config, dir }
    }

    pub(super) async fn until_in(&self, id: BuildId, phase: &str) -> BuildView {
        let what = format!("in {phase}");
        view_until(&self.daemon, id, &what, |v| {
            v.phases.last().is_some_and(|p| p.phase == phase && p.took_ms.is_none())
        })
        .await
    }

    /// Waits until the pool is whole, and looks at what is on the host.
    pub(super) async fn clean(&self) {
        self.until("whole", |s| s.vms.iter().all(|vm| vm.state == "warm" || vm.state == "configured")).await;
        let known: Vec<String> =
            self.daemon.context.pool.snapshot().vms.iter().map(|vm| vm.name.clone()).collect();
        let mut expected = [known, vec![FOREIGN.to_owned()]].concat();
        expected.sort();
        assert_eq!(self.sim.names(), expected);
    }
}

impl Fallen {
    pub(super) async fn start(self) -> World {
        let daemon = start(&self.config, &self.sim).await;
        World { daemon, sim: self.sim, config: self.config, dir: self.dir }
    }

    async fn start_with(mut self, change: impl FnOnce(&mut Config)) -> World {
        let mut config = Config::clone(&self.config);
        change(&mut config);
        self.config = Arc::new(config);
        self.start().await
    }
}

pub(super) async fn at_work() -> World {
    let world = world(1, 1).await;
    world.sim.plant(FOREIGN, ListedState::Stopped);
    world.until_warm(1).await;
    world
}

pub(super) fn log(config: &Config, id: BuildId) -> Vec<LogLine> {
    let text = std::fs::read_to_string(log_path(config, id)).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect()
}

/// What the steps printed.
fn printed(config: &Config, id: BuildId) -> Vec<String> {
    let lines = log(config, id).into_iter();
    lines.filter(|line| line.stream == LogStream::Out).map(|line| line.text).collect()
}

/// It ended once, its lines are numbered without a gap, and its phases are whole.
fn ended_once(world: &World, view: &BuildView, result: BuildResult) {
    assert_eq!(view.result, Some(result), "{view:?}");
    let lines = log(&world.config, view.id);
    let ends = lines.iter().filter(|l| l.stream == LogStream::Sys && l.text.starts_with(result.as_str()));
    assert_eq!(ends.count(), 1, "{lines:#?}");
    assert!(lines.iter().map(|l| l.n).eq(1..=lines.len() as u64), "{lines:#?}");
    assert!(view.phases.iter().all(|phase| phase.took_ms.is_some()), "{:#?}", view.phases);
}

fn three_steps(spec: &mut BuildSpec) {
    let step = |n: usize| {
        testing::step(&format!("s{n}"), &format!("echo {n}a; sleep 10; echo {n}b; sleep 10; echo {n}c"))
    };
    spec.steps = (0..3).map(step).collect();
    spec.artifacts = vec!["a".into()];
}

#[tokio::test(start_paused = true)]
async fn a_build_in_a_step_goes_on_in_its_vm_and_each_line_is_there_once() {
    let world = at_work().await;
    let id = world.submit(COUNT, |spec| spec.retries = 0).await;
    let before = world.until_in(id, "step").await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let fallen = world.crash().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let world = fallen.start().await;
    let during = world.daemon.core.build(id).await.expect("known");
    assert_eq!((during.state, &during.vm), (BuildState::Running, &before.vm));
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Success);
    assert_eq!((view.attempt, &view.vm, view.claim), (1, &before.vm, before.claim));
    assert_eq!(printed(&world.config, id), ["1", "2", "3", "4"]);
    assert_eq!(phases(&view), ["queue", "probe", "source", "step", "teardown"]);
    assert_eq!((world.sim.count(Step::Run), world.sim.count(Step::Attach)), (1, 1));
    assert!(log(&world.config, id).iter().any(|line| line.text.contains("goes on in preheat-linux-0-1")));
    world.clean().await;
}

/// A crash cuts a line that was being written, and loses those that were not written yet.
#[tokio::test(start_paused = true)]
async fn lines_that_the_crash_lost_are_read_again_from_the_guest() {
    for lost in 0..60 {
        let world = at_work().await;
        let id = world.submit(COUNT, |_| {}).await;
        world.until_in(id, "step").await;
        tokio::time::sleep(Duration::from_secs(25)).await;
        let fallen = world.crash().await;
        let path = log_path(&fallen.config, id);
        let whole = std::fs::metadata(&path).expect("a log").len();
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it opens");
        file.set_len(whole.saturating_sub(lost * 7)).expect("cut");
        let world = fallen.start().await;
        let view = world.over(id).await;
        ended_once(&world, &view, BuildResult::Success);
        assert_eq!(printed(&world.config, id), ["1", "2", "3", "4"], "{lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_any_step_or_between_two_or_in_the_artifacts_loses_and_repeats_nothing() {
    for seconds in 0..=66 {
        let world = at_work().await;
        world.sim.always(Step::Take, Behaviour::Slow(Duration::from_secs(4)));
        let id = world
            .submit("", |spec| {
                three_steps(spec);
                spec.retries = 0;
            })
            .await;
        let before = world.until_in(id, "step").await;
        tokio::time::sleep(Duration::from_millis(seconds * 1000 - seconds % 2)).await;
        let world = world.crash().await.start().await;
        let view = world.over(id).await;
        ended_once(&world, &view, BuildResult::Success);
        assert_eq!((view.attempt, &view.vm), (1, &before.vm), "after {seconds} s");
        assert_eq!(view.artifacts.len(), 1);
        assert!(artifacts_path(&world.config, id).join("a").is_file());
        assert_eq!(
            phases(&view),
            ["queue", "probe", "source", "step", "step", "step", "artifacts", "teardown"],
            "after {seconds} s"
        );
        let lines = printed(&world.config, id);
        assert_eq!(lines, ["0a", "0b", "0c", "1a", "1b", "1c", "2a", "2b", "2c"], "after {seconds} s");
        assert_eq!(world.sim.count(Step::Run), 3, "no step ran twice");
        world.clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_another_still_loses_nothing() {
    let mut world = at_work().await;
    let id = world.submit("", three_steps).await;
    let before = world.until_in(id, "step").await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        world = world.crash().await.start().await;
    }
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Success);
    assert_eq!((view.attempt, view.vm), (1, before.vm));
    assert_eq!(printed(&world.config, id).len(), 9);
    world.clean().await;
}

/// Nothing of the user's ran yet, so it costs no retry.
#[tokio::test(start_paused = true)]
async fn a_crash_before_the_first_step_costs_a_vm_and_no_retry() {
    for (phase, step) in [("probe", Step::Probe), ("source", Step::PutTree)] {
        let world = at_work().await;
        world.sim.script(step, [Behaviour::Slow(Duration::from_secs(3))]);
        let id = world.submit("echo hello", |spec| spec.retries = 0).await;
        let before = world.until_in(id, phase).await;
        let world = world.crash().await.start().await;
        let view = world.over(id).await;
        ended_once(&world, &view, BuildResult::Success);
        assert_ne!(view.vm, before.vm, "{phase}");
        assert_eq!(printed(&world.config, id), ["hello"]);
        world.clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn builds_that_wait_wait_on_in_their_order() {
    let world = at_work().await;
    let first = world.submit("sleep 50; echo first", |_| {}).await;
    world.until_in(first, "step").await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(world.submit("echo waited", |_| {}).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let world = world.crash().await.start().await;
    let mut order = Vec::new();
    for id in std::iter::once(first).chain(waiting) {
        let view = world.over(id).await;
        ended_once(&world, &view, BuildResult::Success);
        assert_eq!(view.phases.iter().filter(|phase| phase.phase == "queue").count(), 1, "{:?}", view.phases);
        let Parsed::Ours(vm) = VmName::parse(&view.vm.expect("it had one")) else { panic!("not ours") };
        order.push(vm.generation);
    }
    // With one slot, a VM after the other.
    assert!(order.is_sorted_by(|one, next| one < next), "{order:?}");
    world.clean().await;
}

/// The verdict is on disk before the guest is touched, so no second run can come to another.
#[tokio::test(start_paused = true)]
async fn a_crash_in_the_tear_down_ends_the_build_as_it_was_decided() {
    for (command, result) in
        [("echo once; exit 3", BuildResult::Failure), ("echo once", BuildResult::Success)]
    {
        let world = at_work().await;
        world.sim.script(Step::Kill, [Behaviour::Slow(Duration::from_secs(20))]);
        let id = world.submit(command, |spec| spec.artifacts = vec!["a".into()]).await;
        let before = world.until_in(id, "teardown").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let world = world.crash().await.start().await;
        let view = world.over(id).await;
        ended_once(&world, &view, result);
        assert_eq!((view.attempt, view.vm), (1, before.vm));
        assert_eq!(view.artifacts.len(), usize::from(result == BuildResult::Success));
        assert!(view.artifacts.iter().all(|a| artifacts_path(&world.config, id).join(&a.path).is_file()));
        assert_eq!(world.sim.count(Step::Run), 1);
        world.clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_was_taken_is_kept_over_a_crash() {
    let world = at_work().await;
    // The guest does not let go, so that the crash finds the build still at work.
    let id = world.submit(COUNT, |_| {}).await;
    world.until_in(id, "step").await;
    let waiting = world.submit("echo", |_| {}).await;
    world.sim.always(Step::Kill, Behaviour::Slow(Duration::from_secs(20)));
    world.daemon.core.cancel(id).await.expect("taken");
    let asked = world.daemon.context.store.build(id).await.expect("read").expect("there");
    assert!(asked.cancel_asked, "it is on disk when the answer comes");
    world.daemon.core.cancel(waiting).await.expect("taken");
    let world = world.crash().await.start().await;
    for id in [id, waiting] {
        let view = world.over(id).await;
        ended_once(&world, &view, BuildResult::Cancellation);
    }
    assert_eq!(world.sim.count(Step::Run), 1);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_result_that_was_not_delivered_is_delivered_after_a_crash_and_only_once() {
    let world = at_work().await;
    let sink = world.dir.path().join("sink");
    // Not a folder yet, so nothing can be delivered.
    std::fs::write(&sink, "in the way").expect("written");
    let upload = Upload { name: "folder".into(), sink: UploadSink::Folder { path: sink.clone() } };
    let world = world.crash().await.start_with(|config| config.uploads = vec![upload]).await;
    world.until_warm(1).await;
    let id = world.submit("echo hello", |spec| spec.artifacts = vec!["a".into()]).await;
    view_until(&world.daemon, id, "owed", |v| v.state == BuildState::Uploading).await;
    let fallen = world.crash().await;
    std::fs::remove_file(&sink).expect("out of the way");
    let world = fallen.start().await;
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Success);
    let result = sink.join(id.to_string()).join("result.json");
    let first = std::fs::metadata(&result).and_then(|m| m.modified()).expect("delivered");
    assert!(world.daemon.context.store.owed().await.expect("read").is_empty());

    // A crash between the delivery and its mark: it is owed still, and delivered again to where it is.
    let fallen = world.crash().await;
    let journal = rusqlite::Connection::open(fallen.config.home.journal()).expect("it opens");
    let sql = "INSERT INTO outbox (build, sink, attempts, next_ms) VALUES (?1, 'folder', 0, 0)";
    journal.execute(sql, [id.0.cast_signed()]).expect("owed again");
    drop(journal);
    let world = fallen.start().await;
    world.over(id).await;
    let second = std::fs::metadata(&result).and_then(|m| m.modified()).expect("there");
    assert_eq!(first, second, "what is there whole is not touched");
    assert_eq!(std::fs::read_dir(&sink).expect("the sink").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_build_whose_guest_died_with_the_daemon_is_attempted_again() {
    for retries in [1, 0] {
        let world = at_work().await;
        let id = world.submit(COUNT, |spec| spec.retries = retries).await;
        let before = world.until_in(id, "step").await;
        let fallen = world.crash().await;
        fallen.sim.kill_guest(before.vm.as_deref().expect("it has one"));
        let world = fallen.start().await;
        let view = world.over(id).await;
        if retries == 0 {
            ended_once(&world, &view, BuildResult::Error);
            assert_eq!(view.attempt, 1);
            assert!(view.reason.expect("one").contains("no retries are left"));
        } else {
            ended_once(&world, &view, BuildResult::Success);
            assert_eq!(view.attempt, 2);
            assert_ne!(view.vm, before.vm);
        }
        world.clean().await;
    }
}

/// Whatever part of it fails: the VM goes, and the build is attempted again; what is merely slow is waited for.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_fails_costs_the_vm_and_one_attempt() {
    let endings =
        [Behaviour::Err(Reason::VerbFailed), Behaviour::Never, Behaviour::Slow(Duration::from_secs(5))];
    for step in [Step::Adopt, Step::Address, Step::Connect, Step::Attach] {
        for ending in endings.clone() {
            let world = at_work().await;
            let id = world.submit(COUNT, |_| {}).await;
            let before = world.until_in(id, "step").await;
            let fallen = world.crash().await;
            fallen.sim.script(step, [ending.clone()]);
            let world = fallen.start().await;
            let view = world.over(id).await;
            let what = format!("{step:?} {ending:?}: {view:?}");
            ended_once(&world, &view, BuildResult::Success);
            let slow = matches!(ending, Behaviour::Slow(_));
            assert_eq!(view.vm == before.vm, slow, "{what}");
            assert_eq!(view.attempt, if slow { 1 } else { 2 }, "{what}");
            let steps = view.phases.iter().filter(|phase| phase.phase == "step").count();
            assert_eq!(steps, usize::from(view.attempt), "{what}");
            assert_eq!(world.sim.running_most(), 1, "{what}");
            world.clean().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_without_retries_whose_adoption_fails_ends_when_its_guest_is_dead() {
    let world = at_work().await;
    let id = world.submit(COUNT, |spec| spec.retries = 0).await;
    world.until_in(id, "step").await;
    let fallen = world.crash().await;
    fallen.sim.script(Step::Connect, [Behaviour::Err(Reason::SshTimeout)]);
    let world = fallen.start().await;
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Error);
    assert!(view.reason.expect("one").contains("the daemon was restarted"));
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_build_can_be_cancelled_while_its_vm_is_adopted() {
    let world = at_work().await;
    let id = world.submit(COUNT, |_| {}).await;
    world.until_in(id, "step").await;
    let fallen = world.crash().await;
    fallen.sim.script(Step::Connect, [Behaviour::Never]);
    let world = fallen.start().await;
    world.daemon.core.cancel(id).await.expect("taken");
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Cancellation);
    world.clean().await;
}

/// The configuration has changed meanwhile: the books decide as for any VM.
#[tokio::test(start_paused = true)]
async fn a_vm_that_fits_no_longer_is_not_adopted() {
    let world = world(2, 2).await;
    world.sim.plant(FOREIGN, ListedState::Stopped);
    world.until_warm(2).await;
    let ids = [world.submit(COUNT, |_| {}).await, world.submit(COUNT, |_| {}).await];
    let mut vms = Vec::new();
    for id in ids {
        vms.push(world.until_in(id, "step").await.vm.expect("it has one"));
    }
    let world = world.crash().await.start_with(|config| config.host.vms = 1).await;
    let mut kept = 0;
    for id in ids {
        let view = world.over(id).await;
        ended_once(&world, &view, BuildResult::Success);
        kept += usize::from(view.vm.is_some_and(|vm| vms.contains(&vm)));
    }
    assert_eq!(kept, 1, "one of the two fits");
    world.until_warm(1).await;
}

/// As if the attempt had begun so many seconds earlier: under paused time the wall clock stands still.
async fn shift_back(config: &Config, id: BuildId, seconds: i64) {
    let store = Store::open(&config.home.journal()).expect("a journal");
    let mut record = store.build(id).await.expect("read").expect("there");
    let place = record.place.as_mut().expect("in a step");
    let millis = seconds * 1000;
    place.work_began_ms.0 -= millis;
    if let Doing::Step { began_ms, .. } = &mut place.doing {
        began_ms.0 -= millis;
    }
    store.save(record).await.expect("written");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_ended_well_while_nobody_looked_is_not_late_and_one_that_goes_on_is() {
    for (command, result) in
        [("sleep 5; echo done", BuildResult::Success), ("sleep 90000", BuildResult::Timeout)]
    {
        let world = at_work().await;
        let id = world.submit(command, |_| {}).await;
        world.until_in(id, "step").await;
        let fallen = world.crash().await;
        tokio::time::sleep(Duration::from_secs(1800)).await;
        shift_back(&fallen.config, id, 1800).await;
        let world = fallen.start().await;
        let view = world.over(id).await;
        ended_once(&world, &view, result);
        assert_eq!(view.attempt, 1);
        world.clean().await;
    }
}

/// The wall clock was set back by an hour while the daemon was away: the step has its whole time, and no more.
#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_back_gives_a_step_no_more_than_its_time() {
    let world = at_work().await;
    let id = world.submit("sleep 90000", |_| {}).await;
    world.until_in(id, "step").await;
    let fallen = world.crash().await;
    shift_back(&fallen.config, id, -3600).await;
    let world = fallen.start().await;
    let began = crate::clock::now();
    let view = world.over(id).await;
    assert_eq!(view.reason.as_deref(), Some("step `step` took longer than 10m"));
    assert!(began.elapsed() < Duration::from_secs(660), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_be_listed_at_once_costs_no_build() {
    let world = at_work().await;
    let id = world.submit(COUNT, |spec| spec.retries = 0).await;
    let before = world.until_in(id, "step").await;
    let fallen = world.crash().await;
    fallen.sim.script(Step::List, [const { Behaviour::Err(Reason::VerbFailed) }; 2]);
    let world = fallen.start().await;
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Success);
    assert_eq!(view.vm, before.vm);
}

/// A little time, while the disk stands still and tokio would wait for it.
async fn pass(seconds: u32) {
    for _ in 0..seconds * 10 {
        tokio::time::advance(Duration::from_millis(100)).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

/// Else a crash in between could lose a step that runs, or run one twice.
#[tokio::test(start_paused = true)]
async fn no_guest_hears_of_a_step_or_is_killed_before_the_journal_has_it() {
    let world = at_work().await;
    world.sim.script(Step::PutTree, [Behaviour::Slow(Duration::from_secs(1))]);
    let store = world.daemon.context.store.clone();
    let id = world.submit("sleep 5", |_| {}).await;
    world.until_in(id, "source").await;

    let (go, still) = std::sync::mpsc::channel();
    store.stand_still(still);
    pass(20).await;
    assert_eq!(phases(&world.daemon.core.build(id).await.expect("known")).last(), Some(&"step"));
    assert_eq!(world.sim.count(Step::Run), 0);
    drop(go);
    world.until_in(id, "step").await;
    while world.sim.count(Step::Run) == 0 {
        tokio::task::yield_now().await;
    }

    let (go, still) = std::sync::mpsc::channel();
    store.stand_still(still);
    pass(20).await;
    assert_eq!(phases(&world.daemon.core.build(id).await.expect("known")).last(), Some(&"teardown"));
    assert_eq!(world.sim.count(Step::Kill), 0);
    drop(go);
    ended_once(&world, &world.over(id).await, BuildResult::Success);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_stopped_while_it_adopts_takes_that_vm_away_too() {
    let world = at_work().await;
    let id = world.submit(COUNT, |_| {}).await;
    world.until_in(id, "step").await;
    let fallen = world.crash().await;
    fallen.sim.script(Step::Connect, [Behaviour::Never]);
    let World { daemon, sim, config, dir } = fallen.start().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    daemon.stop().await;
    assert_eq!(sim.names(), [FOREIGN]);
    let world = Fallen { sim, config, dir }.start().await;
    let view = world.over(id).await;
    ended_once(&world, &view, BuildResult::Success);
    assert_eq!(view.attempt, 2);
    world.clean().await;
}
