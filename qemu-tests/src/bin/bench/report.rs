//! From samples to figures, and from figures to a table with the limits that issues 4 and 5 set.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::stats::{median, rounded, spread};

/// Round trips in which the host has its share: Wait's answer comes while nothing else is asked for, and so is half of
/// one.
const LIFE_TRIPS: f64 = 3.5;
const EXEC_TRIPS: f64 = 3.5;

/// The figures, under the names that `--json` promises. What was not measured is null.
pub fn figures(record: &Value) -> Value {
    let mut figures = json!({
        "boot_ms": boot(record),
        "latency_ms": ours(&record["erofs"]),
        "crun_latency_ms": crun(&record["erofs"]),
        "initramfs": {
            "latency_ms": ours(&record["initramfs"]),
            "crun_latency_ms": crun(&record["initramfs"]),
        },
        "stdout_mib_s": middle(&record["throughput"]["stdout_mib_s"]),
        "raw_vsock_mib_s": middle(&record["throughput"]["raw_vsock_mib_s"]),
        "size_bytes": record["size_bytes"],
    });
    let memory = &record["memory"];
    let sum = |at: &str| number(&memory[at]["init"]) + number(&memory[at]["agent"]);
    figures["memory_kib"] = json!({
        "init_pss": memory["idle_kib"]["init"],
        "agent_pss": memory["idle_kib"]["agent"],
        "pss_20": finite(sum("with_20_kib")),
        "pss_100": finite(sum("with_100_kib")),
    });
    let creates = samples(&memory["creates_ms"]);
    let of = |range: std::ops::Range<usize>| creates.get(range).map(|part| rounded(median(part)));
    figures["create_ms"] = json!({ "early": of(5..15), "late": of(90..100) });
    figures["baseline"] = baseline(&record["baseline"]);
    let creates = &record["disks"]["creates"];
    figures["layers_create_ms"] = json!({
        "plain": middle(&creates["plain_ms"]),
        "layers": middle(&creates["layers_ms"]),
        "kernel": finite(median(&samples(&creates["kernel_us"])) / 1e3),
    });
    let reads = &record["disks"]["reads"];
    let mib = number(&record["disks"]["file_bytes"]) / f64::from(1 << 20);
    let rate = |at: &str| finite(mib / (median(&samples(&reads[at])) / 1e6));
    figures["disk_mib_s"] = json!({ "erofs": rate("erofs_us"), "raw": rate("raw_us") });
    figures
}

fn boot(record: &Value) -> Value {
    let rows = |kind: &str| -> Vec<[f64; 2]> {
        let rows = record["boot"][kind].as_array().cloned().unwrap_or_default();
        rows.iter().map(|row| [number(&row[0]) / 1e3, number(&row[1]) / 1e3]).collect()
    };
    let took = |rows: &[[f64; 2]]| {
        median(&rows.iter().map(|[entry, serving]| serving - entry).collect::<Vec<_>>())
    };
    let (ours, yardstick) = (rows("ours"), rows("yardstick"));
    let entry = median(&ours.iter().map(|row| row[0]).collect::<Vec<_>>());
    json!({
        "pid1_entry": finite(entry),
        "serving": finite(entry + took(&ours)),
        "yardstick": finite(took(&yardstick)),
    })
}

/// From entry to serving, of this build and of the older one; milliseconds, and millions of instructions.
fn baseline(record: &Value) -> Value {
    let took = |kind: &str| {
        let rows = record[kind].as_array().cloned().unwrap_or_default();
        let took = rows.iter().map(|row| (number(&row[1]) - number(&row[0])) / 1e3);
        finite(median(&took.collect::<Vec<_>>()))
    };
    json!({
        "revision": record["revision"],
        "ours_ms": took("ours"), "ms": took("baseline"),
        "ours_million_instructions": took("ours_counted"),
        "million_instructions": took("baseline_counted"),
    })
}

/// The host's share of a round trip.
fn share(medium: &Value) -> f64 {
    let info = median(&samples(&medium["host_ms"]["info"]));
    (info - number(&medium["guest_busy"]["info"]["ms"])).max(0.0)
}

fn less(samples: &[f64], trips: f64, share: f64) -> Vec<f64> {
    samples.iter().map(|sample| (sample - trips * share).max(0.0)).collect()
}

fn ours(medium: &Value) -> Value {
    let share = share(medium);
    let host = &medium["host_ms"];
    let part = |name: &str, trips: f64| match samples(&host[name]) {
        samples if samples.is_empty() => Value::Null,
        samples => spread(&less(&samples, trips, share)),
    };
    json!({
        // As the host sees it.
        "info": part("info", 0.0),
        "create": part("create", 1.0),
        "start": part("start", 1.0),
        "exec": part("exec", EXEC_TRIPS),
        "delete": part("delete", 1.0),
        "life": part("life", LIFE_TRIPS),
    })
}

fn crun(medium: &Value) -> Value {
    let part = |name: &str| middle(&medium["crun_ms"][name]);
    json!({
        "create": part("create"), "start": part("start"), "exec": part("exec"),
        "delete": part("delete"), "life": part("life"),
    })
}

/// What a profile adds to a life of ours, in milliseconds.
fn seccomp(medium: &Value) -> f64 {
    median(&samples(&medium["host_seccomp_ms"]["life"]))
        - median(&samples(&medium["host_ms"]["life"]))
}

/// One line a limit.
struct Limit {
    text: String,
    /// Null where it was not measured.
    value: f64,
    limit: f64,
    unit: &'static str,
    at_least: bool,
}

fn limits(figures: &Value, record: &Value) -> Vec<Limit> {
    let life = |medium: &Value, part: &str| {
        number(&medium["latency_ms"][part]["median"]) / number(&medium["crun_latency_ms"][part])
    };
    let boot = &figures["boot_ms"];
    let memory = &figures["memory_kib"];
    let idle = number(&memory["init_pss"]) + number(&memory["agent_pss"]);
    let most = |text: &str, value: f64, limit: f64, unit| {
        let text = text.to_owned();
        Limit { text, value, limit, unit, at_least: false }
    };
    let took = number(&boot["serving"]) - number(&boot["pid1_entry"]);
    let by = |ours: &str, theirs: &str| {
        number(&figures["baseline"][ours]) / number(&figures["baseline"][theirs])
    };
    let creates = &figures["layers_create_ms"];
    let allowed = 2.0 * number(&creates["plain"]) + number(&creates["kernel"]);
    let layers = number(&creates["layers"]) / allowed;
    let mib = |at: &str| number(&figures["size_bytes"][at]) / f64::from(1 << 20);
    vec![
        most("entry to serving, of the yardstick's", took / number(&boot["yardstick"]), 2.5, "x"),
        most("the same, of the baseline's", by("ours_ms", "ms"), 1.03, "x"),
        most(
            "the same by instructions",
            by("ours_million_instructions", "million_instructions"),
            1.03,
            "x",
        ),
        most("life on erofs, of crun's", life(figures, "life"), 0.85, "x"),
        most("exec on erofs, of crun's", life(figures, "exec"), 1.0, "x"),
        most("life on the initramfs, of crun's", life(&figures["initramfs"], "life"), 0.35, "x"),
        most("seccomp profile, added to a life", seccomp(&record["erofs"]), 5.0, "ms"),
        Limit {
            text: "stdout, of raw vsock".to_owned(),
            value: number(&figures["stdout_mib_s"]) / number(&figures["raw_vsock_mib_s"]),
            limit: 0.8,
            unit: "x",
            at_least: true,
        },
        most("idle PSS of init and agent", idle / 1024.0, 4.0, "MiB"),
        most(
            "PSS more per container, to 100",
            (number(&memory["pss_100"]) - idle) / 100.0,
            64.0,
            "KiB",
        ),
        most(
            "create of 91 to 100, of 6 to 15's",
            number(&figures["create_ms"]["late"]) / number(&figures["create_ms"]["early"]),
            1.2,
            "x",
        ),
        most("create on 100 layers, of 2 x 1 + kernel's", layers, 1.0, "x"),
        Limit {
            text: "file on erofs, of the raw disk".to_owned(),
            value: number(&figures["disk_mib_s"]["erofs"]) / number(&figures["disk_mib_s"]["raw"]),
            limit: 0.95,
            unit: "x",
            at_least: true,
        },
        most("binary", mib("vminitd"), 6.0, "MiB"),
        most("initramfs, zstd", mib("initramfs_zstd"), 2.2, "MiB"),
    ]
}

/// For people.
pub fn table(figures: &Value, record: &Value) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments| {
        text.write_fmt(words).and_then(|()| text.write_char('\n')).expect("a String takes all");
    };
    for (name, medium, samples) in [
        ("erofs root", figures, &record["erofs"]),
        ("initramfs", &figures["initramfs"], &record["initramfs"]),
    ] {
        if samples.is_null() {
            continue;
        }
        line(format_args!(
            "{name}, ms in the guest      min   median      p99     crun   (as the host sees it)"
        ));
        for part in ["info", "create", "start", "exec", "delete", "life"] {
            let ours = &medium["latency_ms"][part];
            let host = median(&self::samples(&samples["host_ms"][part]));
            line(format_args!(
                "  {part:<22} {:>8} {:>8} {:>8} {:>8}   ({host:.2})",
                show(&ours["min"]),
                show(&ours["median"]),
                show(&ours["p99"]),
                show(&medium["crun_latency_ms"][part]),
            ));
        }
        let busy = &samples["guest_busy"];
        line(format_args!(
            "  guest's CPU, ms: {} a life of ours, {} an exec, {} an Info; crun's life {} ({} user, {} system)",
            show(&busy["life"]["ms"]),
            show(&busy["exec"]["ms"]),
            show(&busy["info"]["ms"]),
            show(&busy["crun_life"]["ms"]),
            show(&middle(&samples["crun_ms"]["user"])),
            show(&middle(&samples["crun_ms"]["system"])),
        ));
        let ratio = |ours: &str, theirs: &str| {
            let ours = &busy[ours]["host_ms"];
            json!(number(ours) / number(&busy[theirs]["host_ms"]))
        };
        line(format_args!(
            "  the host's CPU: life {} ms, {} of crun's; exec {} ms, {} of crun's; Info {} ms",
            show(&busy["life"]["host_ms"]),
            show(&ratio("life", "crun_life")),
            show(&busy["exec"]["host_ms"]),
            show(&ratio("exec", "crun_exec")),
            show(&busy["info"]["host_ms"]),
        ));
        line(format_args!(
            "  changes of threads: {} a life of ours, {} an exec, {} an Info; crun's life {}",
            show(&busy["life"]["switches"]),
            show(&busy["exec"]["switches"]),
            show(&busy["info"]["switches"]),
            show(&busy["crun_life"]["switches"]),
        ));
        line(format_args!(
            "  with a seccomp profile: {:+.2} ms a life of ours; crun's life {}",
            seccomp(samples),
            show(&middle(&samples["crun_seccomp_ms"]["life"])),
        ));
        line(format_args!(
            "  system calls of a life: {} ours, {} crun",
            show(&calls(&samples["syscalls"]["ours"])),
            show(&calls(&samples["syscalls"]["crun"])),
        ));
    }
    let boot = &figures["boot_ms"];
    line(format_args!(
        "boot, ms: entry {}, serving {}; yardstick {} from its entry",
        show(&boot["pid1_entry"]),
        show(&boot["serving"]),
        show(&boot["yardstick"])
    ));
    let baseline = &figures["baseline"];
    if let Some(revision) = baseline["revision"].as_str() {
        line(format_args!(
            "entry to serving: {} ms, {} million instructions; {revision}: {} ms, {} million",
            show(&baseline["ours_ms"]),
            show(&baseline["ours_million_instructions"]),
            show(&baseline["ms"]),
            show(&baseline["million_instructions"]),
        ));
    }
    let creates = &figures["layers_create_ms"];
    line(format_args!(
        "create, ms: on one layer {}, on a hundred {}; the kernel's mounts of these {}",
        show(&creates["plain"]),
        show(&creates["layers"]),
        show(&creates["kernel"]),
    ));
    let disk = &figures["disk_mib_s"];
    line(format_args!(
        "MiB/s, a file of 256 MiB: on erofs in a container {}, the raw disk {}",
        show(&disk["erofs"]),
        show(&disk["raw"]),
    ));
    line(format_args!(
        "MiB/s: stdout {}, raw vsock {}",
        show(&figures["stdout_mib_s"]),
        show(&figures["raw_vsock_mib_s"])
    ));
    let memory = &figures["memory_kib"];
    line(format_args!(
        "PSS, KiB: init {}, agent {}; both with 20 containers {}, with 100 {}",
        show(&memory["init_pss"]),
        show(&memory["agent_pss"]),
        show(&memory["pss_20"]),
        show(&memory["pss_100"])
    ));
    line(format_args!(
        "create, ms: {} early, {} late",
        show(&figures["create_ms"]["early"]),
        show(&figures["create_ms"]["late"])
    ));
    line(format_args!(""));
    for Limit { text, value, limit, unit, at_least } in limits(figures, record) {
        let holds = if at_least { value >= limit } else { value <= limit };
        let (word, bound) = match (value.is_nan(), holds, at_least) {
            (true, _, _) => ("not measured", ""),
            (false, true, true) => ("holds", "at least "),
            (false, true, false) => ("holds", "at most "),
            (false, false, true) => ("MISSED", "at least "),
            (false, false, false) => ("MISSED", "at most "),
        };
        line(format_args!("{word:<12} {text:<41} {value:>7.2} {unit:<3}  {bound}{limit}"));
    }
    text
}

fn samples(value: &Value) -> Vec<f64> {
    value.as_array().map(|all| all.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
}

fn middle(value: &Value) -> Value {
    finite(median(&samples(value)))
}

/// The middle total of several counts.
fn calls(counts: &Value) -> Value {
    let counts = counts.as_array().cloned().unwrap_or_default();
    finite(median(&counts.iter().map(|count| number(&count["total"])).collect::<Vec<_>>()))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn finite(figure: f64) -> Value {
    if figure.is_finite() { json!(rounded(figure)) } else { Value::Null }
}

fn show(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"))
}
