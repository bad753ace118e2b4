//! Processes that lose their parent: PID 1 of the guest reaps them, whatever namespace they are in.
//!
//! A zombie that stays shows in the harness's leak check behind each of these tests.

use qemu_tests::{Wish, vm_test};

#[test]
fn orphans_of_a_container_without_pid_namespace_are_reaped_by_the_guests_init() {
    vm_test(async |vm| {
        // Their parent exits at once, so they become children of PID 1; they live on for a while after Delete.
        let wish = Wish::new(&["misbehave", "orphans", "50", "300"]).in_guest_pid_namespace();
        let exit = vm.run("orphans", wish).await;
        assert_eq!((exit.status, exit.text()), (0, "left\n".to_owned()));
    });
}

#[test]
fn processes_of_a_container_end_with_its_init() {
    vm_test(async |vm| {
        let wish = Wish::sh("sleep 3600 & sleep 3600 & sleep 3600 & exit 5");
        assert_eq!(vm.run("family", wish).await.status, 5);
    });
}

#[test]
fn kill_all_ends_every_process_of_a_container_without_pid_namespace() {
    vm_test(async |vm| {
        let wish = Wish::sh("sleep 3600 & sleep 3600 & echo ready; wait").in_guest_pid_namespace();
        let mut running =
            vm.create("all", wish).await.expect("create").start().await.expect("start");
        running.task.kill_all(9).await.expect("kill");
        assert_eq!(running.exit().await.exit_status, 137);
        running.finish().await;
    });
}
