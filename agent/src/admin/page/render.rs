use jiff::{SignedDuration, Timestamp};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::images::cell;
use super::{STYLE, Sight, images, picture};
use crate::admin::view::images::{Concern, Images};
use crate::admin::view::words::{age, size};
use crate::admin::view::{Cache, HostsFolder, Upstream};
use crate::containerd::canary::{Report, Verdict};
use crate::peers::{ShownMember, ShownPart};

/// Members that are named one by one.
const MOST_MEMBERS: usize = 50;
/// Characters of a node's number that people need to tell it from others.
const SHORT: usize = 12;

/// All of it.
pub(super) fn page(sight: &Sight) -> Markup {
    let Sight { host, now, status, images, peers, flows } = sight;
    let began = now.checked_sub(SignedDuration::from_secs(i64::try_from(status.uptime_seconds).unwrap_or(0)));
    let up = began.map_or_else(|_| "ages".to_owned(), |began| age(began, *now));
    let title = host.as_ref().map_or_else(|| "Larder".to_owned(), |host| format!("Larder on {host}"));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Otherwise browsers ask for one.
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.muted {
                        "As of " (now.strftime("%Y-%m-%d %H:%M:%S")) " UTC. Larder " (status.version) ", up for "
                        (up)
                        ", " (status.mirror.requests) " requests for images."
                    }
                }
                main {
                    (tiles(images))
                    (canary(status.canary.as_ref(), *now))
                    (remarks(status.hosts.as_deref()))
                    @if !images.complete {
                        section.notice {
                            p { "containerd hasn't said yet what it holds: the images are as they were remembered." }
                        }
                    }
                    section { h2 { "Images" } (images::table(images, *now)) }
                    section { h2 { "Where bytes came from" } (picture::hour(flows)) }
                    section { h2 { "Upstreams" } (upstreams(&status.upstreams, *now)) }
                    div.two {
                        section { h2 { "Disk" } (disk(&status.cache)) }
                        section { h2 { "Other nodes" } (cluster(peers)) }
                    }
                }
                footer { p.muted.small { "The same for programs: " code { "larder images -o json" } ", " code { "larder status --json" } ", " code { "/metrics" } "." } }
            }
        }
    }
}

fn tiles(images: &Images) -> Markup {
    let used = || images.images.iter().filter(|image| image.is_in_use());
    let count = |concern: Concern| images.images.iter().filter(|image| image.concern() == concern).count();
    let protected = used().filter(|image| image.verdict.is_some_and(|verdict| verdict.protected)).count();
    let tile = |number: usize, class: &str, what: &str| html! { li { strong class=(class) { (number) } (what) } };
    let bad = |number: usize| if number == 0 { "" } else { "bad" };
    html! {
        ul.tiles {
            (tile(used().count(), "", "in use"))
            (tile(protected, "good", "of them protected"))
            (tile(count(Concern::Unprotected), bad(count(Concern::Unprotected)), "not protected"))
            (tile(count(Concern::Lost), bad(count(Concern::Lost)), "lost"))
            @if count(Concern::Withdrawn) > 0 { (tile(count(Concern::Withdrawn), "warn", "gone upstream")) }
            @if count(Concern::Drifted) > 0 { (tile(count(Concern::Drifted), "warn", "drifted")) }
            @if count(Concern::Unknown) > 0 { (tile(count(Concern::Unknown), "", "not judged yet")) }
        }
    }
}

fn canary(report: Option<&Report>, now: Timestamp) -> Markup {
    let Some(report) = report else {
        return html! { section { p.muted { "It isn't known yet whether containerd comes to Larder." } } };
    };
    let at = i64::try_from(report.at).ok().and_then(|at| Timestamp::from_second(at).ok()).unwrap_or(now);
    let ago = age(at, now);
    match &report.verdict {
        Verdict::Used => html! {
            section { p { span.is.good { "✓ containerd comes to Larder" } span.muted { ", proven " (ago) " ago" } } }
        },
        Verdict::Failing { pull_error } => html! {
            section.notice {
                p { span.is.warn { "containerd comes to Larder, and its pull failed" } span.muted { ", " (ago) " ago" } }
                p { (pull_error) }
            }
        },
        Verdict::Unused { pull_error } => html! {
            section.alarm {
                p { span.is.bad { "✕ containerd doesn't come to Larder" } span.muted { ", found " (ago) " ago" } }
                p { (pull_error) }
                p { code { "larder doctor" } " says why." }
            }
        },
        Verdict::Unknown { reason } => html! {
            section.notice {
                p { span.is.warn { "It isn't known whether containerd comes to Larder" } span.muted { ", " (ago) " ago" } }
                p { (reason) }
            }
        },
    }
}

fn remarks(folders: Option<&[HostsFolder]>) -> Markup {
    let remarks: Vec<String> = folders
        .unwrap_or_default()
        .iter()
        .flat_map(|folder| folder.remarks.iter().map(|remark| format!("{}: {remark}", folder.name)))
        .collect();
    html! {
        @if !remarks.is_empty() {
            section.notice { h2 { "containerd's hosts folder" } ul { @for remark in remarks { li { (remark) } } } }
        }
    }
}

fn upstreams(upstreams: &[Upstream], now: Timestamp) -> Markup {
    html! {
        @if upstreams.is_empty() { p.muted { "None has been asked yet." } } @else {
            table {
                thead { tr {
                    @for heading in ["Upstream", "Registry", "State", "Last answer", "Last error", "Pulls left"] {
                        th scope="col" { (heading) }
                    }
                } }
                tbody { @for upstream in upstreams { (upstream_row(upstream, now)) } }
            }
        }
    }
}

fn upstream_row(upstream: &Upstream, now: Timestamp) -> Markup {
    html! {
        tr {
            td.name { strong { (upstream.url) } }
            (cell("Registry", html! { (upstream.registry) }))
            (cell("State", html! {
                @if let Some(down) = &upstream.down {
                    span.is.bad { "✕ down" } " for " (age(down.since, now))
                    br; span.muted.small { (down.reason) }
                } @else if let Some(until) = upstream.rests_until {
                    span.is.warn { "rests" } " for " (age(now, until)) ", too many requests"
                } @else if upstream.last_success.is_some() {
                    span.is.good { "✓ well" }
                } @else { span.muted { "not known yet" } }
            }))
            (cell("Last answer", html! {
                @match upstream.last_success { Some(at) => { (age(at, now)) " ago" }, None => "–" }
            }))
            (cell("Last error", html! {
                @match &upstream.last_error {
                    Some(error) => { (age(error.at, now)) " ago" br; span.muted.small { (error.text) } },
                    None => "–",
                }
            }))
            (cell("Pulls left", html! {
                @match &upstream.quota { Some(quota) => { (quota.remaining) " of " (quota.limit) }, None => "–" }
            }))
        }
    }
}

fn disk(cache: &Cache) -> Markup {
    html! {
        p { strong { (size(cache.bytes)) } " in " (cache.blobs) " blobs, in " code { (cache.dir.display()) }
            @if cache.arriving_bytes > 0 { ", " (size(cache.arriving_bytes)) " arriving" }
            @if let Some(most) = cache.max_bytes { ", of at most " (size(most)) }
        }
        @if !cache.writable { p.is.bad { "✕ It isn't writable: nothing new is kept." } }
        @if let (Some(whole @ 1..), Some(used)) = (cache.disk_size_bytes, cache.disk_used_bytes) {
            @let permille = |bytes: u64| u128::from(bytes.min(whole)) * 1000 / u128::from(whole);
            @let ours = permille(cache.bytes.min(used));
            @let mark = u32::from(cache.max_disk_percent) * 10;
            svg.bar role="img" viewBox="0 0 1000 20" preserveAspectRatio="none"
                aria-label={ (size(used)) " used of " (size(whole)) ", " (size(cache.bytes)) " by Larder" } {
                rect.rest width="1000" height="20" {}
                rect.used width=(permille(used)) height="20" {}
                rect.cache width=(ours) height="20" {}
                line.mark x1=(mark) x2=(mark) y1="0" y2="20" {}
            }
            ul.legend.small {
                li { svg width="12" height="12" aria-hidden="true" { rect.cache width="12" height="12" rx="2" {} } "Larder " (size(cache.bytes)) }
                li { svg width="12" height="12" aria-hidden="true" { rect.used width="12" height="12" rx="2" {} } "others " (size(used.saturating_sub(cache.bytes))) }
                li { svg width="12" height="12" aria-hidden="true" { rect.rest width="12" height="12" rx="2" {} } "free " (size(whole.saturating_sub(used))) }
            }
            p.muted.small { "Above " (cache.max_disk_percent) " % of the disk, Larder gives up what was used least recently." }
        }
    }
}

fn cluster(peers: &ShownPart) -> Markup {
    let shown = match peers {
        ShownPart::Off => return html! { p.muted { "No cluster is configured." } },
        ShownPart::Apart { apart } => return html! { p.is.warn { "This node has no part in its cluster: " (apart) } },
        ShownPart::Joined(shown) => shown,
    };
    let others: Vec<&ShownMember> = shown.members.iter().filter(|member| member.node != shown.node).collect();
    html! {
        p { strong { (others.len()) } @if others.len() == 1 { " other node" } @else { " other nodes" }
            ", " (shown.reading.len()) " blobs under way here, " (shown.uploads.len()) " read from here; "
            (shown.announced) " blobs shared." }
        @if others.is_empty() { p.is.warn { "This node sees no other." } }
        @if !others.is_empty() {
            details {
                summary { "Who they are" }
                ul {
                    @for member in others.iter().take(MOST_MEMBERS) {
                        li { code { (member.node.get(..SHORT).unwrap_or(&member.node)) } " " (member.addr)
                            @if !member.zone.is_empty() { ", zone " (member.zone) } }
                    }
                    @if others.len() > MOST_MEMBERS { li.muted { "and " (others.len() - MOST_MEMBERS) " more" } }
                }
            }
        }
    }
}
