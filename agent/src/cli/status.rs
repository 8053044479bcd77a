//! `larder status`

mod peers;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::{SpanRound, Timestamp, Unit};

use super::block_on;
use crate::admin::Client;
use crate::admin::view::{Cache, HostsFolder, Status, Upstream};
use crate::config::{Bytes, Config};
use crate::containerd::canary::{Report, Verdict};
use crate::pull::UnderWay;

/// `larder status`
#[derive(Debug, Args)]
pub struct Arguments {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// The other nodes: who they are, what is read from and sent to them
    #[arg(long)]
    peers: bool,
    /// Say by the exit status alone whether the agent is alive, or ready: for the probes of a Pod
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["json", "peers"])]
    pub(super) probe: Option<Probe>,
}

/// What is asked of the process at the admin socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Probe {
    /// Whether it answers. What the mirror doesn't answer is watched from within, and ends the agent.
    Live,
    /// Whether it serves containerd, or stands by to take over from the one that does.
    Ready,
}

/// How long a probe waits for an answer: less than kubelet waits for the probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(3);

/// Asks the process at `socket`. It is all that a probe needs: a configuration that was changed for the worse since the
/// agent was started is no reason to end it.
///
/// # Errors
/// When the answer is no, or there is none.
pub(super) fn probe(probe: Probe, socket: &Path) -> anyhow::Result<ExitCode> {
    let client = Client::new(socket);
    let asked = async {
        match probe {
            Probe::Live => client.live().await,
            Probe::Ready => client.ready().await,
        }
    };
    let answer = block_on(async { tokio::time::timeout(PROBE_DEADLINE, asked).await })?;
    answer.map_err(|_| anyhow::anyhow!("no answer within {PROBE_DEADLINE:?}"))??;
    Ok(ExitCode::SUCCESS)
}

/// Asks the running agent.
///
/// # Errors
/// When no agent runs, or it doesn't answer.
pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    if arguments.peers {
        return peers::run(arguments.json, config);
    }
    let status = block_on(Client::new(&config.admin.socket).status())??;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status, Timestamp::now()));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(status: &Status, now: Timestamp) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a `String` never fails.
        let _ = writeln!(out, "{key:<12}{value}");
    };
    let Status { version, pid, uptime_seconds, resident_bytes, mirror, .. } = status;
    let up = humantime::format_duration(Duration::from_secs(*uptime_seconds));
    line("larder", &format!("{version}, pid {pid}, up {up}, {} resident", Bytes(*resident_bytes)));
    let scheme = if mirror.tls { "https" } else { "http" };
    line("mirror", &format!("{scheme}://{}, {} requests", mirror.listen, mirror.requests));
    line("containerd", &format!("{}: {}", status.containerd.display(), canary(status.canary.as_ref(), now)));
    hosts(status.hosts.as_deref(), &mut line);
    let adopted = status.adopted.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for (i, one) in adopted.lines().enumerate() {
        line(if i == 0 { "taken over" } else { "" }, one);
    }
    cache(&status.cache, &mut line);
    for (i, transfer) in status.transfers.iter().enumerate() {
        line(if i == 0 { "transfers" } else { "" }, &arriving(transfer));
    }
    for (i, seen) in status.upstreams.iter().enumerate() {
        line(if i == 0 { "upstreams" } else { "" }, &upstream(seen, now));
    }
    out
}

fn canary(report: Option<&Report>, now: Timestamp) -> String {
    let Some(report) = report else { return "not yet known whether it comes to us".to_owned() };
    let at = i64::try_from(report.at)
        .ok()
        .and_then(|at| Timestamp::from_second(at).ok())
        .map_or(String::new(), |at| ago(at, now));
    match &report.verdict {
        Verdict::Used => format!("comes to us (proven {at})"),
        Verdict::Failing { pull_error } => format!("comes to us, but its pull failed ({at}): {pull_error}"),
        Verdict::Unused { pull_error } => {
            format!("DOES NOT COME TO US ({at}): {pull_error}; `larder doctor` says why")
        }
        Verdict::Unknown { reason } => format!("not known whether it comes to us ({at}): {reason}"),
    }
}

fn hosts(folders: Option<&[HostsFolder]>, line: &mut impl FnMut(&str, &str)) {
    let Some(folders) = folders else { return line("hosts.toml", "none is written") };
    let applied: Vec<&str> =
        folders.iter().filter(|folder| folder.applied).map(|folder| folder.name.as_str()).collect();
    line("hosts.toml", &if applied.is_empty() { "none is written".to_owned() } else { applied.join(", ") });
    for folder in folders {
        for remark in &folder.remarks {
            line("", &format!("{}: {remark}", folder.name));
        }
    }
}

fn cache(cache: &Cache, line: &mut impl FnMut(&str, &str)) {
    let mut text = format!("{}: {} blobs, {}", cache.dir.display(), cache.blobs, Bytes(cache.bytes));
    if cache.arriving_bytes > 0 {
        let _ = write!(text, ", {} arriving", Bytes(cache.arriving_bytes));
    }
    if let Some(max) = cache.max_bytes {
        let _ = write!(text, ", at most {}", Bytes(max));
    }
    if let (Some(size @ 1..), Some(used)) = (cache.disk_size_bytes, cache.disk_used_bytes) {
        let _ = write!(
            text,
            "; disk {} % used of {}, at most {} %",
            used * 100 / size,
            Bytes(size),
            cache.max_disk_percent
        );
    }
    if !cache.writable {
        text.push_str("; NOT WRITABLE: nothing new is kept");
    }
    line("cache", &text);
}

fn arriving(transfer: &UnderWay) -> String {
    let of = transfer.size.map_or(String::new(), |size| format!(" of {}", Bytes(size)));
    format!("{} {}: {}{of}, {} readers", transfer.image, transfer.digest, Bytes(transfer.present), transfer.readers)
}

fn upstream(upstream: &Upstream, now: Timestamp) -> String {
    let mut text = format!("{} at {}: ", upstream.registry, upstream.url);
    if let Some(down) = &upstream.down {
        let _ = write!(text, "DOWN for {} ({}); ", since(down.since, now), down.reason);
    }
    if let Some(until) = upstream.rests_until {
        let _ = write!(text, "rests for {} (too many requests); ", since(now, until));
    }
    text += &upstream.last_success.map_or("has not answered yet".to_owned(), |at| format!("answered {}", ago(at, now)));
    // What keeps it down is said already.
    if let (Some(error), None) = (&upstream.last_error, &upstream.down) {
        let _ = write!(text, "; failed {}: {}", ago(error.at, now), error.text);
    }
    if let Some(quota) = &upstream.quota {
        let _ = write!(text, "; {} of {} pulls left", quota.remaining, quota.limit);
    }
    text
}

/// How long it is from one to the other.
fn since(from: Timestamp, to: Timestamp) -> String {
    let round = SpanRound::new().largest(Unit::Hour).smallest(Unit::Second);
    to.since(from).and_then(|span| span.round(round)).map_or_else(|_| from.to_string(), |span| format!("{span:#}"))
}

fn ago(at: Timestamp, now: Timestamp) -> String {
    let round = SpanRound::new().largest(Unit::Hour).smallest(Unit::Second);
    match now.since(at).and_then(|span| span.round(round)) {
        Ok(span) if span.is_negative() || span.is_zero() => "just now".to_owned(),
        Ok(span) => format!("{span:#} ago"),
        Err(_) => format!("at {at}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::{Down, Quota};

    #[test]
    fn how_an_upstream_does() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-01T01:00:00Z");
        let mut row = Upstream {
            registry: "docker.io".parse().unwrap(),
            url: "https://m.corp".to_owned(),
            last_success: None,
            last_error: None,
            down: None,
            rests_until: None,
            quota: None,
        };
        assert_eq!(upstream(&row, now), "docker.io at https://m.corp: has not answered yet");
        row.last_success = Some(at("2026-01-01T00:59:00Z"));
        row.down = Some(Down { since: at("2026-01-01T00:59:30Z"), reason: "m.corp: connection refused".to_owned() });
        row.rests_until = Some(at("2026-01-01T01:01:00Z"));
        row.quota = Some(Quota { limit: 100, remaining: 7 });
        assert_eq!(
            upstream(&row, now),
            "docker.io at https://m.corp: DOWN for 30s (m.corp: connection refused); rests for 1m (too many requests); \
             answered 1m ago; 7 of 100 pulls left"
        );
    }
}
