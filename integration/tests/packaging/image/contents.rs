//! What is in it, and that it is always the same.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use larder_integration::{Folder, LarderImage, Registry, tool};
use serde_json::{Value, json};

use super::{Layout, output, small_program, unpacked};
use crate::support::run;

#[test]
fn it_says_what_it_is() {
    run(async {
        let folder = Folder::new()?;
        let at = folder.path().join("layout");
        let name = LarderImage::NAME;
        let said = LarderImage::build(&small_program("amd64")?, &format!("oci:{}:{name}", at.display()), &[]).await?;
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

        let listed = output("tar", &["--list", "--gzip", "--file", layer])?;
        // The package with the licence of libgcc has the compiler's version in its name.
        let of_gcc =
            |path: &str| path.contains("/gcc-") && (path.ends_with("-base/copyright") || path.ends_with("-base"));
        let files: BTreeSet<&str> = listed.lines().filter(|path| !path.ends_with('/') && !of_gcc(path)).collect();
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
            "./usr/share/doc/larder/notices",
            "./usr/share/doc/libc6/copyright",
            "./usr/share/doc/libgcc-s1",
            "./var/lib/dpkg/status.d/base-files",
            "./var/lib/dpkg/status.d/libc6",
            "./var/lib/dpkg/status.d/libgcc-s1",
        ];
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
fn the_licences_of_what_is_linked_in_are_there() {
    run(async {
        let folder = Folder::new()?;
        let (_, _, layer) = unpacked(&folder, LarderImage::shared().await?)?.parts()?;
        let file = |path: &str| {
            let layer = layer.to_str().context("not UTF-8")?;
            output("tar", &["--extract", "--to-stdout", "--gzip", "--file", layer, path])
        };
        let notices = file("./usr/share/doc/larder/notices")?;
        for part in ["\ntokio 1.", ": MIT\n", "Copyright (c) Tokio Contributors", "Mozilla Public License"] {
            ensure!(notices.contains(part), "{part:?} isn't in the notices");
        }
        ensure!(!notices.contains("\nproptest "), "what only the tests use is named");
        ensure!(file("./usr/share/doc/libc6/copyright")?.contains("GNU Lesser General Public"), "libc6");
        Ok(())
    });
}

#[test]
fn it_can_be_made_for_arm64() {
    run(async {
        let folder = Folder::new()?;
        let at = folder.path().join("layout");
        // No Larder, since none can be built here.
        let (libraries, program) = (tool("image-arm64")?, small_program("arm64")?);
        let options = ["--arch", "arm64", "--libraries", libraries.to_str().context("not UTF-8")?];
        LarderImage::build(&program, &format!("oci:{}:test", at.display()), &options).await?;
        let (_, config, layer) = Layout { at }.parts()?;
        let platform = [&config["os"], &config["architecture"], &config["variant"]];
        ensure!(platform == ["linux", "arm64", "v8"], "{config}");
        let root = folder.path().join("root");
        std::fs::create_dir(&root)?;
        let (layer, to) = (layer.to_str().context("not UTF-8")?, root.to_str().context("not UTF-8")?);
        output("tar", &["--extract", "--gzip", "--file", layer, "--directory", to])?;
        ensure!(std::fs::read(root.join("usr/bin/larder"))? == std::fs::read(&program)?, "another program");
        for path in ["lib/ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"] {
            let path = if path.contains('/') { path.into() } else { format!("usr/lib/aarch64-linux-gnu/{path}") };
            // The machine that ELF names: AArch64.
            ensure!(std::fs::read(root.join(&path))?[18..20] == [183, 0], "{path} is for another machine");
        }
        ensure!(!root.join("lib64").exists(), "parts of amd64");
        Ok(())
    });
}

#[test]
fn the_same_binary_makes_the_same_image() {
    run(async {
        let folder = Folder::new()?;
        let archive = folder.path().join("image.tar");
        let place = format!("oci-archive:{}:{}", archive.display(), LarderImage::NAME);
        let build = async |program: &Path| -> Result<Vec<u8>> {
            LarderImage::build(program, &place, &[]).await?;
            Ok(std::fs::read(&archive)?)
        };
        let program = small_program("amd64")?;
        let first = build(&program).await?;
        // Elsewhere, later, and with other permissions.
        let copy = folder.path().join("other");
        std::fs::write(&copy, std::fs::read(&program)?)?;
        std::fs::set_permissions(&copy, Permissions::from_mode(0o700))?;
        let second = build(&copy).await?;
        ensure!(first == second, "{} bytes, then {}", first.len(), second.len());
        // Another program makes another image.
        std::fs::write(&copy, [std::fs::read(&copy)?, b"more".to_vec()].concat())?;
        ensure!(first != build(&copy).await?, "the program isn't in it");
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
        let registry = Registry::start().await?;
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
