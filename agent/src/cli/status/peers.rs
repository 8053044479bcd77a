use std::fmt::Write as _;
use std::process::ExitCode;

use crate::admin::Client;
use crate::cli::block_on;
use crate::config::{Bytes, Config};
use crate::peers::{Shown, ShownMember, ShownPart, ShownReading, ShownUpload};

/// Characters of a node's number that people need to tell it from others.
const SHORT: usize = 12;

/// `larder status --peers`
pub(super) fn run(json: bool, config: &Config) -> anyhow::Result<ExitCode> {
    let shown = block_on(Client::new(&config.admin.socket).peers())??;
    if json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        match shown {
            ShownPart::Joined(shown) => print!("{}", text(&shown)),
            ShownPart::Apart { apart } => println!("no peers: {apart}; it is tried again every few seconds"),
            ShownPart::Off => println!("no peers: peers.ca is not configured"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(shown: &Shown) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a `String` never fails.
        let _ = writeln!(out, "{key:<12}{value}");
    };
    let at = shown.addr.map_or_else(|| "not reachable yet".to_owned(), |addr| addr.to_string());
    line("node", &format!("{} at {at}{}", shown.node, zone(&shown.zone)));
    line("directory", &format!("{} blobs announced, {} of others known here", shown.announced, shown.known));
    for (i, seen) in shown.members.iter().enumerate() {
        line(if i == 0 { "members" } else { "" }, &member(seen));
    }
    for (i, seen) in shown.reading.iter().enumerate() {
        line(if i == 0 { "reading" } else { "" }, &reading(seen));
    }
    for (i, seen) in shown.uploads.iter().enumerate() {
        line(if i == 0 { "uploads" } else { "" }, &upload(seen));
    }
    out
}

fn zone(zone: &str) -> String {
    if zone.is_empty() { String::new() } else { format!(", zone {zone}") }
}

fn short(node: &str) -> &str {
    node.get(..SHORT).unwrap_or(node)
}

fn member(member: &ShownMember) -> String {
    let ShownMember { node, addr, zone: at, settled, owns } = member;
    let part = if *settled { format!("owns {owns} of 128") } else { "new".to_owned() };
    format!("{} {addr}{}, {part}", short(node), zone(at))
}

fn reading(reading: &ShownReading) -> String {
    let mut text = format!("{} {}: {}", reading.registry, reading.digest, reading.turn);
    if let Some(parent) = &reading.parent {
        let _ = write!(text, " from {}", short(parent));
    }
    if let Some(upto) = reading.upto {
        let _ = write!(text, " up to {}", Bytes(upto));
    }
    let _ = write!(text, ", {} here", Bytes(reading.frontier));
    if let Some(size) = reading.size {
        let _ = write!(text, " of {}", Bytes(size));
    }
    if let Some(ticket) = reading.ticket {
        let _ = write!(text, ", ticket {ticket}");
    }
    if let Some(owner) = &reading.owner {
        let _ = write!(text, ", owner {}", short(owner));
    }
    let _ = write!(text, ", pull {}", reading.pull);
    text
}

fn upload(upload: &ShownUpload) -> String {
    let ticket = upload.ticket.map_or(String::new(), |ticket| format!(", ticket {ticket}"));
    let (digest, sent, pull) = (&upload.digest, Bytes(upload.sent), &upload.pull);
    format!("{digest} to {}: {sent} sent{ticket}, pull {pull}", short(&upload.node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn how_a_cluster_looks() {
        let digest = Digest::of(b"");
        let node = |n: u8| format!("{n:032x}");
        let shown = Shown {
            node: node(1),
            addr: Some("10.0.0.1:7441".parse().unwrap()),
            zone: "a".to_owned(),
            announced: 3,
            known: 4,
            members: vec![ShownMember {
                node: node(2),
                addr: "10.0.0.2:7441".parse().unwrap(),
                zone: String::new(),
                settled: true,
                owns: 64,
            }],
            reading: vec![ShownReading {
                digest,
                registry: "docker.io".to_owned(),
                pull: "abc".to_owned(),
                turn: "reads".to_owned(),
                upto: None,
                ticket: Some(7),
                parent: Some(node(2)),
                owner: Some(node(1)),
                frontier: 1 << 20,
                size: Some(2 << 20),
            }],
            uploads: Vec::new(),
        };
        let expected = format!(
            "node        {} at 10.0.0.1:7441, zone a\n\
             directory   3 blobs announced, 4 of others known here\n\
             members     000000000000 10.0.0.2:7441, owns 64 of 128\n\
             reading     docker.io {digest}: reads from 000000000000, 1.0 MiB here of 2.0 MiB, ticket 7, \
             owner 000000000000, pull abc\n",
            node(1)
        );
        assert_eq!(text(&shown), expected);
    }
}
