use super::*;

#[test]
fn a_proxy_catches_the_mirror() {
    let mut facts = sound();
    facts.runtime.environment =
        Some(Proxies { https: Some("http://p:3128".to_owned()), http: None, no: Some(".corp".to_owned()) });
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
    facts.authorities.insert(path, valid(-10, 3600));
    has(&note(&facts), &["only"]);
    facts.now = 1000;
    assert!(
        all(&facts).iter().any(|f| f.check == "clock" && f.what.contains("1970") && f.severity == Severity::Problem)
    );
}
