//! `vminitctl run --chart`: the boot and the container's life as a picture, host and guest on one time axis.
//!
//! ```text
//! console lines with kernel stamps, when each arrived --+
//! events with the guest's wall clock, when each arrived +--> story -> Chart -> layout -> svg
//! our own moments --------------------------------------+
//! ```
//!
//! Promises: the same moments give the same bytes. Never: reads a clock or a file.

mod clock;
mod layout;
mod story;
mod svg;

pub use story::{Observed, tell};

/// Something that took time, or a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What; short.
    pub what: String,
    /// Milliseconds since the beginning.
    pub from: f64,
    /// Milliseconds since the beginning; not before `from`.
    pub to: f64,
}

/// One who acts.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// Who.
    pub name: &'static str,
    /// What it did; in any order.
    pub spans: Vec<Span>,
}

/// What is to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// One line.
    pub title: String,
    /// From top to bottom.
    pub lanes: Vec<Lane>,
}

impl Chart {
    /// The picture, as the text of an SVG file.
    pub fn to_svg(&self) -> String {
        svg::write(self, &layout::lay_out(self))
    }
}
