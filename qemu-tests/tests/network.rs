//! Networks of the VM and of its containers.
//!
//! What programs in containers reach is asked by fetching from servers of the test on this machine's loopback, which
//! QEMU's user network shows as 10.0.2.2; what servers of networks may do, by a DHCP server of ours behind an Ethernet
//! that is a socket.

mod dhcp_server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use dhcp_server::{Mood, Question, Server};
use host_shim::guest::unlimited;
use host_shim::vm::{Network, Nic};
use qemu_tests::cli::Vms;
use qemu_tests::{Blow, Options, PATIENCE_S, Vm, Wish, inspector, vm_test_with};
use serde_json::json;
use tokio::time::{sleep, timeout};
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{
    Dns, Link, LinkAddress, ListNetworkResponse, RenewRequest, Route, SetLinkRequest,
    WaitNetworkRequest,
};

const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

fn user(number: usize, published: &[String]) -> Nic {
    let published = published.iter().map(|port| port.parse().expect("a port")).collect();
    Nic {
        mac: MACS[number].parse().expect("an address"),
        network: Network::User { published, removable: false },
    }
}

/// A server on this machine's loopback that answers every request with `body`; its port.
fn web_server(body: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let _ =
                write!(&stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    port
}

/// A port that nobody has, at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

/// What comes from a published port, as soon as somebody in the guest sends something.
async fn read_from(port: u16) -> String {
    let read = tokio::task::spawn_blocking(move || {
        for _ in 0..PATIENCE_S * 5 {
            let mut text = String::new();
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                && stream.read_to_string(&mut text).is_ok()
                && !text.is_empty()
            {
                return text;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("nothing comes from port {port}")
    });
    read.await.expect("no panic")
}

/// A container in the guest's own network, with the guest's word on names.
fn in_guest_network(script: &str) -> Wish {
    let mut wish = Wish::sh(script);
    let namespaces = wish.spec["linux"]["namespaces"].as_array_mut().expect("some");
    namespaces.retain(|namespace| namespace["type"] != "network");
    let mounts = wish.spec["mounts"].as_array_mut().expect("some");
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        mounts.push(json!({ "destination": file, "type": "bind", "source": file, "options": ["bind", "ro"] }));
    }
    wish
}

async fn settled(vm: &Vm) {
    let request = WaitNetworkRequest { timeout_ms: PATIENCE_S as u32 * 1000 };
    let answer = vm.guest().network().wait(unlimited(), &request).await.expect("wait");
    assert!(answer.settled, "{}", vm.console());
}

async fn list(vm: &Vm) -> ListNetworkResponse {
    vm.guest().network().list(unlimited(), &Empty {}).await.expect("list")
}

async fn link(vm: &Vm, name: &str) -> Link {
    let links = list(vm).await.links;
    let found = links.iter().find(|link| link.name == name).cloned();
    found.unwrap_or_else(|| panic!("no {name} in {links:?}"))
}

/// Waits until a link is as it is to be.
async fn until(vm: &Vm, name: &str, what: &str, is: impl Fn(&Link) -> bool) -> Link {
    let wait = async {
        loop {
            let link = link(vm, name).await;
            if is(&link) {
                return link;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    match timeout(Duration::from_secs(PATIENCE_S), wait).await {
        Ok(link) => link,
        Err(_) => panic!("{what}: {:?}", link(vm, name).await),
    }
}

#[test]
fn links_are_set_up_by_dhcp_and_by_address_changed_at_will_and_outlive_the_agent() {
    let (web, published) = (web_server("from the host\n"), free_port());
    let options = Options {
        nics: vec![user(0, &[format!("{published}:8080")]), user(1, &[])],
        append: format!(
            "ip=::::by-dhcp:eth0:dhcp vminitd.network=mac={},addr=10.7.0.2/24,addr=fd07::2/64,gw=none,dns=10.7.0.3,mtu=1400",
            MACS[1]
        ),
        ..Options::default()
    };
    vm_test_with(options, async |vm| {
        settled(vm).await;
        let fetch = format!("wget -q -O - http://10.0.2.2:{web}/");
        let script = format!(
            "{fetch}; cat /etc/resolv.conf; grep by-dhcp /etc/hosts; ip -o addr show dev eth1 | grep -o '[0-9a-f.:]*/[0-9]*' | grep -v fe80"
        );
        let text = vm.run("fetch", in_guest_network(&script)).await.text();
        let expected = "from the host\nnameserver 10.0.2.3\nnameserver 10.7.0.3\n10.0.2.15\tby-dhcp\n10.7.0.2/24\nfd07::2/64\n";
        assert_eq!(text, expected);
        let wish = in_guest_network("echo published | nc -l -p 8080");
        let server = vm.create("server", wish).await.expect("create").start().await.expect("start");
        assert_eq!(read_from(published).await, "published\n");
        server.finish().await;

        let (network, eth0, eth1) =
            (vm.guest().network(), link(vm, "eth0").await, link(vm, "eth1").await);
        assert_eq!((eth0.dhcp.as_str(), eth1.dhcp.as_str(), eth1.mtu), ("bound", "", 1400));
        let lease = eth0.lease.expect("a lease");
        assert_eq!((lease.address.as_str(), lease.server.as_str()), ("10.0.2.15/24", "10.0.2.2"));
        assert!(
            0 < lease.renew_s && lease.renew_s < lease.rebind_s && lease.rebind_s < lease.end_s,
            "{lease:?}"
        );

        // What a host changes, and what makes no sense.
        let address = |address: &str| LinkAddress { link: "eth1".into(), address: address.into() };
        let route = |to: &str, gateway: &str| Route {
            link: "eth1".into(),
            to: to.into(),
            gateway: gateway.into(),
            metric: 7,
        };
        network.remove_address(unlimited(), &address("10.7.0.2/24")).await.expect("remove");
        network.remove_address(unlimited(), &address("10.7.0.2/24")).await.expect("again");
        network.add_address(unlimited(), &address("10.8.0.2/16")).await.expect("add");
        network.add_address(unlimited(), &address("10.8.0.2/16")).await.expect("again");
        network.add_route(unlimited(), &route("10.99.0.0/16", "10.8.0.1")).await.expect("add");
        let set = SetLinkRequest { link: "eth1".into(), up: None, mtu: Some(1300) };
        network.set_link(unlimited(), &set).await.expect("set");
        let dns = Dns { servers: vec!["10.8.0.53".into()], search: vec!["example.org".into()] };
        network.set_dns(unlimited(), &dns).await.expect("set");
        for wrong in ["10.8.0.0/16", "10.8.0.2", ""] {
            let error = network
                .add_address(unlimited(), &address(wrong))
                .await
                .expect_err(wrong)
                .to_string();
            assert!(error.contains("invalid argument"), "{error}");
        }
        let error = network
            .renew(unlimited(), &RenewRequest { link: "eth1".into() })
            .await
            .expect_err("renew");
        assert!(error.to_string().contains("eth1 has no DHCP client"), "{error}");
        let evil = Dns { servers: vec![], search: vec!["a\nnameserver 6.6.6.6".into()] };
        assert!(network.set_dns(unlimited(), &evil).await.is_err());
        network.renew(unlimited(), &RenewRequest { link: "eth0".into() }).await.expect("renew");

        // All of it stands when another agent has come.
        for look in 0..2 {
            let eth1 = link(vm, "eth1").await;
            assert_eq!(
                eth1.addresses.iter().filter(|a| !a.starts_with("fe80")).collect::<Vec<_>>(),
                ["10.8.0.2/16", "fd07::2/64"]
            );
            assert_eq!((eth1.mtu, eth1.routes.len()), (1300, 1), "{eth1:?}");
            assert_eq!(list(vm).await.dns, Some(dns.clone()));
            let lease = until(vm, "eth0", "a lease", |link| link.dhcp == "bound").await.lease;
            assert_eq!(lease.expect("a lease").address, "10.0.2.15/24");
            let script = format!("cat /etc/resolv.conf; {fetch}");
            let text = vm.run(&format!("fetch{look}"), in_guest_network(&script)).await.text();
            assert_eq!(text, "nameserver 10.8.0.53\nsearch example.org\nfrom the host\n");
            if look == 0 {
                Blow::Kill.strike(vm).await;
            }
        }
        let network = vm.guest().network();
        network
            .remove_route(unlimited(), &route("10.99.0.0/16", "10.8.0.1"))
            .await
            .expect("remove");
        network.set_dns(unlimited(), &Dns::default()).await.expect("set");
        assert_eq!(list(vm).await.dns.expect("some").servers, ["10.0.2.3", "10.7.0.3"]);
        let down = SetLinkRequest { link: "eth1".into(), up: Some(false), mtu: None };
        network.set_link(unlimited(), &down).await.expect("set");
        let eth1 = link(vm, "eth1").await;
        assert!(!eth1.up && eth1.routes.is_empty(), "{eth1:?}");
    });
}

#[test]
fn network_that_is_not_there_holds_up_nothing_and_a_read_only_root_tells_of_names() {
    let options = Options {
        nics: vec![user(0, &[])],
        append: format!(
            "ip=nonsense vminitd.network=mac={},dhcp=true vminitd.network=dev=eth0,addr=10.0.2.15/24,gw=10.0.2.2,dns=10.0.2.3",
            MACS[1]
        ),
        erofs_root: true,
        ..Options::default()
    };
    let web = web_server("there\n");
    vm_test_with(options, async |vm| {
        until(vm, "eth0", "its address", |link| link.addresses.iter().any(|a| a == "10.0.2.15/24"))
            .await;
        let script = format!(
            "wget -q -O - http://10.0.2.2:{web}/; cat /etc/resolv.conf; tail -n 1 /etc/hosts"
        );
        let text = vm.run("fetch", in_guest_network(&script)).await.text();
        assert_eq!(text, "there\nnameserver 10.0.2.3\n10.0.2.15\tvm\n");
        let told = async {
            while !vm.console().contains("there is no such link") {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(PATIENCE_S), told)
            .await
            .expect("a line about the missing link");
        let console = vm.console();
        let at = |text: &str| console.find(text).unwrap_or_else(|| panic!("{text}: {console}"));
        assert!(at("phase=serve") < at("there is no such link"), "{console}");
        assert!(console.contains("network ignored") && console.contains("nonsense"), "{console}");
        let request = WaitNetworkRequest { timeout_ms: 100 };
        assert!(!vm.guest().network().wait(unlimited(), &request).await.expect("wait").settled);
    });
}

#[test]
fn dhcp_server_that_lies_refuses_and_vanishes_is_coped_with_and_the_agents_death_too() {
    let server = Server::start(Mood::Silent);
    let network = Network::Stream { socket: server.socket().to_owned() };
    let options = Options {
        nics: vec![Nic { mac: MACS[0].parse().expect("an address"), network }],
        append: "ip=dhcp".to_owned(),
        ..Options::default()
    };
    vm_test_with(options, async |vm| {
        let leased = |link: &Link| link.addresses.iter().any(|address| address == "10.5.0.9/24");
        let asked = |kind: u8, has_address| {
            let wanted = Question { kind, has_address };
            server.questions().into_iter().filter(|question| *question == wanted).count()
        };
        // Nobody answers: the guest serves, and asks.
        assert_eq!(vm.run("c", Wish::new(&["true"])).await.status, 0);
        assert_eq!(link(vm, "eth0").await.dhcp, "asking");
        // Offers that are taken back bring nothing, and no storm of questions.
        server.set(Mood::Refusing);
        let count = async {
            while asked(3, false) == 0 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(PATIENCE_S), count).await.expect("a request");
        assert!(link(vm, "eth0").await.lease.is_none());
        // Of all that is said only what is true counts.
        server.set(Mood::Liar(3600));
        let eth0 = until(vm, "eth0", "a lease in spite of lies", leased).await;
        assert_eq!((eth0.mtu, eth0.dhcp.as_str()), (1400, "bound"));
        let mut routes: Vec<_> =
            eth0.routes.iter().map(|r| (r.to.as_str(), r.gateway.as_str())).collect();
        routes.sort_unstable();
        assert_eq!(routes, [("0.0.0.0/0", "10.5.0.1"), ("10.77.0.0/16", "10.5.0.2")]);
        let dns = list(vm).await.dns.expect("some");
        assert_eq!(
            (dns.servers, dns.search),
            (vec!["10.5.0.3".to_owned()], vec!["test.site".to_owned()])
        );
        assert!(!eth0.addresses.iter().any(|address| address.starts_with("10.6")), "{eth0:?}");
        let discovers = asked(1, false);
        assert!(discovers < 12, "{discovers} DHCPDISCOVERs");

        // A short lease is renewed, also by another agent.
        server.set(Mood::Honest(8));
        vm.guest()
            .network()
            .renew(unlimited(), &RenewRequest { link: "eth0".into() })
            .await
            .expect("renew");
        let short =
            |link: &Link| link.lease.as_ref().is_some_and(|lease| (0..=8).contains(&lease.end_s));
        until(vm, "eth0", "a short lease", short).await;
        Blow::Kill.strike(vm).await;
        let before = asked(3, true);
        let renewed = async {
            while asked(3, true) < before + 2 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(PATIENCE_S), renewed).await.expect("renewals by another agent");
        assert!(leased(&link(vm, "eth0").await));

        // Without a server it is lost when its time is over, and not before; with one it comes back.
        server.set(Mood::Silent);
        until(vm, "eth0", "the lease's end", |link| link.lease.is_none() && !leased(link)).await;
        assert!(link(vm, "eth0").await.routes.is_empty());
        assert_eq!(vm.run("d", Wish::new(&["true"])).await.status, 0);
        server.set(Mood::Honest(3600));
        until(vm, "eth0", "a lease again", leased).await;
        assert_eq!(vm.agents(), 2, "no agent died of it");
        let console = vm.console();
        assert!(
            console.contains("lease lost") && console.contains("DHCP reply ignored"),
            "{console}"
        );
    });
}

#[test]
fn containers_have_links_of_their_own_on_a_bridge_and_leave_nothing() {
    let web = web_server("outside\n");
    let options = Options {
        nics: vec![user(0, &[])],
        append: format!("vminitd.network=mac={},addr=10.0.2.15/24,gw=10.0.2.2", MACS[0]),
        ..Options::default()
    };
    vm_test_with(options, async |vm| {
        settled(vm).await;
        let wish = |script: &str, number: u8| {
            let config = json!({ "Networks": [{
                "VmMAC": MACS[0], "MAC": format!("02:00:00:00:00:0{number}"), "IfName": "net0", "DefaultGw4": "10.0.2.2",
                "Addrs": [format!("10.0.2.3{number}/24"), format!("fd00::{number}/64")],
            }]});
            Wish::sh(script).with_file("nw-config.json", config.to_string().as_bytes())
        };
        let first = wish("cat /sys/class/net/net0/address; read end; exit 0", 1).with_stdin();
        let mut first =
            vm.create("first", first).await.expect("create").start().await.expect("start");
        let script = format!(
            "ping -q -c 1 -w 30 10.0.2.31 >/dev/null && ping -6 -q -c 1 -w 30 fd00::1 >/dev/null && ping -q -c 1 -w 30 10.0.2.15 >/dev/null && wget -q -O - http://10.0.2.2:{web}/"
        );
        assert_eq!(vm.run("second", wish(&script, 2)).await.text(), "outside\n");
        // The VM itself is where it was, by way of the bridge.
        let fetch = format!("wget -q -O - http://10.0.2.2:{web}/");
        assert_eq!(vm.run("guest", in_guest_network(&fetch)).await.text(), "outside\n");
        let (eth0, bridge, port) = (
            link(vm, "eth0").await,
            link(vm, "br-525400000001").await,
            link(vm, "ve-020000000001").await,
        );
        assert_eq!(
            (eth0.master.as_str(), port.master.as_str()),
            ("br-525400000001", "br-525400000001")
        );
        assert!(bridge.addresses.iter().any(|address| address == "10.0.2.15/24"), "{bridge:?}");
        assert!(
            !list(vm).await.links.iter().any(|link| link.name == "ve-020000000002"),
            "the second's is gone"
        );
        // Nobody gets another's link, and a Create that fails takes nothing away.
        let Err(error) = vm.create("thief", wish("true", 1)).await else {
            panic!("two with one address")
        };
        assert!(error.to_string().contains("ve-020000000001"), "{error}");
        // One that cannot be is refused before anything of it runs.
        let nowhere = br#"{"Networks":[{"VmMAC":"52:54:00:00:00:77"}]}"#;
        for (config, why) in [(&b"{"[..], "nw-config.json"), (nowhere, "52:54:00:00:00:77")] {
            let mut wrong = Wish::sh("true").with_file("nw-config.json", config);
            // Its path counts in the guest, and so does the file's.
            let path = "/run/bundles/wrong/rootfs/bin/busybox";
            let args = ["busybox", "touch", "/run/hook-was-here"];
            wrong.spec["hooks"] = json!({ "createRuntime": [{ "path": path, "args": args }] });
            let Err(error) = vm.create("wrong", wrong).await else { panic!("{why}") };
            assert!(error.to_string().contains(why), "{error}");
        }
        let seen = vm.run("look", inspector(&["ls", "/guest/run"])).await.text();
        assert!(!seen.contains("hook-was-here"), "{seen}");
        Blow::Kill.strike(vm).await;
        assert_eq!(link(vm, "ve-020000000001").await.master, "br-525400000001");
        drop(first.task.stdin.take());
        assert_eq!(first.task.wait().await.expect("wait").exit_status, 0);
        assert_eq!(first.task.delete().await.expect("delete").0, b"02:00:00:00:00:01\n");
        let left: Vec<_> = list(vm).await.links.into_iter().map(|link| link.name).collect();
        assert_eq!(left, ["lo", "eth0"]);
        let back = |link: &Link| {
            link.addresses.iter().any(|address| address == "10.0.2.15/24") && link.master.is_empty()
        };
        until(vm, "eth0", "the VM's address", back).await;
        assert_eq!(vm.run("after", in_guest_network(&fetch)).await.text(), "outside\n");
    });
}

#[test]
fn run_with_a_network_reaches_the_host_and_is_reached_through_published_ports() {
    let (vms, web, published) = (Vms::new(), web_server("hello\n"), free_port());
    let fetch = format!(
        "wget -q -O - http://10.0.2.2:{web}/; cat /etc/resolv.conf; hostname; tail -n 1 /etc/hosts; echo in | nc -l -p 8080"
    );
    let publish = format!("{published}:8080");
    let mut run =
        vms.run(&["--net", "user", "--publish", &publish, "--name", "web"], &["sh", "-c", &fetch]);
    let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vminitctl");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let read = runtime.block_on(read_from(published));
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text,
        "hello\nnameserver 10.0.2.3\nweb\n10.0.2.15\tweb\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!((read.as_str(), output.status.code()), ("in\n", Some(0)));

    let output =
        vms.run(&["--net", "none", "--publish", &publish], &["true"]).output().expect("vminitctl");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--publish needs a network"));
}
