//! The file of `--chart`, and what is gathered for it while the container lives.
//!
//! Owns: the file, open from the beginning, so that a path that cannot be written is told before anything runs, and
//! the subscription to the guest's events. Promises: a run that fails half-way is drawn as far as it came.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use host_shim::guest::{Guest, unlimited};
use host_shim::machine::Machine;
use vminitd_protocol::pb::google::protobuf::Empty;

use super::chart::{Observed, tell};
use super::console::Console;
use super::timings::Timings;
use super::{RunError, Vm};

/// Characters of a command that the title shows: about as many as fit above the picture.
const TITLE_CHARACTERS: usize = 100;

/// Topic, stamp in milliseconds of the guest's wall clock, arrival.
type Event = (String, f64, Instant);

/// A chart to be.
pub struct Drawing {
    path: PathBuf,
    file: File,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Drawing {
    /// Makes the file, empty.
    pub fn begin(path: &Path) -> Result<Self, RunError> {
        let file = File::create(path)
            .map_err(|source| RunError::Chart { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, events: Arc::default() })
    }

    /// Notes the guest's events from now on. An agent that is lost takes the rest of them along.
    pub async fn follow(&mut self, guest: &Guest) {
        let client = guest.events();
        let Ok(mut stream) = client.stream(unlimited(), &Empty {}).await else { return };
        let events = self.events.clone();
        tokio::spawn(async move {
            let _client = client;
            while let Ok(Some(event)) = stream.recv().await {
                let arrived = Instant::now();
                let stamp = event.timestamp.unwrap_or_default();
                let ms = stamp.seconds as f64 * 1e3 + f64::from(stamp.nanos) / 1e6;
                let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
                events.push((event.topic, ms, arrived));
            }
        });
    }

    /// Draws what was seen.
    pub fn finish(
        mut self,
        vm: &Vm,
        machine: &Machine,
        console: &Console,
        timings: &Timings,
    ) -> Result<(), RunError> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let command: String = vm.container.command().chars().take(TITLE_CHARACTERS).collect();
        let seen = Observed {
            title: format!("{} ({}): {command}", vm.name, machine.accelerator()),
            marks: timings.marks(),
            console: console.text(),
            arrivals: machine
                .console_arrivals()
                .into_iter()
                .map(|(bytes, at)| (bytes as usize, timings.ms(at)))
                .collect(),
            events: events
                .iter()
                .map(|(topic, stamp, at)| (topic.clone(), *stamp, timings.ms(*at)))
                .collect(),
        };
        let written = self.file.write_all(tell(&seen).to_svg().as_bytes());
        written.map_err(|source| RunError::Chart { path: self.path.clone(), source })
    }
}
