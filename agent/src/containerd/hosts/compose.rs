//! From what the user wrote to what we write: our mirror first, then theirs.

use std::borrow::Cow;

use toml_edit::{Document, DocumentMut, Item, Table, TableLike, Value};

use super::certs::Certs;
use super::error::Warning;
use super::marker::{self, Facts};
use super::reading::{self, Reading};

/// Our host table, and the URL in it.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) url: String,
    /// Ends with a line's end.
    pub(super) table: String,
    /// The PEM text of the CA that the table names.
    pub(super) ca: Option<String>,
}

/// What a folder said before us.
#[derive(Debug, Default, Clone)]
pub(super) struct Source {
    /// Its `hosts.toml`; `None`: there is none.
    pub(super) text: Option<Vec<u8>>,
    /// Its certificate files, which count where `hosts.toml` says nothing.
    pub(super) certs: Certs,
    /// What to put before the relative paths in the text, when it comes from another folder: `../_default/`.
    pub(super) prefix: &'static str,
}

/// A file's text, and what to tell people about it.
#[derive(Debug)]
pub(super) struct Composed {
    pub(super) text: String,
    pub(super) warnings: Vec<Warning>,
}

/// Makes the file's text.
///
/// # Errors
/// When what came out doesn't have our host first and the user's as they were; it must not be written.
pub(super) fn compose(mirror: &Mirror, source: &Source, facts: &Facts) -> Result<Composed, String> {
    let mut warnings = Vec::new();
    let mut notes = vec![match facts.kept {
        true => "Written by Larder: its mirror, then the hosts of hosts.toml.before-larder. Edit that file, and this one",
        false => "Written by Larder. There was no hosts.toml here; put one in this one's place, and it",
    }
    .to_owned()];
    notes.push("follows. To put everything back: larder hosts restore".to_owned());

    let theirs = match source.text.as_deref().map(|bytes| theirs(bytes, source.prefix, mirror, &mut warnings)) {
        None => String::new(),
        Some(Ok(text)) => text,
        Some(Err(why)) => {
            notes.push(format!("containerd can't read that file, so its hosts are left out: {why}"));
            warnings.push(Warning::Malformed { why });
            String::new()
        }
    };
    let before = Reading::of(&theirs)?;
    if before.has_referrers() {
        warnings.push(Warning::Referrers);
    }
    let keys = if before.is_blank() { source.certs.as_keys() } else { String::new() };
    let body = insert(&theirs, &marker::block(&format!("{keys}{}", mirror.table)))?;
    let text = marker::write(facts, &notes, &body);
    check(&text, mirror, &before, &keys)?;
    Ok(Composed { text, warnings })
}

/// The user's text, with ordinary tables, without ourselves, and with paths that hold where it goes.
fn theirs(bytes: &[u8], prefix: &str, mirror: &Mirror, warnings: &mut Vec<Warning>) -> Result<String, String> {
    let text = own_text(bytes)?;
    let reading = Reading::of(&text)?;
    let listed: Vec<_> =
        reading.hosts.iter().filter(|h| reading::same_place(&h.url, &mirror.url)).map(|h| h.url.clone()).collect();
    if reading.ordinary && listed.is_empty() && prefix.is_empty() {
        return Ok(text.into_owned());
    }
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| e.message().to_owned())?;
    for url in &listed {
        without(&mut document, url);
        warnings.push(Warning::AlreadyListed);
    }
    if !prefix.is_empty() {
        move_paths(document.as_table_mut(), prefix);
        if let Some(hosts) = document.get_mut("host").and_then(Item::as_table_like_mut) {
            hosts.iter_mut().filter_map(|(_, host)| host.as_table_like_mut()).for_each(|h| move_paths(h, prefix));
        }
    }
    if !reading.ordinary {
        reorder(&mut document, &reading)?;
        warnings.push(Warning::Rewritten);
    }
    Ok(document.to_string())
}

/// The text of a user's file, without what would be ours in it.
pub(super) fn own_text(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    let text = str::from_utf8(bytes).map_err(|e| format!("it is no UTF-8: {e}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Our own file, copied from elsewhere.
    Ok(if marker::read(bytes).is_some() { Cow::Owned(marker::strip(text)) } else { Cow::Borrowed(text) })
}

/// The user's part of a file of ours, from which they may have removed the lines that say which part is ours.
pub(super) fn rest_without(rest: &str, mirror: &str) -> String {
    let listed = Reading::of(rest).is_ok_and(|reading| reading.hosts.iter().any(|host| host.url == mirror));
    match rest.parse::<DocumentMut>() {
        Ok(mut document) if listed => {
            without(&mut document, mirror);
            document.to_string()
        }
        _ => rest.to_owned(),
    }
}

fn without(document: &mut DocumentMut, url: &str) {
    if let Some(hosts) = document.get_mut("host").and_then(Item::as_table_like_mut) {
        hosts.remove(url);
    }
}

/// `ca` and `client` name files relative to the folder of the file that they stand in.
fn move_paths(table: &mut dyn TableLike, prefix: &str) {
    fn walk(value: &mut Value, prefix: &str) {
        match value {
            Value::String(path) if !path.value().starts_with('/') => {
                *value = Value::from(format!("{prefix}{}", path.value())).decorated(
                    path.decor().prefix().cloned().unwrap_or_default(),
                    path.decor().suffix().cloned().unwrap_or_default(),
                );
            }
            Value::Array(paths) => paths.iter_mut().for_each(|path| walk(path, prefix)),
            _ => {}
        }
    }
    for field in ["ca", "client"] {
        if let Some(value) = table.get_mut(field).and_then(Item::as_value_mut) {
            walk(value, prefix);
        }
    }
}

/// Gives each host a header of its own, in the order of the file.
fn reorder(document: &mut DocumentMut, reading: &Reading) -> Result<(), String> {
    /// No dotted keys, and no place in the file but the one that the order gives.
    fn plain(table: &mut Table) {
        table.set_dotted(false);
        table.set_implicit(false);
        table.set_position(None);
        for (_, item) in table.iter_mut() {
            if let Some(below) = item.as_table_mut() {
                plain(below);
            }
        }
    }
    let Some(entries) = document.remove("host") else { return Ok(()) };
    let mut entries = entries.into_table().map_err(|_| "host is no table".to_owned())?;
    let mut hosts = Table::new();
    hosts.set_implicit(true);
    for url in reading.hosts.iter().map(|host| &host.url) {
        // Not there: it was ourselves.
        let Some(entry) = entries.remove(url) else { continue };
        let mut table = entry.into_table().map_err(|_| format!("the host {url:?} is no table"))?;
        plain(&mut table);
        table.fmt();
        hosts.insert(url, Item::Table(table));
    }
    document.insert("host", Item::Table(hosts));
    Ok(())
}

/// `text` with `block` before its first host, and the comment that stands right above that.
fn insert(text: &str, block: &str) -> Result<String, String> {
    let document = Document::parse(text).map_err(|e| e.message().to_owned())?;
    let Some(hosts) = document.get("host").and_then(Item::as_table).filter(|hosts| reading::header(hosts).is_some())
    else {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        return Ok(format!("{text}{end}{block}"));
    };
    let header = reading::header(hosts).unwrap_or(text.len());
    // Comments above the header belong to it; the text before them ends where the last value does.
    let bound = last_value_before(document.as_table(), header);
    let mut at = text[..header].rfind('\n').map_or(0, |newline| newline + 1);
    while at > 0 {
        let above = text[..at - 1].rfind('\n').map_or(0, |newline| newline + 1);
        if above < bound || !text[above..at].trim_start().starts_with('#') {
            break;
        }
        at = above;
    }
    Ok(format!("{}{block}{}", &text[..at], &text[at..]))
}

/// Where the last value or header before `limit` ends: a line that starts later is no part of a text in quotes.
fn last_value_before(table: &Table, limit: usize) -> usize {
    let own = table.span().map_or(0, |span| span.start);
    let below = table.iter().map(|(_, item)| match item {
        Item::Table(table) => last_value_before(table, limit),
        Item::ArrayOfTables(tables) => tables.iter().map(|t| last_value_before(t, limit)).max().unwrap_or(0),
        item => item.span().map_or(0, |span| span.end),
    });
    below.chain([own]).filter(|end| *end < limit).max().unwrap_or(0)
}

/// The last look at a text before it is written, through the same eyes as containerd's.
fn check(text: &str, mirror: &Mirror, before: &Reading, keys: &str) -> Result<(), String> {
    let after = Reading::of(text)?;
    let Some((first, others)) = after.hosts.split_first() else { return Err("there is no host in it".to_owned()) };
    if first.url != mirror.url || !after.ordinary {
        return Err(format!("{} doesn't come first in it", mirror.url));
    }
    // Compared as text: a float that is no number equals nothing, not even itself.
    let as_text =
        |hosts: &[reading::Host]| format!("{:?}", hosts.iter().map(|h| (&h.url, &h.fields)).collect::<Vec<_>>());
    if as_text(others) != as_text(&before.hosts) {
        return Err("the other hosts are not the same in it".to_owned());
    }
    let expected: toml::Table = if keys.is_empty() {
        before.root.clone()
    } else {
        keys.parse().map_err(|e: toml::de::Error| e.message().to_owned())?
    };
    if format!("{:?}", after.root) != format!("{expected:?}") {
        return Err("the upstream's fields are not the same in it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Mirror {
        let url = "https://127.0.0.1:7439".to_owned();
        let table = format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"larder-ca.pem\"\n");
        Mirror { url, table, ca: Some(String::new()) }
    }

    fn composed(text: &[u8]) -> Composed {
        let facts = Facts { mirror: mirror().url, kept: true, made: false };
        let source = Source { text: Some(text.to_owned()), ..Source::default() };
        compose(&mirror(), &source, &facts).unwrap()
    }

    /// The lines below the head.
    fn body(text: &str) -> String {
        composed(text.as_bytes()).text.split_once("# <<< larder\n").unwrap().1.to_owned()
    }

    #[test]
    fn sound_text_stays_to_the_byte_around_our_table() {
        let ours = marker::block(&mirror().table);
        for (before, after) in [
            ("server = \"https://a\"\n\n", "[host.\"https://b\"]\n  capabilities = [\"pull\"] # why\n"),
            ("server = \"https://a\"\n# about the server\n\n", "# about b\n  # more\n[host.b]\n"),
            ("", "[host]\n[host.b]\n"),
            ("", "# top\n[host.b]"),
            ("[header]\r\nx = \"1\"\r\n", "[host.b]\r\n[host.c]\r\n"),
            ("x = \"\"\"\n# no comment\n# still none\"\"\"\n", "[host.b]\n"),
            ("x = [\n# a\n'b' # c\n]\n", "# d\n[host.b.header]\ny = 'z'\n[host.b]\n"),
            ("# only\nserver = 'x' # comments\n", ""),
            ("[other]\n", "[host.b]\n[other.more]\n[host.c]\n"),
        ] {
            assert_eq!(body(&format!("{before}{after}")), format!("{before}{ours}{after}"));
        }
        assert_eq!(body("server = 'x'"), format!("server = 'x'\n{ours}"));
        assert!(composed(b"[host.b]").warnings.is_empty());
    }

    #[test]
    fn what_only_some_versions_see_becomes_tables() {
        for text in [
            "[host]\n\"https://b\" = {capabilities = ['pull'], header = {x = ['1', '2']}}\nc.ca = 'y'",
            "host = {\"https://b\" = {capabilities = ['pull'], header = {x = ['1', '2']}}, c = {ca = 'y'}}",
            "host.\"https://b\".capabilities = ['pull'] # a\nhost.\"https://b\".header.x = ['1', '2']\nhost.c.ca = 'y'",
            "[host]\n\"https://b\" = {capabilities = ['pull'], header = {x = ['1', '2']}}\n[host.c]\nca = 'y'",
        ] {
            let composed = composed(format!("# hello\nserver = 's'\n{text}").as_bytes());
            assert_eq!(composed.warnings, [Warning::Rewritten], "{}", composed.text);
            assert!(composed.text.contains("# hello\n"));
            let reading = Reading::of(&composed.text).unwrap();
            assert!(reading.ordinary);
            let urls: Vec<_> = reading.hosts.iter().map(|h| h.url.as_str()).collect();
            assert_eq!(urls, ["https://127.0.0.1:7439", "https://b", "c"]);
            assert_eq!(reading.hosts[1].fields["header"]["x"][1].as_str(), Some("2"));
            assert_eq!(reading.hosts[2].fields["ca"].as_str(), Some("y"));
            assert_eq!(reading.server(), Some("s"));
        }
    }

    #[test]
    fn unreadable_text_leaves_us_and_the_default_upstream() {
        for text in [&b"[host"[..], b"\xff\xfe", b"[host.a]\ncapabilities = ['fly']", b"[[host]]", b"a = 1\na = 2"] {
            let composed = composed(text);
            assert!(matches!(composed.warnings[..], [Warning::Malformed { .. }]));
            let reading = Reading::of(&composed.text).unwrap();
            assert!(reading.hosts.len() == 1 && reading.root.is_empty(), "{}", composed.text);
            assert!(composed.text.contains("# containerd can't read that file"));
        }
    }

    #[test]
    fn we_are_not_listed_twice() {
        let composed = composed(b"[host.\"http://127.0.0.1:7439/v2\"]\nskip_verify = true\n[host.b]\n");
        assert_eq!(composed.warnings, [Warning::AlreadyListed]);
        assert!(!composed.text.contains("skip_verify"));
        assert_eq!(Reading::of(&composed.text).unwrap().hosts.len(), 2);
    }

    #[test]
    fn certificates_count_where_nothing_else_is_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), "").unwrap();
        let certs = Certs::of(folder.path(), "").unwrap();
        let facts = Facts { mirror: mirror().url, kept: false, made: false };
        for text in [None, Some(""), Some("# nothing\n"), Some("[broken")] {
            let source = Source { text: text.map(|t| t.as_bytes().to_owned()), certs: certs.clone(), prefix: "" };
            let reading = Reading::of(&compose(&mirror(), &source, &facts).unwrap().text).unwrap();
            assert_eq!(reading.root["ca"][0].as_str(), Some("ca.crt"), "{text:?}");
            assert!(reading.server().is_none());
        }
        let source = Source { text: Some(b"server = 'x'".to_vec()), certs, prefix: "" };
        let reading = Reading::of(&compose(&mirror(), &source, &facts).unwrap().text).unwrap();
        assert!(!reading.root.contains_key("ca"));
    }

    #[test]
    fn paths_hold_in_another_folder() {
        let text = b"ca = 'a.pem'\n[host.b]\nca = ['/abs', 'rel'] # c\nclient = [['x', 'y'], 'z']\n".to_vec();
        let source = Source { text: Some(text), prefix: "../_default/", ..Source::default() };
        let facts = Facts { mirror: mirror().url, kept: false, made: true };
        let text = compose(&mirror(), &source, &facts).unwrap().text;
        for part in ["ca = \"../_default/a.pem\"", "'/abs', \"../_default/rel\"] # c", "\"../_default/z\""] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.contains("ca = \"larder-ca.pem\""));
    }

    #[test]
    fn a_file_of_ours_is_not_wrapped_twice() {
        let once = composed(b"server = 's'\n[host.b]\n").text;
        assert_eq!(composed(once.as_bytes()).text, once);
    }
}
