//! A clock that is wrong by an hour, and is set: what goes by time goes by the monotonic clock, so nobody notices but
//! who asks for the date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use host_shim::guest::{SteadyGuest, unlimited, wake};
use qemu_tests::{Blow, Options, Vm, Wish, inspector, vm_test, vm_test_with};
use vminitd_protocol::pb::vminitd::v1::{ReseedRequest, SetTimeRequest};

const HOUR: i64 = 3600;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64
}

async fn set(vm: &Vm, seconds: i64) -> i64 {
    let request = SetTimeRequest { seconds, nanos: 500_000_000, slew: false };
    let answer = vm.guest().machine().set_time(unlimited(), &request).await;
    answer.expect("SetTime").behind_ns / 1_000_000_000
}

async fn date(vm: &Vm, id: &str) -> i64 {
    let text = vm.run(id, Wish::new(&["date", "+%s"])).await.text();
    text.trim().parse().expect("seconds")
}

/// A boot and a container take their time.
fn about(one: i64, other: i64) -> bool {
    (one - other).abs() < 300
}

#[test]
fn clock_is_right_at_boot_and_a_step_of_an_hour_disturbs_nothing() {
    // Heartbeats often enough for one that goes by the wall clock to be missed.
    let append = "vminitd.heartbeat_ms=200".to_owned();
    vm_test_with(Options { append, ..Options::default() }, async |vm| {
        let found = date(vm, "boot").await;
        assert!(about(found, now()), "the guest boots at {found}, it is {}", now());
        // Whoever restores it gives it another number, and its kernel takes notice.
        let bound = "ls -d /guest/sys/bus/*/drivers/vmgenid/*:00";
        let bound = vm.run("generation", inspector(&["sh", "-c", bound])).await;
        assert_eq!((bound.status, bound.text().lines().count()), (0, 1), "{}", bound.text());
        let long = vm.create("long", Wish::new(&["misbehave", "ticks", "8", "300"])).await;
        let long = long.expect("create").start().await.expect("start");
        for (name, off) in [("ahead", HOUR), ("back", -HOUR)] {
            let behind = set(vm, now() + off).await;
            let expected = if off > 0 { off } else { 2 * off };
            assert!(about(behind, expected), "{name}: behind by {behind} s");
            let found = date(vm, name).await;
            assert!(about(found, now() + off), "{name}: {found}");
            // More than all the heartbeats that an agent may miss.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(vm.agents(), 1, "the agent was restarted");
        }
        let exit = long.finish().await;
        assert_eq!((exit.status, exit.text().lines().count()), (0, 8));
        // Restarts wait by the monotonic clock too: the second death is answered 100 ms later.
        Blow::Kill.strike(vm).await;
        set(vm, now() - 2 * HOUR).await;
        Blow::Kill.strike(vm).await;
        set(vm, now()).await;
        assert!(about(date(vm, "right").await, now()));
    });
}

#[test]
fn clock_is_slewed_and_the_random_pool_reseeded_or_an_error_says_why_not() {
    vm_test(async |vm| {
        let machine = vm.guest().machine();
        let slew = async |seconds, nanos| {
            let request = SetTimeRequest { seconds, nanos, slew: true };
            machine.set_time(unlimited(), &request).await
        };
        let before = date(vm, "before").await;
        slew(before + 2, 0).await.expect("slew");
        assert!((date(vm, "after").await - before) < 60, "a slew is no step");
        for refused in [slew(before + HOUR, 0).await, slew(before, 1_000_000_000).await] {
            let error = refused.expect_err("refused").to_string();
            assert!(error.contains("invalid argument"), "{error}");
        }
        let reseed = async |bytes: usize| {
            let request = ReseedRequest { entropy: vec![0x5a; bytes] };
            machine.reseed(unlimited(), &request).await
        };
        for bytes in [1, 32, 511, 512] {
            reseed(bytes).await.unwrap_or_else(|error| panic!("{bytes}: {error}"));
        }
        for bytes in [0, 513] {
            let error = reseed(bytes).await.expect_err("refused").to_string();
            assert!(error.contains("invalid argument"), "{error}");
        }
    });
}

#[test]
fn clock_is_right_and_a_dead_connection_replaced_after_the_hosts_sleep() {
    vm_test(async |vm| {
        let guest = SteadyGuest::new(vm.guest().clone(), Duration::from_secs(60));
        set(vm, now() - HOUR).await;
        let behind = wake::after_sleep(&guest).await.expect("a guest") / 1_000_000_000;
        assert!(about(behind, HOUR), "behind by {behind} s");
        assert!(about(date(vm, "awake").await, now()));
        // The connection is dead as well.
        Blow::Kill.strike(vm).await;
        set(vm, now() - HOUR).await;
        wake::after_sleep(&guest).await.expect("a guest that is reached anew");
        assert!(about(date(vm, "again").await, now()));
        // It is done when the host says that it was asleep, each time.
        let (slept, wakes) = tokio::sync::watch::channel(0);
        let follows = tokio::spawn(wake::follow(wakes, guest, |error| panic!("{error}")));
        for (nap, name) in ["first", "second"].into_iter().enumerate() {
            set(vm, now() - HOUR).await;
            slept.send_replace(nap as u64 + 1);
            let until = std::time::Instant::now() + Duration::from_secs(60);
            for tries in 0.. {
                if about(date(vm, &format!("{name}-{tries}")).await, now()) {
                    break;
                }
                assert!(std::time::Instant::now() < until, "{name}: the clock is still wrong");
            }
        }
        drop(slept);
        follows.await.expect("no panic");
    });
}
