//! What the user's files make our upstreams.

use std::sync::mpsc;

use proptest::prelude::*;

use super::super::{Adopted, AdoptedFolder, Adoption};
use super::*;
use crate::config::UpstreamConfig;

/// A certificate and its key as PEM, and both in one.
fn client() -> [String; 3] {
    let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let both = format!("{key}{certificate}");
    [certificate, key, both]
}

fn adopted(certs: &Certs) -> Adopted {
    HostsDir::adopted(&certs.dir, entry().listen).unwrap()
}

fn folder(certs: &Certs, name: &str) -> AdoptedFolder {
    let all = adopted(certs);
    all.folders.iter().find(|one| one.target == target(name)).unwrap_or_else(|| panic!("{name}: {all:?}")).clone()
}

fn urls(folder: &AdoptedFolder) -> Vec<String> {
    folder.upstreams.iter().map(|upstream| upstream.url.to_string()).collect()
}

/// The URLs that a file for `reg.corp` gives.
fn urls_of(text: &str) -> Vec<String> {
    urls(&folder(&Certs::with(&[("reg.corp/hosts.toml", text)]), "reg.corp"))
}

fn left_out(folder: &AdoptedFolder) -> Vec<String> {
    folder.left_out.iter().map(|left| format!("{}: {}", left.host.as_deref().unwrap_or("all"), left.why)).collect()
}

#[test]
fn a_host_comes_with_all_that_is_said_of_it() {
    let [certificate, key, both] = client();
    let certs = Certs::with(&[
        ("docker.io/ca.pem", &ca_pem()),
        ("docker.io/tls/a.pem", &certificate),
        ("docker.io/tls/a.key", &key),
        ("docker.io/tls/both.pem", &both),
    ]);
    let path = |name: &str| certs.dir.join("docker.io").join(name);
    let text = format!(
        r#"
        [host."https://one.corp/hub"]
          ca = "ca.pem"
          client = [["tls/a.pem", "tls/a.key"]]
          capabilities = ["Pull", "resolve"]
          dial_timeout = "1s"
        [host."https://one.corp/hub".header]
          x-team = "builds"
          X-Many = ["a", "b"]
        [host."two.corp:5000/v2"]
          ca = ["ca.pem", {absolute:?}]
          client = "tls/both.pem"
          capabilities = ["pull"]
        [host."http://three.corp/v2/proxy"]
          override_path = true
          skip_verify = true
          ca = "ca.pem"
        [host."https://four.corp"]
          skip_verify = true
        "#,
        absolute = path("ca.pem"),
    );
    certs.put("docker.io/hosts.toml", text.as_bytes());
    let folder = folder(&certs, "docker.io");
    assert_eq!(left_out(&folder), Vec::<String>::new());
    assert_eq!(folder.file, path("hosts.toml"));

    let new = |url: &str| UpstreamConfig::new(url.parse().unwrap());
    let mut one = UpstreamConfig {
        ca: vec![path("ca.pem")],
        client_cert: Some(path("tls/a.pem")),
        client_key: Some(path("tls/a.key")),
        ..new("https://one.corp/hub")
    };
    for (name, value) in [("x-many", "a"), ("x-many", "b"), ("x-team", "builds")] {
        one.add_header(name, value).unwrap();
    }
    let two = UpstreamConfig {
        ca: vec![path("ca.pem"), path("ca.pem")],
        client_cert: Some(path("tls/both.pem")),
        client_key: Some(path("tls/both.pem")),
        resolve: false,
        ..new("https://two.corp:5000/v2")
    };
    // An http:// host is asked over plain HTTP, whatever certificates it has.
    let three = UpstreamConfig { override_path: true, insecure: true, ..new("http://three.corp/v2/proxy") };
    let four = UpstreamConfig { insecure: true, ..new("https://four.corp") };
    assert_eq!(folder.upstreams, [one, two, three, four]);
}

#[test]
fn the_server_comes_last_unless_it_is_the_registrys_own_address() {
    assert_eq!(urls_of("server = 'https://s'\n[host.b]\n[host.a]\n"), ["https://b", "https://a", "https://s"]);
    for own in ["https://reg.corp", "reg.corp", "https://reg.corp/", "https://reg.corp/v2", "https://REG.corp/v2/"] {
        // Named as the server and as a host: once, in the first place that it has.
        let text = format!("server = '{own}'\n[host.'{own}']\n[host.a]\n");
        assert_eq!(urls_of(&text), ["https://reg.corp", "https://a"], "{own}");
    }
    assert_eq!(urls_of("[host.a]\n"), ["https://a"]);
    assert_eq!(urls_of(""), Vec::<String>::new());
    assert_eq!(urls_of("server = 'http://reg.corp'"), ["http://reg.corp"]);

    for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
        let certs = Certs::with(&[("docker.io/hosts.toml", &format!("server = 'https://{name}'\n[host.a]\n"))]);
        assert_eq!(urls(&folder(&certs, "docker.io")), ["https://a", "https://registry-1.docker.io"]);
    }
}

#[test]
fn the_registrys_own_address_keeps_what_is_set_for_it() {
    let ca = ca_pem();
    for (name, text) in [("ca.crt", ca.as_str()), ("hosts.toml", "ca = 'ca.pem'\n"), ("hosts.toml", "[broken")] {
        let certs = Certs::with(&[("reg.corp_5000_/ca.pem", &ca), (&format!("reg.corp_5000_/{name}"), text)]);
        if text == "[broken" {
            certs.put("reg.corp_5000_/ca.crt", ca.as_bytes());
        }
        let folder = folder(&certs, "reg.corp:5000");
        assert_eq!(urls(&folder), ["https://reg.corp:5000"], "{name}: {text}");
        assert_eq!(folder.upstreams[0].ca.len(), 1);
        let is_malformed = left_out(&folder).iter().any(|left| left.starts_with("all: containerd can't read"));
        assert_eq!(is_malformed, text == "[broken");
    }
}

#[test]
fn a_registry_on_this_machine_is_asked_as_containerd_asks_it() {
    for (name, url) in [
        ("localhost:5000", Some("http://localhost:5000")),
        ("127.0.0.1_5000_", Some("http://127.0.0.1:5000")),
        ("[::1]:5000", Some("http://[::1]:5000")),
        ("localhost:443", None),
        ("localhost", None),
        ("10.0.0.1:5000", None),
    ] {
        let certs = Certs::with(&[(&format!("{name}/"), "")]);
        let all = adopted(&certs);
        assert_eq!(urls(&all.folders[0]), url.into_iter().collect::<Vec<_>>(), "{name}");
        assert!(all.folders[0].upstreams.iter().all(|upstream| upstream.insecure));
    }
}

#[test]
fn what_cant_be_taken_over_is_left_out_with_its_reason() {
    let [certificate, key, _] = client();
    let [_, other_key, _] = client();
    let certs = Certs::with(&[
        ("a.io/ca.pem", &ca_pem()),
        ("a.io/no.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("a.io/empty.pem", ""),
        ("a.io/c.pem", &certificate),
        ("a.io/c.key", &key),
        ("a.io/d.key", &other_key),
        ("a.io/dir.pem/", ""),
        ("b.io/hosts.toml/", ""),
    ]);
    for (fields, reason) in [
        ("capabilities = ['push']", "have \"pull\""),
        ("capabilities = ['resolve']", "have \"pull\""),
        ("ca = 'gone.pem'", "gone.pem can't be used: it isn't there"),
        ("ca = ['ca.pem', 'no.pem']", "no.pem can't be used"),
        ("ca = 'empty.pem'", "no certificate in PEM"),
        ("ca = 'dir.pem'", "dir.pem is no file"),
        ("client = 'c.pem'", "c.pem can't be used"),
        ("client = [['c.pem', 'd.key']]", "d.key can't be used"),
        ("client = [['c.pem', '/nowhere']]", "/nowhere can't be used"),
    ] {
        certs.put("a.io/hosts.toml", format!("[host.bad]\n{fields}\n[host.good]\n").as_bytes());
        let folder = folder(&certs, "a.io");
        assert_eq!(urls(&folder), ["https://good"], "{fields}");
        let [left] = &left_out(&folder)[..] else { panic!("{fields}: {folder:?}") };
        assert!(left.starts_with("bad: ") && left.contains(reason), "{fields}: {left}");
    }
    for url in ["https://u:p@h", "https://h?q", "ftp://h", "httpd.corp", "https://h/a%zz"] {
        certs.put("a.io/hosts.toml", format!("[host.{url:?}]\n[host.good]\n").as_bytes());
        let folder = folder(&certs, "a.io");
        assert!(urls(&folder).last().unwrap() == "https://good", "{url}: {folder:?}");
        assert!(folder.upstreams.len() + folder.left_out.len() == 2, "{url}: {folder:?}");
        assert!(!format!("{folder:?}").contains("u:p@"), "{folder:?}");
    }
    let unreadable = folder(&certs, "b.io");
    assert!(left_out(&unreadable)[0].contains("b.io/hosts.toml"), "{unreadable:?}");

    // Taken over, and said what of it isn't.
    let text =
        "[host.a]\nclient = [['c.pem', 'c.key'], ['x', 'y']]\n[host.a.header]\nHost = 'hush'\nX = \"hush\\n\"\nY = 'y'";
    certs.put("a.io/hosts.toml", text.as_bytes());
    let folder = folder(&certs, "a.io");
    assert_eq!((urls(&folder), folder.upstreams[0].headers.len()), (vec!["https://a".to_owned()], 1));
    assert_eq!(folder.left_out.len(), 3, "{folder:?}");
    assert!(!format!("{folder:?}").contains("hush"));
}

#[test]
fn only_what_the_user_wrote_counts() {
    let text = "[host.\"https://mirror.corp\"]\n";
    let certs = Certs::with(&[("docker.io/hosts.toml", text), ("_default/hosts.toml", "[host.all]\n")]);
    let upstreams = |certs: &Certs| adopted(certs).upstreams();
    let before = upstreams(&certs);
    assert_eq!(before.len(), 2);
    // Ours beside theirs, and a folder of ours that says what the default does.
    certs.apply(&["_default", "ghcr.io"]);
    assert!(certs.has("ghcr.io"));
    assert_eq!(upstreams(&certs), before);
    assert!(folder(&certs, "docker.io").file.ends_with(format!("docker.io/{KEPT}")));

    // An edit of ours, a new file in the place of ours, and the original gone.
    let edited = certs.text("docker.io/hosts.toml") + "[host.added]\n";
    certs.put("docker.io/hosts.toml", edited.as_bytes());
    assert_eq!(urls(&folder(&certs, "docker.io")), ["https://mirror.corp", "https://added"]);
    certs.put("docker.io/hosts.toml", b"[host.new]\n");
    assert_eq!(urls(&folder(&certs, "docker.io")), ["https://new"]);
    certs.apply(&["_default"]);
    assert_eq!(urls(&folder(&certs, "docker.io")), ["https://new"]);
    fs::remove_file(certs.dir.join("docker.io").join(KEPT)).unwrap();
    assert_eq!(urls(&folder(&certs, "docker.io")), ["https://new"]);

    assert_eq!(adopted(&Certs::missing()), Adopted::default());
}

#[test]
fn we_are_never_our_own_upstream() {
    for host in [
        URL,
        "http://127.0.0.1:7439",
        "https://localhost:7439/v2",
        "http://0.0.0.0:7439",
        "https://[::1]:7439",
        "127.0.0.2:7439",
    ] {
        assert_eq!(urls_of(&format!("[host.{host:?}]\nskip_verify = true\n[host.a]\n")), ["https://a"], "{host}");
        assert_eq!(urls_of(&format!("server = {host:?}\n[host.a]\n")), ["https://a"], "{host}");
    }
    // Another program's port on this machine is a mirror like any other.
    assert_eq!(urls_of("[host.'http://127.0.0.1:30020']\n"), ["http://127.0.0.1:30020"]);
}

#[test]
fn a_folder_is_taken_for_what_containerd_reads_it_for() {
    let certs = Certs::with(&[
        ("a.io_5000_/hosts.toml", "[host.first]\n"),
        ("a.io:5000/hosts.toml", "[host.shadowed]\n"),
        ("empty.io/", ""),
        ("lost+found/hosts.toml", "[host.x]\n"),
        ("gone.io -> /nowhere", ""),
        ("_default/hosts.toml", "[host.all]\n"),
    ]);
    let all = adopted(&certs);
    let said: Vec<_> = all.folders.iter().map(|one| (one.target.folder(), urls(one))).collect();
    let url = |url: &str| vec![url.to_owned()];
    // An empty folder keeps the default's hosts from its registry.
    let expected = [("_default", url("https://all")), ("a.io:5000", url("https://first")), ("empty.io", vec![])];
    assert_eq!(said, expected);
}

#[test]
fn the_default_speaks_for_hosts_alone() {
    for (name, text) in [("hosts.toml", "skip_verify = true"), ("ca.crt", "x")] {
        let certs = Certs::with(&[(&format!("_default/{name}"), text)]);
        assert!(left_out(&folder(&certs, "_default"))[0].contains("[[registry]]"));
    }
    for name in ["hosts.toml", "README"] {
        assert_eq!(adopted(&Certs::with(&[(&format!("_default/{name}"), "")])), Adopted::default());
    }
    let certs = Certs::with(&[("_default/hosts.toml", "server = 'https://all.corp'\n")]);
    assert_eq!(urls(&folder(&certs, "_default")), ["https://all.corp"]);
}

#[test]
fn news_is_told_once_and_a_renewed_certificate_is_news() {
    let certs = Certs::with(&[("a.io/hosts.toml", "[host.a]\nca = 'ca.pem'\n"), ("a.io/ca.pem", &ca_pem())]);
    let (sender, told) = mpsc::channel();
    let tell = move |adopted: &Adopted| sender.send(adopted.clone()).unwrap();
    let adoption = Adoption::new(certs.dir.clone(), entry().listen, tell);
    let look = || {
        adoption.look();
        told.try_iter().map(|adopted| adopted.upstreams()).collect::<Vec<_>>()
    };
    let first = look();
    assert_eq!(first.len(), 1);
    assert!(look().is_empty());
    // Our own writing is no news.
    certs.apply(&["_default"]);
    certs.restore();
    assert!(look().is_empty());

    let [renewed, ..] = client();
    certs.put("a.io/ca.pem", renewed.as_bytes());
    assert_eq!(look(), first);
    certs.put("a.io/hosts.toml", b"");
    assert_eq!(look(), [[(target("a.io"), vec![])]]);

    // What can't be read is no word on what the user wants.
    fs::rename(&certs.dir, certs.dir.with_extension("away")).unwrap();
    fs::write(&certs.dir, "no folder").unwrap();
    assert!(look().is_empty() && look().is_empty());
}

/// A line of a file, sound or not.
fn line() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("true".to_owned()),
        "['\"]{0,1}[a-z/.:@?# \\[\\]0-9]{0,12}['\"]{0,1}",
        "\\[('[a-z./]{0,6}',?){0,3}\\]",
        Just("[['a', 'b']]".to_owned()),
        Just("{ Host = 'x', Y = ['a', 'é'] }".to_owned()),
        "'(https?://)?([a-z]{1,3}|127.0.0.1|\\[::1\\])(:7439|:5000|:99999)?(/v2|/\\.\\./|//|/%)?'",
    ];
    let key = prop_oneof![
        Just("server"),
        Just("capabilities"),
        Just("ca"),
        Just("client"),
        Just("skip_verify"),
        Just("header"),
        Just("override_path"),
        Just("other"),
    ];
    prop_oneof![
        4 => (key, value.clone()).prop_map(|(key, value)| format!("{key} = {value}\n")),
        3 => value.prop_map(|host| format!("[host.{host}]\n")),
        1 => "(\\PC|\n){0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_file_of_a_user_stops_us(
        lines in proptest::collection::vec(line(), 0..8),
        bytes in proptest::collection::vec(any::<u8>(), 0..4),
        default in any::<bool>(),
    ) {
        let name = if default { "_default/hosts.toml" } else { "reg.corp/hosts.toml" };
        let certs = Certs::with(&[]);
        certs.put(name, &[lines.concat().as_bytes(), &bytes].concat());
        for folder in adopted(&certs).folders {
            for upstream in folder.upstreams {
                prop_assert!(upstream.insecure || !upstream.url.is_plain());
                prop_assert!(upstream.ca.iter().chain(&upstream.client_cert).all(|path| path.is_absolute()));
                prop_assert!(upstream.url.authority().port_u16() != Some(7439) || upstream.url.authority().host().len() < 4);
            }
        }
    }
}
