//! A host that loses its streams, and comes back with others.

use std::time::Duration;

use host_shim::guest::{Attached, SteadyGuest, Which, unlimited};
use qemu_tests::{Blow, PATIENCE_S, Vm, Wish, noise, sha256, vm_test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vminitd_protocol::pb::vminitd::v1::{AttachRequest, AttachResponse};

const MIB: usize = 1 << 20;

async fn attach(vm: &Vm, request: AttachRequest) -> ttrpc::Result<AttachResponse> {
    vm.guest().streams().attach(unlimited(), &request).await
}

fn stdout_of(id: &str, stream: &str) -> AttachRequest {
    AttachRequest { id: id.to_owned(), stdout: stream.to_owned(), ..Default::default() }
}

#[test]
fn output_of_a_host_that_comes_back_goes_on_where_it_left_the_guest() {
    vm_test(async |vm| {
        let all = noise(1, 4 * MIB);
        let mut wish = Wish::new(&["misbehave", "burst", &all.len().to_string(), "0"]);
        wish.stdout_uri = Some("stream+keep://first".to_owned());
        let mut first = vm.stream("first").await;
        let running = vm.create("burst", wish).await.expect("create").start().await.expect("start");
        let mut got = vec![0; 300_000];
        first.read_exact(&mut got).await.expect("output");
        assert!(got == all[..300_000]);
        drop(first);
        // The guest learns of it with the next bytes that it sends; the process waits meanwhile.
        Blow::Kill.strike(vm).await;

        let mut second = vm.stream("second").await;
        let answer = attach(vm, stdout_of("burst", "second")).await.expect("attach");
        let begins = answer.stdout_bytes as usize;
        assert!((300_000..all.len()).contains(&begins), "{answer:?}");
        let mut piece = vec![0; 400_000];
        second.read_exact(&mut piece).await.expect("output");
        assert!(piece == all[begins..begins + 400_000]);
        // A stream that is not lost can be replaced as well; the old one ends, with all that was sent to it.
        let steady = SteadyGuest::new(vm.guest(), Duration::from_secs(PATIENCE_S));
        let stdout = Which { stdout: true, ..Default::default() };
        let streams = steady.attach("burst", "", stdout).await.expect("attach");
        let Attached { stream: mut third, next_byte } = streams.stdout.expect("asked for");
        assert!(streams.stdin.is_none() && streams.stderr.is_none());
        let next = next_byte as usize;
        second.read_to_end(&mut piece).await.expect("its end");
        assert!(piece == all[begins..next], "{} bytes from {begins} to {next}", piece.len());
        Blow::Kill.strike(vm).await;
        let mut rest = Vec::new();
        third.read_to_end(&mut rest).await.expect("its end");
        assert!(rest == all[next..], "{} bytes from {next}", rest.len());
        let exit = running.task.wait().await.expect("wait");
        assert_eq!((exit.exit_status, exit.stdout_bytes), (0, all.len() as u64));
        // Behind the end there is nothing but the end.
        let mut fourth = vm.stream("fourth").await;
        let answer = attach(vm, stdout_of("burst", "fourth")).await.expect("attach");
        assert_eq!(answer.stdout_bytes, all.len() as u64);
        assert_eq!(fourth.read(&mut [0]).await.expect("an end"), 0);
        running.task.delete().await.expect("delete");
    });
}

#[test]
fn input_of_a_host_that_comes_back_goes_on_where_the_guest_says() {
    vm_test(async |vm| {
        let input = noise(3, 2 * MIB);
        let mut wish = Wish::new(&["sha256sum"]);
        wish.stdin_uri = Some("stream+keep://in0".to_owned());
        let mut first = vm.stream("in0").await;
        let running = vm.create("sum", wish).await.expect("create").start().await.expect("start");
        first.write_all(&input[..700_000]).await.expect("the guest takes it");
        drop(first);
        let mut second = vm.stream("in1").await;
        let request =
            AttachRequest { id: "sum".to_owned(), stdin: "in1".to_owned(), ..Default::default() };
        let answer = attach(vm, request).await.expect("attach");
        assert!(answer.stdin_bytes <= 700_000 && !answer.stdin_ended, "{answer:?}");
        second.write_all(&input[answer.stdin_bytes as usize..]).await.expect("the guest takes it");
        second.shutdown().await.expect("a half-close");
        let exit =
            timeout(Duration::from_secs(PATIENCE_S), running.finish()).await.expect("an end");
        assert_eq!((exit.status, exit.text()), (0, format!("{}  -\n", sha256(&input))));
    });
}

#[test]
fn attach_refuses_what_makes_no_sense_and_changes_nothing() {
    vm_test(async |vm| {
        let mut wish = Wish::sh("read line; echo out; echo err >&2").with_stdin();
        // A host that does not say that it comes back: its process goes on without it.
        wish.stdout_uri = Some("stream://gone".to_owned());
        wish.stderr_uri = Some(String::new());
        drop(vm.stream("gone").await);
        let mut running = vm.create("c", wish).await.expect("create").start().await.expect("start");
        let refused = async |request: AttachRequest| match attach(vm, request).await {
            Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
            other => panic!("{other:?}"),
        };
        let (code, text) = refused(stdout_of("c", "nowhere")).await;
        assert_eq!(code, ttrpc::Code::NOT_FOUND);
        assert_eq!(text, "unable to get stream \"nowhere\": not found");
        let _spare = vm.stream("spare").await;
        let request = AttachRequest { stderr: "spare".to_owned(), ..stdout_of("c", "") };
        let (code, text) = refused(request).await;
        assert_eq!(code, ttrpc::Code::FAILED_PRECONDITION);
        assert_eq!(text, "stderr of the process is no stream: failed precondition");
        let (code, _) = refused(stdout_of("unknown", "spare")).await;
        assert_eq!(code, ttrpc::Code::NOT_FOUND);

        running.task.stdin.as_mut().expect("stdin").write_all(b"go\n").await.expect("it lives");
        assert_eq!(running.exit().await.exit_status, 0);
        let answer = attach(vm, stdout_of("c", "spare")).await.expect("the stream is nobody's yet");
        assert_eq!(answer.stdout_bytes, 4, "what was discarded is counted");
        running.finish().await;
    });
}
