//! `vminitctl run --chart`: what a person would notice is wrong with the picture.
//!
//! The file says in words (`<desc>`) what it shows, so the picture's times can be read and compared.

use std::collections::HashMap;

use qemu_tests::cli::Vms;

#[test]
fn chart_shows_host_and_guest_in_the_order_in_which_things_happen() {
    let (vms, dir) = (Vms::new(), tempfile::tempdir().expect("a directory"));
    let path = dir.path().join("a run.svg");
    let chart = path.to_str().expect("it is UTF-8");
    let output = vms.run(&["--chart", chart], &["sh", "-c", "sleep 1; echo '<&>'"]).output();
    let output = output.expect("vminitctl starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "<&>\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let svg = std::fs::read_to_string(&path).expect("the chart");
    assert!(svg.contains("sleep 1; echo '&lt;&amp;&gt;'"), "the title says what ran");

    let spans = spans(&svg);
    let (from, to) = (|what: &str| spans[what].0, |what: &str| spans[what].1);
    // What one clock says of several.
    let kernel = ["firmware, load", "memory, CPUs", "drivers", "exec /init"];
    let then = ["mounts, cgroups", "listen", "start the agent", "serves"];
    for pair in [&kernel[..], &then[..]].concat().windows(2) {
        assert!((to(pair[0]) - from(pair[1])).abs() < 1.0, "{pair:?} {spans:?}");
    }
    // What two clocks say of the same: the guest cannot answer before it serves, nor a container run before Start. The
    // guest's clocks are read with ours as well as the fastest of some messages went, and these took up to that.
    let slack = 0.2 * to("power-off");
    assert!(from("serves") <= to("dial until it serves") + slack, "{spans:?}");
    assert!(
        from("runs") >= from("Start") - slack && from("runs") <= to("Start") + slack,
        "{spans:?}"
    );
    assert!(to("runs") <= to("wait") + slack, "{spans:?}");
    assert!(to("runs") - from("runs") >= 900.0, "it slept for a second: {spans:?}");
    assert!(to("power off") <= to("power-off") + slack, "{spans:?}");
}

#[test]
fn chart_that_cannot_be_written_is_told_before_anything_runs() {
    let vms = Vms::new();
    let output =
        vms.run(&["--chart", "/no/such/dir/x.svg"], &["true"]).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--chart") && text.contains("/no/such/dir/x.svg"), "{text}");
    assert_eq!(output.status.code(), Some(125));
}

/// From and to of everything that the picture shows, in milliseconds.
fn spans(svg: &str) -> HashMap<&str, (f64, f64)> {
    let told =
        svg.split("<g><title>").skip(1).map(|rest| rest.split("</title>").next().expect("an end"));
    told.map(|told| {
        let (what, times) = told.rsplit_once(": ").expect("a text of ours");
        let (from, to) = times.trim_end_matches(" ms").split_once(" to ").expect("two times");
        (what, (from.parse().expect("a number"), to.parse().expect("a number")))
    })
    .collect()
}
