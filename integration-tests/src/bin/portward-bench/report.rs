//! Medians, and tables of them.

use std::time::Duration;

/// One measured thing: the samples of each contestant, in the order of the rounds, so that samples of the same index
/// were taken one after the other.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a time, in milliseconds.
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
    }

    /// The value below which this part (0 to 1) of the samples lies.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (part * (sorted.len().saturating_sub(1)) as f64).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Round by round, how many times the other's value this one is.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, other)| own / other).collect())
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(samples: T) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// Whether a target is met, in words for the last column.
pub(crate) fn target(words: &str, met: bool) -> String {
    format!("{words}: {}", if met { "met" } else { "NOT MET" })
}

/// Prints rows in aligned columns; the first row is the heading. The first and the last column are aligned to the left.
pub(crate) fn print_table(title: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column| rows.iter().filter_map(|row: &Vec<String>| row.get(column)).map(String::len).max().unwrap_or(0);
    println!("\n{title}");
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| match column {
                0 => format!("{cell:<width$}", width = width(column)),
                _ if column + 1 == columns => cell.clone(),
                _ => format!("{cell:>width$}", width = width(column)),
            })
            .collect();
        println!("  {}", cells.join("  ").trim_end());
    }
}

/// A time in milliseconds with three digits that matter.
pub(crate) fn milliseconds(value: f64) -> String {
    match value {
        _ if value.is_nan() => "-".to_owned(),
        _ if value < 1.0 => format!("{value:.4}"),
        _ if value < 10.0 => format!("{value:.2}"),
        _ if value < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A ratio with two decimals and the half of the samples around its median: `1.21 (1.17-1.25)`.
pub(crate) fn ratio(samples: &Samples, digits: usize) -> String {
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|part| samples.quantile(part));
    format!("{middle:.digits$} ({low:.digits$}-{high:.digits$})")
}
