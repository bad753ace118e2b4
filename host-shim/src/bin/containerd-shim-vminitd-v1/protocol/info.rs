//! `-v` and `-info`: what this shim is, for people and for containerd.

use prost::Message;
use vminitd_protocol::pb::containerd::types::{RuntimeInfo, RuntimeVersion};

/// The name by which containerd finds this program.
pub const RUNTIME: &str = "io.containerd.vminitd.v1";

/// Types of mounts that containerd need not make on the host (2.4 and later ask): they are made in the guest.
const MOUNTS: (&str, &str) = ("containerd.io/runtime-allow-mounts", "mkdir/*,format/*,erofs");

/// For people.
pub fn version() -> String {
    format!("containerd-shim-vminitd-v1:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"))
}

/// For containerd.
pub fn info() -> Vec<u8> {
    let (key, value) = MOUNTS;
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() };
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(version),
        annotations: [(key.to_owned(), value.to_owned())].into(),
        ..Default::default()
    }
    .encode_to_vec()
}
