//! How a guest is, over a real connection: looks that go on when it is cut, and a shell in the guest that ends with it.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use preheat::guest::{Channel, Look};
use tokio::sync::{Notify, mpsc};

use crate::sshd::{PATIENT, Process, Sshd, eventually, processes, sh};

const OFTEN: Duration = Duration::from_millis(50);

/// Looks that go on by themselves.
struct Watching {
    looks: mpsc::Receiver<Look>,
    hurry: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

fn watch(channel: &Arc<dyn Channel>, every: Duration) -> Watching {
    let (tell, looks) = mpsc::channel(1);
    let (channel, hurry) = (Arc::clone(channel), Arc::new(Notify::new()));
    let hurried = hurry.clone();
    let task = tokio::spawn(async move { channel.watch(every, &hurried, tell).await });
    Watching { looks, hurry, task }
}

impl Watching {
    async fn look(&mut self) -> Look {
        tokio::time::timeout(PATIENT, self.looks.recv()).await.expect("in time").expect("a look")
    }
}

/// Shells in the guest that wait to be asked.
fn shells(sshd: &Sshd) -> usize {
    let home = sshd.inhabitants();
    let asked = |p: &Process| p.line.contains("= meminfo") && home.contains(&p.pid);
    processes().iter().filter(|p| asked(p)).count()
}

#[tokio::test]
async fn a_guest_is_looked_at_whatever_becomes_of_its_connection() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut watching = watch(&channel, OFTEN);
    let first = watching.look().await;
    let (used, free) = first.disk.expect("df is there");
    assert!(used + free > 0 && first.memory.is_some_and(|(used, all)| used < all), "{first:?}");
    assert_eq!(first.cpu_percent, None, "one look is no share");
    let busy = watching.look().await.cpu_percent;
    assert!(busy.is_none_or(|percent| percent <= 100), "{busy:?}");

    for cut in [Sshd::kill_masters, |sshd: &Sshd| sshd.signal_sessions(Signal::SIGKILL)] {
        cut(&sshd);
        // What was on its way may come still.
        for _ in 0..5 {
            watching.look().await;
        }
        assert!(!watching.task.is_finished());
    }
    // A step beside it notices nothing.
    assert_eq!(sh(&channel, "echo step").await.1, ["step"]);
    assert_eq!(shells(&sshd), 1, "one shell, however often it is asked");
    drop(watching.looks);
    tokio::time::timeout(PATIENT, watching.task).await.expect("in time").expect("no panic");
    eventually("the shell is gone", || shells(&sshd) == 0).await;
}

#[tokio::test]
async fn a_look_can_be_hurried_and_the_shell_ends_with_its_connection() {
    let sshd = Sshd::started();
    let channel = sshd.channel().await;
    let mut watching = watch(&channel, PATIENT * 10);
    watching.look().await;
    watching.hurry.notify_one();
    watching.look().await;
    assert_eq!(shells(&sshd), 1);
    watching.task.abort();
    drop((watching, channel));
    eventually("the shell is gone", || shells(&sshd) == 0).await;
}
