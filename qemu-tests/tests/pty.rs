//! Terminals in the guest, through the Task API: a test types into the stream that is stdin and reads the screen from
//! the one that is stdout.

use std::time::Duration;

use host_shim::guest::unlimited;
use host_shim::vmm::GuestStream;
use qemu_tests::{ExecWish, PATIENCE_S, Running, Vm, Wish, sha256, vm_test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::{CloseIoRequest, ResizePtyRequest};

/// What a process with a terminal shows.
pub struct Screen {
    stream: GuestStream,
    shown: String,
}

impl Screen {
    /// The stream that stdout will name.
    pub async fn open(vm: &Vm, id: &str) -> (Self, String) {
        (Self { stream: vm.stream(id).await, shown: String::new() }, format!("stream://{id}"))
    }

    /// Reads until this is shown, and returns all that was up to its end; the rest is for the next call.
    pub async fn until(&mut self, what: &str) -> String {
        let seen = async {
            loop {
                if let Some(at) = self.shown.find(what) {
                    let rest = self.shown.split_off(at + what.len());
                    return std::mem::replace(&mut self.shown, rest);
                }
                let mut bytes = [0; 4096];
                let count = self.stream.read(&mut bytes).await.expect("the screen");
                assert!(count > 0, "the screen ends without {what:?}: {:?}", self.shown);
                self.shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        };
        match timeout(Duration::from_secs(PATIENCE_S), seen).await {
            Ok(seen) => seen,
            Err(_) => panic!("no {what:?} on the screen: {:?}", self.shown),
        }
    }
}

async fn shell<'vm>(vm: &'vm Vm, id: &str) -> (Running<'vm>, Screen) {
    let (screen, uri) = Screen::open(vm, &format!("{id}-screen")).await;
    let mut wish = Wish::new(&["sh"]).with_terminal();
    wish.stdout_uri = Some(uri);
    wish.spec["process"]["env"].as_array_mut().expect("some").push("PS1=ready> ".into());
    let running = vm.create(id, wish).await.expect("create").start().await.expect("start");
    (running, screen)
}

async fn type_in(running: &mut Running<'_>, text: &str) {
    let stdin = running.task.stdin.as_mut().expect("connected");
    stdin.write_all(text.as_bytes()).await.expect("the terminal takes it");
}

#[test]
fn shell_has_a_terminal_with_echo_size_and_job_control() {
    vm_test(async |vm| interactive_shell(vm, "c").await);
}

/// A person at a shell.
pub async fn interactive_shell(vm: &Vm, id: &str) {
    let (mut running, mut screen) = shell(vm, id).await;
    screen.until("ready> ").await;
    // Echo, and a newline that becomes two characters.
    type_in(&mut running, "echo wo''rd\n").await;
    let shown = screen.until("ready> ").await;
    assert!(shown.ends_with("echo wo''rd\r\nword\r\nready> "), "{shown:?}");
    type_in(&mut running, "tty; test -t 2 && echo all three\n").await;
    let shown = screen.until("ready> ").await;
    assert!(shown.contains("/dev/pts/0") || shown.contains("/dev/console"), "{shown}");
    assert!(shown.contains("all three"), "{shown}");

    let resize =
        ResizePtyRequest { id: id.to_owned(), width: 91, height: 37, ..Default::default() };
    vm.guest().task().resize_pty(unlimited(), &resize).await.expect("resize");
    type_in(&mut running, "stty size\n").await;
    // The shell may show its prompt anew.
    screen.until("37 91").await;
    screen.until("ready> ").await;

    // Ctrl-C ends what is in the foreground, not the shell; Ctrl-Z stops it, and fg takes it back.
    // Each says that it runs first: the shell edits its line in raw mode.
    type_in(&mut running, "sh -c \"echo o''n; sleep 3600\"\n").await;
    screen.until("on\r\n").await;
    type_in(&mut running, "\x03").await;
    screen.until("ready> ").await;
    type_in(&mut running, "sh -c \"echo o''n; exec cat\"\n").await;
    screen.until("on\r\n").await;
    type_in(&mut running, "once\n").await;
    screen.until("once\r\nonce\r\n").await;
    type_in(&mut running, "\x1a").await;
    screen.until("ready> ").await;
    type_in(&mut running, "jobs\n").await;
    assert!(screen.until("ready> ").await.contains("Stopped"));
    type_in(&mut running, "fg\n").await;
    screen.until("cat").await;
    type_in(&mut running, "twice\n").await;
    screen.until("twice\r\ntwice\r\n").await;
    type_in(&mut running, "\x04").await;
    screen.until("ready> ").await;
    type_in(&mut running, "exit 6\n").await;
    let exit = running.exit().await;
    assert_eq!(exit.exit_status, 6);
    assert_eq!(exit.stderr_bytes, 0);
    running.finish().await;
}

#[test]
fn end_of_stdin_ends_input_and_the_terminal_lives_on() {
    vm_test(async |vm| {
        for (id, by_call) in [("eof", false), ("close", true)] {
            let (screen, uri) = Screen::open(vm, &format!("{id}-screen")).await;
            let mut screen = screen;
            // It prints when the host has ended its input, and no hang-up reaches it.
            let mut wish =
                Wish::sh("read a; echo got $a; sleep 1; echo alive; exit 4").with_terminal();
            wish.stdout_uri = Some(uri);
            let mut running =
                vm.create(id, wish).await.expect("create").start().await.expect("start");
            type_in(&mut running, "line\n").await;
            match by_call {
                true => {
                    let request =
                        CloseIoRequest { id: id.to_owned(), stdin: true, ..Default::default() };
                    vm.guest().task().close_io(unlimited(), &request).await.expect("close");
                    vm.guest().task().close_io(unlimited(), &request).await.expect("and again");
                }
                false => drop(running.task.stdin.take()),
            }
            screen.until("got line\r\n").await;
            screen.until("alive\r\n").await;
            assert_eq!(running.finish().await.status, 4);
        }
    });
}

#[test]
fn output_of_a_terminal_arrives_whole_before_the_exit() {
    vm_test(async |vm| {
        // Raw, so that not a byte is changed on the way.
        let script = "stty raw -echo; misbehave burst 3000000 0; echo end >&2; exit 2";
        let exit = vm.run("c", Wish::sh(script).with_terminal()).await;
        let mut expected = qemu_tests::noise(1, 3_000_000);
        expected.extend(b"end\n");
        assert_eq!(exit.status, 2);
        assert_eq!(exit.wait.stdout_bytes, expected.len() as u64);
        assert_eq!(sha256(&exit.stdout), sha256(&expected));
    });
}

#[test]
fn exec_with_a_terminal_is_a_session_of_its_own() {
    vm_test(async |vm| {
        let running = vm.create("c", Wish::sh("read end").with_stdin()).await.expect("create");
        let mut running = running.start().await.expect("start");
        let (mut screen, uri) = Screen::open(vm, "screen").await;
        let mut wish = ExecWish::new(&["sh"]).with_terminal();
        wish.stdout_uri = Some(uri);
        wish.process["consoleSize"] = serde_json::json!({ "height": 21, "width": 83 });
        wish.process["env"].as_array_mut().expect("some").push("PS1=ready> ".into());
        let mut exec =
            running.task.exec("e", wish).await.expect("exec").start().await.expect("start");
        screen.until("ready> ").await;
        let mut stdin = exec.exec.stdin.take().expect("connected");
        stdin.write_all(b"stty size\n").await.expect("typed");
        assert!(screen.until("ready> ").await.contains("21 83"));
        let resize = ResizePtyRequest {
            id: "c".to_owned(),
            exec_id: "e".to_owned(),
            width: 100,
            height: 50,
        };
        vm.guest().task().resize_pty(unlimited(), &resize).await.expect("resize");
        stdin.write_all(b"stty size; exit 3\n").await.expect("typed");
        screen.until("50 100").await;
        assert_eq!(exec.exit().await.exit_status, 3);
        exec.finish().await;
        // Without a terminal there is nothing to resize, which is no error.
        let resize =
            ResizePtyRequest { id: "c".to_owned(), width: 1, height: 1, ..Default::default() };
        vm.guest().task().resize_pty(unlimited(), &resize).await.expect("resize");
        drop(running.task.stdin.take());
        running.finish().await;
    });
}
