//! What a cgroup has used, as containerd's metrics: the kernel's text files in, one message out.
//!
//! Promises: the parsers are pure, skip what they do not know and take what is missing as 0; "max"
//! is the largest number that there is, as containerd has it; a file that the kernel does not offer
//! (a controller that is not built in) leaves its part of the message empty.
//! Never: fails on what a file says.
//!
//! See the kernel's Documentation/admin-guide/cgroup-v2.rst and accounting/psi.rst.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use vminitd_protocol::pb::io::containerd::cgroups::v2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData,
    PsiStats, RdmaEntry, RdmaStat,
};

/// Reads all that there is of the cgroup at `path`.
pub fn read(path: &Path) -> io::Result<Metrics> {
    // Says whether there is a cgroup at all; the files below may be missing each by itself.
    let mut sizes: Vec<String> = fs::read_dir(path)?
        .flatten()
        .filter_map(|entry| page_size(entry.file_name().to_str()?).map(str::to_owned))
        .collect();
    sizes.sort();
    let text = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    Ok(metrics(&text, &sizes))
}

/// The message, from whatever `text` says that the files hold.
fn metrics(text: &dyn Fn(&str) -> String, page_sizes: &[String]) -> Metrics {
    let figure = |file: &str| number(text(file).trim());
    let memory_events = text("memory.events");
    let memory_events = Figures::of(&memory_events);
    Metrics {
        pids: Some(PidsStat { current: figure("pids.current"), limit: figure("pids.max") }),
        cpu: Some(cpu(&Figures::of(&text("cpu.stat")), pressure(&text("cpu.pressure")))),
        memory: Some(MemoryStat {
            usage: figure("memory.current"),
            usage_limit: figure("memory.max"),
            max_usage: figure("memory.peak"),
            swap_usage: figure("memory.swap.current"),
            swap_limit: figure("memory.swap.max"),
            swap_max_usage: figure("memory.swap.peak"),
            psi: pressure(&text("memory.pressure")),
            ..memory(&Figures::of(&text("memory.stat")))
        }),
        rdma: Some(RdmaStat {
            current: rdma(&text("rdma.current")),
            limit: rdma(&text("rdma.max")),
        }),
        io: Some(IoStat { usage: io(&text("io.stat")), psi: pressure(&text("io.pressure")) }),
        hugetlb: page_sizes
            .iter()
            .map(|size| HugeTlbStat {
                current: figure(&format!("hugetlb.{size}.current")),
                max: figure(&format!("hugetlb.{size}.max")),
                pagesize: size.clone(),
            })
            .collect(),
        memory_events: (!memory_events.0.is_empty()).then(|| MemoryEvents {
            low: memory_events.get("low"),
            high: memory_events.get("high"),
            max: memory_events.get("max"),
            oom: memory_events.get("oom"),
            oom_kill: memory_events.get("oom_kill"),
        }),
        // Not a cgroup's figures; containerd's runc shim leaves it empty as well.
        network: vec![],
    }
}

fn cpu(stat: &Figures, psi: Option<PsiStats>) -> CpuStat {
    CpuStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        psi,
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
    }
}

fn memory(stat: &Figures) -> MemoryStat {
    // Kernels from 5.9 on count refaults and activations of anonymous and of file pages apart.
    let both = |name: &str| {
        let of = |kind: &str| stat.get(&format!("{name}_{kind}"));
        stat.get(name).saturating_add(of("anon")).saturating_add(of("file"))
    };
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        ..MemoryStat::default()
    }
}

/// Lines of `key number`.
#[derive(Debug, Default)]
pub struct Figures<'a>(HashMap<&'a str, u64>);

impl<'a> Figures<'a> {
    /// Reads them.
    pub fn of(text: &'a str) -> Self {
        let line = |line: &'a str| line.split_once(' ').map(|(key, value)| (key, number(value)));
        Self(text.lines().filter_map(line).collect())
    }

    /// One of them, or 0.
    pub fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }
}

/// Lines of `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`. None when
/// the kernel keeps no such account.
fn pressure(text: &str) -> Option<PsiStats> {
    let line = |name: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let value =
            |key: &str| words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| {
            let average = value(key).and_then(|value| value.parse().ok());
            average.filter(|average: &f64| average.is_finite()).unwrap_or(0.0)
        };
        Some(PsiData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: value("total").map_or(0, number),
        })
    };
    let (some, full) = (line("some"), line("full"));
    (some.is_some() || full.is_some()).then_some(PsiStats { some, full })
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io(text: &str) -> Vec<IoEntry> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut entry = IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IoEntry::default()
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "rbytes" => entry.rbytes = number(value),
                "wbytes" => entry.wbytes = number(value),
                "rios" => entry.rios = number(value),
                "wios" => entry.wios = number(value),
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(line).collect()
}

/// Lines of `mlx5_0 hca_handle=2 hca_object=max`.
fn rdma(text: &str) -> Vec<RdmaEntry> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..RdmaEntry::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = u32::try_from(number(value)).unwrap_or(u32::MAX);
            match key {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(line).collect()
}

/// "2MB" of "hugetlb.2MB.current".
fn page_size(file: &str) -> Option<&str> {
    file.strip_prefix("hugetlb.")?.strip_suffix(".current").filter(|size| !size.contains('.'))
}

fn number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(files: &[(&str, &str)], sizes: &[&str]) -> Metrics {
        let text = |file: &str| {
            let found = files.iter().find(|(name, _)| *name == file);
            found.map(|(_, text)| (*text).to_owned()).unwrap_or_default()
        };
        metrics(&text, &sizes.iter().map(|size| (*size).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn files_of_a_kernel_become_figures_of_the_message() {
        let metrics = of(
            &[
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
                (
                    "cpu.stat",
                    "usage_usec 70\nuser_usec 40\nsystem_usec 30\ncore_sched.force_idle_usec 9\nnr_periods 5\nnr_throttled 2\nthrottled_usec 8\nnr_bursts 1\nburst_usec 6\n",
                ),
                (
                    "cpu.pressure",
                    "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
                ),
                (
                    "memory.stat",
                    "anon 100\nfile 200\nworkingset_refault_anon 3\nworkingset_refault_file 4\nsome_new_thing 1\npgfault 12\n",
                ),
                ("memory.current", "4096\n"),
                ("memory.max", "8192\n"),
                ("memory.peak", "5000\n"),
                ("memory.swap.max", "max\n"),
                ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"),
                ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 \n"),
                ("rdma.max", "mlx5_0 hca_handle=2 hca_object=max\n"),
                ("hugetlb.2MB.current", "0\n"),
                ("hugetlb.2MB.max", "max\n"),
            ],
            &["2MB"],
        );
        assert_eq!(metrics.pids, Some(PidsStat { current: 3, limit: u64::MAX }));
        let cpu = metrics.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (70, 40, 30));
        assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (5, 2, 8));
        assert_eq!((cpu.nr_bursts, cpu.burst_usec), (1, 6));
        let psi = cpu.psi.unwrap();
        let some = psi.some.unwrap();
        assert_eq!((some.avg10, some.avg60, some.avg300, some.total), (1.5, 0.25, 0.0, 77));
        assert_eq!(psi.full.unwrap().total, 5);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.anon, memory.file, memory.pgfault), (100, 200, 12));
        assert_eq!(memory.workingset_refault, 7);
        assert_eq!((memory.usage, memory.usage_limit, memory.max_usage), (4096, 8192, 5000));
        assert_eq!((memory.swap_usage, memory.swap_limit), (0, u64::MAX));
        assert_eq!(memory.psi, None);
        let events = metrics.memory_events.unwrap();
        assert_eq!((events.high, events.max, events.oom, events.oom_kill), (1, 2, 3, 4));
        let io = metrics.io.unwrap().usage;
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor, io[0].rbytes, io[0].wios), (254, 0, 1, 4));
        assert_eq!((io[1].minor, io[1].rbytes), (16, 0));
        let limit = &metrics.rdma.unwrap().limit[0];
        assert_eq!((&*limit.device, limit.hca_handles, limit.hca_objects), ("mlx5_0", 2, u32::MAX));
        let huge = &metrics.hugetlb[0];
        assert_eq!((&*huge.pagesize, huge.current, huge.max), ("2MB", 0, u64::MAX));
    }

    #[test]
    fn files_that_are_missing_leave_their_parts_empty() {
        let metrics = of(&[], &[]);
        assert_eq!(metrics.memory_events, None);
        assert_eq!(metrics.cpu, Some(CpuStat::default()));
        assert_eq!(metrics.io, Some(IoStat::default()));
        assert_eq!(page_size("hugetlb.1GB.current"), Some("1GB"));
        assert_eq!(page_size("hugetlb.1GB.rsvd.current"), None);
        assert_eq!(page_size("memory.current"), None);
    }

    proptest! {
        /// What is written in the kernel's form is read back, among lines of any other kind.
        #[test]
        fn figures_are_found_among_lines_of_any_kind(
            known in proptest::collection::hash_map("[a-z_]{1,12}", any::<u64>(), 0..10),
            noise in proptest::collection::vec("[^ \n]{0,8}", 0..10),
        ) {
            let mut lines: Vec<String> =
                known.iter().map(|(key, value)| format!("{key} {value}")).collect();
            lines.extend(noise);
            lines.sort_by_key(String::len);
            let text = lines.join("\n");
            let figures = Figures::of(&text);
            prop_assert_eq!(figures.0.len(), known.len());
            for (key, value) in &known {
                prop_assert_eq!(figures.get(key), *value);
            }
            prop_assert_eq!(figures.get("not there"), 0);
        }

        #[test]
        fn io_entries_are_read_back(
            entries in proptest::collection::vec(any::<(u16, u16, u64, u64, u64, u64)>(), 0..8),
            other in any::<u64>(),
        ) {
            let text: String = entries
                .iter()
                .map(|(a, b, r, w, ri, wi)| {
                    format!("{a}:{b} rbytes={r} wbytes={w} rios={ri} wios={wi} other={other}\n")
                })
                .collect();
            let read: Vec<_> = io(&text)
                .into_iter()
                .map(|e| (e.major as u16, e.minor as u16, e.rbytes, e.wbytes, e.rios, e.wios))
                .collect();
            prop_assert_eq!(read, entries);
        }

        #[test]
        fn pressure_is_read_back(averages in any::<[u16; 3]>(), total in any::<u64>()) {
            let [a, b, c] = averages.map(|hundredths| f64::from(hundredths) / 100.0);
            let text = format!("some avg10={a:.2} avg60={b:.2} avg300={c:.2} total={total}\n");
            let some = pressure(&text).unwrap().some.unwrap();
            prop_assert_eq!((some.avg10, some.avg60, some.avg300, some.total), (a, b, c, total));
        }

        /// Whatever a file says, there is an answer.
        #[test]
        fn no_text_fails(text in any::<String>()) {
            let _ = (Figures::of(&text), pressure(&text), io(&text), rdma(&text), page_size(&text));
            let any_file = |_: &str| text.clone();
            metrics(&any_file, std::slice::from_ref(&text));
        }
    }
}
