use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::process::ProcessFigures;

/// All that is counted, in the formats in which others read it. A cheap clone.
#[derive(Debug, Clone)]
pub struct Figures(Arc<Registry>);

impl Figures {
    /// What the parts have entered, and what is known of the process.
    #[must_use]
    pub fn new(mut registry: Registry) -> Self {
        let build = Family::<[(&'static str, &'static str); 1], Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        registry.register("larder_build_info", "The version of the agent that runs", build);
        registry.register_collector(Box::new(ProcessFigures));
        Self(Arc::new(registry))
    }

    /// As OpenMetrics 1.0, which Prometheus asks for.
    ///
    /// # Errors
    /// When a metric can't be written down.
    pub fn openmetrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(text)
    }

    /// In Prometheus' own text format 0.0.4, which node-exporter reads.
    ///
    /// # Errors
    /// When a metric can't be written down.
    pub fn prometheus(&self) -> Result<String, fmt::Error> {
        Ok(prometheus_text(&self.openmetrics()?))
    }
}

/// The two formats differ in how families are described: Prometheus' own calls a counter by the name of its samples,
/// `…_total`, and knows neither units nor an end.
fn prometheus_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    let mut line = |parts: &[&str]| {
        parts.iter().for_each(|part| text.push_str(part));
        text.push('\n');
    };
    for said in openmetrics.lines() {
        if let Some(rest) = said.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = said.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                line(&["# HELP ", name, suffix, " ", help]);
            }
            line(&["# TYPE ", name, suffix, " ", kind]);
        } else if !said.starts_with('#') {
            line(&[said]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_by_the_names_of_their_samples() {
        let openmetrics = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"1\"} 2\n\
                           # HELP b B of b.\n# TYPE b gauge\nb 1.5\n# EOF\n";
        let expected = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total{x=\"1\"} 2\n\
                        # HELP b B of b.\n# TYPE b gauge\nb 1.5\n";
        assert_eq!(prometheus_text(openmetrics), expected);
    }

    #[test]
    fn what_is_always_there() {
        let figures = Figures::new(Registry::default());
        let text = figures.openmetrics().unwrap();
        assert!(text.contains("larder_build_info{version=\"") && text.ends_with("# EOF\n"), "{text}");
        let text = figures.prometheus().unwrap();
        assert!(text.contains("# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "), "{text}");
    }
}
