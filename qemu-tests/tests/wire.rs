//! The ports themselves: what a host may send that is no call, and what it costs the others (nothing).

use std::io::ErrorKind;
use std::time::Duration;

use host_shim::guest::unlimited;
use qemu_tests::{Wish, vm_test};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vminitd_protocol::ports::{DEFAULT_RPC_PORT, DEFAULT_STREAM_PORT};

#[test]
fn ten_zero_bytes_are_answered_with_a_response_on_stream_zero() {
    vm_test(async |vm| {
        for _ in 0..20 {
            let mut connection = vm.guest().dial(DEFAULT_RPC_PORT).await.expect("dial");
            connection.write_all(&[0; 10]).await.expect("write");
            let mut header = [0; 10];
            connection.read_exact(&mut header).await.expect("an answer");
            let length = u32::from_be_bytes(header[..4].try_into().expect("four bytes"));
            assert!(length > 0);
            assert_eq!(header[4..9], [0, 0, 0, 0, 2]);
        }
        assert!(!vm.console().contains("ERROR"), "a ping costs no log line:\n{}", vm.console());
    });
}

#[test]
fn garbage_on_the_rpc_port_disturbs_no_other_connection() {
    vm_test(async |vm| {
        let garbage = [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 4096],
            &[0, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0, 1],
        ];
        for bytes in garbage {
            let mut connection = vm.guest().dial(DEFAULT_RPC_PORT).await.expect("dial");
            connection.write_all(bytes).await.expect("write");
            connection.shutdown().await.expect("shutdown");
            let mut rest = Vec::new();
            let _ = timeout(Duration::from_secs(10), connection.read_to_end(&mut rest)).await;
        }
        assert_eq!(vm.run("after", Wish::new(&["true"])).await.status, 0);
    });
}

#[test]
fn silent_clients_on_the_stream_port_block_nobody_and_are_dropped() {
    vm_test(async |vm| {
        let mut silent = Vec::new();
        for _ in 0..20 {
            let mut connection = vm.guest().dial(DEFAULT_STREAM_PORT).await.expect("dial");
            connection.write_all(&[0, 0]).await.expect("half a length");
            silent.push(connection);
        }
        assert_eq!(vm.run("meanwhile", Wish::sh("echo hi")).await.text(), "hi\n");
        for mut connection in silent {
            let ended = timeout(Duration::from_secs(60), connection.read(&mut [0]))
                .await
                .expect("a deadline");
            assert!(
                matches!(ended, Ok(0))
                    || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
            );
        }
    });
}

#[test]
fn stream_id_in_use_is_refused_in_words_and_the_first_one_lives_on() {
    vm_test(async |vm| {
        let mut first = vm.stream("taken").await;
        let error = vm.guest().stream("taken").await.expect_err("a duplicate").to_string();
        assert_eq!(error, "the guest refuses stream \"taken\": stream \"taken\" already exists");
        let mut wish = Wish::sh("echo hi");
        wish.stdout_uri = Some("stream://taken".to_owned());
        assert_eq!(vm.run("user", wish).await.status, 0);
        let mut text = String::new();
        first.read_to_string(&mut text).await.expect("the guest's end of file");
        assert_eq!(text, "hi\n");
    });
}

#[test]
fn port_where_nobody_listens_is_refused_at_once() {
    vm_test(async |vm| {
        let error = vm.guest().dial(4711).await.expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn unknown_service_and_method_are_unimplemented() {
    vm_test(async |vm| {
        for (service, method) in [
            ("containerd.task.v3.Task", "Teleport"),
            ("containerd.vminitd.services.mount.v1.Mount", "MountSome"),
            ("containerd.services.transfer.v1.Transfer", "Transfer"),
        ] {
            let request = ttrpc::Request {
                service: service.to_owned(),
                method: method.to_owned(),
                ..Default::default()
            };
            match vm.guest().rpc().request(request).await {
                Err(ttrpc::Error::RpcStatus(status)) => {
                    assert_eq!(status.code(), ttrpc::Code::UNIMPLEMENTED, "{method}")
                }
                other => panic!("{service}/{method}: {other:?}"),
            }
        }
    });
}

#[test]
fn closed_connection_cancels_no_create() {
    vm_test(async |vm| {
        let wish = Wish::new(&["sleep", "3600"]);
        let bundle = vm.make_bundle("kept", &wish).await.expect("bundle");
        {
            // A connection of its own, which closes while Create is under way.
            let other = vm.guest().reconnect(Duration::from_secs(60)).await.expect("connect");
            let request = vminitd_protocol::pb::containerd::task::v3::CreateTaskRequest {
                id: "kept".to_owned(),
                bundle: bundle.clone(),
                rootfs: host_shim::container::shared_rootfs("rootfs", &bundle),
                ..Default::default()
            };
            let task = other.task();
            let _ = timeout(Duration::from_millis(5), task.create(unlimited(), &request)).await;
        }
        vm.await_events(vminitd_protocol::topics::TASK_CREATE, "kept", 1).await;
        vm.delete_by_force("kept").await;
    });
}
