//! Interleaved runs of a contender and its rival.

use anyhow::Result;
use serde_json::{Value, json};

/// Seconds of each round, or more than that: ours and the rival's, in the order in which they ran.
#[derive(Debug, Clone)]
pub struct Pairs<T = f64> {
    /// Ours.
    pub ours: Vec<T>,
    /// The rival's.
    pub rival: Vec<T>,
}

/// Runs `ours` and `rival` in turn, `rounds` times after one round that does not count; the order alternates, so that
/// neither always finds the machine as the other left it. Each returns its seconds, or more than that.
pub fn interleave<T>(
    rounds: usize,
    mut ours: impl FnMut() -> Result<T>,
    mut rival: impl FnMut() -> Result<T>,
) -> Result<Pairs<T>> {
    let mut pairs = Pairs { ours: Vec::new(), rival: Vec::new() };
    for round in 0..=rounds {
        let (a, b);
        if round % 2 == 0 {
            a = ours()?;
            b = rival()?;
        } else {
            b = rival()?;
            a = ours()?;
        }
        if round > 0 {
            pairs.ours.push(a);
            pairs.rival.push(b);
        }
    }
    Ok(pairs)
}

/// Smallest, median and largest of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Median; the mean of the middle two of an even number.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure; all zero for none.
    pub fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (sorted.first().copied(), sorted.last().copied()) else {
            return Self { min: 0.0, median: 0.0, max: 0.0 };
        };
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Self { min, median, max }
    }

    /// For a JSON report.
    pub fn json(&self) -> Value {
        json!({ "min": self.min, "median": self.median, "max": self.max })
    }
}

impl<T> Pairs<T> {
    /// One figure of each run; `None` if one of them does not have it.
    pub fn of(&self, figure: impl Fn(&T) -> Option<f64>) -> Option<Pairs> {
        let all = |runs: &[T]| runs.iter().map(&figure).collect::<Option<Vec<f64>>>();
        Some(Pairs { ours: all(&self.ours)?, rival: all(&self.rival)? })
    }
}

impl Pairs {
    /// Ours over the rival's, round by round: below 1 we are faster.
    pub fn ratio(&self) -> Spread {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.rival).map(|(a, b)| a / b).collect();
        Spread::of(&ratios)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn the_first_round_does_not_count_and_the_order_alternates() {
        let log = std::cell::RefCell::new(String::new());
        let note = |c: char| {
            log.borrow_mut().push(c);
            Ok(1.0)
        };
        let pairs = interleave(2, || note('a'), || note('b')).unwrap();
        assert_eq!((log.borrow().as_str(), pairs.ours.len()), ("abbaab", 2));
    }
}
