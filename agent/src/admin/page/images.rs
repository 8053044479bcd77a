use jiff::Timestamp;
use maud::{Markup, html};

use crate::admin::view::images::{Concern, Image, Images, User};
use crate::admin::view::words::{age, size};
use crate::health::{Check, Status};

/// More than this is for `larder images`.
const MOST: usize = 500;
/// Characters of a digest that people need to tell it from others.
const SHORT: usize = "sha256:".len() + 12;

/// The images and their verdicts, worst first.
pub(super) fn table(images: &Images, now: Timestamp) -> Markup {
    let mut images = images.clone();
    images.sort_by_concern();
    let beyond = images.images.len().saturating_sub(MOST);
    html! {
        @if images.images.is_empty() { p.muted { "None are known yet." } } @else {
            table {
                thead { tr {
                    @for heading in ["Image", "If its registry died now", "Upstream says", "In use by", "Copies", "Size", "Seen upstream", "Expires"] {
                        th scope="col" { (heading) }
                    }
                } }
                tbody { @for image in images.images.iter().take(MOST) { (row(image, now)) } }
            }
            @if beyond > 0 { p.muted { "And " (beyond) " more, which " code { "larder images" } " shows." } }
        }
    }
}

/// A cell that says what it is where the table has no head: on a narrow screen.
#[expect(clippy::needless_pass_by_value, reason = "what `html!` makes is used once")]
pub(super) fn cell(what: &str, content: Markup) -> Markup {
    html! { td data-is=(what) { div { (content) } } }
}

fn row(image: &Image, now: Timestamp) -> Markup {
    let ago = |at: Option<Timestamp>| at.map_or_else(|| "–".to_owned(), |at| format!("{} ago", age(at, now)));
    let digest = image.digest.to_string();
    html! {
        tr {
            td.name {
                strong { (image.name) } " "
                code.muted title=(digest) { (digest.get(..SHORT).unwrap_or(&digest)) }
                @if !image.upstreams.is_empty() { (upstreams(&image.upstreams, now)) }
            }
            (cell("If its registry died", html! { (verdict(image)) }))
            (cell("Upstream says", html! { (status(image.status)) }))
            (cell("In use by", html! { (users(&image.used_by)) }))
            (cell("Copies", html! { @match image.verdict { Some(verdict) => (verdict.copies), None => "–" } }))
            (cell("Size", html! {
                (size(image.size_bytes))
                @if image.missing_bytes > 0 { br; span.muted.small { (size(image.missing_bytes)) " not here" } }
            }))
            (cell("Seen upstream", html! { (ago(image.last_seen_upstream)) }))
            (cell("Expires", html! {
                @match image.expires { Some(at) => { "in " (age(now, at)) }, None => "–" }
            }))
        }
    }
}

fn verdict(image: &Image) -> Markup {
    let Some(verdict) = image.verdict else { return html! { span.muted { "not known yet" } } };
    // What nothing uses any more is nobody's worry.
    let worry = if image.concern() == Concern::None { "muted" } else { "bad" };
    html! {
        @if verdict.lost { span.is class=(worry) { "✕ lost" } }
        @else if verdict.protected { span.is.good { "✓ protected" } }
        @else { span.is class=(worry) { "✕ not protected" } }
        @if verdict.drifted { br; span.is.warn { "↷ drifted" } }
    }
}

fn status(status: Option<Status>) -> Markup {
    let Some(status) = status else { return html! { span.muted { "–" } } };
    let class = match status {
        Status::Available => "good",
        Status::Scheduled | Status::NoCredentials => "muted",
        Status::QuotaExceeded | Status::Unreachable => "warn",
        Status::NotFound | Status::InvalidAuth => "bad",
    };
    html! { span class=(class) { (words(status)) } }
}

const fn words(status: Status) -> &'static str {
    match status {
        Status::Scheduled => "not checked yet",
        Status::Available => "available",
        Status::NotFound => "not found",
        Status::InvalidAuth => "credentials refused",
        Status::NoCredentials => "private, not checked",
        Status::QuotaExceeded => "quota used up",
        Status::Unreachable => "unreachable",
    }
}

fn users(users: &[User]) -> Markup {
    html! {
        @match users {
            [] => span.muted { "–" },
            [user] => (name(user)),
            [first, rest @ ..] => details {
                summary { (first.name) " and " (rest.len()) " more" }
                ul { @for user in users.iter().take(MOST) { li { (name(user)) } } }
            },
        }
    }
}

fn name(user: &User) -> Markup {
    html! { (user.name) @if user.stopped { span.muted { " (stopped)" } } }
}

fn upstreams(checks: &[Check], now: Timestamp) -> Markup {
    html! {
        details {
            summary { (checks.len()) @if checks.len() == 1 { " upstream" } @else { " upstreams" } }
            ul { @for check in checks {
                li {
                    (check.upstream) ": " (status(Some(check.status)))
                    @if let Some(at) = check.at { span.muted { ", " (age(at, now)) " ago" } }
                    @if let Some(remark) = &check.remark { br; span.muted { (remark) } }
                }
            } }
        }
    }
}
