//! Bytes between a guest and its owner, through vminit-vmm: dials both ways, and what is under way when a VM ends.
//!
//! How it proves its point: the guest is `vsock-peer`, which does nothing else. The device's own tests are in
//! `tests/vsock_vm`; these are about the way from it to the owner.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use host_shim::machine::{ConnectError, Dial, ExitReason};
use host_shim::vm::Draft;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::vm::{PATIENCE, Vm, draft, run, test_guest};

/// The host's ports that the guest may dial: it is up, and one for the test.
const READY_PORT: u32 = 9000;
const DIAL_PORT: u32 = 9002;

/// Less than a connection's credit: the guest can send it without anybody reading.
const UNREAD_BYTES: usize = 200_000;

#[test]
fn the_guests_dial_reaches_its_owner_and_the_answer_the_guest() {
    run(async {
        let (vm, mut dials) = peer().await;
        let answer = tokio::spawn(command(&vm, &format!("dial {DIAL_PORT} question")).await);
        let dial = timeout(PATIENCE, dials.recv()).await.unwrap().unwrap();
        assert_eq!(dial.port, DIAL_PORT);
        let mut stream = dial.accept();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        stream.write_all(format!("answer to {text}").as_bytes()).await.unwrap();
        drop(stream);
        assert_eq!(answer.await.unwrap(), "answer to question");
    });
}

#[test]
fn the_guests_dial_of_a_port_that_is_not_listed_is_refused() {
    run(async {
        let (vm, mut dials) = peer().await;
        let refused = command(&vm, "dial 9003 question").await.await;
        assert_eq!(refused, format!("errno {}", nix::libc::ECONNRESET));
        assert!(dials.try_recv().is_err());
    });
}

#[test]
fn the_guests_dial_that_its_owner_does_not_take_is_refused() {
    run(async {
        let (vm, mut dials) = peer().await;
        let refused = tokio::spawn(command(&vm, &format!("dial {DIAL_PORT} question")).await);
        drop(timeout(PATIENCE, dials.recv()).await.unwrap().unwrap());
        assert_eq!(refused.await.unwrap(), format!("errno {}", nix::libc::ECONNRESET));
    });
}

#[test]
fn each_direction_of_a_connection_ends_on_its_own() {
    run(async {
        let (vm, _dials) = peer().await;
        let (mut reader, mut writer) = vm.machine.connect(1).await.unwrap().into_split();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let write = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let mut came = Vec::new();
        timeout(PATIENCE, reader.read_to_end(&mut came)).await.unwrap().unwrap();
        assert!(came == expected, "{} bytes came", came.len());
        write.await.unwrap();
    });
}

#[test]
fn a_closed_port_of_the_guest_is_refused_at_once() {
    run(async {
        let (vm, _dials) = peer().await;
        match timeout(PATIENCE, vm.machine.connect(99)).await.unwrap() {
            Err(ConnectError::Refused { port: 99 }) => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn bytes_that_the_guest_sent_before_it_powered_off_reach_an_owner_that_reads_later() {
    run(async {
        let (vm, mut dials) = peer().await;
        let sent = tokio::spawn(command(&vm, &format!("send {DIAL_PORT} {UNREAD_BYTES}")).await);
        let mut stream = timeout(PATIENCE, dials.recv()).await.unwrap().unwrap().accept();
        assert_eq!(sent.await.unwrap(), "sent");
        assert_eq!(command(&vm, "off").await.await, "soon");
        let exited = vm.exited().await;
        assert_eq!(exited.reason, ExitReason::PowerOff, "{exited}");
        let mut came = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut came)).await.unwrap().unwrap();
        assert_eq!(came.len(), UNREAD_BYTES);
        drop(stream);
        vm.assert_gone();
    });
}

#[test]
fn a_restart_of_the_guest_is_told_as_such() {
    run(async {
        let (vm, _dials) = peer().await;
        command(&vm, "reboot").await.await;
        assert_eq!(vm.exited().await.reason, ExitReason::Reboot);
        vm.assert_gone();
    });
}

#[test]
fn connections_closed_unused_cost_nothing_for_good() {
    run(async {
        let (vm, _dials) = peer().await;
        let fds =
            || std::fs::read_dir(format!("/proc/{}/fd", vm.machine.vmm_pid())).unwrap().count();
        let before = fds();
        for _ in 0..200 {
            drop(vm.machine.connect(5).await.unwrap());
        }
        let until = std::time::Instant::now() + PATIENCE;
        while fds() > before {
            assert!(std::time::Instant::now() < until, "{} descriptors instead of {before}", fds());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

/// Boots the peer, and waits until it is up.
async fn peer() -> (Vm, mpsc::Receiver<Dial>) {
    let directory = tempfile::tempdir().unwrap();
    let initramfs = Some(pack(&directory));
    let guest_dials = BTreeSet::from([READY_PORT, DIAL_PORT]);
    // So that the console says something before the guest dials, which waits for us then.
    let draft = Draft { initramfs, guest_dials, ..draft(&directory, "loglevel=7") };
    let (vm, mut dials) = Vm::of(directory, draft).await;
    let ready = timeout(PATIENCE, dials.recv()).await.expect("the peer is up in time");
    let ready = ready.expect("a VM that lives");
    assert_eq!(ready.port, READY_PORT);
    // Until the guest has closed it: our own close could overtake the answer.
    timeout(PATIENCE, ready.accept().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    (vm, dials)
}

fn pack(directory: &TempDir) -> PathBuf {
    let tree = initramfs::Tree::with_init(&test_guest("vsock-peer")).unwrap();
    let path = directory.path().join("initramfs");
    initramfs::newc::write(&tree, &mut File::create(&path).unwrap()).unwrap();
    path
}

/// Gives the peer a command; the future is its answer.
async fn command(vm: &Vm, words: &str) -> impl Future<Output = String> + use<> {
    let mut stream = vm.machine.connect(10).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    async move {
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }
}
