//! A VM with nothing attached, of this build and of an older one, in turns: what each takes from PID 1's entry to serving.
//!
//! By the guest's clock as it passes, and by the instructions that it executes: QEMU, which then emulates it whatever the
//! machine offers, gives each a nanosecond (`-icount shift=0`), and no load of the host changes how many there are.
//!
//! Kernel and host programs are this build's on both sides; only the initramfs differs.

use serde_json::{Value, json};

use crate::images::{Images, Medium};
use crate::{Failure, boot, say};

/// Boots of each kind of which instructions are counted; they hardly differ.
const COUNTED: usize = 3;

/// `{ours, baseline, ours_counted, baseline_counted}`, a list of [`boot::Stamps`] each; the counted ones in thousands of
/// instructions.
pub async fn measure(images: &Images, boots: usize, revision: &str) -> Result<Value, Failure> {
    say(&format!("boots of this build and of {revision}"));
    let [ours, baseline] = in_turns(images, boots, false).await?;
    let [ours_counted, baseline_counted] = in_turns(images, COUNTED, true).await?;
    Ok(json!({
        "revision": revision, "ours": ours, "baseline": baseline,
        "ours_counted": ours_counted, "baseline_counted": baseline_counted,
    }))
}

/// First one, then the other: what drifts meets both.
async fn in_turns(
    images: &Images,
    boots: usize,
    counted: bool,
) -> Result<[Vec<boot::Stamps>; 2], Failure> {
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..2 * boots {
        let which = (round + round / 2) % 2;
        let medium = [Medium::Shipped, Medium::Baseline][which];
        all[which].push(boot::stamps(images, medium, counted).await?);
    }
    Ok(all)
}
