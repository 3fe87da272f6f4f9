//! How a guest is, as its own tools say it. One shell in it answers each of our lines with a look; nothing runs there while it
//! is not asked, and it ends with its connection. What the tools print is read here, by plain functions.

use std::time::Duration;

use openssh::ChildStdout;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use super::Look;
use super::link::Link;
use super::wire::{LOSS_SHOWS, Wire, write};
use super::wrapper::joined;

/// For one answer. A guest that swaps is slow; one that has not said anything by then is not asked again.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The longest answer: macOS's is some 2 kB. What says more than this is none of our script.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Ends an answer.
const END: u8 = 0x1E;

const QUESTION: &[u8] = b"look\n";

/// Asks the guest `every` so often, sooner when it is hurried, over one connection after the other. It returns when nobody
/// listens, when the guest can be reached no more, or when it does not answer.
pub(super) async fn watch(link: &Link, every: Duration, hurry: &Notify, looks: mpsc::Sender<Look>) {
    let mut lost = None;
    while let Ok(connection) = link.up(lost.as_ref()).await {
        ask(&connection.wire, every, hurry, &looks).await;
        // Whatever else ended it would end it again.
        if looks.is_closed() || timeout(LOSS_SHOWS, connection.wire.lost()).await.is_err() {
            return;
        }
        lost = Some(connection);
    }
}

/// One look after the other; `None` when there are no more over this connection.
async fn ask(wire: &Wire, every: Duration, hurry: &Notify, looks: &mpsc::Sender<Look>) -> Option<()> {
    let script = joined(&[include_str!("sh/health.sh")]);
    let mut exec = wire.open(&format!("exec /bin/sh -c '{script}' preheat")).await.ok()?;
    let (stdin, stdout) = (exec.stdin.as_mut()?, exec.stdout.as_mut()?);
    let mut before = Reading::default();
    loop {
        write(stdin, QUESTION).await.ok()?;
        let text = timeout(ANSWER_MAX, wire.or_lost(answer(stdout))).await.ok()?.ok()??;
        let reading = Reading::of(&text);
        looks.send(reading.look(&before)).await.ok()?;
        before = reading;
        tokio::select! {
            biased;
            () = hurry.notified() => {}
            () = sleep(every) => {}
        }
    }
}

async fn answer(stdout: &mut ChildStdout) -> Option<String> {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while text.len() < ANSWER_BYTES_MAX {
        let n = stdout.read(&mut piece).await.ok().filter(|n| *n > 0)?;
        text.extend_from_slice(&piece[..n]);
        if text.last() == Some(&END) {
            text.pop();
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
    }
    None
}

/// What one answer says. A tool that is not there, or speaks otherwise, leaves a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reading {
    cpu: Option<Cpu>,
    /// Used and all, in bytes.
    memory: Option<(u64, u64)>,
    /// Used and free, in bytes.
    disk: Option<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cpu {
    /// Ticks since the guest's start: busy and all.
    Ticks(u64, u64),
    Percent(u8),
}

impl Reading {
    fn of(text: &str) -> Self {
        let mut reading = Self::default();
        // What comes before the first is a profile's.
        for section in format!("\n{text}").split("\n= ").skip(1) {
            let (tool, said) = section.split_once('\n').unwrap_or((section, ""));
            match tool {
                "df" => reading.disk = df(said),
                "stat" => reading.cpu = ticks(said),
                "meminfo" => reading.memory = meminfo(said),
                "iostat" => reading.cpu = iostat(said),
                "memsize" => reading.memory = said.trim().parse().ok().map(|all| (0, all)),
                "vm_stat" => {
                    let all = reading.memory.map(|(_, all)| all);
                    reading.memory = vm_stat(said).zip(all).map(|(used, all)| (used.min(all), all));
                }
                _ => {}
            }
        }
        reading
    }

    /// With the share of the processor since the reading before.
    fn look(&self, before: &Self) -> Look {
        let cpu_percent = match (self.cpu, before.cpu) {
            (Some(Cpu::Percent(percent)), _) => Some(percent),
            (Some(Cpu::Ticks(busy, all)), Some(Cpu::Ticks(busy_before, all_before))) => {
                share(busy.saturating_sub(busy_before), all.saturating_sub(all_before))
            }
            (Some(Cpu::Ticks(..)) | None, _) => None,
        };
        Look { cpu_percent, memory: self.memory, disk: self.disk }
    }
}

fn share(part: u64, whole: u64) -> Option<u8> {
    let percent = part.min(whole).checked_mul(100)?.checked_div(whole)?;
    u8::try_from(percent).ok()
}

/// `df -P -k`: a device's name and a mount point may hold blanks, so the columns are counted from the percentage. What root
/// keeps for itself counts as used.
fn df(said: &str) -> Option<(u64, u64)> {
    let line = said.lines().rfind(|line| !line.trim().is_empty())?;
    let columns: Vec<&str> = line.split_whitespace().collect();
    let capacity = columns.iter().position(|column| column.strip_suffix('%').is_some_and(is_number))?;
    let kib = |back: usize| columns.get(capacity.checked_sub(back)?)?.parse::<u64>().ok();
    let (size, free) = (kib(3)?, kib(1)?);
    Some((size.saturating_sub(free).checked_mul(1024)?, free.checked_mul(1024)?))
}

fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok()
}

/// The first line of Linux's `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; what comes behind is counted
/// among them.
fn ticks(said: &str) -> Option<Cpu> {
    let numbers = said.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let ticks: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
    let all = ticks.iter().copied().fold(0, u64::saturating_add);
    Some(Cpu::Ticks(all.saturating_sub(idle), all))
}

/// Linux's `/proc/meminfo`, in KiB.
fn meminfo(said: &str) -> Option<(u64, u64)> {
    let kib = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let all = kib("MemTotal:")?;
    Some((all.saturating_sub(kib("MemAvailable:")?), all))
}

/// macOS's `vm_stat`: what programs hold, what is wired, and what the compressor takes, as Activity Monitor adds it up.
fn vm_stat(said: &str) -> Option<u64> {
    let page: u64 = said.split_once("page size of ")?.1.split_whitespace().next()?.parse().ok()?;
    let pages = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().trim_end_matches('.').parse::<u64>().ok()
    };
    let programs = pages("Anonymous pages:")?.saturating_sub(pages("Pages purgeable:").unwrap_or(0));
    let compressor = pages("Pages occupied by compressor:").unwrap_or(0);
    programs.checked_add(pages("Pages wired down:")?)?.checked_add(compressor)?.checked_mul(page)
}

/// macOS's `iostat -c 2`: the last line is of the last second. Its columns are disks, as many as there are, then user, system
/// and idle, then three loads.
fn iostat(said: &str) -> Option<Cpu> {
    let line = said.lines().rfind(|line| !line.trim().is_empty())?;
    let columns: Vec<&str> = line.split_whitespace().collect();
    let idle: u8 = columns.get(columns.len().checked_sub(4)?)?.parse().ok()?;
    Some(Cpu::Percent(100_u8.checked_sub(idle)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "\
= df
Filesystem     1024-blocks    Used Available Capacity Mounted on
/dev/vda           2014524  812340   1081300      43% /
= stat
cpu  4705 150 1120 16250 520 0 38 12 0 0
= meminfo
MemTotal: 1009632
MemFree: 604120
MemAvailable: 781204
";

    const BUSYBOX: &str = "\
= df
Filesystem           1024-blocks    Used Available Capacity Mounted on
tmpfs                   504816      1200    503616   0% /home/admin
= stat
cpu  10 0 20 70 0 0 0 0 0 0
= meminfo
MemTotal: 504816
MemFree: 400000
MemAvailable: 404816
";

    const MACOS: &str = "\
= df
Filesystem   1024-blocks      Used Available Capacity  Mounted on
/dev/disk3s5    97187392  61210040  24903112    72%    /System/Volumes/Data
= memsize
8589934592
= vm_stat
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12203.
Pages active:                            142872.
Pages inactive:                          138740.
Pages speculative:                         3542.
Pages throttled:                              0.
Pages wired down:                         92471.
Pages purgeable:                           1290.
\"Translation faults\":                 214987263.
Pages copy-on-write:                   10022171.
Pages zero filled:                    103448103.
Pages reactivated:                      2912471.
Pages purged:                            882118.
File-backed pages:                        98817.
Anonymous pages:                         186337.
Pages stored in compressor:              290710.
Pages occupied by compressor:            118020.
Decompressions:                         1900312.
= iostat
              disk0       cpu    load average
    KB/t  tps  MB/s  us sy id   1m   5m   15m
   21.43   24  0.50   4  2 94  1.60 1.82 1.89
  103.20  912 91.90  61 22 17  6.31 2.82 2.11
";

    #[test]
    fn a_linux_guest_is_read_from_proc_and_df_and_its_processor_from_two_looks() {
        let first = Reading::of(DEBIAN);
        assert_eq!(first.disk, Some(((2_014_524 - 1_081_300) * 1024, 1_081_300 * 1024)));
        assert_eq!(first.memory, Some(((1_009_632 - 781_204) * 1024, 1_009_632 * 1024)));
        assert_eq!(first.look(&Reading::default()).cpu_percent, None, "one look is no share");
        let later = DEBIAN.replace("4705 150 1120 16250 520", "4780 150 1120 16270 525");
        assert_eq!(Reading::of(&later).look(&first).cpu_percent, Some(75));
        assert_eq!(first.look(&first).cpu_percent, None, "no time has passed");
        assert_eq!(first.look(&Reading::of(&later)).cpu_percent, None, "its counters began anew");
        let busybox = Reading::of(BUSYBOX);
        assert_eq!(busybox.disk, Some((1200 * 1024, 503_616 * 1024)));
        assert_eq!(busybox.memory.map(|(used, _)| used), Some(100_000 * 1024));
    }

    #[test]
    fn a_macos_guest_is_read_from_df_vm_stat_and_iostat() {
        let look = Reading::of(MACOS).look(&Reading::default());
        assert_eq!(look.cpu_percent, Some(83), "of the last second, not since the boot");
        assert_eq!(look.disk, Some(((97_187_392 - 24_903_112) * 1024, 24_903_112 * 1024)));
        assert_eq!(look.memory, Some(((186_337 - 1_290 + 92_471 + 118_020) * 16_384, 8_589_934_592)));
        let more_disks = MACOS
            .replace("KB/t  tps  MB/s ", "KB/t  tps  MB/s  KB/t  tps  MB/s ")
            .replace("103.20  912 91.90 ", "103.20  912 91.90  0.00  0  0.00 ");
        assert_eq!(Reading::of(&more_disks).cpu, Some(Cpu::Percent(83)));
    }

    #[test]
    fn a_name_with_blanks_moves_no_column() {
        let said = "Filesystem 1024-blocks Used Available Capacity Mounted on\nmap auto home 100 40 60 40% /a b 9%\n";
        assert_eq!(df(said), Some((40 * 1024, 60 * 1024)));
    }

    #[test]
    fn what_says_nothing_leaves_a_gap_and_nothing_else() {
        for text in ["", "= ", "= df\n", "garbage", "= df\n-1 % %\n= stat\ncpu x\n= meminfo\nMemTotal: 1\n"] {
            assert_eq!(Reading::of(text), Reading::default(), "{text:?}");
        }
        let only_disk = MACOS.split("= memsize").next().unwrap_or_default();
        let look = Reading::of(only_disk).look(&Reading::default());
        assert!(look.disk.is_some() && look.memory.is_none() && look.cpu_percent.is_none());
        let huge = "= df\nx 18446744073709551615 1 18446744073709551615 1% /\n";
        assert_eq!(Reading::of(huge).disk, None);
    }

    #[test]
    fn the_script_can_stand_between_single_quotes() {
        assert!(!joined(&[include_str!("sh/health.sh")]).contains('\''));
    }
}
