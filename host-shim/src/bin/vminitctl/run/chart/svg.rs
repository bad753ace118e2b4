//! A laid out chart as the text of an SVG 1.1 file, which a browser shows and a screen reader reads.
//!
//! Promises: well-formed XML whatever the texts are. Never: decides where anything goes.

use std::fmt::Write;

use super::Chart;
use super::layout::{Area, CHARACTER, Label, Layout, ROW};

/// One colour per lane, dark enough on white, and told apart by people who see few colours.
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#a0508c", "#7a6400"];

/// Size of the font whose characters are [`CHARACTER`] wide: 0.6 of it, in every monospaced font that is common.
const FONT: f64 = CHARACTER / 0.6;

/// The file's text.
pub fn write(chart: &Chart, layout: &Layout) -> String {
    let mut svg = String::new();
    draw(&mut svg, chart, layout).expect("a String takes everything");
    svg
}

fn draw(svg: &mut String, chart: &Chart, layout: &Layout) -> std::fmt::Result {
    let (width, height) = (layout.width, layout.height);
    writeln!(svg, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-labelledby="title description" font-family="monospace" font-size="{FONT:.1}">"#
    )?;
    writeln!(svg, r#"<title id="title">{}</title>"#, escape(&chart.title))?;
    writeln!(svg, r#"<desc id="description">{}</desc>"#, escape(&describe(chart, layout)))?;
    writeln!(svg, r##"<rect width="100%" height="100%" fill="#ffffff"/>"##)?;
    writeln!(
        svg,
        r##"<text x="4" y="18" font-size="14" fill="#000000">{}</text>"##,
        escape(&chart.title)
    )?;
    for (line, label) in &layout.ticks {
        draw_line(svg, line, "#dddddd")?;
        draw_label(svg, label, "#555555")?;
    }
    for (index, name) in layout.names.iter().enumerate() {
        draw_label(svg, name, colour(index))?;
    }
    for (index, bar) in layout.bars.iter().enumerate() {
        // Neighbours are told apart.
        let opacity = if index % 2 == 0 { 1.0 } else { 0.7 };
        let Area { x, y, width, height } = bar.area;
        writeln!(svg, "<g><title>{}</title>", escape(&bar.told))?;
        draw_line(svg, &bar.line, colour(bar.lane))?;
        writeln!(
            svg,
            r##"<rect x="{x:.2}" y="{y:.2}" width="{width:.2}" height="{height:.2}" fill="{}" fill-opacity="{opacity}" stroke="#ffffff" stroke-width="0.5"/>"##,
            colour(bar.lane)
        )?;
        draw_label(svg, &bar.label, "#000000")?;
        writeln!(svg, "</g>")?;
    }
    writeln!(svg, "</svg>")
}

fn colour(lane: usize) -> &'static str {
    COLOURS[lane % COLOURS.len()]
}

fn draw_line(svg: &mut String, area: &Area, colour: &str) -> std::fmt::Result {
    let Area { x, y, height, .. } = area;
    writeln!(
        svg,
        r#"<line x1="{x:.2}" y1="{y:.2}" x2="{x:.2}" y2="{:.2}" stroke="{colour}" stroke-width="1"/>"#,
        y + height
    )
}

fn draw_label(svg: &mut String, label: &Label, colour: &str) -> std::fmt::Result {
    if label.text.is_empty() {
        return Ok(());
    }
    let Area { x, y, width, .. } = label.area;
    writeln!(
        svg,
        r#"<text x="{x:.2}" y="{:.2}" textLength="{width:.2}" lengthAdjust="spacingAndGlyphs" fill="{colour}" stroke="white" stroke-width="3" paint-order="stroke">{}</text>"#,
        y + ROW * 0.75,
        escape(&label.text)
    )
}

/// The whole picture in words, a line per lane.
fn describe(chart: &Chart, layout: &Layout) -> String {
    let lanes = chart.lanes.iter().enumerate().map(|(index, lane)| {
        let told = layout.bars.iter().filter(|bar| bar.lane == index);
        let told: Vec<&str> = told.map(|bar| bar.told.as_str()).collect();
        format!("{}: {}.", lane.name, told.join("; "))
    });
    lanes.collect::<Vec<_>>().join("\n")
}

/// Text as XML 1.0 takes it: what means something is written as an entity, what is no character of it is replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{lay_out, tests::any_chart};
    use super::*;

    /// The texts of a well-formed document, in order; a panic for any other. Knows of XML what we write.
    fn texts(xml: &str) -> Vec<String> {
        let (mut open, mut texts) = (Vec::new(), Vec::new());
        let mut rest =
            xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").expect("a head");
        while let Some(at) = rest.find('<') {
            let (text, tag) = rest.split_at(at);
            if !text.trim().is_empty() {
                assert!(!open.is_empty(), "text outside the root");
                texts.push(unescape(text));
            }
            let end = tag.find('>').expect("a tag ends");
            let inside = &tag[1..end];
            rest = &tag[end + 1..];
            if let Some(name) = inside.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "tags are nested");
                continue;
            }
            let (inside, empty) = match inside.strip_suffix('/') {
                Some(inside) => (inside, true),
                None => (inside, false),
            };
            let (name, attributes) = inside.split_once(' ').unwrap_or((inside, ""));
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            let quotes = attributes.matches('"').count();
            assert!(
                quotes % 2 == 0 && quotes == 2 * attributes.matches("=\"").count(),
                "{attributes}"
            );
            if !empty {
                open.push(name);
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "all is closed");
        texts
    }

    fn unescape(text: &str) -> String {
        for part in text.split('&').skip(1) {
            assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|e| part.starts_with(e)), "{part}");
        }
        assert!(!text.contains('>'));
        assert!(text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'), "{text:?}");
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
    }

    proptest! {
        #[test]
        fn any_chart_is_well_formed_and_says_all_of_it(chart in any_chart()) {
            let layout = lay_out(&chart);
            let texts = texts(&write(&chart, &layout));
            for bar in &layout.bars {
                if !bar.label.text.trim().is_empty() {
                    prop_assert!(texts.contains(&bar.label.text), "{:?}", bar.label.text);
                }
            }
        }
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let title = "a < b && \"c\" > '\u{1b}[2J'\0".to_owned();
        let chart = Chart { title, lanes: Vec::new() };
        let texts = texts(&write(&chart, &lay_out(&chart)));
        assert_eq!(texts[0], "a < b && \"c\" > '\u{fffd}[2J'\u{fffd}");
    }
}
