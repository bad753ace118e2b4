//! Networks of tasks: QEMU's user networking, and interfaces that CNI made.

use qemu_tests::containerd::{Containerd, with_containerd};

/// A server in the container, and a client on the host's loopback.
fn published_port_reaches_the_task(containerd: &mut Containerd) {
    let publish = ["--annotation", "io.vminitd.publish=18080:80"];
    let script = "mkdir -p /tmp/www; echo from the task >/tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www";
    containerd.start_container(&publish, "web", &["sh", "-c", script]);
    let got = containerd.host.wait_for("an answer", || {
        let wget = ["wget", "-q", "-O", "-", "http://127.0.0.1:18080/"];
        let output = containerd.host.limited("busybox").args(wget).output().expect("nsenter");
        (!output.stdout.is_empty()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert_eq!(got, "from the task\n");
    containerd.remove("web");
}

#[test]
fn published_port_reaches_the_task_without_an_interface_on_the_host() {
    with_containerd("2", published_port_reaches_the_task);
}
