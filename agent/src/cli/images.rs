//! `larder images`

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::block_on;
use super::table::Table;
use crate::admin::Client;
use crate::admin::view::images::{Image, Images, Kept, User};
use crate::admin::view::words::{age, size};
use crate::config::Config;
use crate::health::Status;

/// `larder images`
#[derive(Debug, Args)]
pub struct Arguments {
    /// What runs anywhere in the cluster, in the place of what is known on this node
    #[arg(long)]
    cluster: bool,
    /// More columns, or JSON for programs
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Output>,
    /// Leave the headers out
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Wide,
    Json,
}

/// Asks the running agent.
///
/// # Errors
/// When no agent runs, or it doesn't answer.
pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let agent = Client::new(&config.admin.socket);
    let images = block_on(async {
        match arguments.cluster {
            true => agent.cluster_images().await,
            false => agent.images().await,
        }
    })??;
    for remark in remarks(&images) {
        eprintln!("larder: {remark}");
    }
    match arguments.output {
        Some(Output::Json) => println!("{}", serde_json::to_string_pretty(&images)?),
        _ if images.images.is_empty() => eprintln!("No images are known."),
        output => {
            let table = table(&images.images, output == Some(Output::Wide), Timestamp::now());
            print!("{}", table.text(!arguments.no_headers));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the answer lacks.
fn remarks(images: &Images) -> Vec<String> {
    let mut remarks = Vec::new();
    if !images.complete {
        let whose = if images.cluster.is_some() { "containerd on some node" } else { "containerd" };
        remarks.push(format!("{whose} hasn't said yet what it holds: its images are as they were remembered"));
    }
    let Some(cluster) = &images.cluster else { return remarks };
    if cluster.nodes == 1 {
        remarks.push("this node knows of no other".to_owned());
    }
    for silent in &cluster.silent {
        remarks.push(format!("node {} doesn't say what it runs: {}", silent.node, silent.why));
    }
    let answered = cluster.nodes.saturating_sub(cluster.unanswered);
    if cluster.unanswered > 0 {
        remarks.push(format!("this is what {answered} of {} nodes say", cluster.nodes));
    }
    if cluster.left_out > 0 {
        remarks.push(format!("{} images are left out: a node tells of 1000 at the most", cluster.left_out));
    }
    remarks
}

fn table(images: &[Image], wide: bool, now: Timestamp) -> Table {
    let mut headers =
        vec!["IMAGE", "STATUS", "PROTECTED", "COPIES", "IN USE BY", "SIZE", "LAST SEEN UPSTREAM", "EXPIRES"];
    if wide {
        headers.extend(["DRIFTED", "LOST", "MISSING", "KEPT", "UPSTREAMS", "DIGEST"]);
    }
    let mut table = Table::new(headers);
    for image in images {
        table.row(row(image, wide, now));
    }
    table
}

fn row(image: &Image, wide: bool, now: Timestamp) -> Vec<String> {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let verdict = |of: fn(&crate::health::Verdict) -> bool| image.verdict.as_ref().map(of).map(yes);
    let bytes = |bytes: u64| if bytes == 0 { String::new() } else { size(bytes) };
    let mut cells = vec![
        image.name.to_string(),
        image.status.map(Status::as_str).unwrap_or_default().to_owned(),
        verdict(|verdict| verdict.protected).unwrap_or_default(),
        image.verdict.map(|verdict| verdict.copies.to_string()).unwrap_or_default(),
        users(image),
        bytes(image.size_bytes),
        image.last_seen_upstream.map(|at| age(at, now)).unwrap_or_default(),
        image.expires.map(|at| age(now, at)).unwrap_or_default(),
    ];
    if wide {
        let upstream = |check: &crate::health::Check| format!("{}={}", check.upstream, check.status.as_str());
        cells.extend([
            verdict(|verdict| verdict.drifted).unwrap_or_default(),
            verdict(|verdict| verdict.lost).unwrap_or_default(),
            bytes(image.missing_bytes),
            image.kept.as_ref().map(Kept::words).unwrap_or_default(),
            image.upstreams.iter().map(upstream).collect::<Vec<_>>().join(","),
            image.digest.to_string(),
        ]);
    }
    cells
}

/// The first of them, and how many more; of a cluster, how many nodes.
fn users(image: &Image) -> String {
    match (image.nodes.len(), image.used_by.as_slice()) {
        (1, _) => "1 node".to_owned(),
        (nodes @ 2.., _) => format!("{nodes} nodes"),
        (0, []) => String::new(),
        (0, [User { name, .. }]) => name.clone(),
        (0, [User { name, .. }, rest @ ..]) => format!("{name} +{}", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admin::view::images::tests::{at, health, known};
    use crate::admin::view::images::{Cluster, Silent};
    use crate::health::{Report, Verdict};
    use crate::keep::{self, Catalog, Why};

    fn images() -> Images {
        let mut used = known("docker.io/library/nginx:1.29", Why::InUse);
        used.used_by.push(keep::User { is_stopped: true, name: "default/web-1/nginx".to_owned() });
        let unused = known("ghcr.io/acme/app:v1", Why::Unused(at("2026-01-31T12:00:00Z")));
        let report = Report {
            images: vec![Arc::new(health(
                &used,
                Status::Available,
                Verdict { protected: true, copies: 2, ..Verdict::default() },
            ))],
        };
        Images::of(&Catalog { images: vec![Arc::new(used), Arc::new(unused)], is_complete: true }, &report)
    }

    #[test]
    fn the_table() {
        let (images, now) = (images().images, at("2026-01-01T12:00:00Z"));
        assert_eq!(
            table(&images, false, now).text(true),
            "\
IMAGE                          STATUS      PROTECTED   COPIES   IN USE BY                SIZE     LAST SEEN UPSTREAM   EXPIRES
docker.io/library/nginx:1.29   Available   yes         2        default/web-0/nginx +1   3.0MiB   3h                   -
ghcr.io/acme/app:v1            -           -           -        -                        3.0MiB   -                    30d
"
        );
        let wide = table(&images, true, now).text(false);
        let row = wide.lines().next().unwrap();
        let digest = images[0].digest;
        assert!(row.contains("   no   no   -   in use   https://registry.example=Available   "), "{row}");
        assert!(row.ends_with(&digest.to_string()), "{row}");
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut images = images();
        assert!(remarks(&images).is_empty());
        images.complete = false;
        assert_eq!(remarks(&images).len(), 1);
        images.complete = true;
        let silent = vec![Silent { node: "ab".to_owned(), why: "no answer in time".to_owned() }];
        images.cluster = Some(Cluster { nodes: 3, unanswered: 1, silent, left_out: 0 });
        assert_eq!(
            remarks(&images),
            ["node ab doesn't say what it runs: no answer in time", "this is what 2 of 3 nodes say"]
        );
        images.images[0].nodes = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(users(&images.images[0]), "2 nodes");
    }
}
