use super::*;

fn with_folders(folders: Vec<Folder>) -> Facts {
    let mut facts = sound();
    facts.roots[0].folders = Ok(folders);
    facts
}

#[test]
fn a_folder_wins_over_default() {
    let facts =
        with_folders(vec![folder("_default", OURS), folder("docker.io", "server = 'https://registry-1.docker.io'\n")]);
    let (finding, text) = problem(&facts);
    has(&text, &["for docker.io doesn't name the mirror", "wins over _default", "larder hosts apply"]);
    assert_eq!(finding.place.as_deref(), Some("/etc/containerd/certs.d/docker.io/hosts.toml"));
    let mut facts = with_folders(vec![folder("_default", OURS)]);
    facts.roots[0].folders.as_mut().unwrap().push(Folder { name: "ghcr.io".to_owned(), file: HostsFile::Absent });
    has(&problem(&facts).1, &["ghcr.io has no hosts.toml"]);
}

#[test]
fn entries_for_some_registries_only() {
    let mut facts = with_folders(vec![folder("reg.corp:5000", OURS), folder("quay.io", "")]);
    facts.config.containerd.registries = vec![crate::config::HostsTarget::Registry("reg.corp:5000".parse().unwrap())];
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine, "{:#?}", all(&facts));
    // containerd tries this spelling first.
    facts.roots[0].folders.as_mut().unwrap().push(folder("reg.corp_5000_", ""));
    has(&problem(&facts).1, &["reg.corp_5000_"]);
    facts.roots[0].folders = Ok(vec![folder("quay.io", "")]);
    has(&problem(&facts).1, &["there is no entry for reg.corp:5000"]);
}

#[test]
fn no_entry_at_all() {
    has(&problem(&with_folders(Vec::new())).1, &["no entry for _default", "larder hosts apply"]);
    let mut facts = sound();
    facts.roots[0].folders = Err(Unlisted::Missing);
    has(&problem(&facts).1, &["/etc/containerd/certs.d doesn't exist"]);
    facts.roots[0].folders = Err(Unlisted::Unreadable("permission denied".to_owned()));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
}

#[test]
fn malformed_hosts() {
    let (finding, text) = problem(&with_folders(vec![folder("_default", "a = 1\n[host"), folder("a.b", OURS)]));
    has(&text, &["is no TOML", "without any mirror"]);
    assert_eq!(finding.place.as_deref(), Some("/etc/containerd/certs.d/_default/hosts.toml:2"));
}

#[test]
fn entries_of_ours_that_do_not_work() {
    for (text, said) in [
        (OURS.replace("'pull', ", ""), "lacks a capability"),
        (OURS.replace("ca = 'larder-ca.pem'", ""), "https:// without ca"),
        ("host = {'http://127.0.0.1:7439' = {}}".to_owned(), "no table header"),
    ] {
        has(&problem(&with_folders(vec![folder("_default", &text)])).1, &[said]);
    }
    let plain = OURS.replace("https:", "http:").replace("ca = 'larder-ca.pem'", "skip_verify = true");
    has(&note(&with_folders(vec![folder("_default", &plain)])), &["http:// with ca or skip_verify"]);
    let second = format!("[host.'https://other']\n{OURS}");
    has(&note(&with_folders(vec![folder("_default", &second)])), &["asks https://other before the mirror"]);
    // Another port is another mirror; localhost is ours.
    has(
        &problem(&with_folders(vec![folder("_default", &OURS.replace("7439", "7440"))])).1,
        &["doesn't name the mirror"],
    );
    let local = with_folders(vec![folder("_default", &OURS.replace("127.0.0.1", "localhost"))]);
    assert_eq!(Outcome::of(&all(&local)), Outcome::Fine);
}

#[test]
fn a_missing_authority_fails_every_pull() {
    let mut facts = sound();
    let path = facts.authorities.keys().next().unwrap().clone();
    facts.authorities.insert(path.clone(), Authority::Missing);
    let (finding, text) = problem(&facts);
    has(&text, &["doesn't exist", "every pull", "larder hosts apply"]);
    assert_eq!(finding.place.as_deref(), Some("/etc/containerd/certs.d/_default/hosts.toml:1"));
    facts.authorities.insert(path, Authority::NotPem);
    has(&problem(&facts).1, &["has no certificate"]);
}

#[test]
fn referrers_before_2_2() {
    let mut facts = with_folders(vec![folder("_default", &OURS.replace("'resolve'", "'resolve', 'referrers'"))]);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    runs(&mut facts, "2.1.9", SOUND);
    has(&problem(&facts).1, &["referrers", "[\"pull\", \"resolve\"]"]);
}

#[test]
fn addresses_of_ipv6_before_2_0() {
    let six = format!("{OURS}[host.'https://[fd00::1]:5000']\n");
    let mut facts = with_folders(vec![folder("_default", &six)]);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    runs(
        &mut facts,
        "1.7.24",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'",
    );
    has(&problem(&facts).1, &["https://[fd00::1]:5000 is an address of IPv6", "no host of the file", "NAME"]);
    facts.config.mirror.listen = "[::1]:7439".parse().unwrap();
    facts.roots[0].folders = Ok(vec![folder("_default", &OURS.replace("127.0.0.1", "[::1]"))]);
    facts.port[0].address = facts.config.mirror.listen;
    has(&problem(&facts).1, &["listen = \"127.0.0.1:7439\""]);
}

#[test]
fn dial_timeout_on_2_0() {
    let mut facts = with_folders(vec![folder("_default", "[host.'http://127.0.0.1:7439']\ndial_timeout = '1s'")]);
    runs(&mut facts, "2.0.9", SOUND);
    assert!(all(&facts).iter().any(|f| f.what.contains("dial_timeout") && f.severity == Severity::Note));
}

#[test]
fn an_earlier_folder_of_the_list() {
    let mut facts = sound();
    runs(
        &mut facts,
        "1.7.24",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/first:/etc/containerd/certs.d'",
    );
    facts.roots.insert(0, Root { path: "/first".into(), folders: Ok(vec![folder("_default", "")]) });
    has(
        &problem(&facts).1,
        &["for everything containerd looks into /first first", "mv /first/_default /etc/containerd/certs.d/"],
    );
    facts.roots[0].folders = Err(Unlisted::Missing);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}
