//! The power button: the one input device that init listens to.
//!
//! Promises: it is looked for once, after the agent serves, so that no boot waits for it; a VM
//! without one has none.
//! Never: polls.

use std::path::Path;

use tracing::debug;

use crate::paths;
use crate::sys::input::PowerButton;

/// The machine's button, if it has one: ACPI's, or a GPIO key.
pub fn find() -> Option<PowerButton> {
    let entries = std::fs::read_dir(paths::DEV_INPUT).ok()?;
    let mut places: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    places.sort();
    places.iter().filter(|place| is_event_device(place)).find_map(|place| {
        let button = PowerButton::open(place).unwrap_or_else(|error| {
            debug!("open {}: {error}", place.display());
            None
        })?;
        debug!("power button at {}", place.display());
        Some(button)
    })
}

fn is_event_device(place: &Path) -> bool {
    place.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("event"))
}
