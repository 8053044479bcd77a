//! Any file that a person may write, through the part that makes ours from it.

use proptest::prelude::*;

use super::super::compose::{self, Composed, Mirror, Source};
use super::super::marker::{self, Facts};
use super::super::{Warning, reading::Reading};
use super::{URL, ca_pem};

fn composed(text: &[u8]) -> Composed {
    let table = format!("[host.\"{URL}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"larder-ca.pem\"\n");
    let mirror = Mirror { url: URL.to_owned(), table, ca: Some(ca_pem()) };
    let facts = Facts { mirror: URL.to_owned(), kept: true, made: false };
    let source = Source { text: Some(text.to_owned()), ..Source::default() };
    compose::compose(&mirror, &source, &facts).unwrap()
}

/// A field of a host, as TOML text for its value.
fn field() -> impl Strategy<Value = (String, String)> {
    let name = "[a-z .#:]{0,12}";
    prop_oneof![
        Just(("capabilities".into(), "['pull', \"Resolve\"]".into())),
        name.prop_map(|n| ("ca".into(), format!("{n:?}"))),
        (name, name).prop_map(|(a, b)| ("client".into(), format!("[[{a:?}, {b:?}], {a:?}]"))),
        any::<bool>().prop_map(|b| ("skip_verify".into(), b.to_string())),
        (name, name).prop_map(|(a, b)| ("header".into(), format!("{{{a:?} = [{b:?}, 'x'], Z-1 = \"# [host.q]\"}}"))),
        any::<f64>().prop_map(|f| ("unknown".into(), format!("[{{a = {f:?}}}, 1979-05-27]").to_lowercase())),
    ]
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    proptest::collection::vec(field(), 0..4).prop_map(|mut fields| {
        fields.sort();
        fields.dedup_by(|a, b| a.0 == b.0);
        fields
    })
}

/// A file: fields of the root, then hosts, each in one of the ways in which TOML lets people write it.
fn file() -> impl Strategy<Value = String> {
    let host = ("[a-z]{1,3}", any::<bool>(), fields(), 0..5_u8, "(\n|# [a-z\\[\\]\"']{0,9}\n){0,3}");
    (fields(), proptest::collection::vec(host, 0..5), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(root, hosts, explicit, windows, newline)| {
            let line = |(key, value): &(String, String)| format!("{key} = {value} # {key}\n");
            let mut seen = std::collections::BTreeSet::new();
            let (mut dotted, mut inline, mut tables) = (String::new(), String::new(), String::new());
            for (name, scheme, fields, way, comment) in hosts {
                let url = if scheme { format!("\"https://{name}:5000/x\"") } else { name };
                if !seen.insert(url.clone()) {
                    continue;
                }
                let joined = fields.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", ");
                match way {
                    0 if explicit => inline += &format!("{comment}{url} = {{{joined}}}\n"),
                    1 if explicit => fields.iter().for_each(|(k, v)| inline += &format!("{url}.{k} = {v}\n")),
                    2 if !explicit => fields.iter().for_each(|(k, v)| dotted += &format!("host.{url}.{k} = {v}\n")),
                    3 => {
                        tables += &format!(
                            "{comment}  [ host . {url} ] # x\n{}",
                            fields.iter().map(line).collect::<String>()
                        );
                    }
                    _ => {
                        tables += &format!("{comment}[host.{url}]\n{}", fields.iter().map(line).collect::<String>());
                    }
                }
            }
            if !dotted.is_empty() {
                // A table that dotted keys made takes no headers.
                tables.clear();
            }
            let header = if explicit { "[host]\n" } else { "" };
            let root: String = root.iter().map(line).collect();
            let mut text = format!("# top\n{root}{dotted}{header}{inline}{tables}");
            if windows {
                text = text.replace('\n', "\r\n");
            }
            if newline { text } else { text.trim_end().to_owned() }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_file_is_kept_in_order_with_all_its_fields(text in file()) {
        // By eyes of another parser than the code under test.
        let before: toml::Table = text.parse().unwrap();
        let composed = composed(text.as_bytes());
        prop_assert!(!composed.warnings.iter().any(|w| matches!(w, Warning::Malformed { .. })), "{}", text);
        let mut after: toml::Table = composed.text.parse().unwrap();
        let hosts = after["host"].as_table_mut().unwrap();
        prop_assert!(hosts.remove(URL).is_some());
        if hosts.is_empty() && !before.contains_key("host") {
            after.remove("host");
        }
        prop_assert_eq!(format!("{after:?}"), format!("{before:?}"));

        let headers = |text: &str| -> Vec<String> {
            text.lines().filter_map(|l| l.trim().strip_prefix("[host.")).map(|l| l.replace(' ', "")).collect()
        };
        prop_assert_eq!(&headers(&composed.text)[0], "\"https://127.0.0.1:7439\"]");
        let order = |text: &str| Reading::of(text).unwrap().hosts.into_iter().map(|h| h.url).collect::<Vec<_>>();
        prop_assert_eq!(&order(&composed.text)[1..], &order(&text)[..]);

        if composed.warnings.is_empty() {
            let rest = marker::strip(&composed.text);
            prop_assert!(rest == text || rest == format!("{text}\n"), "{:?} became {:?}", text, rest);
        }
    }

    #[test]
    fn any_bytes_leave_a_sound_file(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Reading::of(&composed(&bytes).text).is_ok());
    }

    #[test]
    fn any_scraps_of_toml_leave_a_sound_file(text in "([\\[\\]host.\"'=#\n ]|\\[host\\.|a = |\"\"\"|# >>> larder ?|# <<< larder\n){0,30}") {
        let composed = composed(text.as_bytes());
        prop_assert_eq!(&Reading::of(&composed.text).unwrap().hosts[0].url, URL);
    }
}
