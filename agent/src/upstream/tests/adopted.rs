//! Mirrors that are taken over from elsewhere.

use super::*;
use crate::config::HostsTarget;

fn urls(upstreams: &Upstreams, registry: &str) -> Vec<String> {
    upstreams.of(&registry.parse().unwrap()).iter().map(|upstream| upstream.url().to_string()).collect()
}

fn target(registry: &str) -> HostsTarget {
    HostsTarget::Registry(registry.parse().unwrap())
}

#[tokio::test]
async fn they_stand_before_the_registrys_own_address() {
    let upstreams = Upstreams::new(&config(vec![at("https://ours.test")])).unwrap();
    let own = Arc::clone(&upstreams.of(&"quay.io".parse().unwrap())[0]);
    let found = || {
        vec![
            (HostsTarget::Default, vec![at("https://all.test")]),
            (target("docker.io"), vec![at("https://registry-1.docker.io"), at("https://hub.test")]),
            (target("registry.test"), vec![at("https://theirs.test")]),
        ]
    };
    upstreams.adopt(found());
    assert_eq!(urls(&upstreams, "registry.test"), ["https://ours.test"], "what is configured stays");
    assert_eq!(urls(&upstreams, "docker.io"), ["https://hub.test", "https://registry-1.docker.io"]);
    assert_eq!(urls(&upstreams, "quay.io"), ["https://all.test", "https://quay.io"]);
    assert_eq!(urls(&upstreams, "new.test"), ["https://all.test", "https://new.test"]);
    let quay = upstreams.of(&"quay.io".parse().unwrap());
    assert!(Arc::ptr_eq(&quay[1], &own), "what it learned stays");
    assert!(quay[1].is_origin() && !quay[0].is_origin());
    assert!(upstreams.of(&Registry::docker_hub())[1].is_origin());

    upstreams.adopt(found());
    assert!(Arc::ptr_eq(&quay[0], &upstreams.of(&"quay.io".parse().unwrap())[0]), "the same again changes nothing");

    upstreams.adopt(Vec::new());
    assert_eq!(urls(&upstreams, "docker.io"), ["https://registry-1.docker.io"]);
    assert_eq!(urls(&upstreams, "quay.io"), ["https://quay.io"]);
}

#[tokio::test]
async fn one_that_cannot_be_set_up_is_left_out() {
    let upstreams = Upstreams::new(&Config::default()).unwrap();
    let broken = UpstreamConfig { ca: vec!["/nonexistent/ca.pem".into()], ..at("https://broken.test") };
    upstreams.adopt(vec![(target("quay.io"), vec![broken, at("https://well.test")])]);
    assert_eq!(urls(&upstreams, "quay.io"), ["https://well.test", "https://quay.io"]);
}
