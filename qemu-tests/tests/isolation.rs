//! What a container that wants out reaches.

use qemu_tests::{Wish, vm_test};

#[test]
fn look() {
    vm_test(async |vm| {
        println!("{}", vm.run("default", Wish::new(&["attack", "all"])).await.text());
        println!("-----");
        let e = vm.run("all", Wish::new(&["attack", "all"]).with_all_capabilities()).await;
        println!("{}{}", e.text(), String::from_utf8_lossy(&e.stderr));
    });
}
