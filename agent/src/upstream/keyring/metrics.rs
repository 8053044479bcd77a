use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What is counted about the programs that are asked for credentials. They are as many as the node's configuration
/// names.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    runs: Family<RunLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunLabels {
    program: String,
    result: &'static str,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "larder_credential_runs",
            "Runs of credential helpers and plugins, by result: ok (also where there are no credentials), failed",
            self.runs.clone(),
        );
    }

    pub(super) fn ran(&self, program: &str, well: bool) {
        let result = if well { "ok" } else { "failed" };
        self.runs.get_or_create(&RunLabels { program: program.to_owned(), result }).inc();
    }

    #[cfg(test)]
    pub(super) fn runs(&self, program: &str, result: &'static str) -> u64 {
        self.runs.get_or_create(&RunLabels { program: program.to_owned(), result }).get()
    }
}
