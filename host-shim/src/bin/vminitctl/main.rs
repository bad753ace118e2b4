//! vminitctl
fn main() {}
