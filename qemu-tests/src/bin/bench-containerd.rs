//! `./dev bench-containerd`: what a task in a VM costs beside one of runc, with the same containerd, image and command.
//!
//! ```text
//! ctr run --rm IMAGE c true      in turn with runc and with ours, on one containerd:
//!   shim      ctr's start until the shim boots a VM
//!   spawn     until vminit-vmm and QEMU run (virtiofsd among it)
//!   boot      until the guest serves             <- less these two: what is held against runc
//!   life      until containerd lets go of the shim, of it:
//!     create  until Create is answered (streams, mounts, bundle, the container)
//!     run     until Wait is answered (Start, the program, its exit)
//!     end     until containerd lets go (Delete, Shutdown)
//!   delete    until ctr has ended (the VM's end, the container, its snapshot)
//! ```
//!
//! Promises: prints medians, the ratio, memory of shim and vminit-vmm, and processes per VM; exit status 1 when a limit is
//! not kept. Times are the host's clock and the shim's log. The two are run in turn, so that what else the machine does meets
//! both; the ratio is the median of the turns'. Never: compares what was not measured in the same run.

use std::process::exit;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use qemu_tests::containerd::{Containerd, Runtime, version};

/// Runs of each, after one that warms up.
const RUNS: usize = 12;
/// How many times as long as runc a run may take, less the VM's boot.
const MOST_RATIO: f64 = 4.0;
/// Bytes of RssAnon and RssFile of a shim.
const MOST_SHIM: u64 = 12 << 20;
/// The same of vminit-vmm.
const MOST_VMM: u64 = 8 << 20;
/// Milliseconds of a day.
const DAY: f64 = 86_400_000.0;

fn main() {
    let Some(found) = version("2") else {
        eprintln!("SKIPPED: there is no containerd 2 to measure with");
        return;
    };
    println!("containerd {}, {RUNS} runs each in turn, medians in ms", found.number);
    let mut containerd = Containerd::start(found, Runtime::Vminitd);
    let turns: Vec<(f64, Phases)> =
        (0..=RUNS).map(|number| turn(&mut containerd, number)).skip(1).collect();
    let of = |pick: fn(&Phases) -> f64| median(turns.iter().map(|(_, ours)| pick(ours)).collect());
    println!("runc       {:8.1}", median(turns.iter().map(|(runc, _)| *runc).collect()));
    println!("vminitd    {:8.1}", of(|run| run.total));
    println!("  shim     {:8.1}", of(|run| run.shim));
    println!("  spawn    {:8.1}   (vminit-vmm, virtiofsd, QEMU)", of(|run| run.spawn));
    println!("  boot     {:8.1}", of(|run| run.boot));
    println!("  life     {:8.1}", of(|run| run.create + run.run + run.end));
    println!("    create {:8.1}", of(|run| run.create));
    println!("    run    {:8.1}", of(|run| run.run));
    println!("    end    {:8.1}", of(|run| run.end));
    println!("  delete   {:8.1}", of(|run| run.delete));
    let less_boot = of(|run| run.total - run.spawn - run.boot);
    let ratios = turns.iter().map(|(runc, run)| (run.total - run.spawn - run.boot) / runc);
    let ratio = median(ratios.collect());
    println!("less the VM's boot {less_boot:.1}: {ratio:.2} times runc (at most {MOST_RATIO})");
    let kept = memory(&containerd) & (ratio <= MOST_RATIO);
    // exit(3) drops nothing, and the host would stay.
    drop(containerd);
    exit(i32::from(!kept));
}

/// A run of runc's and one of ours.
fn turn(containerd: &mut Containerd, number: usize) -> (f64, Phases) {
    containerd.runtime = Runtime::Runc;
    let (runc, ..) = run(containerd, number);
    containerd.runtime = Runtime::Vminitd;
    (runc, phases(containerd, number))
}

/// A run's wall time in ms, and when it began and ended, in ms of the day.
fn run(containerd: &Containerd, number: usize) -> (f64, f64, f64) {
    let day = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        now.as_secs_f64() * 1000.0 % DAY
    };
    let (begin, from) = (day(), Instant::now());
    containerd.run(&[], &format!("b{number}"), &["true"]).good();
    (from.elapsed().as_secs_f64() * 1000.0, begin, day())
}

/// Milliseconds.
#[derive(Clone, Copy)]
struct Phases {
    total: f64,
    shim: f64,
    spawn: f64,
    boot: f64,
    create: f64,
    run: f64,
    end: f64,
    delete: f64,
}

fn phases(containerd: &Containerd, number: usize) -> Phases {
    let before = containerd.log().len();
    let (total, begin, end) = run(containerd, number);
    let log = containerd.log().split_off(before);
    let at = |texts: &[&str]| {
        let line = log.lines().find(|line| texts.iter().all(|text| line.contains(text)));
        line.and_then(stamp).unwrap_or_else(|| panic!("{texts:?} with a time is not in:\n{log}"))
    };
    let answered = |call: &str| at(&[&format!("call=\"{call}\""), "answered"]);
    let (booting, spawned) = (at(&[" booting a VM"]), at(&[" the VM boots"]));
    let (serving, exited) = (at(&[" the guest serves"]), at(&["shim disconnected"]));
    let (created, waited) = (answered("create"), answered("wait"));
    Phases {
        total,
        shim: booting - begin,
        spawn: spawned - booting,
        boot: serving - spawned,
        create: created - serving,
        run: waited - created,
        end: exited - waited,
        delete: end - exited,
    }
}

/// A line's RFC 3339 time, in ms of the day: it begins with it (ours) or has it in `time="..."` (containerd's).
fn stamp(line: &str) -> Option<f64> {
    let (_, time) = line.split_once('T')?;
    let time: String =
        time.chars().take_while(|c| c.is_ascii_digit() || ":.".contains(*c)).collect();
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(((hours * 60.0 + minutes) * 60.0 + seconds) * 1000.0)
}

/// What one VM holds while its container sleeps; true when the limits are kept.
fn memory(containerd: &Containerd) -> bool {
    containerd.start_container(&[], "m", &["sleep", "1000"]);
    containerd.exec("m", &["true"]).good();
    let mut kept = true;
    for (program, most) in [("containerd-shim-vminitd-v1", MOST_SHIM), ("vminit-vmm", MOST_VMM)] {
        let resident: Vec<u64> =
            containerd.host.running(program).iter().map(|process| process.resident).collect();
        kept &= resident.len() == 1 && resident[0] <= most;
        println!(
            "{program}: {:.1} MiB resident (at most {})",
            resident[0] as f64 / 1048576.0,
            most >> 20
        );
    }
    for program in ["containerd-shim-vminitd-v1", "vminit-vmm", "qemu-system-x86_64", "virtiofsd"] {
        println!("{program}: {}", containerd.host.running(program).len());
    }
    containerd.remove("m");
    kept
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
