//! What a guest tells of itself, CPUs and memory off and on, and its last words on the host.

use std::process::Stdio;
use std::time::Duration;

use host_shim::guest::unlimited;
use qemu_tests::cli::Vms;
use qemu_tests::{Blow, Options, Vm, Wish, inspector, vm_test_with};
use serde_json::json;
use tokio::time::timeout;
use vminitd_protocol::pb::containerd::task::v3::PauseRequest;
use vminitd_protocol::pb::containerd::vminitd::services::system::v1::{CpuRequest, MemoryRequest};
use vminitd_protocol::pb::google::protobuf::Empty;

/// Whatever hangs, who asks is answered; generous, because emulation is slow.
const ANSWERED: Duration = Duration::from_secs(20);

async fn metrics(vm: &Vm) -> String {
    let machine = vm.guest().machine();
    let answer = timeout(ANSWERED, machine.metrics(unlimited(), &Empty {})).await;
    answer.expect("an answer").expect("metrics").text
}

fn figure(metrics: &str, sample: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample}:\n{metrics}")).parse().expect("a figure")
}

#[test]
fn guest_tells_of_itself_also_while_containers_and_calls_hang() {
    let options = Options { look_for_leaks: false, ..Options::default() };
    vm_test_with(options, async |vm| {
        let machine = vm.guest().machine();
        let features = machine.features(unlimited(), &Empty {}).await.expect("features");
        assert_eq!(features.protocol_version, 1);
        assert_eq!((features.build_id.len(), features.kernel_config_digest.len()), (64, 64));
        assert!(features.kernel_release.starts_with("6.12"), "{}", features.kernel_release);
        let methods = |name: &str| {
            let found = features.services.iter().find(|service| service.name == name);
            found.unwrap_or_else(|| panic!("no {name}")).methods.clone()
        };
        assert!(methods("vminitd.v1.Machine").contains(&"Diagnostics".to_owned()));
        assert!(methods("vminitd.v1.Events").contains(&"Stream".to_owned()));
        let task = methods("containerd.task.v3.Task");
        assert!(task.contains(&"Create".to_owned()) && !task.contains(&"Checkpoint".to_owned()));
        assert_eq!(features.limits["id_bytes"], 128);
        // This is the build that was installed.
        let dist = std::env::var("VMINITD_DIST").expect("the harness has it");
        let program = std::fs::read(format!("{dist}/share/vminitd/x86_64/vminitd")).expect("it");
        assert_eq!(features.build_id, qemu_tests::sha256(&program));

        let wish = Wish::new(&["misbehave", "burst", "1000", "10"]);
        let _done = vm.create("done", wish).await.expect("create").start().await.expect("start");
        vm.await_events("/tasks/exit", "done", 1).await;
        // One that stands still, and a Create that does not come back.
        let frozen = vm.create("frozen", Wish::new(&["sleep", "1000"])).await.expect("create");
        let _frozen = frozen.start().await.expect("start");
        let pause = PauseRequest { id: "frozen".to_owned() };
        vm.guest().task().pause(unlimited(), &pause).await.expect("pause");
        let mut stuck = Wish::new(&["true"]);
        // Its path counts in the guest.
        let path = "/run/bundles/stuck/rootfs/bin/misbehave";
        let hook = json!({ "path": path, "args": ["misbehave", "hang"] });
        stuck.spec["hooks"] = json!({ "createContainer": [hook] });
        let create = vm.create("stuck", stuck);
        let look = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let told = timeout(ANSWERED, machine.diagnostics(unlimited(), &Empty {}));
            (told.await.expect("an answer").expect("diagnostics").text, metrics(vm).await)
        };
        let (text, figures) = tokio::select! {
            _ = create => panic!("the hook sleeps"),
            looked = look => looked,
        };
        for part in [
            "\n  frozen in /run/bundles/frozen\n",
            "init: Paused { pid: ",
            "cgroup.events: populated 1 frozen 1",
            "init: Stopped { pid: ",
            "stdout: stream://done-out",
            "mount: mounts/0",
            "stuck",
            "waits in ",
            " vminitd-agent: state ",
            "\nmounts (",
            "anon_inode:",
            "MemTotal:",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_eq!(figure(&figures, "vminitd_containers"), 2.0);
        let output = r#"vminitd_container_output_bytes_total{container="done",stream="stdout"}"#;
        assert_eq!(figure(&figures, output), 1000.0);
        let processes = r#"vminitd_container_processes{container="frozen"}"#;
        assert_eq!(figure(&figures, processes), 1.0);
        assert_eq!(figure(&figures, "vminitd_agent_restarts_total"), 0.0);
        assert!(figure(&figures, "vminitd_events_total") >= 5.0);
        assert!(figure(&figures, "vminitd_agent_resident_bytes") > 1e6);
        // A scraper's rules: each family has a type, each sample a family before it.
        let mut family = String::new();
        for line in figures.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(named) => family = named.split(' ').next().expect("a name").to_owned(),
                None if line.starts_with('#') => {}
                None => {
                    assert!(line.starts_with(&family) && line.starts_with("vminitd_"), "{line}")
                }
            }
        }
        Blow::Kill.strike(vm).await;
        assert_eq!(figure(&metrics(vm).await, "vminitd_agent_restarts_total"), 1.0);
    });
}

#[test]
fn cpus_and_memory_go_off_and_on() {
    let options = Options { cpus: 2, memory: "512M", ..Options::default() };
    vm_test_with(options, async |vm| {
        let system = vm.guest().system();
        let count = async |id: &str| {
            let text = vm.run(id, Wish::sh("grep -c ^processor /proc/cpuinfo")).await.text();
            text.trim().parse::<u32>().expect("a number")
        };
        assert_eq!(count("two").await, 2);
        let one = CpuRequest { cpu_id: 1 };
        for _ in 0..2 {
            system.offline_cpu(unlimited(), &one).await.expect("offline");
        }
        assert_eq!(count("one").await, 1);
        for _ in 0..2 {
            system.online_cpu(unlimited(), &one).await.expect("online");
        }
        assert_eq!(count("again").await, 2);
        let refused = |answer: ttrpc::Result<Empty>| match answer {
            Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
            other => panic!("no refusal: {other:?}"),
        };
        let none = CpuRequest { cpu_id: 99 };
        let (code, text) = refused(system.online_cpu(unlimited(), &none).await);
        assert_eq!((code, &*text), (ttrpc::Code::NOT_FOUND, "cpu 99 does not exist: not found"));
        let first = CpuRequest { cpu_id: 0 };
        let (code, text) = refused(system.offline_cpu(unlimited(), &first).await);
        let fixed = "cpu 0 cannot be taken offline: failed precondition";
        assert_eq!((code, &*text), (ttrpc::Code::FAILED_PRECONDITION, fixed));

        let none = MemoryRequest { memory_id: 9999 };
        let (code, _) = refused(system.offline_memory(unlimited(), &none).await);
        assert_eq!(code, ttrpc::Code::NOT_FOUND);
        let total = async |id: &str| {
            let text = vm.run(id, Wish::sh("grep MemTotal /proc/meminfo")).await.text();
            text.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB")
        };
        let before = total("whole").await;
        let mut gone = None;
        for memory_id in (0..4).rev() {
            let block = MemoryRequest { memory_id };
            match system.offline_memory(unlimited(), &block).await {
                Ok(_) => {
                    gone = Some(block);
                    break;
                }
                // It holds what cannot be moved.
                Err(error) => {
                    assert!(error.to_string().contains("cannot be taken offline"), "{error}")
                }
            }
        }
        let gone = gone.expect("one of four blocks can be given up");
        assert!(total("less").await + (100 << 10) < before);
        system.online_memory(unlimited(), &gone).await.expect("online");
        assert_eq!(total("back").await, before);
    });
}

fn run(vms: &Vms, args: &[&str], command: &[&str]) -> (Option<i32>, String) {
    let run = vms.run(args, command).stdout(Stdio::null()).output().expect("it starts");
    (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
}

#[test]
fn last_words_of_kernel_and_init_reach_the_host() {
    let vms = Vms::new();
    let (status, text) = run(&vms, &["--append", "rdinit=/nothing"], &["true"]);
    assert_eq!(status, Some(125), "{text}");
    assert!(text.contains("the VM ended before it served: panic ("), "{text}");
    let first = text.lines().next().unwrap_or_default();
    assert!(first.contains("VFS") || first.contains("init"), "{text}");

    let (status, text) = run(&vms, &["--append", "vminitd.stream_port=1024"], &["true"]);
    assert_eq!(status, Some(125), "{text}");
    assert!(text.contains("vminitd: fatal: boot: listen on vsock port 1024"), "{text}");
}

#[test]
fn panic_of_a_vm_that_runs_reaches_its_owner() {
    vm_test_with(Options { look_for_leaks: false, ..Options::default() }, async |vm| {
        let panics = "echo 2 > /guest/proc/sys/vm/panic_on_oom";
        let told = vm.run("panics", inspector(&["sh", "-c", panics])).await;
        assert_eq!(told.status, 0, "{}", String::from_utf8_lossy(&told.stderr));
        let mut eats = Wish::new(&["misbehave", "eat-memory", "64"]);
        eats.spec["linux"]["resources"] = json!({ "memory": { "limit": 8 << 20 } });
        let eats = vm.create("eats", eats).await.expect("create");
        let _answer = timeout(ANSWERED, eats.start()).await;
        let patience = Duration::from_secs(qemu_tests::PATIENCE_S);
        let exited = timeout(patience, vm.machine().exited()).await.expect("it ends").to_string();
        assert!(exited.starts_with("panic (Out of memory: "), "{exited}");
    });
}

#[test]
fn vminitctl_looks_inside_a_vm_that_runs() {
    let vms = Vms::new();
    let mut run = vms.run(&["--name", "web"], &["sh", "-c", "echo up; cat"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut stdout = std::io::BufReader::new(run.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut stdout, &mut String::new()).expect("output");
    for (command, part) in [
        ("features", "service vminitd.v1.Machine: Diagnostics Features Metrics"),
        ("metrics", "vminitd_containers 1"),
        ("diag", "\n  main in /run/bundles/main\n"),
    ] {
        let told = vms.vminitctl(&[command, "web"]).output().expect("it starts");
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert_eq!(told.status.code(), Some(0), "{command}: {told:?}");
        assert!(text.contains(part), "{command}: {text}");
    }
    drop(run.stdin.take());
    assert_eq!(qemu_tests::cli::wait(&mut run).code(), Some(0));
}
