//! Whole lives, ours and crun's in turns, within one VM.
//!
//! Ours can be asked only from the host. So that both are times of the guest, the host's share of a round trip is taken
//! off ours: what an Info takes, less what the guest computes for it.

use serde_json::{Value, json};

use crate::Failure;
use crate::guest::{Bench, Life, ms};
use crate::{say, specs};

/// Before anything counts: under emulation a program's first runs are translated.
const WARM_UP: usize = 5;
/// Infos in a row of which the guest's computing time is taken; its clock ticks every 10 ms.
const INFOS: usize = 300;
/// Lives in a row of which the guest's computing time is taken.
const BUSY_LIVES: usize = 20;
/// How often system calls are counted.
const COUNTS: usize = 3;

/// Where the driver's crun finds its bundles.
const BUNDLES: &str = "/run/bundles";

pub async fn measure(bench: &Bench, lives: usize, crun: bool) -> Result<Value, Failure> {
    let ours = specs::container(&["/bin/bench-guest", "exit"], "", None);
    let ours_seccomp = specs::container(&["/bin/bench-guest", "exit"], "", Some(specs::seccomp()));
    let crun = match crun {
        true => Some(Crun::new(bench).await?),
        false => None,
    };
    let sleeper = bench.name();
    let spec = specs::container(&["/bin/bench-guest", "sleep"], "", None);
    let bundle = bench.bundle(&sleeper, &spec).await?;
    bench.create(&sleeper, &bundle).await?;
    bench.start(&sleeper, "").await?;

    let mut samples = Samples::default();
    let has_exec = match bench.exec(&sleeper).await {
        Ok(_) => true,
        Err(error) => {
            say(&format!("no exec: {error}"));
            false
        }
    };
    for round in 0..lives + WARM_UP {
        let counts = round >= WARM_UP;
        let plain = bench.life(&ours).await?;
        let filtered = bench.life(&ours_seccomp).await?;
        let info = bench.info().await?;
        let exec = if has_exec { Some(bench.exec(&sleeper).await?) } else { None };
        if counts {
            samples.ours.push(plain);
            samples.ours_seccomp.push(filtered);
            samples.info.push(info);
            samples.exec.extend(exec);
        }
        // On an initramfs one of them takes seconds.
        if let Some(crun) = &crun
            && (round < WARM_UP || round % 2 == 0)
        {
            let plain = crun.life(bench, &crun.plain).await?;
            let filtered = crun.life(bench, &crun.filtered).await?;
            let exec = bench.numbers(&format!("crun-exec {}", crun.running)).await?;
            if counts {
                samples.crun_exec.extend(exec);
                samples.crun.push(plain);
                samples.crun_seccomp.push(filtered);
            }
        }
    }
    let mut busy = json!({
        "info": busy(bench, INFOS, async || bench.info().await.map(drop)).await?,
        "life": busy(bench, BUSY_LIVES, async || bench.life(&ours).await.map(drop)).await?,
    });
    if has_exec {
        busy["exec"] =
            self::busy(bench, BUSY_LIVES, async || bench.exec(&sleeper).await.map(drop)).await?;
    }
    if let Some(crun) = &crun {
        busy["crun_life"] =
            self::busy(bench, BUSY_LIVES, async || crun.life(bench, &crun.plain).await.map(drop))
                .await?;
        busy["crun_exec"] = self::busy(bench, BUSY_LIVES, async || crun.exec(bench).await).await?;
    }
    let mut syscalls = json!({ "ours": count(bench, &ours).await? });
    if let Some(crun) = &crun {
        let mut counts = Vec::<Value>::new();
        for _ in 0..COUNTS {
            let id = bench.name();
            let command = format!("crun-count {} {id}", crun.plain);
            counts.push(calls(&bench.drive(&command).await?)?);
        }
        syscalls["crun"] = json!(counts);
    }
    bench.end_container(&sleeper).await?;
    Ok(samples.record(busy, syscalls))
}

/// `AGENT PID:PLACE ...`, a sample of the guest's CPU each, while our lives pass.
pub async fn profile(bench: &Bench) -> Result<String, Failure> {
    let spec = specs::container(&["/bin/bench-guest", "exit"], "", None);
    for _ in 0..WARM_UP {
        bench.life(&spec).await?;
    }
    bench.drive("profile").await?;
    for _ in 0..2 * BUSY_LIVES {
        bench.life(&spec).await?;
    }
    bench.drive("profiled").await
}

/// The same while execs pass.
pub async fn profile_execs(bench: &Bench) -> Result<String, Failure> {
    let sleeper = bench.name();
    let spec = specs::container(&["/bin/bench-guest", "sleep"], "", None);
    let bundle = bench.bundle(&sleeper, &spec).await?;
    bench.create(&sleeper, &bundle).await?;
    bench.start(&sleeper, "").await?;
    for _ in 0..WARM_UP {
        bench.exec(&sleeper).await?;
    }
    bench.drive("profile").await?;
    for _ in 0..2 * BUSY_LIVES {
        bench.exec(&sleeper).await?;
    }
    let samples = bench.drive("profiled").await?;
    bench.end_container(&sleeper).await?;
    Ok(samples)
}

/// Milliseconds that the guest's CPU was not idle, and how often it changed threads, for one of `times` calls in a row.
async fn busy(
    bench: &Bench,
    times: usize,
    call: impl AsyncFn() -> Result<(), Failure>,
) -> Result<Value, Failure> {
    let (before, host_before) = (bench.numbers("clock").await?, bench.hypervisor_ms());
    for _ in 0..times {
        call().await?;
    }
    let (host_after, after) = (bench.hypervisor_ms(), bench.numbers("clock").await?);
    let host = host_before.zip(host_after).map(|(before, after)| (after - before) / times as f64);
    let (wall, idle) = (after[0] - before[0], after[1] - before[1]);
    let per_call = |all: u64| all as f64 / times as f64;
    Ok(json!({
        "ms": per_call(wall.saturating_sub(idle)) / 1e3,
        "switches": per_call(after[2] - before[2]),
        "host_ms": host,
    }))
}

async fn count(bench: &Bench, spec: &Value) -> Result<Vec<Value>, Failure> {
    let mut counts = Vec::new();
    for _ in 0..COUNTS {
        bench.drive("count").await?;
        bench.life(spec).await?;
        counts.push(calls(&bench.drive("counted").await?)?);
    }
    Ok(counts)
}

/// The driver's `TOTAL WHO/NUMBER/COUNT ...`.
fn calls(answer: &str) -> Result<Value, Failure> {
    let (total, each) = answer.split_once(' ').unwrap_or((answer, ""));
    Ok(json!({ "total": total.parse::<u64>()?, "each": each }))
}

/// Bundles for the driver's crun.
struct Crun {
    plain: String,
    filtered: String,
    sleeper: String,
    /// A container of the sleeper's that runs.
    running: String,
}

impl Crun {
    async fn new(bench: &Bench) -> Result<Self, Failure> {
        let exit = ["/bin/bench-guest", "exit"];
        let sleep = ["/bin/bench-guest", "sleep"];
        let crun = Self {
            plain: format!("{BUNDLES}/crun-plain"),
            filtered: format!("{BUNDLES}/crun-filtered"),
            sleeper: format!("{BUNDLES}/crun-sleeper"),
            running: "crun-running".to_owned(),
        };
        for (name, arguments, seccomp) in [
            ("crun-plain", exit, None),
            ("crun-filtered", exit, Some(specs::seccomp())),
            ("crun-sleeper", sleep, None),
        ] {
            let spec = specs::container(&arguments, &format!("/containers/{name}"), seccomp);
            bench.bundle(name, &spec).await?;
        }
        bench.drive(&format!("crun-start {} {}", crun.sleeper, crun.running)).await?;
        Ok(crun)
    }

    async fn exec(&self, bench: &Bench) -> Result<(), Failure> {
        bench.drive(&format!("crun-exec {}", self.running)).await.map(drop)
    }

    async fn life(&self, bench: &Bench, bundle: &str) -> Result<Vec<u64>, Failure> {
        bench.numbers(&format!("crun {bundle} {}", bench.name())).await
    }
}

#[derive(Default)]
struct Samples {
    ours: Vec<Life>,
    ours_seccomp: Vec<Life>,
    info: Vec<f64>,
    exec: Vec<f64>,
    crun: Vec<Vec<u64>>,
    crun_seccomp: Vec<Vec<u64>>,
    crun_exec: Vec<u64>,
}

impl Samples {
    fn record(&self, busy: Value, syscalls: Value) -> Value {
        let ours = |lives: &[Life]| {
            json!({
                "create": lives.iter().map(|life| life.create).collect::<Vec<_>>(),
                "start": lives.iter().map(|life| life.start).collect::<Vec<_>>(),
                "delete": lives.iter().map(|life| life.delete).collect::<Vec<_>>(),
                "life": lives.iter().map(|life| life.whole).collect::<Vec<_>>(),
            })
        };
        let crun = |lives: &[Vec<u64>]| {
            let column = |at: usize| {
                let times = lives.iter().filter_map(|life| life.get(at));
                times.map(|time| *time as f64 / 1e3).collect::<Vec<_>>()
            };
            json!({
                "create": column(0), "start": column(1), "delete": column(2), "life": column(3),
                "user": column(4), "system": column(5),
            })
        };
        let mut record = json!({
            "host_ms": ours(&self.ours),
            "host_seccomp_ms": ours(&self.ours_seccomp),
            "guest_busy": busy,
            "crun_ms": crun(&self.crun),
            "crun_seccomp_ms": crun(&self.crun_seccomp),
            "syscalls": syscalls,
        });
        record["host_ms"]["info"] = json!(self.info);
        record["host_ms"]["exec"] = json!(self.exec);
        let execs = self.crun_exec.iter();
        record["crun_ms"]["exec"] =
            json!(execs.map(|us| ms(std::time::Duration::from_micros(*us))).collect::<Vec<_>>());
        record
    }
}
