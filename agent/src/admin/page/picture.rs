use jiff::Timestamp;
use jiff::tz::TimeZone;
use maud::{Markup, html};

use crate::admin::flows::{Minute, Origin};
use crate::admin::view::words::size;

/// Of one minute: a bar and the gap behind it.
const STEP: usize = 10;
const BAR: usize = 8;
/// Of the picture, in its own units.
const HEIGHT: u64 = 100;
/// An hour, and the minute that runs.
const MINUTES: usize = 61;

/// Where bytes came from: a bar a minute, the newest to the right, and what it was in all.
pub(super) fn hour(minutes: &[Minute]) -> Markup {
    let shown = &minutes[minutes.len().saturating_sub(MINUTES)..];
    let most = shown.iter().map(|minute| minute.bytes.iter().sum()).max().unwrap_or(0);
    let totals: Vec<u64> =
        (0..Origin::ALL.len()).map(|origin| shown.iter().map(|minute| minute.bytes[origin]).sum()).collect();
    let all: u64 = totals.iter().sum();
    let first = MINUTES - shown.len();
    let said = Origin::ALL.into_iter().zip(&totals).map(|(origin, bytes)| format!("{} {}", name(origin), size(*bytes)));
    let said = format!("Bytes of the last hour: {}", said.collect::<Vec<_>>().join(", "));
    html! {
        svg.hour role="img" aria-label=(said) viewBox={ "0 0 " (MINUTES * STEP) " " (HEIGHT + 1) } preserveAspectRatio="none" {
            line.line x1="0" x2=(MINUTES * STEP) y1=(HEIGHT) y2=(HEIGHT) {}
            @for (place, minute) in shown.iter().enumerate() {
                (bar((first + place) * STEP, minute, most))
            }
        }
        div.axis {
            span { "an hour ago" }
            span { @if most > 0 { "at most " (size(most)) " a minute" } @else { "nothing was pulled" } }
            span { "now" }
        }
        ul.legend {
            @for (origin, bytes) in Origin::ALL.into_iter().zip(totals) {
                li {
                    svg width="12" height="12" aria-hidden="true" { rect class=(class(origin)) width="12" height="12" rx="2" {} }
                    span { (name(origin)) " " strong { (size(bytes)) } span.muted { (share(bytes, all)) } }
                }
            }
        }
    }
}

fn bar(x: usize, minute: &Minute, most: u64) -> Markup {
    let mut top = HEIGHT;
    let parts = Origin::ALL.into_iter().zip(minute.bytes).filter(|(_, bytes)| *bytes > 0).map(|(origin, bytes)| {
        // What there is can be seen, however little it is.
        let height = (u128::from(bytes) * u128::from(HEIGHT) / u128::from(most.max(1))).max(1);
        let height = u64::try_from(height).unwrap_or(HEIGHT).min(top);
        top -= height;
        (class(origin), top, height)
    });
    let parts: Vec<_> = parts.collect();
    html! {
        @if !parts.is_empty() {
            g {
                title { (spoken(minute)) }
                @for (class, top, height) in parts {
                    rect class=(class) x=(x) y=(top) width=(BAR) height=(height) {}
                }
            }
        }
    }
}

fn spoken(minute: &Minute) -> String {
    let came = Origin::ALL.into_iter().zip(minute.bytes).filter(|(_, bytes)| *bytes > 0);
    let came: Vec<String> = came.map(|(origin, bytes)| format!("{} {}", name(origin), size(bytes))).collect();
    format!("{}: {}", clock(minute.end), came.join(", "))
}

/// `14:05`, in the time of the node.
fn clock(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%H:%M").to_string()
}

fn share(bytes: u64, all: u64) -> String {
    match (u128::from(bytes) * 100).checked_div(u128::from(all)) {
        Some(percent) if bytes > 0 => format!(" ({percent} %)"),
        _ => String::new(),
    }
}

const fn name(origin: Origin) -> &'static str {
    match origin {
        Origin::Cache => "cache",
        Origin::Containerd => "containerd",
        Origin::SameZone => "nodes of this zone",
        Origin::OtherZone => "nodes of other zones",
        Origin::Upstream => "upstream",
    }
}

const fn class(origin: Origin) -> &'static str {
    match origin {
        Origin::Cache => "cache",
        Origin::Containerd => "containerd",
        Origin::SameZone => "same",
        Origin::OtherZone => "other",
        Origin::Upstream => "upstream",
    }
}
