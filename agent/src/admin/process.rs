//! The process's own figures, under the names that every Prometheus client library uses for them.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, System};

/// Reads the figures when they are asked for.
#[derive(Debug)]
pub(super) struct ProcessFigures;

fn with_own_process<T>(read: impl FnOnce(&Process) -> T) -> Option<T> {
    let pid = Pid::from_u32(std::process::id());
    let mut system = System::new().ok()?;
    let kind = ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
    system.process(pid).map(read)
}

/// Resident memory in bytes; 0 where it can't be read.
pub(super) fn resident_bytes() -> u64 {
    with_own_process(Process::memory).unwrap_or(0)
}

impl Collector for ProcessFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let figures = with_own_process(|process| {
            (process.memory(), process.accumulated_cpu_time(), process.start_time(), process.open_files())
        });
        let Some((memory, cpu_milliseconds, started, open_files)) = figures else { return Ok(()) };
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("process_resident_memory_bytes", "Resident memory size in bytes", memory as f64)?;
        gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds", started as f64)?;
        if let Some(open_files) = open_files {
            gauge("process_open_fds", "Number of open file descriptors", open_files as f64)?;
        }
        let cpu = ConstCounter::new(cpu_milliseconds as f64 / 1000.0);
        let help = "Total user and system CPU time spent in seconds";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_this_process() {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(ProcessFigures));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in ["process_resident_memory_bytes", "process_start_time_seconds", "process_cpu_seconds_total"] {
            assert!(text.contains(&format!("\n{name} ")), "{name} is not in {text}");
        }
        assert!(resident_bytes() > 1 << 20);
    }
}
