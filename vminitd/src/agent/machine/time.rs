//! The wall clock and the random pool, as the host sets them.
//!
//! At boot the kernel sets the clock from the machine's RTC, to the second, and its random pool from
//! virtio-rng and (where the machine has one) a VM generation id. Where the hypervisor lets its own
//! clock be read (KVM's PTP clock), the first agent takes the time from there. Nothing in here
//! decides by the wall clock: all deadlines are of the monotonic one.
//!
//! Never: sets the clock by itself after that.

use std::fs::File;
use std::os::fd::AsFd;

use tracing::{info, warn};
use vminitd_protocol::pb::google::protobuf::Empty;
use vminitd_protocol::pb::vminitd::v1::{ReseedRequest, SetTimeRequest, SetTimeResponse};

use crate::agent::errors::RpcError;
use crate::limits::{ENTROPY_BYTES, SLEW_MOST};
use crate::paths;
use crate::sys::{clock, random};

const NANOS: i128 = 1_000_000_000;

/// What KVM's clock is called (drivers/ptp/ptp_kvm_common.c); others may show any time.
const HYPERVISORS_CLOCK: &str = "KVM virtual PTP";

/// Takes the time from the hypervisor's clock, where there is one. To be done once a boot: a host
/// that has set another time since wants that.
pub fn take_hypervisors() {
    let name = std::fs::read_to_string(paths::PTP_NAME).unwrap_or_default();
    if name.trim_end() != HYPERVISORS_CLOCK {
        return;
    }
    let taken = File::open(paths::PTP_CLOCK)
        .and_then(|device| clock::of_device(device.as_fd()))
        .and_then(|(seconds, nanos)| clock::set_realtime(seconds, nanos));
    match taken {
        Ok(()) => info!("the clock is the hypervisor's"),
        Err(error) => warn!(%error, "the hypervisor's clock cannot be had; the RTC's time stays"),
    }
}

/// `Machine.SetTime`.
pub fn set(request: &SetTimeRequest) -> Result<SetTimeResponse, RpcError> {
    if i128::from(request.nanos) >= NANOS || request.seconds < 0 {
        let text = format!("{} s and {} ns are no time", request.seconds, request.nanos);
        return Err(RpcError::Invalid(text));
    }
    let (seconds, nanos) = clock::realtime();
    let wanted = i128::from(request.seconds) * NANOS + i128::from(request.nanos);
    let behind = wanted - (i128::from(seconds) * NANOS + i128::from(nanos));
    let failed = |error| RpcError::Failed(format!("set the clock: {error}"));
    if request.slew {
        if behind.unsigned_abs() > SLEW_MOST.as_nanos() {
            let text = format!(
                "{} s are too far for a slew, of which {} s are the most; set the clock instead",
                behind / NANOS,
                SLEW_MOST.as_secs()
            );
            return Err(RpcError::Invalid(text));
        }
        clock::slew(i64::try_from(behind / 1000).unwrap_or(0)).map_err(failed)?;
    } else {
        clock::set_realtime(request.seconds, request.nanos).map_err(failed)?;
    }
    let behind_ns = i64::try_from(behind).unwrap_or(if behind < 0 { i64::MIN } else { i64::MAX });
    info!(behind_ns, slew = request.slew, "the host has set the clock");
    Ok(SetTimeResponse { behind_ns })
}

/// `Machine.Reseed`.
pub fn reseed(request: &ReseedRequest) -> Result<Empty, RpcError> {
    let bytes = request.entropy.len();
    if !(1..=ENTROPY_BYTES).contains(&bytes) {
        return Err(RpcError::Invalid(format!("{bytes} bytes are not 1 to {ENTROPY_BYTES}")));
    }
    random::reseed(&request.entropy)
        .map_err(|error| RpcError::Failed(format!("reseed the random pool: {error}")))?;
    Ok(Empty {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_time_and_what_is_too_far_for_a_slew_is_refused() {
        let text = |request: SetTimeRequest| set(&request).unwrap_err().to_string();
        let no_time = SetTimeRequest { seconds: 1, nanos: 1_000_000_000, slew: false };
        assert_eq!(text(no_time), "1 s and 1000000000 ns are no time: invalid argument");
        let far = SetTimeRequest { seconds: 1, nanos: 0, slew: true };
        assert!(text(far).contains("too far for a slew"));
    }

    #[test]
    fn entropy_has_its_limits() {
        for bytes in [0, ENTROPY_BYTES + 1] {
            let error = reseed(&ReseedRequest { entropy: vec![1; bytes] }).unwrap_err();
            assert!(matches!(error, RpcError::Invalid(_)), "{error}");
        }
    }
}
