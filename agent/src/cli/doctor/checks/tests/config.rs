use super::*;

#[test]
fn config_path_is_not_set() {
    let mut facts = sound();
    for (version, file, section) in [
        ("1.7.24", "version = 2\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
        ("1.7.24", "root = '/x'\n", "[plugins.cri.registry]"),
        ("2.0.5", "version = 2\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
        ("2.0.5", "version = 3\n", "[plugins.'io.containerd.cri.v1.images'.registry]"),
    ] {
        runs(&mut facts, version, file);
        has(
            &problem(&facts).1,
            &[
                "config_path isn't set",
                section,
                "config_path = \"/etc/containerd/certs.d\"",
                "systemctl restart containerd",
            ],
        );
    }
}

#[test]
fn there_is_no_configuration_file() {
    let mut facts = sound();
    for (version, lines) in [
        ("1.7.24", ["version = 2", "io.containerd.grpc.v1.cri"]),
        ("2.0.5", ["version = 3", "io.containerd.cri.v1.images"]),
    ] {
        facts.runtime.release = release(version);
        facts.setup = Setup::read(&RootFile(Err(io::ErrorKind::NotFound)), Path::new(CONFIG), facts.version());
        has(&problem(&facts).1, &["config_path isn't set", lines[0], lines[1]]);
    }
}

/// What is printed is put into the file, and has to be right there: read back as containerd reads it.
#[test]
fn the_lines_mend_it() {
    for version in ["1.6.20", "1.7.24", "2.0.5", "2.1.9", "2.2.0", "2.3.4"] {
        for before in [None, Some("version = 2\n"), Some("root = '/x'\n"), Some("version = 3\n")] {
            if version.starts_with('1') && before == Some("version = 3\n") {
                continue;
            }
            let mut facts = sound();
            facts.runtime.release = release(version);
            let file = before.map(str::to_owned).ok_or(io::ErrorKind::NotFound);
            facts.setup = Setup::read(&RootFile(file), Path::new(CONFIG), facts.version());
            let lines = &problem(&facts).0.mend[0].lines;
            let mended = format!("{}{}", before.unwrap_or_default(), lines.join("\n"));
            configure(&mut facts, &mended);
            assert_eq!(facts.setup.faults, [], "{version} {before:?}: {mended}");
            assert!(
                !all(&facts).iter().any(|f| f.severity == Severity::Problem),
                "{version} {before:?}: {mended}\n{:#?}",
                all(&facts)
            );
        }
    }
}

#[test]
fn a_list_in_transfer_mode() {
    let list = SOUND.replace("certs.d'", "certs.d:/etc/docker/certs.d'");
    let mut facts = sound();
    runs(&mut facts, "2.3.4", &list);
    let (finding, text) = problem(&facts);
    has(&text, &["is a list", "transfer service", "config.toml:3", "use_local_image_pull = true"]);
    assert_eq!(finding.mend[0].lines, ["  config_path = \"/etc/containerd/certs.d\""]);
    // The second way works too.
    let (header, key) = (&finding.mend[1].lines[0], &finding.mend[1].lines[1]);
    configure(&mut facts, &format!("{list}{header}\n{key}\n"));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine, "{:#?}", all(&facts));
    // It is the default of 2.2 and later, too.
    runs(&mut facts, "2.2.3", "version = 3\n");
    has(&problem(&facts).1, &["is a list", "containerd's own default", "io.containerd.cri.v1.images"]);
    runs(
        &mut facts,
        "1.7.24",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d:/x'",
    );
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn mirrors_beside_config_path() {
    let mut facts = sound();
    configure(
        &mut facts,
        &format!(
            "{SOUND}[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n"
        ),
    );
    has(&problem(&facts).1, &["registry.mirrors stands beside", "config.toml:4", "refuses to load", "[[registry]]"]);
}

#[test]
fn another_folder() {
    let mut facts = sound();
    configure(&mut facts, &SOUND.replace("/etc/containerd/certs.d", "/other"));
    has(
        &problem(&facts).1,
        &["config_path is \"/other\"", "hosts_dir = \"/other\"", "config_path = \"/etc/containerd/certs.d\""],
    );
    // A slash at the end is the same folder.
    configure(&mut facts, &SOUND.replace("certs.d", "certs.d/"));
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
}

#[test]
fn what_containerd_tells_goes_before_what_its_file_says() {
    let tells = |path: &str| {
        Some(CriStatus { unmet: Vec::new(), config: Some(serde_json::json!({"registry": {"configPath": path}})) })
    };
    let mut facts = sound();
    let v2 = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'";
    runs(&mut facts, "1.7.24", v2);
    facts.runtime.status = tells("");
    has(&problem(&facts).1, &["runs with config_path = \"\"", "systemctl restart containerd"]);
    facts.runtime.status = tells(CERTS);
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Fine);
    // Its file can't be read.
    facts.setup = Setup::read(&RootFile(Err(io::ErrorKind::PermissionDenied)), Path::new(CONFIG), facts.version());
    assert_eq!(Outcome::of(&all(&facts)), Outcome::Unchecked);
    facts.runtime.status = tells("");
    has(&problem(&facts).1, &["config_path isn't set, says containerd"]);
}

#[test]
fn files_that_containerd_does_not_start_with() {
    let mut facts = sound();
    configure(&mut facts, &format!("imports = ['gone.toml']\n{SOUND}"));
    has(&problem(&facts).1, &["config.toml:1", "gone.toml", "doesn't start"]);
}

#[test]
fn layers_are_thrown_away() {
    let mut facts = sound();
    configure(
        &mut facts,
        &format!(
            "{}[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n",
            SOUND.replace("certs.d'", "certs.d:/x'")
        ),
    );
    has(&note(&facts), &["discard_unpacked_layers", "config.toml:5", "changing it alone"]);
}

#[test]
fn each_distribution_in_its_own_way() {
    let list = SOUND.replace("certs.d'", "certs.d:/etc/docker/certs.d'");
    for (platform, parts) in [
        (Platform::Plain, &["systemctl restart containerd", "in place of /etc/containerd/config.toml:3"][..]),
        (Platform::K3s, &["{{ template", "systemctl restart k3s"]),
        (Platform::Rke2, &["{{ template", "rke2-server"]),
        (Platform::Microk8s, &["containerd-template.toml", "microk8s stop"]),
        (Platform::K0s, &["/etc/k0s/containerd.d/larder.toml", "version = 3", "k0sworker"]),
        (Platform::Eks, &["kind: NodeConfig", "config_path"]),
        (Platform::Kind, &["containerdConfigPatches", "config_path"]),
        (Platform::Talos, &["RegistryMirrorConfig", "http://127.0.0.1:7439"]),
        (Platform::Bottlerocket, &["settings.container-registry.mirrors", "http://127.0.0.1:7439"]),
        (Platform::Gke, &["registryHosts", "--containerd-config-from-file"]),
        (Platform::Aks, &["systemctl restart containerd"]),
        (Platform::Minikube, &["systemctl restart containerd"]),
    ] {
        let mut facts = sound();
        facts.platform = platform;
        configure(&mut facts, &list);
        has(&problem(&facts).1, parts);
    }
}

#[test]
fn a_configuration_in_another_place() {
    let mut facts = sound();
    facts.platform = Platform::K3s;
    facts.config.containerd.config = "/nowhere.toml".into();
    has(&note(&facts), &["k3s has it at", "config = \\\"/etc/containerd/config.toml\\\""]);
}
