//! After the host's sleep: the guest's clock is behind, and its connections may be dead.
//!
//! Promises: both are looked after at once when the host wakes, not by a timer; a call that hangs on a dead connection
//! is let go by it. Never: gives up before there is no guest any more.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use vminitd_protocol::pb::vminitd::v1::SetTimeRequest;

use super::{CallError, Guest, SteadyGuest, unlimited};
use crate::limits::WAKE_ANSWER_TIMEOUT;

/// Looks after the guest each time that `wakes` changes ([`crate::machine::Machine::wakes`]), until there is no VM any
/// more. What does not succeed is given to `tell`.
pub async fn follow(
    mut wakes: watch::Receiver<u64>,
    guest: SteadyGuest,
    tell: impl Fn(&CallError),
) {
    while wakes.changed().await.is_ok() {
        if let Err(error) = after_sleep(&guest).await {
            tell(&error);
        }
    }
}

/// Checks the connection, makes it anew where it is dead, and sets the guest's clock. Returns by how much it was
/// behind, in nanoseconds.
pub async fn after_sleep(guest: &SteadyGuest) -> Result<i64, CallError> {
    guest.check(WAKE_ANSWER_TIMEOUT).await?;
    let set = |guest: Guest| async move {
        // As late as can be: reaching the guest may have taken its time.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let request = SetTimeRequest { seconds, nanos: now.subsec_nanos(), slew: false };
        guest.machine().set_time(unlimited(), &request).await
    };
    Ok(guest.call(set).await?.behind_ns)
}
