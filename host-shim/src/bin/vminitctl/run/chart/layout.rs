//! Where everything goes: a pure function from a chart to boxes, in pixels.
//!
//! A lane is a row of bars, and below it rows of labels, each tied to its bar's beginning by a line:
//!
//! ```text
//! host  |#####|##|###########|
//!        boot  |  |
//!              |  Create 20 ms
//!              streams 3 ms
//! ```
//!
//! Labels are placed from right to left, each in the first row where it meets neither a label nor another's line. A
//! line goes down at the beginning of its bar; what was placed before begins there or further right, so no label is
//! ever in its way.
//! Promises: no two labels overlap, no line crosses a label, nothing leaves the picture.

use super::{Chart, Lane, Span};

/// Width of a character: our font is monospaced, and the text's length is given with it.
pub const CHARACTER: f64 = 6.6;
/// Height of a row of text.
pub const ROW: f64 = 15.0;
/// Characters of a label at most.
pub const LABEL_CHARACTERS: usize = 40;

const LEFT: f64 = 90.0;
const PLOT: f64 = 900.0;
const TOP: f64 = 56.0;
const BAR: f64 = 14.0;
const LANE_GAP: f64 = 14.0;
/// Between a line and its label, and between two labels.
const GAP: f64 = 4.0;
/// Ticks of the axis at most.
const TICKS: f64 = 12.0;
/// Shortest bar that can be seen.
const SHORTEST: f64 = 1.5;

/// A rectangle; `y` grows downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    /// Left.
    pub x: f64,
    /// Top.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// A text in its area.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The text; never longer than its area.
    pub text: String,
    /// Where.
    pub area: Area,
}

/// A bar and what is said of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Index of its lane.
    pub lane: usize,
    /// Where.
    pub area: Area,
    /// Below it.
    pub label: Label,
    /// The line from it to its label, as an area without width.
    pub line: Area,
    /// The whole story, for who points at it or cannot see.
    pub told: String,
}

/// The picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// All of it.
    pub width: f64,
    /// All of it.
    pub height: f64,
    /// Names of lanes.
    pub names: Vec<Label>,
    /// What the lanes did.
    pub bars: Vec<Bar>,
    /// Lines across all lanes, with their labels above.
    pub ticks: Vec<(Area, Label)>,
}

/// Lays a chart out.
pub fn lay_out(chart: &Chart) -> Layout {
    let spans = || chart.lanes.iter().flat_map(|lane| &lane.spans);
    let begin = spans().map(|span| span.from).fold(0.0, f64::min);
    let end = spans().map(|span| span.to).fold(begin + 1.0, f64::max);
    let scale = Scale { begin, pixels_per_ms: PLOT / (end - begin) };
    let (mut names, mut bars, mut y) = (Vec::new(), Vec::new(), TOP);
    for (index, lane) in chart.lanes.iter().enumerate() {
        names.push(label(lane.name, GAP, y));
        let (mut of_lane, rows) = lay_out_lane(index, lane, scale, y);
        bars.append(&mut of_lane);
        y += BAR + GAP + rows as f64 * ROW + LANE_GAP;
    }
    let ticks = ticks(scale, end, y);
    let labels = bars.iter().map(|bar| &bar.label).chain(ticks.iter().map(|(_, label)| label));
    let right = labels.map(|label| label.area.x + label.area.width).fold(LEFT + PLOT, f64::max);
    Layout { width: right + GAP, height: y, names, bars, ticks }
}

#[derive(Clone, Copy)]
struct Scale {
    begin: f64,
    pixels_per_ms: f64,
}

impl Scale {
    fn x(self, ms: f64) -> f64 {
        LEFT + (ms - self.begin) * self.pixels_per_ms
    }
}

/// The lane's bars, and how many rows its labels take.
fn lay_out_lane(lane: usize, Lane { spans, .. }: &Lane, scale: Scale, y: f64) -> (Vec<Bar>, usize) {
    let mut from_the_right: Vec<&Span> = spans.iter().collect();
    from_the_right.sort_by(|a, b| b.from.total_cmp(&a.from).then(b.to.total_cmp(&a.to)));
    // What is taken of each row: from and to.
    let mut rows: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut bars = Vec::new();
    for span in from_the_right {
        let x = scale.x(span.from);
        let text = shortened(&format!("{} {}", span.what, duration(span.to - span.from)));
        let mut label = label(&text, x + GAP, 0.0);
        let taken = (label.area.x, label.area.x + label.area.width + GAP);
        let free =
            |row: &Vec<(f64, f64)>| row.iter().all(|(from, to)| taken.1 <= *from || *to <= taken.0);
        let row = rows.iter().position(free).unwrap_or(rows.len());
        rows.resize(rows.len().max(row + 1), Vec::new());
        rows[row].push(taken);
        for above in &mut rows[..=row] {
            above.push((x - 1.0, x + 1.0));
        }
        label.area.y = y + BAR + GAP + row as f64 * ROW;
        let line = Area { x, y, width: 0.0, height: label.area.y + ROW - y };
        let width = ((span.to - span.from) * scale.pixels_per_ms).max(SHORTEST);
        let area = Area { x, y, width, height: BAR };
        let told = format!("{}: {:.1} to {:.1} ms", span.what, span.from, span.to);
        bars.push(Bar { lane, area, label, line, told });
    }
    bars.reverse();
    (bars, rows.len())
}

fn ticks(scale: Scale, end: f64, bottom: f64) -> Vec<(Area, Label)> {
    let step = tick_step(end - scale.begin);
    let first = (scale.begin / step).ceil() as i64;
    let last = (end / step).floor() as i64;
    (first..=last)
        .map(|number| {
            let ms = number as f64 * step;
            let x = scale.x(ms);
            let text = if number == last { format!("{ms} ms") } else { format!("{ms}") };
            let line = Area { x, y: TOP - GAP, width: 0.0, height: bottom - TOP };
            (line, label(&text, x + GAP, TOP - GAP - ROW))
        })
        .collect()
}

/// 1, 2 or 5 times a power of ten, so that there are few of them.
fn tick_step(length: f64) -> f64 {
    let least = length / TICKS;
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least);
    // What is below one would be written with digits that nobody reads.
    (factor.unwrap_or(10.0) * power).max(1.0)
}

fn label(text: &str, x: f64, y: f64) -> Label {
    let width = text.chars().count() as f64 * CHARACTER;
    Label { text: text.to_owned(), area: Area { x, y, width, height: ROW } }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LABEL_CHARACTERS) {
        Some(_) => text.chars().take(LABEL_CHARACTERS - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

fn duration(ms: f64) -> String {
    match ms {
        0.0 => String::new(),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn any_chart() -> impl Strategy<Value = Chart> {
        let span = ("\\PC{0,50}", 0.0..3000.0f64, prop_oneof![Just(0.0), 0.0..800.0f64]).prop_map(
            |(what, from, took)| Span {
                what,
                // Often at the same moment.
                from: if took > 400.0 { from.trunc() } else { (from / 300.0).trunc() * 300.0 },
                to: from + took,
            },
        );
        let lane = prop::collection::vec(span, 0..12).prop_map(|mut spans| {
            for span in &mut spans {
                span.to = span.to.max(span.from);
            }
            Lane { name: "lane", spans }
        });
        ("\\PC{0,80}", prop::collection::vec(lane, 0..6))
            .prop_map(|(title, lanes)| Chart { title, lanes })
    }

    fn apart(a: Area, b: Area) -> bool {
        a.x + a.width <= b.x
            || b.x + b.width <= a.x
            || a.y + a.height <= b.y
            || b.y + b.height <= a.y
    }

    fn within(area: Area, layout: &Layout) -> bool {
        area.x >= 0.0
            && area.y >= 0.0
            && area.x + area.width <= layout.width + 1e-6
            && area.y + area.height <= layout.height + 1e-6
    }

    proptest! {
        #[test]
        fn nothing_covers_a_label_and_nothing_leaves_the_picture(chart in any_chart()) {
            let layout = lay_out(&chart);
            let mut labels: Vec<&Label> = layout.names.iter().collect();
            labels.extend(layout.bars.iter().map(|bar| &bar.label));
            labels.extend(layout.ticks.iter().map(|(_, label)| label));
            for (index, a) in labels.iter().enumerate() {
                prop_assert!(within(a.area, &layout), "{a:?}");
                for b in &labels[..index] {
                    prop_assert!(apart(a.area, b.area), "{a:?} {b:?}");
                }
                for bar in &layout.bars {
                    prop_assert!(apart(a.area, bar.line), "{a:?} {:?}", bar.line);
                    prop_assert!(apart(a.area, bar.area), "{a:?} {:?}", bar.area);
                }
            }
            prop_assert!(layout.bars.iter().all(|bar| within(bar.area, &layout)));
            prop_assert_eq!(lay_out(&chart), layout, "the same chart is laid out the same way");
        }

        #[test]
        fn ticks_are_few_and_at_least_one(length in 1.0..1e7f64) {
            let chart = Chart {
                title: String::new(),
                lanes: vec![Lane { name: "a", spans: vec![Span { what: "x".into(), from: 0.0, to: length }] }],
            };
            let count = lay_out(&chart).ticks.len();
            prop_assert!((1..=13).contains(&count), "{count}");
        }
    }

    #[test]
    fn bars_are_as_long_as_what_they_stand_for_and_in_order() {
        let span = |what: &str, from, to| Span { what: what.into(), from, to };
        let spans = vec![span("late", 50.0, 100.0), span("early", 0.0, 50.0)];
        let layout = lay_out(&Chart { title: "t".into(), lanes: vec![Lane { name: "a", spans }] });
        let texts: Vec<&str> = layout.bars.iter().map(|bar| bar.label.text.as_str()).collect();
        assert_eq!(texts, ["early 50 ms", "late 50 ms"]);
        assert_eq!(layout.bars[0].area.x + layout.bars[0].area.width, layout.bars[1].area.x);
        assert_eq!(layout.bars[0].told, "early: 0.0 to 50.0 ms");
    }
}
