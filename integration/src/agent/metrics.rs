//! What Prometheus would read.

use anyhow::{Context, Result};

/// One reading of `/metrics`.
#[derive(Debug, Clone)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    // As written: `registry="reg.test",source="upstream"`.
    labels: String,
    value: f64,
}

impl Metrics {
    /// Parses the text format.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        samples
            .map(|line| Sample::parse(line).with_context(|| format!("not a sample: {line}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The sum of all samples of this name whose labels contain all of `labels`, each as `name="value"`.
    /// 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let matching = self.0.iter().filter(|sample| sample.name == name);
        let matching = matching.filter(|sample| labels.iter().all(|label| sample.labels.contains(label)));
        // Not sum(), which is -0 of nothing.
        matching.fold(0.0, |sum, sample| sum + sample.value)
    }

    /// Whether there is a sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        // Labels may hold spaces; the value comes after the last.
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        Some(Self { name: name.to_owned(), labels: labels.strip_suffix('}')?.to_owned(), value: value.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_labels() {
        let text = "# HELP a A.\na_total{x=\"1\",y=\"p q\"} 2\na_total{x=\"2\"} 3\nb 1.5e3\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a_total", &[]), 5.0);
        assert_eq!(metrics.sum("a_total", &["x=\"1\"", "y=\"p q\""]), 2.0);
        assert_eq!(metrics.sum("b", &[]), 1500.0);
        assert!(!metrics.has("c"));
    }
}
