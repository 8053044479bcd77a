//! The container image: what is in it, that it is always the same, and that each containerd runs it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use larder_integration::{Agent, AgentConfig, FaultRegistry, Folder, Image, LarderImage, NameServer, digest_of, until};
use serde_json::{Value, json};

use crate::support::{Case, on_every_containerd, run};

on_every_containerd!(over tls: it_runs_and_resolves_names);

/// For programs that pack and check.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An image, unpacked as a layout.
struct Layout {
    at: PathBuf,
}

impl Layout {
    fn json(&self, path: impl AsRef<Path>) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.at.join(path))?)?)
    }

    fn blob(&self, descriptor: &Value) -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
        let path = self.at.join("blobs").join(digest.replace(':', "/"));
        let bytes = std::fs::read(&path)?;
        ensure!(digest_of(&bytes) == digest && descriptor["size"] == bytes.len(), "{descriptor} isn't what it says");
        Ok(path)
    }

    /// The only manifest, its configuration, and its only layer.
    fn parts(&self) -> Result<(Value, Value, PathBuf)> {
        let index = self.json("index.json")?;
        ensure!(index["manifests"].as_array().is_some_and(|all| all.len() == 1), "{index}");
        let manifest = self.json(self.blob(&index["manifests"][0])?)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        ensure!(layers.len() == 1, "{manifest}");
        Ok((manifest.clone(), self.json(self.blob(&manifest["config"])?)?, self.blob(&layers[0])?))
    }
}

#[test]
fn it_says_what_it_is() {
    run(async {
        let folder = Folder::new()?;
        let at = folder.path().join("layout");
        let name = LarderImage::NAME;
        let said =
            LarderImage::build(&LarderImage::binary().await?, "amd64", &format!("oci:{}:{name}", at.display())).await?;
        let layout = Layout { at };
        let (manifest, config, _) = layout.parts()?;
        let index = layout.json("index.json")?;
        ensure!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] == name, "{index}");
        ensure!(said.contains(index["manifests"][0]["digest"].as_str().context("no digest")?), "{said}");

        ensure!((&config["os"], &config["architecture"]) == (&json!("linux"), &json!("amd64")), "{config}");
        let runs = &config["config"];
        ensure!(runs["Entrypoint"] == json!(["/usr/bin/larder"]) && runs["Cmd"] == json!(["run"]), "{runs}");
        ensure!(runs["User"] == "0:0" && runs["WorkingDir"] == "/", "{runs}");

        let labels = &runs["Labels"];
        ensure!(&manifest["annotations"] == labels, "{manifest}");
        let label = |name: &str| labels[format!("org.opencontainers.image.{name}")].as_str().unwrap_or_default();
        ensure!(label("title") == "Larder" && label("version") == env!("CARGO_PKG_VERSION"), "{labels}");
        ensure!(label("source") == env!("CARGO_PKG_REPOSITORY") && !label("description").is_empty(), "{labels}");
        ensure!(label("licenses").starts_with(env!("CARGO_PKG_LICENSE")), "{labels}");
        let git = |arguments: &[&str]| output("git", &[&["-C", env!("CARGO_MANIFEST_DIR")], arguments].concat());
        // A source tree without history builds, too.
        if let Ok(head) = git(&["rev-parse", "HEAD"]) {
            ensure!(label("revision").starts_with(head.trim()), "{labels}");
            let committed: jiff::Timestamp = label("created").parse()?;
            ensure!(committed.as_second().to_string() == git(&["log", "-1", "--format=%ct"])?.trim(), "{labels}");
        }
        ensure!(config["created"] == label("created"), "{config}");
        Ok(())
    });
}

#[test]
fn nothing_is_in_it_but_larder_and_its_libraries() {
    run(async {
        let folder = Folder::new()?;
        let layout = unpacked(&folder, LarderImage::shared().await?)?;
        let (_, config, layer) = layout.parts()?;
        let layer = layer.to_str().context("not UTF-8")?;

        // Without what has the version of the compiler in its name.
        let listed = output("tar", &["--list", "--gzip", "--file", layer])?;
        let files: BTreeSet<&str> =
            listed.lines().filter(|path| !path.ends_with('/') && !path.starts_with("./usr/share/doc/gcc-")).collect();
        let expected = [
            "./etc/debian_version",
            "./etc/group",
            "./etc/nsswitch.conf",
            "./etc/passwd",
            "./lib64/ld-linux-x86-64.so.2",
            "./usr/bin/larder",
            "./usr/lib/os-release",
            "./usr/lib/x86_64-linux-gnu/libc.so.6",
            "./usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "./usr/lib/x86_64-linux-gnu/libm.so.6",
            "./usr/share/doc/base-files/copyright",
            "./usr/share/doc/larder/copyright",
            "./usr/share/doc/libc6/copyright",
            "./usr/share/doc/libgcc-s1",
            "./var/lib/dpkg/status.d/base-files",
            "./var/lib/dpkg/status.d/libc6",
            "./var/lib/dpkg/status.d/libgcc-s1",
        ];
        let files: BTreeSet<&str> =
            files.into_iter().filter(|path| !path.starts_with("./var/lib/dpkg/status.d/gcc-")).collect();
        ensure!(files == BTreeSet::from(expected), "{files:#?}");
        for folder in ["./tmp/", "./etc/larder/", "./run/larder/"] {
            ensure!(listed.lines().any(|path| path == folder), "{folder} is missing: {listed}");
        }

        // Root's, of one time, written by root alone; /tmp apart.
        let details = output("tar", &["--list", "--verbose", "--numeric-owner", "--utc", "--gzip", "--file", layer])?;
        let created: jiff::Timestamp = config["created"].as_str().context("no time")?.parse()?;
        let time = created.to_string();
        for line in details.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [mode, owner, _, day, minute, path, ..] = words[..] else { anyhow::bail!("{line}") };
            ensure!(owner == "0/0" && time.starts_with(&format!("{day}T{minute}")), "{line}");
            let is_link = mode.starts_with('l');
            ensure!(is_link || path == "./tmp/" || mode.as_bytes()[8] == b'-', "{line}");
            ensure!(path != "./tmp/" || mode == "drwxrwxrwt", "{line}");
        }
        Ok(())
    });
}

#[test]
fn the_same_binary_makes_the_same_image() {
    run(async {
        let folder = Folder::new()?;
        // Elsewhere, later, and with other permissions.
        let copy = folder.path().join("other");
        std::fs::copy(LarderImage::binary().await?, &copy)?;
        std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let again = folder.path().join("again.tar");
        LarderImage::build(&copy, "amd64", &format!("oci-archive:{}:{}", again.display(), LarderImage::NAME)).await?;
        let (first, second) = (std::fs::read(LarderImage::shared().await?.archive())?, std::fs::read(&again)?);
        ensure!(first == second, "{} bytes, then {}", first.len(), second.len());

        // Another binary makes another image.
        std::fs::write(&copy, [std::fs::read(&copy)?, b"more".to_vec()].concat())?;
        LarderImage::build(&copy, "amd64", &format!("oci-archive:{}:{}", again.display(), LarderImage::NAME)).await?;
        ensure!(first != std::fs::read(&again)?, "the binary isn't in it");
        Ok(())
    });
}

#[test]
fn skopeo_copies_and_inspects_it() {
    run(async {
        let folder = Folder::new()?;
        let image = format!("oci-archive:{}", LarderImage::shared().await?.archive().display());
        let layout = unpacked(&folder, LarderImage::shared().await?)?;
        let digest = layout.json("index.json")?["manifests"][0]["digest"].clone();
        // A registry wants every blob, and its digest right.
        let registry = larder_integration::Registry::start().await?;
        let place = format!("docker://{}/larder/larder:test", registry.url().trim_start_matches("http://"));
        output(
            "skopeo",
            &["copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", &image, &place],
        )?;
        let inspected: Value = serde_json::from_str(&output("skopeo", &["inspect", "--tls-verify=false", &place])?)?;
        ensure!(inspected["Digest"] == digest && inspected["Architecture"] == "amd64", "{inspected}");
        Ok(())
    });
}

/// The archive's layout.
fn unpacked(folder: &Folder, image: &LarderImage) -> Result<Layout> {
    let (archive, at) = (image.archive().display().to_string(), folder.path().display().to_string());
    output("tar", &["--extract", "--file", &archive, "--directory", &at])?;
    Ok(Layout { at: folder.path().to_owned() })
}

async fn it_runs_and_resolves_names(case: Case) -> Result<()> {
    let node = case.builder()?.without_agent().start().await?;
    LarderImage::shared().await?.import_into(&node.containerd).await?;
    let images = node.containerd.images().await?;
    ensure!(images.iter().any(|name| name == LarderImage::NAME), "CRI doesn't list it: {images:?}");

    let say = async |command: &[&str]| node.containerd.run_with(LarderImage::NAME, &["--rm"], command).await;
    let version = say(&["larder", "--version"]).await?;
    ensure!(version.trim() == concat!("larder ", env!("CARGO_PKG_VERSION")), "{version}");
    say(&["larder", "config", "check"]).await?;
    let shell = say(&["/bin/sh", "-c", ":"]).await.err().context("there is a shell")?.to_string();
    ensure!(shell.contains("no such file"), "{shell}");

    // The image's own command, with two registries under names: of the hosts file, and of the DNS.
    let registry = FaultRegistry::start().await?;
    let image = Image::tiny(1);
    registry.add(&image, "acme/app", "v1");
    let port = registry.url().rsplit_once(':').context("a registry without port")?.1.to_owned();
    let folder = Folder::new()?;
    let at = folder.path();
    let mut config = AgentConfig::without_containerd(at);
    config.registry("hosts.test", &[&format!("http://in-hosts.test:{port}")]);
    config.registry("dns.test", &[&format!("http://in-dns.test:{port}")]);
    let agent = Agent::prepare(at, &config)?;
    let [high, low] = rand::random::<[u8; 2]>();
    let names = NameServer::start_at(Ipv4Addr::new(127, 77, high, low.clamp(1, 254)), "in-dns.test").await?;
    names.set(&[Ipv4Addr::LOCALHOST]);
    std::fs::write(at.join("hosts"), "127.0.0.1 localhost in-hosts.test\n")?;
    std::fs::write(at.join("resolv.conf"), format!("nameserver {}\n", names.address().ip()))?;

    let bind = |from: &Path, to: &str, mode: &str| {
        format!("--mount=type=bind,src={},dst={to},options=rbind:{mode}", from.display())
    };
    let options = [
        "--detach".to_owned(),
        "--read-only".to_owned(),
        format!("--log-uri=file://{}", at.join("log").display()),
        format!("--with-ns=network:/proc/{}/ns/net", std::process::id()),
        bind(at, &at.display().to_string(), "rw"),
        bind(&agent.config(), "/etc/larder/larder.toml", "ro"),
        bind(&at.join("hosts"), "/etc/hosts", "ro"),
        bind(&at.join("resolv.conf"), "/etc/resolv.conf", "ro"),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    node.containerd.run_with(LarderImage::NAME, &options, &[]).await?;
    let readiness = format!("{}/readyz", agent.metrics_url());
    let ready = async || {
        let reply = agent.http().get(&readiness).await.ok()?;
        (reply.status == StatusCode::OK).then_some(())
    };
    until("the agent is ready", Duration::from_secs(20), ready).await.with_context(|| agent.log())?;
    for name in ["hosts.test", "dns.test"] {
        let manifest = format!("{}/v2/acme/app/manifests/v1?ns={name}", agent.mirror());
        let reply = agent.http().get(&manifest).await?;
        ensure!(reply.status == StatusCode::OK, "{name}: {}: {}", reply.status, agent.log());
        ensure!(reply.body == image.root().bytes, "{name} gave something else");
    }
    ensure!(names.asked() > 0, "the name server wasn't asked");
    Ok(())
}
