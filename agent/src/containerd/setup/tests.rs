use proptest::prelude::*;

use super::*;

const ROOT: &str = "/etc/containerd/config.toml";
const V1_6: Version = Version::new(1, 6, 20);
const V1_7: Version = Version::new(1, 7, 24);
const V2_0: Version = Version::new(2, 0, 5);
const V2_1: Version = Version::new(2, 1, 9);
const V2_2: Version = Version::new(2, 2, 0);
const V2_3: Version = Version::new(2, 3, 4);

fn one(text: &str, version: Version) -> Setup {
    Setup::read(&InMemory::new([(ROOT, text)]), Path::new(ROOT), Some(version))
}

fn several(files: &[(&str, &str)], version: Version) -> Setup {
    Setup::read(&InMemory::new(files.iter().copied()), Path::new(ROOT), Some(version))
}

fn path_of(setup: &Setup) -> Option<(&str, Option<String>)> {
    let path = setup.config_path.as_ref()?;
    Some((&path.value, path.place.as_ref().map(ToString::to_string)))
}

const V2_FILE: &str = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/c\"\n";
const V3_FILE: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/c'\n";

#[test]
fn config_path_by_format_and_version() {
    for version in [V1_6, V1_7, V2_0, V2_1, V2_3] {
        let setup = one(V2_FILE, version);
        assert_eq!(path_of(&setup), Some(("/c", Some(format!("{ROOT}:4")))), "{version}");
        assert_eq!(setup.format, 2);
    }
    for version in [V2_0, V2_1, V2_2, V2_3] {
        assert_eq!(path_of(&one(V3_FILE, version)), Some(("/c", Some(format!("{ROOT}:3")))), "{version}");
    }
    // The names of format 3 mean nothing before 2.0, and those of format 2 nothing in a file of format 3, before 2.3.
    assert_eq!(path_of(&one(V3_FILE, V1_7)), None);
    assert_eq!(path_of(&one(&V2_FILE.replace("= 2", "= 3"), V2_1)), None);
    assert!(path_of(&one(&V2_FILE.replace("= 2", "= 3"), V2_3)).is_some());
    let v1 = "[plugins.cri.registry]\nconfig_path = '/c'";
    assert_eq!(path_of(&one(v1, V1_6)), Some(("/c", Some(format!("{ROOT}:2")))));
    // 2.0 to 2.2 rename the plugin, and then take the file for one of format 3, where the name means nothing.
    assert_eq!(path_of(&one(v1, V2_1)), None);
    assert_eq!(path_of(&one(v1, V2_3)), Some(("/c", Some(format!("{ROOT}:2")))));
    assert_eq!(path_of(&one(&format!("version = 2\n{v1}"), V1_6)), None);
    // As AKS writes it: format 2, names of format 3.
    assert_eq!(path_of(&one(&V3_FILE.replace("= 3", "= 2"), V2_1)).map(|p| p.0), Some("/c"));
    // All in one line.
    let inline = "version = 3\nplugins = {'io.containerd.cri.v1.images' = {registry = {config_path = '/c'}}}";
    assert_eq!(path_of(&one(inline, V2_1)), Some(("/c", Some(format!("{ROOT}:2")))));
}

#[test]
fn defaults_by_version() {
    for version in [V1_6, V1_7, V2_0, V2_1] {
        assert_eq!(path_of(&one("version = 2", version)), None, "{version}");
    }
    let list = Some(("/etc/containerd/certs.d:/etc/docker/certs.d", None));
    assert_eq!(path_of(&one("version = 2", V2_2)), list);
    assert_eq!(path_of(&one("version = 4", V2_3)), list);
    let none = several(&[], V2_3);
    assert_eq!(path_of(&none), list);
    assert_eq!(none.faults, [Fault::NoRootFile(ROOT.into())]);
    let empty = V3_FILE.replace("/c", "");
    assert_eq!(path_of(&one(&empty, V2_2)), None);
    assert_eq!(path_of(&one(&empty, V2_3)), list);
    assert_eq!(none.root, Path::new("/var/lib/containerd"));
}

#[test]
fn a_list_is_ignored_in_transfer_mode_alone() {
    let list = V3_FILE.replace("/c", "/c:/d");
    assert!(one(&list, V2_1).is_ignored_list());
    assert!(!one(V3_FILE, V2_1).is_ignored_list());
    assert!(!one(&list, V2_0).is_ignored_list());
    assert!(one("version = 4", V2_3).is_ignored_list());
    let images = "[plugins.'io.containerd.cri.v1.images']\n";
    for (key, line) in [
        ("use_local_image_pull", "use_local_image_pull = true"),
        ("discard_unpacked_layers", "discard_unpacked_layers = true"),
        ("disable_snapshot_annotations", "disable_snapshot_annotations = false"),
        ("max_concurrent_downloads", "max_concurrent_downloads = 10"),
        ("image_pull_with_sync_fs", "image_pull_with_sync_fs = true"),
        ("registry.configs", "registry.configs.'a'.auth.username = 'u'"),
        ("registry.auths", "registry.auths.'a'.username = 'u'"),
    ] {
        let setup = one(&format!("version = 3\n{images}registry.config_path = '/c:/d'\n{line}\n"), V2_1);
        let PullMode::Local { because: Some(because) } = &setup.pull_mode else { panic!("{key}: {setup:?}") };
        assert_eq!((because.key.as_str(), because.place.line), (key, 4));
        assert!(!setup.is_ignored_list());
    }
    for line in ["use_local_image_pull = false", "max_concurrent_downloads = 3", "discard_unpacked_layers = false"] {
        assert_eq!(one(&format!("version = 3\n{images}{line}\n"), V2_1).pull_mode, PullMode::Transfer, "{line}");
    }
}

#[test]
fn older_keys_beside_config_path() {
    let mirrors = "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = ['https://m']\n";
    let tls = "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"a.b\".tls]\nca_file = '/ca'\n";
    let auth = "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"a.b\".auth]\nusername = 'u'\n";
    let conflict = |text: &str, version| one(text, version).conflict().map(|(_, l)| (l.key.clone(), l.place.line));
    for version in [V1_6, V1_7, V2_0, V2_1, V2_3] {
        let both = conflict(&format!("{V2_FILE}{mirrors}"), version);
        assert_eq!(both, Some(("registry.mirrors".to_owned(), 5)), "{version}");
        assert_eq!(conflict(V2_FILE, version), None);
        assert_eq!(conflict(&format!("{V2_FILE}{auth}"), version), None);
    }
    let both = conflict(&format!("{V2_FILE}{tls}"), V1_7);
    assert_eq!(both, Some(("registry.configs.\"a.b\".tls".to_owned(), 5)));
    assert_eq!(conflict(&format!("{V2_FILE}{tls}"), V2_1), None);
    // Without a config_path: 2.2.0's own default conflicts, later ones give way.
    let alone = format!("version = 2\n{mirrors}");
    assert_eq!(conflict(&alone, V1_7), None);
    assert!(conflict(&alone, V2_2).is_some());
    assert_eq!(conflict(&alone, V2_3), None);
    assert_eq!(path_of(&one(&alone, V2_3)), None);
}

#[test]
fn imports_replace_sections_up_to_1_7_and_merge_from_2_0() {
    let root = "version = 2\nimports = ['conf.d/*.toml']\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = '/c'\n";
    let other = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = 'p'\n";
    let files = [(ROOT, root), ("/etc/containerd/conf.d/a.toml", other), ("/etc/containerd/conf.d/b.txt", "[")];
    let old = several(&files, V1_7);
    assert_eq!(path_of(&old), None);
    let (later, earlier) = old.replaced.unwrap();
    assert_eq!(later.to_string(), "/etc/containerd/conf.d/a.toml:2");
    assert_eq!(earlier.to_string(), format!("{ROOT}:3"));
    let new = several(&files, V2_1);
    assert_eq!(path_of(&new).map(|p| p.0), Some("/c"));
    assert_eq!(new.replaced, None);
    assert_eq!(new.files.len(), 2);
}

#[test]
fn imports_are_followed_in_order_and_once() {
    let set =
        |path: &str| format!("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{path}'");
    let (a, b) = (set("/a"), set("/b"));
    let root = "version = 3\nimports = ['/etc/containerd/config.toml', '../x/./y.toml', '/d/*.toml']";
    let files = [(ROOT, root), ("/etc/x/y.toml", a.as_str()), ("/d/1.toml", b.as_str())];
    let setup = several(&files, V2_1);
    assert_eq!(path_of(&setup), Some(("/b", Some("/d/1.toml:3".to_owned()))));
    assert_eq!(setup.files.len(), 3);
    assert_eq!(setup.faults, []);
}

#[test]
fn a_mixture_of_formats() {
    let root = "version = 3\nimports = ['/d/a.toml', '/d/b.toml', '/d/c.toml']\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/root'";
    let a = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/a'";
    let b = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/b'";
    let mut files = [(ROOT, root), ("/d/a.toml", a), ("/d/b.toml", b), ("/d/c.toml", "version = 2")];
    // Up to 2.2 the last file decides whether the older names are moved, over the newer ones.
    assert_eq!(path_of(&several(&files, V2_1)).map(|p| p.0), Some("/a"));
    assert_eq!(path_of(&several(&files, V2_3)).map(|p| p.0), Some("/b"));
    files[3].1 = "version = 3";
    assert_eq!(path_of(&several(&files, V2_1)).map(|p| p.0), Some("/b"));
}

#[test]
fn relative_patterns_in_old_versions() {
    let files = [
        (ROOT, "version = 2\nimports = ['d/*.toml']"),
        ("/etc/containerd/d/a.toml", "root = '/a'"),
        ("/d/a.toml", "root = '/b'"),
    ];
    let root_of = |version| several(&files, version).root;
    assert_eq!(root_of(V1_6), Path::new("/b"));
    assert_eq!(root_of(Version::new(1, 6, 29)), Path::new("/a"));
    assert_eq!(root_of(Version::new(1, 7, 15)), Path::new("/b"));
    assert_eq!(root_of(V1_7), Path::new("/a"));
}

#[test]
fn files_that_containerd_fails_on() {
    let missing = one("version = 2\nimports = ['gone.toml', 'none/*.toml']", V1_7);
    let [Fault::ImportMissing { place, path }] = &missing.faults[..] else { panic!("{:?}", missing.faults) };
    assert_eq!((place.line, path.as_path()), (2, Path::new("/etc/containerd/gone.toml")));
    let broken = one("version = 2\n[plugins", V1_7);
    let [Fault::Malformed { place, .. }] = &broken.faults[..] else { panic!("{:?}", broken.faults) };
    assert_eq!(place.line, 2);
    let files = [(ROOT, "version = 2\nimports = ['a.toml']"), ("/etc/containerd/a.toml", "version = 3")];
    assert_eq!(several(&files, V2_1).faults, []);
    assert!(matches!(several(&files, V2_3).faults[..], [Fault::ImportTooNew { version: 3, root: 2, .. }]));
    assert!(matches!(several(&files, V1_7).faults[..], [Fault::FormatTooNew { version: 3, newest: 2, .. }]));
    assert_eq!(several(&files, V1_6).faults, []);
    assert!(matches!(one("version = 4", V2_1).faults[..], [Fault::FormatTooNew { version: 4, newest: 3, .. }]));
    assert_eq!(one("version = 4", V2_3).faults, []);
    let short = one("version = 2\ndisabled_plugins = ['cri']", V1_7);
    assert!(matches!(&short.faults[..], [Fault::ShortName { name, .. }] if name == "cri"));
}

#[test]
fn the_runtime_interface_switched_off() {
    // As Docker's package of containerd ships it: no version, the short name.
    let docker = "disabled_plugins = [\"cri\"]";
    assert!(one(docker, V1_7).cri_disabled.is_some() && one(docker, V2_1).cri_disabled.is_some());
    assert_eq!(one(&format!("version = 2\n{docker}"), V1_7).cri_disabled, None);
    let new = one("version = 3\ndisabled_plugins = [\n 'a',\n 'io.containerd.cri.v1.images']", V2_1);
    assert_eq!(new.cri_disabled.map(|place| place.line), Some(4));
}

#[test]
fn layers_that_are_thrown_away() {
    let v2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n";
    assert_eq!(one(v2, V1_7).discard_unpacked_layers.map(|place| place.line), Some(3));
    // containerd's own migration forgets the key where no runtimes are named.
    assert_eq!(one(v2, V2_1).discard_unpacked_layers, None);
    let runtimes = format!("{v2}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n");
    assert!(one(&runtimes, V2_1).discard_unpacked_layers.is_some());
    assert_eq!(one("version = 2\nroot = '/data'", V1_6).root, Path::new("/data"));
}

#[test]
fn a_file_that_imports_itself_without_end() {
    let files: Vec<(String, String)> =
        (0..1000).map(|n| (format!("/c/{n}.toml"), format!("imports = ['{}.toml']", n + 1))).collect();
    let files = InMemory::new(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    let setup = Setup::read(&files, Path::new("/c/0.toml"), None);
    assert_eq!(setup.faults, [Fault::TooManyFiles]);
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in "\\PC{0,200}", minor in 0u16..8, major in 1u16..3) {
        let _ = one(&text, Version::new(major, minor, 0));
    }

    #[test]
    fn any_keys_are_read_without_a_panic(
        lines in proptest::collection::vec(
            "(version|imports|disabled_plugins|root|plugins|\\[plugins(\\.cri|\\.'io\\.containerd\\.(grpc\\.v1\\.cri|cri\\.v1\\.images)'(\\.registry|\\.containerd)?)?\\]|config_path|mirrors|configs)( = ([0-9]|'x'|\\['\\*', 1\\]|\\{a = 1\\}|true|1\\.5))?",
            0..8,
        ),
        minor in 0u16..8,
        major in 1u16..3,
    ) {
        let _ = one(&lines.join("\n"), Version::new(major, minor, 3));
    }
}
