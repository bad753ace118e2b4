//! Both ends of a control socket, with sockets in the place of a guest.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::directory::{claim_in, find_in, running_in};
use super::*;
use crate::guest::Dial;
use crate::vm::{Arch, VmName};
use crate::vmm::GuestStream;

fn name(text: &str) -> VmName {
    VmName::try_from(text.to_owned()).unwrap()
}

/// A guest that listens on port 7 only, and notes whose connections are over.
#[derive(Default)]
struct Guest {
    ends: Mutex<Vec<UnixStream>>,
    released: Arc<Mutex<Vec<u32>>>,
}

#[derive(Debug)]
struct Note(Arc<Mutex<Vec<u32>>>, u32);

impl Drop for Note {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(self.1);
    }
}

#[async_trait]
impl Dial for Guest {
    async fn dial(&self, port: u32) -> std::io::Result<GuestStream> {
        match port {
            7 => {}
            8 => return Err(std::io::ErrorKind::NotConnected.into()),
            _ => return Err(std::io::ErrorKind::ConnectionRefused.into()),
        }
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        self.ends.lock().unwrap().push(UnixStream::from_std(theirs)?);
        GuestStream::new(ours.into(), Note(self.released.clone(), port))
    }
}

struct Served {
    control: Control,
    guest: Arc<Guest>,
    started: watch::Sender<Option<String>>,
    claim: Claim,
}

fn serve_in(base: &Path) -> Served {
    let (claim, listener) = claim_in(base, &name("web")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut process = tempfile::tempfile().unwrap();
    process.write_all(b"{\"args\":[\"x\"]}").unwrap();
    let (started, is_started) = watch::channel(None);
    let about = About {
        process,
        arch: Arch::Arm64,
        container: is_started,
        ended: watch::channel(None).1,
        kill: Default::default(),
        attach: None,
    };
    let guest = Arc::new(Guest::default());
    tokio::spawn(serve(UnixListener::from_std(listener).unwrap(), guest.clone(), about));
    Served { control: Control::new(&claim.file("ctl.sock")), guest, started, claim }
}

fn run(test: impl AsyncFnOnce(&Path)) {
    let base = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(&base.path().join("vminitd")));
}

#[test]
fn a_dialled_port_is_a_stream_of_ones_own_and_its_end_is_told_both_ways() {
    run(async |base| {
        let served = serve_in(base);
        let mut ours = served.control.dial(7).await.unwrap();
        let mut theirs = served.guest.ends.lock().unwrap().pop().unwrap();
        ours.write_all(b"question").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        theirs.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        ours.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        assert!(served.guest.released.lock().unwrap().is_empty(), "the stream is in use");
        drop(ours);
        // Nobody else holds the client's end.
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        assert!(theirs.write_all(b"x").await.is_err());
        while served.guest.released.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_refused_port_may_be_tried_again_and_a_vm_that_is_gone_may_not() {
    run(async |base| {
        let served = serve_in(base);
        let kind = async |port| served.control.dial(port).await.unwrap_err().kind();
        assert_eq!(kind(9).await, std::io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(8).await, std::io::ErrorKind::NotConnected);
        drop(served.claim);
        assert_eq!(kind(7).await, std::io::ErrorKind::NotConnected);
    });
}

#[test]
fn a_description_comes_whole_to_each_and_waits_for_the_start_if_asked() {
    run(async |base| {
        let served = serve_in(base);
        let early = served.control.describe(false).await.unwrap();
        assert_eq!(early.container, "");
        let control = served.control.clone();
        let waiting = tokio::spawn(async move { control.describe(true).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        served.started.send_replace(Some("main".to_owned()));
        for told in [waiting.await.unwrap(), served.control.describe(true).await] {
            let told = told.unwrap();
            assert_eq!(told.container, "main");
            assert_eq!(told.process, b"{\"args\":[\"x\"]}");
            assert_eq!(told.pid, std::process::id());
            assert_eq!(told.arch, Arch::Arm64);
        }
    });
}

#[test]
fn whoever_waits_for_a_start_that_never_comes_is_told_of_the_end() {
    run(async |base| {
        let served = serve_in(base);
        let control = served.control.clone();
        let waiting = tokio::spawn(async move { control.describe(true).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(served.started);
        assert!(matches!(waiting.await.unwrap(), Err(ControlError::Gone(_))));
    });
}

#[test]
fn nonsense_and_silence_disturb_nobody_else() {
    run(async |base| {
        let served = serve_in(base);
        let path = served.claim.file("ctl.sock");
        let _silent = UnixStream::connect(&path).await.unwrap();
        let mut loud = UnixStream::connect(&path).await.unwrap();
        loud.write_all(&[0xff; 64]).await.unwrap();
        assert!(matches!(loud.read(&mut [0]).await, Ok(0) | Err(_)), "it is closed");
        assert!(served.control.describe(false).await.is_ok());
    });
}

#[test]
fn a_name_is_given_once_and_again_when_its_vm_has_ended() {
    run(async |base| {
        let (claim, listener) = claim_in(base, &name("web")).unwrap();
        let error = claim_in(base, &name("web")).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            error,
            format!("a VM named web runs already (pid {pid}); give another name, or end that one")
        );
        assert!(claim_in(base, &name("other")).is_ok());
        drop((claim, listener));
        assert!(!base.join("web").exists());
        assert!(claim_in(base, &name("web")).is_ok());
    });
}

#[test]
fn what_a_dead_process_left_is_removed_and_what_is_not_ours_stays() {
    run(async |base| {
        drop(claim_in(base, &name("first")).unwrap());
        // Nobody holds this lock any more.
        std::fs::create_dir(base.join("dead")).unwrap();
        for file in ["lock", "ctl.sock", "console.log"] {
            File::create(base.join("dead").join(file)).unwrap();
        }
        std::fs::create_dir(base.join("begun")).unwrap();
        std::fs::create_dir(base.join("others")).unwrap();
        File::create(base.join("others/file")).unwrap();
        assert_eq!(running_in(base).unwrap(), []);
        assert!(!base.join("dead").exists() && !base.join("begun").exists());
        assert!(base.join("others/file").exists());
    });
}

#[test]
fn the_only_vm_needs_no_name_and_errors_say_what_runs() {
    run(async |base| {
        let text = |name: Option<&VmName>| find_in(base, name).unwrap_err().to_string();
        assert!(text(None).starts_with("no VM runs; start one: vminitctl run"), "{}", text(None));
        let web = claim_in(base, &name("web")).unwrap();
        assert_eq!(find_in(base, None).unwrap().name, name("web"));
        assert_eq!(text(Some(&name("x"))), "no VM named x runs; running: web");
        let _db = claim_in(base, &name("db")).unwrap();
        assert_eq!(text(None), "several VMs run (db, web); say which one: --name db");
        drop(web);
        assert_eq!(find_in(base, Some(&name("db"))).unwrap().socket(), base.join("db/ctl.sock"));
    });
}

#[test]
fn everything_is_for_its_owner_alone() {
    run(async |base| {
        let (claim, _listener) = claim_in(base, &name("web")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(base), 0o700);
        assert_eq!(mode(&base.join("web")), 0o700);
        for file in ["lock", "ctl.sock"] {
            assert_eq!(mode(&claim.file(file)), 0o600, "{file}");
        }
    });
}

#[test]
fn a_vm_whose_path_fits_no_socket_address_is_reached_all_the_same() {
    run(async |base| {
        std::fs::create_dir(base).unwrap();
        let long = base.join("d".repeat(150));
        let (claim, listener) = claim_in(&long, &name("web")).unwrap();
        let path = claim.file("ctl.sock");
        assert!(path.as_os_str().len() > 150);
        let _client = crate::socket_path::connect_async(&path).await.unwrap();
        listener.accept().unwrap();
    });
}
