//! vminit-vmm
fn main() {}
