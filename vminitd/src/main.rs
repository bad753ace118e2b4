//! vminitd.
fn main() {}
