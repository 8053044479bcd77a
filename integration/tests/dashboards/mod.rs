//! What is shipped for Prometheus and Grafana, and the table of metrics in the README, against a real agent: what they
//! name exists, and what exists is described.

mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larder_integration::{FaultRegistry, Image, Labels, Node, Release, tool, until};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::run;

/// Labels that Prometheus itself puts to what it scrapes.
const SCRAPED: [&str; 2] = ["instance", "job"];
/// Metrics of Prometheus itself.
const ITS_OWN: [&str; 1] = ["up"];

/// A family of metrics as the agent shows it.
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    labels: BTreeSet<String>,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All that an agent counts, by name. It has peers, a containerd and registries, and what makes a metric appear has
/// happened to it.
async fn families() -> Result<BTreeMap<String, Family>> {
    let registry = FaultRegistry::start().await?;
    registry.add(&Image::runnable(7)?, "acme/app", "v1");
    let authority = larder_integration::Authority::new()?;
    let mut builder = Node::builder(Release::Bookworm)?.registry("reg.test", &registry.url())?;
    let counting = count_pulls().await?;
    builder.agent.registry("quota.test", &[&counting]);
    let files = authority.files();
    let peers = format!("127.0.0.1:{}", larder_integration::free_port()?);
    builder.agent.set_text("peers", "listen", &peers);
    builder.agent.set_text("peers", "advertise", &peers);
    builder.agent.set_path("peers", "ca", &files.certificate).set_path("peers", "key", &files.key);
    // A new owner of a budget waits for a little more than both before it lets anybody check.
    builder.agent.set_text("health", "interval", "2s").set_text("health", "timeout", "2s");
    let helpers = helper(builder.folder(), &registry.host())?;
    builder.agent.set("credentials", "docker_config", format!("[{:?}]", helpers.join("config.json")));
    builder.agent.set_path("credentials", "helpers_dir", &helpers);
    let node = builder.start().await?;
    let agent = node.agent()?;
    node.containerd.pull("reg.test/acme/app:v1").await?;
    node.containerd.run("reg.test/acme/app:v1", &Labels::of_container("shop", "web-0", "app")).await?;
    agent.http().get(&format!("{}/v2/a/manifests/v1?ns=quota.test", agent.mirror())).await?;
    // With the agent's own credentials; whether it succeeds is another test's affair.
    agent.command(&["prefetch", "reg.test/acme/app:v1"]).await?;
    let all = async || {
        let families = parse(&agent.exposition().await.ok()?);
        let are_there = families.as_ref().map_or(true, |families| LATE.iter().all(|name| has_samples(families, name)));
        are_there.then_some(families)
    };
    match until("what comes late is there", Duration::from_secs(60), all).await {
        Ok(families) => families,
        Err(_) => parse(&agent.exposition().await?),
    }
}

/// Metrics that come a moment after what they count.
const LATE: [&str; 5] = [
    "larder_credential_runs",
    "larder_image_check_budget_used",
    "larder_image_checks",
    "larder_image_last_check_timestamp_seconds",
    "larder_image_protected",
];

/// Of a family with labels.
fn has_samples(families: &BTreeMap<String, Family>, name: &str) -> bool {
    families.get(name).is_some_and(|family| !family.labels.is_empty())
}

/// A registry that has nothing and says how many pulls are left.
async fn count_pulls() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => head.extend_from_slice(&buffer[..read]),
                }
            }
            let reply = "HTTP/1.1 404 Not Found\r\nratelimit-limit: 100;w=21600\r\nratelimit-remaining: 76;w=21600\r\n\
                         content-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    Ok(url)
}

/// A credential helper for a host that has nothing to offer, and the Docker configuration that names it.
fn helper(folder: &Path, host: &str) -> Result<PathBuf> {
    let helpers = folder.join("helpers");
    std::fs::create_dir_all(&helpers)?;
    std::fs::write(helpers.join("config.json"), format!(r#"{{"credHelpers": {{"{host}": "none"}}}}"#))?;
    let program = helpers.join("docker-credential-none");
    std::fs::write(&program, "#!/bin/sh\necho 'credentials not found in native keychain'\nexit 1\n")?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    Ok(helpers)
}

fn parse(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    // Samples of one family follow its description.
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            name.clone_into(&mut current);
            let family = Family { help: help.to_owned(), ..Family::default() };
            ensure!(families.insert(current.clone(), family).is_none(), "{current} is there twice");
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kind.clone_into(&mut families.entry(name.to_owned()).or_default().kind);
        } else if !line.starts_with('#') {
            let series = line.rsplit_once(' ').context("not a sample")?.0;
            let labels = promql::named(series).metrics.into_iter().flat_map(|(_, labels)| labels);
            let family = families.get_mut(&current).with_context(|| format!("{series} without a description"))?;
            family.labels.extend(labels.filter(|label| label != "le"));
        }
    }
    Ok(families)
}

/// The names under which a family's samples are found.
fn samples(name: &str, family: &Family) -> Vec<String> {
    match family.kind.as_str() {
        "counter" => vec![format!("{name}_total")],
        "histogram" => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).to_vec(),
        _ => vec![name.to_owned()],
    }
}

/// What is wrong with a query.
fn faults(query: &str, families: &BTreeMap<String, Family>) -> Vec<String> {
    let by_sample: BTreeMap<String, &Family> = families
        .iter()
        .flat_map(|(name, family)| samples(name, family).into_iter().map(move |sample| (sample, family)))
        .collect();
    let named = promql::named(query);
    let mut faults = Vec::new();
    let mut known: BTreeSet<&str> = SCRAPED.into();
    for (metric, labels) in &named.metrics {
        if ITS_OWN.contains(&metric.as_str()) {
            continue;
        }
        let Some(family) = by_sample.get(metric) else {
            faults.push(format!("there is no {metric}"));
            continue;
        };
        let mut own: BTreeSet<&str> = family.labels.iter().map(String::as_str).collect();
        if metric.ends_with("_bucket") {
            own.insert("le");
        }
        let missing = |label: &&String| !own.contains(label.as_str()) && !SCRAPED.contains(&label.as_str());
        faults.extend(labels.iter().filter(missing).map(|label| format!("{metric} has no {label}")));
        known.extend(own);
    }
    let missing = |label: &&String| !known.contains(label.as_str());
    faults.extend(named.grouping.iter().filter(missing).map(|label| format!("nothing in it has {label}")));
    faults
}

/// Every query of the dashboard, with where it stands.
fn queries_of_dashboard() -> Result<Vec<(String, String)>> {
    let path = repository().join("daemonset/dashboards/larder.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().with_context(|| format!("{title}: a target without a query"))?;
            queries.push((title.to_owned(), expr.to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().context("no variables")? {
        if let Some(query) = variable["query"].as_str().and_then(|query| query.strip_prefix("label_values(")) {
            let (metric, label) = query.trim_end_matches(')').rsplit_once(',').context("a variable without a label")?;
            let query = format!("count by ({}) ({metric})", label.trim());
            queries.push((format!("${}", variable["name"].as_str().unwrap_or_default()), query));
        }
    }
    ensure!(queries.len() > 20, "the dashboard has hardly any queries");
    Ok(queries)
}

fn queries_of_alerts() -> Result<Vec<(String, String)>> {
    let path = repository().join("daemonset/alerts/larder.yaml");
    let rules: yaml_serde::Value = yaml_serde::from_slice(&std::fs::read(&path)?)?;
    let mut queries = Vec::new();
    for group in rules["groups"].as_sequence().context("no groups")? {
        for rule in group["rules"].as_sequence().context("no rules")? {
            let text = |value: &yaml_serde::Value| value.as_str().map(str::to_owned);
            let name = text(&rule["alert"]).context("a rule that is no alert")?;
            for (part, value) in [
                ("summary", &rule["annotations"]["summary"]),
                ("description", &rule["annotations"]["description"]),
                ("severity", &rule["labels"]["severity"]),
            ] {
                ensure!(text(value).is_some_and(|text| !text.is_empty()), "{name} has no {part}");
            }
            queries.push((name, text(&rule["expr"]).context("a rule without a query")?));
        }
    }
    Ok(queries)
}

#[test]
fn what_is_shipped_names_what_exists() {
    run(async {
        let families = families().await?;
        let mut wrong = String::new();
        for (place, query) in queries_of_dashboard()?.into_iter().chain(queries_of_alerts()?) {
            for fault in faults(&query, &families) {
                let _ = writeln!(wrong, "{place}: {fault}: {query}");
            }
        }
        ensure!(wrong.is_empty(), "\n{wrong}");
        Ok(())
    });
}

#[test]
fn a_query_for_what_does_not_exist_is_found() {
    let text = "# HELP larder_a A.\n# TYPE larder_a counter\nlarder_a_total{x=\"1\"} 2\n";
    let families = parse(text).unwrap();
    assert!(faults("sum by (x, instance) (rate(larder_a_total{x=\"2\",job=\"larder\"}[5m]))", &families).is_empty());
    assert_eq!(faults("larder_a", &families), ["there is no larder_a"]);
    assert_eq!(faults("larder_a_total{y=\"2\"}", &families), ["larder_a_total has no y"]);
    assert_eq!(faults("sum by (y) (larder_a_total)", &families), ["nothing in it has y"]);
}

/// The table in the README, as a running agent would have it. `LARDER_WRITE=1` writes it.
#[test]
fn the_readme_describes_every_metric() {
    run(async {
        const BEGIN: &str = "<!-- metrics: written by LARDER_WRITE=1 from a running agent -->\n";
        const END: &str = "<!-- end of metrics -->";
        let mut table = "| metric | what it says |\n|---|---|\n".to_owned();
        for (name, family) in families().await?.iter().filter(|(name, _)| name.starts_with("larder_")) {
            let suffix = if family.kind == "counter" { "_total" } else { "" };
            let labels: Vec<&str> = family.labels.iter().map(String::as_str).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let help = family.help.trim_end_matches('.').replace('|', "\\|");
            let _ = writeln!(table, "| `{name}{suffix}{labels}` | {help} |");
        }
        let path = repository().join("README.md");
        let readme = std::fs::read_to_string(&path)?;
        let (before, rest) = readme.split_once(BEGIN).context("README.md has no place for metrics")?;
        let (there, after) = rest.split_once(END).context("the metrics in README.md have no end")?;
        if there != table && std::env::var_os("LARDER_WRITE").is_some() {
            std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}"))?;
            return Ok(());
        }
        let (has, shall): (BTreeSet<&str>, BTreeSet<&str>) = (there.lines().collect(), table.lines().collect());
        let missing: Vec<_> = shall.difference(&has).collect();
        let invented: Vec<_> = has.difference(&shall).collect();
        ensure!(there == table, "README.md lacks {missing:#?} and has {invented:#?}; LARDER_WRITE=1 mends it");
        Ok(())
    });
}

fn promtool(arguments: &[&str]) -> Result<()> {
    let output = Command::new(tool("prometheus/usr/bin/promtool")?).args(arguments).output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn promtool_takes_the_alerts_and_they_fire() {
    run(async {
        let alerts = repository().join("daemonset/alerts");
        let path = |name: &str| alerts.join(name).to_string_lossy().into_owned();
        promtool(&["check", "rules", &path("larder.yaml")])?;
        promtool(&["test", "rules", &path("larder.test.yaml")])?;
        let tests = std::fs::read_to_string(alerts.join("larder.test.yaml"))?;
        for (name, _) in queries_of_alerts()? {
            ensure!(tests.contains(&format!("{{alertname=\"{name}\"}}")), "{name} has no test");
        }
        Ok(())
    });
}

#[test]
fn promtool_takes_the_queries_of_the_dashboard() {
    run(async {
        let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
        for (number, (_, query)) in queries_of_dashboard()?.into_iter().enumerate() {
            let query = query.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$instance", ".*");
            let query = serde_json::to_string(&query)?;
            let _ = writeln!(rules, "      - record: query:{number}\n        expr: {query}");
        }
        let folder = larder_integration::Folder::new()?;
        let file = folder.path().join("rules.yaml");
        std::fs::write(&file, rules)?;
        promtool(&["check", "rules", &file.to_string_lossy()])
    });
}
