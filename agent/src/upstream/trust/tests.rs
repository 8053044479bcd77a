use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::super::tls::{Tls, TlsOptions};
use super::*;

/// A host's files, and what is mounted of them.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn link(self, path: &str, target: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    fn read(&self) -> Authorities {
        describe(&reading::read(&[places::known(self.0.path())]))
    }

    fn places(&self) -> Vec<String> {
        let AuthoritySource::Host(places) = self.read().source else { return Vec::new() };
        places.iter().map(|place| place.strip_prefix(self.0.path()).unwrap().display().to_string()).collect()
    }
}

fn certificate(name: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.self_signed(&key).unwrap().pem()
}

fn trust(host: &Host) -> Trust {
    Trust::of(vec![places::known(host.0.path())], &Metrics::new())
}

#[test]
fn each_distributions_places() {
    let (a, b) = (certificate("a"), certificate("b"));
    let both = format!("# two\n{a}\n{b}");
    let debian = Host::new()
        .file("etc/ssl/certs/ca-certificates.crt", &both)
        .file("usr/share/ca-certificates/mozilla/A.crt", &a)
        .link("etc/ssl/certs/A.pem", "/usr/share/ca-certificates/mozilla/A.crt")
        .link("etc/ssl/certs/0a1b2c3d.0", "A.pem");
    assert_eq!((debian.read().count, debian.places()), (2, vec!["etc/ssl/certs/ca-certificates.crt".to_owned()]));

    let fedora = Host::new()
        .file("etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", &both)
        .link("etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem")
        .link("etc/ssl/certs", "../pki/tls/certs");
    assert_eq!((fedora.read().count, fedora.places()), (2, vec!["etc/pki/tls/certs/ca-bundle.crt".to_owned()]));

    let suse = Host::new()
        .file("var/lib/ca-certificates/ca-bundle.pem", &both)
        .file("var/lib/ca-certificates/pem/a.pem", &a)
        .link("etc/ssl/ca-bundle.pem", "../../var/lib/ca-certificates/ca-bundle.pem")
        .link("etc/ssl/certs", "../../var/lib/ca-certificates/pem");
    assert_eq!((suse.read().count, suse.places()), (2, vec!["etc/ssl/ca-bundle.pem".to_owned()]));

    let alpine = Host::new()
        .file("etc/ssl/certs/ca-certificates.crt", &both)
        .link("etc/ssl/cert.pem", "certs/ca-certificates.crt");
    assert_eq!(alpine.read().count, 2);
    let talos = Host::new().file("etc/ssl/certs/ca-certificates", &a);
    assert_eq!(talos.read().count, 1);
    let bottlerocket = Host::new().file("etc/pki/tls/certs/ca-bundle.crt", &a);
    assert_eq!(bottlerocket.read().count, 1);
    // Single files that somebody added by hand count, as they do for containerd.
    let flatcar = Host::new().file("etc/ssl/certs/ca-certificates.crt", &a).file("etc/ssl/certs/corp.pem", &b);
    assert_eq!((flatcar.read().count, flatcar.places().len()), (2, 2));
}

/// In a Pod that has `/etc/ssl` alone, or `/etc/pki` alone.
#[test]
fn links_that_dangle() {
    let (a, b) = (certificate("a"), certificate("b"));
    let debian = Host::new()
        .file("etc/ssl/certs/ca-certificates.crt", &a)
        .link("etc/ssl/certs/A.pem", "/usr/share/ca-certificates/mozilla/A.crt")
        .link("etc/ssl/certs/corp.pem", "/usr/local/share/ca-certificates/corp.crt");
    let read = debian.read();
    assert_eq!((read.count, read.unreadable.len()), (1, 0), "the bundle has them");
    // Where nothing is left, it is said what has to be mounted.
    let leads_to = |host: &Host| {
        let read = host.read();
        assert_eq!(read.source, AuthoritySource::Bundled);
        read.unreadable.first().and_then(|fault| fault.leads_to.clone()).unwrap().display().to_string()
    };
    assert_eq!(leads_to(&Host::new().link("etc/ssl/certs", "../pki/tls/certs")), "/etc/pki/tls/certs");
    // As a mount of `/etc/ssl/certs` looks like when it is such a link.
    let bundle = "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem";
    assert_eq!(leads_to(&Host::new().link("etc/ssl/certs/ca-bundle.crt", bundle)), bundle);
    let suse = "../../var/lib/ca-certificates/ca-bundle.pem";
    assert_eq!(leads_to(&Host::new().link("etc/ssl/ca-bundle.pem", suse)), "/var/lib/ca-certificates/ca-bundle.pem");
    let suse = Host::new().link("etc/ssl/ca-bundle.pem", suse).file("etc/ssl/certs/own.pem", &b);
    let read = suse.read();
    assert_eq!((read.count, read.unreadable.len()), (1, 1), "{read:?}");
}

#[test]
fn nothing_to_be_read() {
    let empty = Host::new();
    let read = empty.read();
    assert_eq!((read.source, read.unreadable.len()), (AuthoritySource::Bundled, 0));
    assert!(read.count > 100, "Mozilla's are built in: {}", read.count);
    let rubbish = Host::new().file("etc/ssl/certs/ca-certificates.crt", "-----BEGIN CERTIFICATE-----\nx\n");
    assert_eq!(rubbish.read().source, AuthoritySource::Bundled);
    let search = places::searches(|name| (name == "SSL_CERT_FILE").then(|| "/nonexistent/ca.pem".into()));
    let read = describe(&reading::read(&search));
    assert_eq!((read.source, read.is_by_variable), (AuthoritySource::Bundled, true));
    assert_eq!(read.unreadable[0].path, Path::new("/nonexistent/ca.pem"));
}

#[test]
fn what_the_host_has_mounted_goes_before_the_image() {
    let (a, b) = (certificate("a"), certificate("b"));
    let image = Host::new().file("etc/ssl/certs/ca-certificates.crt", &format!("{a}{b}"));
    let host = Host::new();
    let searches = |host: &Host| [places::known(host.0.path()), places::known(image.0.path())];
    assert_eq!(reading::read(&searches(&host)).roots.len(), 2);
    let host = host.file("etc/ssl/certs/ca-certificates.crt", &a);
    assert_eq!(reading::read(&searches(&host)).roots.len(), 1);
}

#[test]
fn files_are_read_again_when_they_change() {
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    let host = Host::new();
    let trust = trust(&host);
    assert!(trust.roots().len() > 100);
    assert!(!trust.is_due(Instant::now()), "it was just read");
    let host = host.file(bundle, &certificate("a"));
    let later = Instant::now() + CHECKS_APART;
    assert!(trust.is_due(later) && !trust.is_due(later));
    trust.refresh();
    assert_eq!((trust.roots().len(), trust.generation()), (1, 1));
    trust.refresh();
    assert_eq!(trust.generation(), 1, "nothing changed");
    // A single file is added; the bundle stays as it is.
    let host = host.file("etc/ssl/certs/corp.pem", &certificate("b"));
    trust.refresh();
    assert_eq!((trust.roots().len(), trust.generation()), (2, 2));
    // While somebody replaces them all, the last that were read hold.
    fs::rename(host.0.path().join("etc"), host.0.path().join("gone")).unwrap();
    trust.refresh();
    assert_eq!((trust.roots().len(), trust.generation()), (2, 2));
    let host = host.file(bundle, &certificate("c"));
    trust.refresh();
    assert_eq!((trust.roots().len(), trust.generation()), (1, 3));
    drop(host);
}

/// An upstream's own files may change any second, and the host's folders are large.
#[tokio::test]
async fn own_files_do_not_hurry_the_hosts() {
    let host = Host::new().file("own.pem", &certificate("a"));
    let (trust, own) = (trust(&host), host.0.path().join("own.pem"));
    let tls = Arc::new(Tls::new(&trust, TlsOptions { ca: vec![own], ..TlsOptions::default() }).unwrap());
    let (start, first) = (Instant::now(), tls.current().await);
    let host = host.file("etc/ssl/certs/ca-certificates.crt", &certificate("b"));
    let host = host.file("own.pem", &format!("{}{}", certificate("a"), certificate("c")));
    let second = tls.current_at(start + CHECKS_APART / 2).await;
    assert!(!Arc::ptr_eq(&first, &second), "its own file has changed");
    assert_eq!(trust.generation(), 0, "it isn't the host's time yet");
    let third = tls.current_at(start + CHECKS_APART).await;
    assert_eq!(trust.generation(), 1);
    assert!(!Arc::ptr_eq(&second, &third), "the host's have changed");
    drop(host);
}

#[test]
fn whether_it_is_time_is_known_while_files_are_read() {
    let (host, later) = (Host::new(), Instant::now() + 2 * CHECKS_APART);
    let trust = trust(&host);
    let asked = {
        let _reading = trust.0.seen.lock().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let asking = trust.clone();
        std::thread::spawn(move || tell.send(asking.is_due(later)));
        told.recv_timeout(Duration::from_secs(10))
    };
    assert_eq!(asked, Ok(true));
}
