//! `Machine.Features`: what this guest is and can do, for a host that may be of another age.
//!
//! Promises: a service or method that is named here does something.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use vminitd_protocol::pb::vminitd::v1::{FeaturesResponse, ServiceFeature};

use super::aside;
use crate::agent::Agent;
use crate::agent::errors::RpcError;
use crate::agent::server::services::built;
use crate::agent::server::socket::Gone;
use crate::{limits, paths};

/// Of the services named `vminitd.v1`.
const PROTOCOL_VERSION: u32 = 1;

/// Methods that answer Unimplemented whatever is asked of them.
const REFUSED: &[&str] = &["Checkpoint"];

/// The call.
pub async fn features(agent: Arc<Agent>, gone: Gone) -> Result<FeaturesResponse, RpcError> {
    let (build_id, kernel_config_digest) = aside("features", digests).await?;
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_owned());
    Ok(FeaturesResponse {
        protocol_version: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build_id,
        kernel_release: kernel.unwrap_or_default().to_string_lossy().into_owned(),
        kernel_config_digest,
        services: services(&agent, &gone),
        limits: LIMITS.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
    })
}

fn services(agent: &Arc<Agent>, gone: &Gone) -> Vec<ServiceFeature> {
    let services = built(agent, gone).into_iter().map(|(name, service)| {
        let methods = service.methods.into_keys().chain(service.streams.into_keys());
        let mut methods: Vec<String> =
            methods.filter(|method| !REFUSED.contains(&&**method)).collect();
        methods.sort();
        ServiceFeature { name, methods }
    });
    let mut services: Vec<ServiceFeature> = services.collect();
    services.sort_by(|one, other| one.name.cmp(&other.name));
    services
}

/// Of the program and of the kernel's configuration. Neither changes in a boot.
fn digests() -> (String, String) {
    static DIGESTS: OnceLock<(String, String)> = OnceLock::new();
    let digests = DIGESTS.get_or_init(|| {
        let program = File::open(paths::OWN_EXECUTABLE).and_then(digest);
        let config = File::open(paths::KERNEL_CONFIG).map(GzDecoder::new).and_then(digest);
        (program.unwrap_or_default(), config.unwrap_or_default())
    });
    digests.clone()
}

fn digest(mut content: impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 32 << 10];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => digest.update(&buffer[..read]),
        }
    }
}

const LIMITS: &[(&str, u64)] = &[
    ("bundle_bytes", limits::BUNDLE_BYTES as u64),
    ("bundle_files", limits::BUNDLE_FILES as u64),
    ("device_rules", limits::DEVICE_RULES as u64),
    ("event_bytes", limits::EVENT_BYTES as u64),
    ("events_kept", limits::RING_EVENTS as u64),
    ("events_kept_bytes", limits::RING_BYTES as u64),
    ("execs_per_container", limits::EXECS as u64),
    ("file_name_bytes", limits::FILE_NAME_BYTES as u64),
    ("id_bytes", limits::ID_BYTES as u64),
    ("launches", limits::LAUNCHES as u64),
    ("mount_options", limits::MOUNT_OPTIONS as u64),
    ("namespace_bytes", limits::NAMESPACE_BYTES as u64),
    ("reserved_memory_bytes", limits::RESERVED_MEMORY),
    ("rootfs_mounts", limits::ROOTFS_MOUNTS as u64),
    ("rpc_connections", limits::RPC_CONNECTIONS as u64),
    ("stream_handshake_ms", limits::STREAM_HANDSHAKE.as_millis() as u64),
    ("unclaimed_streams", limits::UNCLAIMED_STREAMS as u64),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_that_of_sha256() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&b"abc"[..]).unwrap(), expected);
    }
}
