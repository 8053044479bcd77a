//! Medians, and how sure they are.

use std::fmt;

/// The median of some figures with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Median {
    pub(super) middle: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Median {
    /// By order statistics, which ask nothing of the distribution. All of the range where there are fewer than six.
    pub(super) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        // The chance that fewer than `k` of `n` lie below the true median; both tails together keep below 5 %.
        let (mut below, mut term, mut k) = (0.0, 0.5_f64.powi(n as i32), 0);
        while below + term <= 0.025 {
            below += term;
            term *= (n - k) as f64 / (k + 1) as f64;
            k += 1;
        }
        let k = k.saturating_sub(1);
        let middle = if n % 2 == 1 { sorted[n / 2] } else { f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]) };
        Self { middle, low: sorted[k], high: sorted[n - 1 - k] }
    }

    /// Of the ratios of pairs.
    pub(super) fn of_ratios(of: &[f64], to: &[f64]) -> Self {
        Self::of(&of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<_>>())
    }
}

impl fmt::Display for Median {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.middle, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_fifteen_is_from_the_fourth_to_the_twelfth() {
        let figures: Vec<f64> = (1..=15).rev().map(f64::from).collect();
        assert_eq!(Median::of(&figures), Median { middle: 8.0, low: 4.0, high: 12.0 });
    }

    #[test]
    fn few_figures_give_all_of_their_range() {
        assert_eq!(Median::of(&[2.0, 1.0]), Median { middle: 1.5, low: 1.0, high: 2.0 });
    }
}
