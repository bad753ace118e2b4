//! From what was observed to what is drawn: who did what, and when by our clock.

use super::clock::Reading;
use super::{Chart, Lane, Span};
use crate::run::timings::Mark;

/// What is known of a run. Times are milliseconds since we began, by our clock, if nothing else is said.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// One line for people.
    pub title: String,
    /// Our own moments, in order.
    pub marks: Vec<(Mark, f64)>,
    /// What the guest has printed.
    pub console: String,
    /// How many bytes of that had come, and when; in order.
    pub arrivals: Vec<(usize, f64)>,
    /// Topic of an event, its stamp in milliseconds of the guest's wall clock, and when it came.
    pub events: Vec<(String, f64, f64)>,
}

/// What is to be drawn of it. What was not observed is left out.
pub fn tell(observed: &Observed) -> Chart {
    let lines = lines(observed);
    let kernel = Reading::of(lines.iter().filter_map(|line| Some((line.stamp?, line.arrived?))));
    let kernel_time = |text: &str| {
        let line = lines.iter().find(|line| line.text.starts_with(text))?;
        Some(kernel.as_ref()?.here(line.stamp?))
    };
    let ready = ready(&lines, kernel.as_ref());
    let ready_time = |phase: &str| Some(ready.iter().find(|(name, _)| *name == phase)?.1);
    let mark = |wanted| Some(observed.marks.iter().find(|(mark, _)| *mark == wanted)?.1);
    let wall = Reading::of(observed.events.iter().map(|(_, stamp, arrived)| (*stamp, *arrived)));
    let event = |topic: &str| {
        let (_, stamp, _) = observed.events.iter().find(|event| event.0 == topic)?;
        Some(wall.as_ref()?.here(*stamp))
    };

    let begin = Some(0.0);
    let first_line = kernel_time("Linux version");
    let pid1 = ready_time("pid1-entry");
    let asked_off = kernel_time("vminitd: info init: shutting down");
    let powering = kernel_time("vminitd: stop report: ");
    let lanes = [
        lane(
            "host",
            [
                span("start the VM", begin, mark(Mark::Spawned)),
                span("dial until it serves", mark(Mark::Spawned), mark(Mark::Serving)),
                span("streams, bundle", mark(Mark::Serving), mark(Mark::Creating)),
                span("Create", mark(Mark::Creating), mark(Mark::Created)),
                span("Start", mark(Mark::Created), mark(Mark::Started)),
                span("wait", mark(Mark::Started), mark(Mark::Exited)),
                span("last output", mark(Mark::Exited), mark(Mark::Drained)),
                span("Delete", mark(Mark::Drained), mark(Mark::Deleted)),
                span("power-off", mark(Mark::Deleted), mark(Mark::Off)),
            ],
        ),
        lane(
            "kernel",
            [
                span("firmware, load", mark(Mark::Spawned), first_line),
                span("memory, CPUs", first_line, kernel_time("devtmpfs: initialized")),
                span(
                    "drivers",
                    kernel_time("devtmpfs: initialized"),
                    kernel_time("Freeing unused kernel image (initmem)"),
                ),
                span("exec /init", kernel_time("Freeing unused kernel image (initmem)"), pid1),
                span("power off", powering, kernel_time("reboot: Power down")),
            ],
        ),
        lane(
            "init",
            [
                span("mounts, cgroups", pid1, ready_time("system-init")),
                span("listen", ready_time("system-init"), ready_time("vsock-listen")),
                span("start the agent", ready_time("vsock-listen"), ready_time("serve")),
                span("stop all", asked_off, powering),
            ],
        ),
        lane("agent", [span("serves", ready_time("serve"), asked_off)]),
        lane(
            "container",
            [
                span("being made", mark(Mark::Creating), event("/tasks/create")),
                span("created", event("/tasks/create"), event("/tasks/start")),
                span("runs", event("/tasks/start"), event("/tasks/exit")),
                span("exited", event("/tasks/exit"), event("/tasks/delete")),
            ],
        ),
    ];
    let told = lanes.into_iter().filter(|lane| !lane.spans.is_empty()).collect();
    Chart { title: observed.title.clone(), lanes: told }
}

fn lane<const N: usize>(name: &'static str, spans: [Option<Span>; N]) -> Lane {
    Lane { name, spans: spans.into_iter().flatten().collect() }
}

/// Both ends have to be known. Two clocks may disagree by less than a stamp takes: then it took no time.
fn span(what: &str, from: Option<f64>, to: Option<f64>) -> Option<Span> {
    let (from, to) = (from?.max(0.0), to?.max(0.0));
    Some(Span { what: what.to_owned(), from, to: to.max(from) })
}

/// A line of the console.
struct Line<'a> {
    /// The kernel's stamp in milliseconds of its clock.
    stamp: Option<f64>,
    text: &'a str,
    arrived: Option<f64>,
}

fn lines(observed: &Observed) -> Vec<Line<'_>> {
    let mut end = 0;
    let whole = observed.console.split_inclusive('\n');
    let parse = |line: &'_ str| {
        end += line.len();
        // Sorted by bytes: the first that has all of this line.
        let at = observed.arrivals.partition_point(|(bytes, _)| *bytes < end);
        observed.arrivals.get(at).map(|(_, ms)| *ms)
    };
    let arrived: Vec<_> = whole.clone().map(parse).collect();
    whole
        .zip(arrived)
        .map(|(line, arrived)| {
            let line = line.trim_end();
            let stamped = line.strip_prefix('[').and_then(|line| line.split_once("] "));
            let seconds = stamped.and_then(|(stamp, _)| stamp.trim().parse::<f64>().ok());
            match (stamped, seconds) {
                (Some((_, text)), Some(s)) => Line { stamp: Some(s * 1e3), text, arrived },
                _ => Line { stamp: None, text: line, arrived },
            }
        })
        .collect()
}

/// Phases of PID 1, each with the time when it was reached. Its clock (CLOCK_BOOTTIME) began later than the one of the
/// kernel's lines; a line of PID 1 carries both.
fn ready<'a>(lines: &[Line<'a>], kernel: Option<&Reading>) -> Vec<(&'a str, f64)> {
    let phases: Vec<(&str, f64, &Line<'_>)> = lines
        .iter()
        .filter_map(|line| {
            let stamp = line.text.strip_prefix("VMINITD_READY uptime_us=")?;
            let (uptime, phase) = stamp.split_once(" phase=")?;
            Some((phase, uptime.parse::<f64>().ok()? / 1e3, line))
        })
        .collect();
    // Both of the kernel's clocks have one speed, so there is only a difference.
    let behind = phases.iter().filter_map(|(_, up, line)| Some(line.stamp? - up));
    let behind = behind.min_by(f64::total_cmp);
    let to_here = |up: f64| Some(kernel?.here(up + behind?));
    phases.iter().filter_map(|(phase, up, _)| Some((*phase, to_here(*up)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(chart: &'a Chart, lane: &str, what: &str) -> &'a Span {
        let lane = chart.lanes.iter().find(|other| other.name == lane).expect("a lane");
        lane.spans
            .iter()
            .find(|span| span.what == what)
            .unwrap_or_else(|| panic!("{what}: {lane:?}"))
    }

    /// A guest whose kernel began at 100 ms of our clock, and its boot clock 10 ms after that. Lines take 2 ms or more.
    fn observed() -> Observed {
        let lines = [
            ("[    0.000000] Linux version 6.12", 102.0),
            ("[    0.300000] devtmpfs: initialized", 402.0),
            ("[    0.500000] Freeing unused kernel image (initmem) memory: 1K", 605.0),
            ("noise without a stamp", 605.0),
            ("[    0.525000] VMINITD_READY uptime_us=510000 phase=pid1-entry", 640.0),
            ("[    0.540000] VMINITD_READY uptime_us=530000 phase=system-init", 650.0),
            ("[    0.550000] VMINITD_READY uptime_us=531000 phase=vsock-listen", 660.0),
            ("[    0.600000] VMINITD_READY uptime_us=580000 phase=serve", 702.0),
        ];
        let mut observed = Observed { title: "t".into(), ..Default::default() };
        for (line, at) in lines {
            observed.console += &format!("{line}\r\n");
            observed.arrivals.push((observed.console.len(), at));
        }
        observed.marks = vec![
            (Mark::Spawned, 50.0),
            (Mark::Serving, 720.0),
            (Mark::Creating, 730.0),
            (Mark::Created, 900.0),
        ];
        // The guest's wall clock is 7 s behind.
        observed.events = vec![
            ("/tasks/create".into(), 890.0 - 7000.0, 895.0),
            ("/tasks/start".into(), 910.0 - 7000.0, 911.0),
        ];
        observed
    }

    fn at(span: &Span) -> (i64, i64) {
        (span.from.round() as i64, span.to.round() as i64)
    }

    #[test]
    fn guest_and_host_are_on_one_axis() {
        let chart = tell(&observed());
        assert_eq!(at(find(&chart, "kernel", "firmware, load")), (50, 102));
        assert_eq!(at(find(&chart, "kernel", "drivers")), (402, 605));
        // The clocks are 10 ms apart; the line behind its own came in less time than that.
        assert_eq!(at(find(&chart, "init", "mounts, cgroups")), (636, 650));
        assert_eq!(at(find(&chart, "container", "created")), (895, 911));
        assert_eq!(find(&chart, "host", "Create").to, 900.0);
    }

    #[test]
    fn what_was_not_observed_is_left_out() {
        let chart = tell(&observed());
        let host = chart.lanes.iter().find(|lane| lane.name == "host").unwrap();
        assert!(host.spans.iter().all(|span| span.what != "Start" && span.what != "power-off"));
        assert!(tell(&Observed::default()).lanes.is_empty());
        // Cut off in the middle of a line, and of its stamp.
        let mut cut = observed();
        while cut.console.pop().is_some() {
            assert_eq!(find(&tell(&cut), "host", "Create").to, 900.0);
        }
    }
}
