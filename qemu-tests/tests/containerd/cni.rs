//! Interfaces that CNI (Debian's bridge and host-local plugins) or somebody else has put into a task's network namespace.

use nix::sys::signal::Signal;
use qemu_tests::containerd::{Containerd, with_containerd};

/// The task's interface is a port of the bridge cni0, which is the host's 10.77.0.1.
const CONFIG: &str = r#"{"cniVersion": "0.4.0", "name": "rig", "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true, "mtu": 1400,
    "ipam": {"type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{"subnet": "10.77.0.0/24"}]],
             "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.99.0.0/16", "gw": "10.77.0.9"}]}}]}"#;

/// Gives the host a CNI configuration at the places that ctr looks at, and takes it away again.
fn with_cni(containerd: &mut Containerd, test: impl FnOnce(&Containerd)) {
    let dir = containerd.host.dir().display().to_string();
    let plugins = containerd.version.cni.display().to_string();
    let config = CONFIG.replace("DIR", &dir);
    // Above the machine's own, which stay as they are.
    containerd.host.sh(&format!(
        "for at in etc opt var; do
            mkdir -p {dir}/over/$at/up {dir}/over/$at/work &&
            mount -t overlay -o lowerdir=/$at,upperdir={dir}/over/$at/up,workdir={dir}/over/$at/work over /$at || exit 1
        done
        mkdir -p /etc/cni/net.d /opt/cni && ln -sfn {plugins} /opt/cni/bin && rm -f /etc/cni/net.d/* &&
        echo '{config}' >/etc/cni/net.d/10-rig.conflist"
    ));
    test(containerd);
    let left = containerd.host.sh("ip -o link | grep -E 'veth|vmtap' || true; ip netns list");
    assert_eq!(left, "", "CNI's or our interfaces");
    assert_eq!(containerd.host.sh(&format!("ls {dir}/ipam/rig | grep '^10' || true")), "");
    containerd.host.sh("umount -l /etc /opt /var; rm -rf /run/mount");
}

/// What a program of the host's prints, with time for what it asks to come up.
fn fetched(containerd: &Containerd, url: &str) -> String {
    containerd.host.wait_for(url, || {
        let wget = containerd.host.limited("busybox").args(["wget", "-q", "-O", "-", url]).output();
        let stdout = wget.expect("nsenter").stdout;
        (!stdout.is_empty()).then(|| String::from_utf8_lossy(&stdout).into_owned())
    })
}

const SERVER: &str = "mkdir -p /tmp/www; echo from the task >/tmp/www/index.html;
    yes 0123456789abcde | head -c 4194304 >/tmp/www/much; exec httpd -f -p 80 -h /tmp/www";

fn is_the_tasks_own(containerd: &Containerd) {
    containerd.start_container(&["--cni"], "web", &["sh", "-c", SERVER]);
    let inside = |command: &str| containerd.exec("web", &["sh", "-c", command]).good();
    let seen = inside(
        "ip -o -4 addr show dev eth0; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ls /sys/class/net; ip route",
    );
    let (address, rest) = seen.split_once('\n').unwrap_or_else(|| panic!("{seen:?}"));
    let address = address.split_whitespace().find_map(|word| word.strip_suffix("/24"));
    let address = address.expect("an address of the subnet").to_owned();
    assert!(address.starts_with("10.77.0."), "{address}");

    // By the task's pid the host finds what CNI has made, and the guest has the same.
    let pid = containerd.task("web").expect("a task").1;
    let made = containerd.host.sh(&format!("nsenter -t {pid} -n ip -o link show dev eth0"));
    let mac = made.split_once("link/ether ").expect("an address").1.split(' ').next();
    let expected = format!("{}\n1400\neth0\nlo\n", mac.expect("a word"));
    let routes = rest.strip_prefix(&expected).unwrap_or_else(|| panic!("{expected} in {rest}"));
    for route in ["default via 10.77.0.1 dev eth0", "10.99.0.0/16 via 10.77.0.9 dev eth0"] {
        assert!(routes.contains(route), "{route} is not in {routes}");
    }
    assert!(!routes.contains("10.0.2."), "the user network is gone: {routes}");

    // The host reaches the task, the task the host, and another task this one: more than fits into a packet.
    assert_eq!(fetched(containerd, &format!("http://{address}/")), "from the task\n");
    inside("ping -c 1 -W 20 10.77.0.1");
    let much = fetched(containerd, &format!("http://{address}/much"));
    assert!(much.len() == 4 << 20 && much.starts_with("0123456789abcde\n"), "{} bytes", much.len());
    let script =
        format!("wget -q -O - http://{address}/; wget -q -O - http://{address}/much | md5sum");
    let other = containerd.run(&["--cni"], "other", &["sh", "-c", &script]).good();
    let sum = inside("md5sum </tmp/www/much");
    assert_eq!(other, format!("from the task\n{sum}"));
    containerd.remove("web");
    // What ctr itself does for --rm only.
    containerd.host.sh(&format!(
        "echo '{{\"cniVersion\":\"0.4.0\",\"name\":\"rig\",\"type\":\"bridge\",\"bridge\":\"cni0\",\"ipam\":{{\"type\":\"host-local\",\"dataDir\":\"{}/ipam\",\"ranges\":[[{{\"subnet\":\"10.77.0.0/24\"}}]]}}}}' |
         CNI_COMMAND=DEL CNI_CONTAINERID={}-web CNI_NETNS= CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/bridge",
        containerd.host.dir().display(), containerd.namespace
    ));
}

#[test]
fn interface_of_cni_is_the_tasks_own() {
    with_containerd("2", |containerd| with_cni(containerd, is_the_tasks_own));
}

/// A namespace with two interfaces, whose other ends are the host's.
const TWO: &str = "ip netns add two
    for n in 0 1; do
        ip link add out$n type veth peer name eth$n netns two && ip link set out$n up && ip addr add 10.8$n.0.1/24 dev out$n
        ip -n two addr add 10.8$n.0.2/24 dev eth$n && ip -n two link set eth$n up || exit 1
    done
    ip -n two addr add fd00:80::2/64 dev eth0 nodad && ip -n two route add default via 10.80.0.1";

/// What is redirected in there, and ours.
fn left_in_two(containerd: &Containerd) -> String {
    containerd
        .host
        .sh("ip netns exec two tc qdisc | grep ingress; ip -n two -o link | grep vmtap; true")
}

fn all_of_a_named_namespace(containerd: &mut Containerd) {
    containerd.host.sh(TWO);
    let two = ["--with-ns", "network:/run/netns/two"];
    let script = "ping -c 1 -W 20 10.80.0.1 >&2 && ping -c 1 -W 20 10.81.0.1 >&2 && ip -o addr | grep -o 'eth[01] *inet6* [0-9a-f.:]*/[0-9]*' | tr -s ' ' | grep -v fe80";
    let seen = containerd.run(&two, "t", &["sh", "-c", script]).good();
    assert_eq!(seen, "eth0 inet 10.80.0.2/24\neth0 inet6 fd00:80::2/64\neth1 inet 10.81.0.2/24\n");
    assert_eq!(left_in_two(containerd), "");

    containerd.start_container(&two, "k", &["sleep", "1000"]);
    assert_ne!(left_in_two(containerd), "", "what is looked for can be seen");
    let shim = containerd.host.running("containerd-shim-vminitd-v1").pop().expect("a shim");
    containerd.host.kill(&shim, Signal::SIGKILL);
    containerd.host.wait_for("its end", || left_in_two(containerd).is_empty().then_some(()));
    containerd.host.wait_for("no task", || {
        containerd.task("k").is_none_or(|task| task.0 != "RUNNING").then_some(())
    });
    containerd.remove("k");

    // Somebody else's device in there: named, and nothing is begun.
    containerd.host.sh("ip -n two link add br0 type bridge && ip -n two link set br0 up");
    let refused = containerd.run(&two, "b", &["true"]);
    assert!(
        refused
            .stderr
            .contains("interface br0 of the task's network namespace is of the kind bridge"),
        "{refused:?}"
    );
    assert_eq!(left_in_two(containerd), "");
    containerd.host.sh("ip netns del two && umount /run/netns && rm -rf /run/mount");
    let none = ["--annotation", "io.vminitd.network=cni"];
    let refused = containerd.run(&none, "n", &["true"]);
    assert!(refused.stderr.contains("has no interface"), "{refused:?}");
}

#[test]
fn interfaces_of_a_named_namespace_are_the_tasks_and_are_left_as_they_were() {
    with_containerd("2", all_of_a_named_namespace);
}

#[test]
fn task_of_the_hosts_network_has_the_user_network_and_touches_nothing() {
    with_containerd("2", |containerd| {
        containerd.host.sh("ip link add out type veth peer name in && ip addr add 10.90.0.1/24 dev in && ip link set in up");
        let links = || containerd.host.sh("ip -o addr; tc qdisc");
        let before = links();
        let seen = containerd.run(&["--net-host"], "h", &["ip", "-o", "-4", "addr"]).good();
        assert!(seen.contains("10.0.2.15/24") && !seen.contains("10.90."), "{seen}");
        assert_eq!(links(), before);
        containerd.host.sh("ip link del out");
    });
}

#[test]
#[ignore = "long; ./dev soak"]
fn soak_interface_of_cni_is_the_tasks_own_on_the_older_containerds() {
    for name in ["1.6", "1.7"] {
        with_containerd(name, |containerd| with_cni(containerd, is_the_tasks_own));
    }
}
