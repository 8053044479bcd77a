use super::*;
use crate::cli::doctor::facts::Environment;

#[test]
fn a_proxy_catches_the_mirror() {
    let mut facts = sound();
    let proxies = Proxies { https: Some("http://p:3128".to_owned()), http: None, no: Some(".corp".to_owned()) };
    facts.agent_environment = Some(proxies.clone());
    facts.runtime.environment = Some(Environment { proxies, files: Vec::new() });
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    facts.config.mirror.listen = "10.0.0.5:7439".parse().unwrap();
    facts.roots[0].folders = Ok(vec![folder("_default", &OURS.replace("127.0.0.1", "10.0.0.5"))]);
    has(&problem(&facts).1, &["http://p:3128", "Environment=\"NO_PROXY=.corp,10.0.0.5\""]);
}

#[test]
fn the_port() {
    let mut facts = sound();
    facts.port[0].process = Some((9, "nginx".to_owned()));
    has(&problem(&facts).1, &["nginx (process 9) listens on 127.0.0.1:7439", "listen = \"127.0.0.1:7449\""]);
    facts.port.clear();
    // A hostPort is a rule of the packet filter: nobody has a socket.
    has(&problem(&facts).1, &["somebody who has no socket here answers", "kube-image-keeper", "hostPort' | grep 7439"]);
    facts.is_port_open = false;
    has(&problem(&facts).1, &["nobody listens on 127.0.0.1:7439", "hostNetwork"]);
}

#[test]
fn the_disk() {
    let mut facts = sound();
    let disk = facts.disk.as_mut().unwrap();
    (disk.used_percent, disk.shared) = (80, Some(true));
    has(&note(&facts), &["80 % used", "max_disk_percent = 75"]);
    facts.disk.as_mut().unwrap().available = 1 << 20;
    has(&problem(&facts).1, &["nothing can be kept"]);
    let mut facts = sound();
    facts.disk.as_mut().unwrap().shared = Some(false);
    has(&note(&facts), &["different filesystems", "dir = \\\"/var/lib/containerd/larder\\\""]);
    facts.disk.as_mut().unwrap().shared = None;
    has(&note(&facts), &["/var/lib/containerd isn't seen from here"]);
    facts.disk = None;
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
}

#[test]
fn the_clock() {
    let mut facts = sound();
    let valid = |from, until| Authority::Valid { from: NOW + from, until: NOW + until };
    let path = facts.authorities.keys().next().unwrap().clone();
    for (authority, said) in
        [(valid(3600, 7200), "later than the clock"), (valid(-7200, -3600), "was valid until 2027-01-15T07:00:00Z")]
    {
        facts.authorities.insert(path.clone(), authority);
        has(&problem(&facts).1, &[said]);
    }
    facts.authorities.insert(path.clone(), valid(3600, 7200));
    has(&problem(&facts).1, &["timedatectl set-ntp true", "if the clock is right by now", "systemctl restart larder"]);
    facts.authorities.insert(path, valid(-10, 3600));
    has(&note(&facts), &["only"]);
    facts.now = 1000;
    assert!(
        all(&facts).iter().any(|f| f.check == "clock" && f.what.contains("1970") && f.severity == Severity::Problem)
    );
}

fn proxies(https: Option<&str>, no: Option<&str>) -> Proxies {
    Proxies { https: https.map(str::to_owned), http: None, no: no.map(str::to_owned) }
}

#[test]
fn containerd_and_the_agent_go_by_the_same_proxy() {
    let mut facts = sound();
    let goes = |facts: &mut Facts, theirs: Proxies, ours: Proxies| {
        facts.runtime.environment = Some(Environment { proxies: theirs, files: Vec::new() });
        facts.agent_environment = Some(ours);
    };
    goes(&mut facts, proxies(Some("http://joe:secret@p:3128"), Some(".corp,10.0.0.0/8")), Proxies::default());
    let (_, text) = problem(&facts);
    has(
        &text,
        &[
            "by http://joe:PASSWORD@p:3128; the agent goes directly",
            "/etc/systemd/system/larder.service.d/proxy.conf",
            "Environment=\"HTTPS_PROXY=http://joe:PASSWORD@p:3128\"",
            "NO_PROXY=.corp,10.0.0.0/8",
            "systemctl restart larder",
        ],
    );
    assert!(!text.contains("secret"), "{text}");
    // Who needs no password is given no place for one.
    for proxy in ["http://joe@p:3128", "joe:@p:3128", "http://p:3128"] {
        goes(&mut facts, proxies(Some(proxy), None), Proxies::default());
        has(
            &problem(&facts).1,
            &[&format!("by {proxy}; the agent goes directly"), &format!("Environment=\"HTTPS_PROXY={proxy}\"")],
        );
    }
    goes(&mut facts, proxies(Some("joe:s@cret@p:3128"), None), Proxies::default());
    has(&problem(&facts).1, &["by joe:PASSWORD@p:3128; "]);
    // Another proxy is another way; an order of exceptions isn't.
    goes(&mut facts, proxies(Some("http://p:1/"), Some("a, b")), proxies(Some("http://p:1"), Some("b,A")));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    goes(&mut facts, proxies(Some("http://p:1"), None), proxies(Some("http://q:1"), None));
    has(&problem(&facts).1, &["by http://p:1; the agent goes by http://q:1"]);
    goes(&mut facts, proxies(Some("http://p:1"), Some(".corp")), proxies(Some("http://p:1"), None));
    has(&note(&facts), &["NO_PROXY excepts .corp, the agent's nothing"]);
    goes(&mut facts, Proxies::default(), proxies(Some("http://p:1"), None));
    has(&note(&facts), &["containerd goes to registries directly; the agent goes by http://p:1"]);
    // Where files say it, they are named.
    facts.runtime.environment = Some(Environment {
        proxies: proxies(Some("http://p:1"), None),
        files: vec!["/etc/systemd/system/containerd.service.d/proxy.conf".into()],
    });
    facts.agent_environment = Some(Proxies::default());
    has(&problem(&facts).1, &["say /etc/systemd/system/containerd.service.d/proxy.conf"]);
    // With the agent down there is nothing to compare.
    facts.agent_environment = None;
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn the_cluster_authority() {
    let mut facts = sound();
    facts.config.peers.ca = Some("/etc/larder-peers/ca.pem".into());
    let valid = |from, until| Some(Authority::Valid { from: NOW + from, until: NOW + until });
    facts.peers_ca = valid(-10, 400 * 86_400);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    for (authority, said) in [(valid(-7200, -3600), "was valid until"), (valid(3600, 7200), "later than the clock")] {
        facts.peers_ca = authority;
        has(&problem(&facts).1, &[said, "/etc/larder-peers/ca.pem"]);
    }
    facts.peers_ca = valid(-10, 86_400);
    has(&note(&facts), &["only", "larder certs"]);
    facts.peers_ca = Some(Authority::Missing);
    has(&note(&facts), &["they are off", "larder certs"]);
    facts.surroundings.is_pod = true;
    let found = all(&facts);
    assert!(
        found.iter().any(|f| f.mend.iter().any(|m| m.lines[0].contains("larder certs --kubernetes | kubectl apply")))
    );
    facts.surroundings.is_pod = false;
    facts.peers_ca = Some(Authority::NotPem);
    has(&problem(&facts).1, &["no certificate"]);
}

#[test]
fn the_textfile() {
    let mut facts = sound();
    facts.config.admin.textfile = Some("/var/lib/node_exporter/larder.prom".into());
    facts.textfile = Some(Ok(()));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    facts.textfile = Some(Err("No such file or directory".to_owned()));
    has(&problem(&facts).1, &["No such file", "--collector.textfile.directory=/var/lib/node_exporter"]);
}

#[test]
fn the_authorities_that_are_believed() {
    let mut facts = sound();
    facts.trusted.source = AuthoritySource::Bundled;
    has(&note(&facts), &["built in", "ca-certificates"]);
    facts.trusted.is_by_variable = true;
    facts.trusted.unreadable =
        vec![Unreadable { path: "/nowhere.pem".into(), reason: "no such file".to_owned(), leads_to: None }];
    has(&problem(&facts).1, &["/nowhere.pem", "SSL_CERT_FILE"]);
}

#[test]
fn what_others_have_left() {
    let spegel = format!("[host.'http://10.0.0.5:30020']\n[host.'http://127.0.0.1:30021']\n{OURS}");
    let mut facts = sound();
    facts.roots[0].folders = Ok(vec![folder("_default", &spegel)]);
    let found: Vec<_> = all(&facts).into_iter().filter(|f| f.what.contains("Spegel's mirror")).collect();
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(found[0].place.as_deref(), Some("/etc/containerd/certs.d/_default/hosts.toml:1"));
    // One that is there is nobody's leftover.
    facts.taken_ports.extend([30020, 30021]);
    assert!(!all(&facts).iter().any(|f| f.what.contains("Spegel")));
    facts.roots[0].folders = Ok(vec![folder("_backup", OURS), folder("_default", OURS)]);
    has(&note(&facts), &["put the files aside", "rm -r /etc/containerd/certs.d/_backup"]);
}
