//! `vminitctl run -t` on a real terminal: a pty of the host, whose other end the test types into and reads.
//!
//! The shell in the container is a real one (busybox' ash), so that what is typed, echoed and stopped went through
//! both terminals, the host's and the guest's.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::sys::signal::Signal;
use qemu_tests::cli::{OnTerminal, Vms, bundle_beside_the_agent, children};

/// What a shell on the terminal does; `-i` so that it does job control whoever starts it.
fn use_shell(terminal: &mut OnTerminal, rows: u16) {
    // The echo and the answer: what is shown twice went to the guest and back.
    terminal.types("echo a''b\r");
    terminal.shows("echo a''b");
    terminal.shows("ab");
    assert!(terminal.is_raw());
    terminal.resize(rows, 120);
    terminal.types("until stty size | grep '120$'; do sleep 0.1; done\r");
    terminal.shows(&format!("{rows} 120"));
    // Ctrl-C is the program's SIGINT, not ours.
    terminal.types("echo go; sleep 1000\r");
    terminal.shows("\ngo");
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.types("\x03");
    terminal.types("echo code=$?\r");
    terminal.shows("code=130");
    // Ctrl-Z stops it, and the shell has its terminal again.
    terminal.types("echo go; sleep 1000\r");
    terminal.shows("\ngo");
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.types("kill -9 %1; echo killed=$?\r");
    terminal.shows("killed=0");
}

#[test]
fn terminal_of_a_container_is_used_as_a_local_one_also_when_the_agent_is_replaced() {
    let vms = Vms::new();
    let bundle = bundle_beside_the_agent("stty size; tty; echo term=$TERM; exec sh -i");
    let path = bundle.path().to_str().expect("it is UTF-8");
    let mut terminal = OnTerminal::start(&vms.vminitctl(&["run", "-t", "--bundle", path]));
    terminal.shows("33 99");
    terminal.shows("/dev/pts/0");
    terminal.shows("term=test-term");
    use_shell(&mut terminal, 50);
    // The same check after a blow.
    terminal.types("inspect signal 9; echo blow=$?\r");
    terminal.shows("blow=0");
    use_shell(&mut terminal, 51);
    // `exit` would ask back while the shell has not noticed that its stopped job is gone.
    terminal.types("exec sh -c 'exit 7'\r");
    assert_eq!(terminal.ends().code(), Some(7), "{}", terminal.screen());
    terminal.assert_restored();
}

#[test]
fn terminal_is_as_before_when_the_command_ends_by_a_signal_of_ours() {
    let vms = Vms::new();
    let run = vms.run(&["-t"], &["misbehave", "handle-term", "42"]);
    let mut terminal = OnTerminal::start(&run);
    terminal.shows("ready");
    assert!(terminal.is_raw());
    terminal.signal(Signal::SIGTERM);
    assert_eq!(terminal.ends().code(), Some(42), "{}", terminal.screen());
    terminal.assert_restored();
}

#[test]
fn terminal_is_as_before_when_the_vm_dies() {
    let vms = Vms::new();
    let mut terminal = OnTerminal::start(&vms.run(&["-t"], &["sh", "-c", "echo up; sleep 1000"]));
    terminal.shows("up");
    let [vmm] = children(terminal.pid())[..] else { panic!("one VM is one vminit-vmm") };
    nix::sys::signal::kill(vmm, Signal::SIGKILL).expect("it runs");
    assert_eq!(terminal.ends().code(), Some(125));
    assert!(
        terminal.screen().contains("the VM ended while the command ran"),
        "{}",
        terminal.screen()
    );
    terminal.assert_restored();
}

#[test]
fn terminal_is_as_before_when_the_command_cannot_run() {
    let vms = Vms::new();
    let mut terminal = OnTerminal::start(&vms.run(&["-t"], &["no-such-program"]));
    assert_eq!(terminal.ends().code(), Some(127), "{}", terminal.screen());
    terminal.shows("no-such-program");
    terminal.assert_restored();
}

#[test]
fn command_whose_terminal_is_hung_up_ends() {
    let vms = Vms::new();
    let mut terminal =
        OnTerminal::start(&vms.run(&["-t", "--name", "x"], &["misbehave", "ignore-term"]));
    terminal.shows("ready");
    terminal.signal(Signal::SIGHUP);
    terminal.hang_up();
    assert_eq!(terminal.ends().code(), Some(128 + 9));
    assert!(!vms.path("x").exists());
}

#[test]
fn terminal_is_refused_where_there_is_none() {
    let vms = Vms::new();
    for command in [vms.run(&["-t"], &["sh"]), vms.vminitctl(&["exec", "-t", "sh"])] {
        let mut command = command;
        let output = command.stdin(Stdio::null()).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.status.signal()), (Some(125), None));
        assert!(text.contains("--tty: stdin is no terminal; leave out --tty"), "{text}");
    }
}
