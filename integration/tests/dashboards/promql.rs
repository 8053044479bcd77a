//! As much of Prometheus' query language as it takes to say which metrics and labels a query is about.

use std::collections::BTreeSet;

/// What a query names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Each metric with the labels that it is asked by.
    pub(super) metrics: Vec<(String, Vec<String>)>,
    /// Labels by which results are grouped or joined: of any of the metrics.
    pub(super) grouping: BTreeSet<String>,
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 19] = [
    "and", "or", "unless", "offset", "bool", "sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile",
    "group", "stddev", "stdvar", "inf", "nan", "atan2",
];

/// What a query names. It is taken to be sound: promtool says whether it is.
pub(super) fn named(query: &str) -> Named {
    let mut named = Named::default();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        match first {
            '"' | '\'' => rest = behind_string(rest),
            '[' => rest = rest.split_once(']').map_or("", |(_, rest)| rest),
            '{' => {
                let (labels, behind) = matchers(rest);
                rest = behind;
                match named.metrics.last_mut() {
                    Some((_, known)) => known.extend(labels),
                    None => named.grouping.extend(labels),
                }
            }
            // A number, or a span: its letters are no name.
            '0'..='9' | '$' => rest = behind(rest, |c| c.is_ascii_alphanumeric() || "._$".contains(c)).1,
            c if c.is_ascii_alphabetic() || c == '_' || c == ':' => {
                let (word, next) = behind(rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
                rest = next.trim_start();
                if GROUPING.contains(&word) {
                    if let Some((labels, next)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
                        let labels = labels.split(',').map(|label| label.trim().to_owned());
                        named.grouping.extend(labels.filter(|label| !label.is_empty()));
                        rest = next;
                    }
                } else if !rest.starts_with('(') && !WORDS.contains(&word) {
                    named.metrics.push((word.to_owned(), Vec::new()));
                }
            }
            c => rest = &rest[c.len_utf8()..],
        }
    }
    named
}

fn behind(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn behind_string(text: &str) -> &str {
    let quote = text.chars().next();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if Some(c) == quote => return &text[at + c.len_utf8()..],
            _ => {}
        }
    }
    ""
}

/// The labels between braces, and what follows these.
fn matchers(text: &str) -> (Vec<String>, &str) {
    let mut rest = &text[1..];
    let mut labels = Vec::new();
    while let Some(first) = rest.chars().next() {
        match first {
            '}' => return (labels, &rest[1..]),
            '"' | '\'' => rest = behind_string(rest),
            c if c.is_ascii_alphabetic() || c == '_' => {
                let (label, next) = behind(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                labels.push(label.to_owned());
                rest = next;
            }
            c => rest = &rest[c.len_utf8()..],
        }
    }
    (labels, rest)
}

#[test]
fn names_are_found() {
    let of = |query: &str| {
        let named = named(query);
        let metrics: Vec<String> =
            named.metrics.iter().map(|(name, labels)| format!("{name}{{{}}}", labels.join(","))).collect();
        (metrics.join(" "), named.grouping.into_iter().collect::<Vec<_>>().join(","))
    };
    for (query, metrics, grouping) in [
        ("up", "up{}", ""),
        ("sum by (a, b) (rate(x_total{c=\"d}\", e!~'f'}[5m]))", "x_total{c,e}", "a,b"),
        ("histogram_quantile(0.99, sum(rate(x_bucket[$__rate_interval])) by (le))", "x_bucket{}", "le"),
        ("x > 0.1 * y and on (i) z == 1e3", "x{} y{} z{}", "i"),
        ("time() - x offset 5m > 2 * 3600", "x{}", ""),
        ("label_values(x{j=\"1\"}, k)", "x{j} k{}", ""),
        ("absent(x)", "x{}", ""),
    ] {
        assert_eq!(of(query), (metrics.to_owned(), grouping.to_owned()), "{query}");
    }
}
