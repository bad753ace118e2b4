//! Samples and what is told of them.

use serde_json::{Value, json};

/// The middle one, of an even number the mean of the two; NaN of none.
pub fn median(samples: &[f64]) -> f64 {
    let sorted = sorted(samples);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// `{min, median, p99}`; p99 by nearest rank, so with fewer than a hundred samples the largest.
pub fn spread(samples: &[f64]) -> Value {
    let sorted = sorted(samples);
    let rank = (sorted.len() * 99).div_ceil(100);
    json!({
        "min": sorted.first().map(|sample| rounded(*sample)),
        "median": rounded(median(samples)),
        "p99": rank.checked_sub(1).map(|at| rounded(sorted[at])),
    })
}

/// To a thousandth: more is noise.
pub fn rounded(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_known_samples() {
        let samples: Vec<f64> = (1..=200).map(f64::from).rev().collect();
        assert_eq!(spread(&samples), json!({ "min": 1.0, "median": 100.5, "p99": 198.0 }));
        assert_eq!(spread(&[3.0]), json!({ "min": 3.0, "median": 3.0, "p99": 3.0 }));
    }
}
