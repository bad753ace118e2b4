//! Ports of the host that the guest dials.
//!
//! How it is proved: the supervisor of the test dials, and what it got is read from the guest; on the other side is a
//! listener of the test.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use host_shim::guest::unlimited;
use qemu_tests::{Options, PATIENCE_S, Vm, inspector, vm_test_with};
use vminitd_protocol::pb::google::protobuf::Empty;

/// Has the supervisor dial, and returns what it got and how long that took.
async fn dial(vm: &Vm, port: u32, text: &str) -> (String, Duration) {
    let machine = vm.guest().machine();
    let script = format!(
        "mkdir -p /guest/run/spin-stack; cd /guest/run/spin-stack; rm -f starts dialled; \
         echo 'dial {port} {text}' >orders; [ -e spin-supervisor ] || cp /bin/supervised spin-supervisor"
    );
    assert_eq!(vm.run("order", inspector(&["sh", "-c", &script])).await.status, 0);
    let since = Instant::now();
    machine.supervisor_start(unlimited(), &Empty {}).await.expect("start");
    let script = "until [ -s /guest/run/spin-stack/dialled ]; do sleep 0.05; done; cat /guest/run/spin-stack/dialled";
    let exit = tokio::time::timeout(
        Duration::from_secs(PATIENCE_S),
        vm.run("got", inspector(&["sh", "-c", script])),
    );
    let got = exit.await.expect("an answer").text();
    let took = since.elapsed();
    machine.supervisor_stop(unlimited(), &Empty {}).await.expect("stop");
    (got, took)
}

#[test]
fn guest_reaches_the_sockets_of_listed_ports_and_no_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vm1.sock");
    let absent = directory.path().join("absent.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut text = Vec::new();
            // The guest's half-close ends this, and the answer still arrives.
            stream.read_to_end(&mut text).expect("text");
            stream.write_all(&text).expect("room");
        }
    });
    let options = Options {
        guest_dials: [(1027, path), (1028, absent.clone())].into(),
        look_for_leaks: false,
        ..Options::default()
    };
    vm_test_with(options, async |vm| {
        let (got, echoed) = dial(vm, 1027, "hello").await;
        assert_eq!(got, "answer: hello");
        // One that is not listed is refused at once: not after the kernel's timeout of two seconds.
        let (got, refused) = dial(vm, 1029, "hello").await;
        assert_eq!(got, "connect: ECONNRESET");
        assert!(refused < echoed * 3 + Duration::from_secs(1), "{refused:?}, {echoed:?}");
        // So is one whose socket is not there, until it is.
        let (got, refused) = dial(vm, 1028, "hello").await;
        assert_eq!(got, "connect: ECONNRESET");
        assert!(refused < echoed * 3 + Duration::from_secs(1), "{refused:?}, {echoed:?}");
        let late = UnixListener::bind(&absent).expect("a socket");
        std::thread::spawn(move || {
            let (mut stream, _) = late.accept().expect("a connection");
            stream.write_all(b"here now").expect("room");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert_eq!(dial(vm, 1028, "hello").await.0, "answer: here now");
    });
}
