use std::fs;
use std::os::unix::fs::MetadataExt as _;

use proptest::prelude::*;

use super::super::dir::WAITS;
use super::super::folder::Folder;
use super::super::{HostsError, Original, Outcome, State, Undone, Warning};
use super::*;

const HUB: &str =
    "server = \"https://registry-1.docker.io\"\n\n# ours\n[host.\"https://mirror.corp\"]\n  ca = \"corp.pem\"\n";

fn shown(certs: &Certs, folder: &str) -> (State, Original, Vec<Option<String>>, Option<String>) {
    let shown = HostsDir::show(&certs.dir).unwrap().into_iter().find(|s| s.folder == folder).unwrap();
    (shown.state, shown.original, shown.hosts, shown.problem)
}

#[test]
fn nothing_there_becomes_a_default_and_goes_again() {
    let certs = Certs::missing();
    let before = certs.tree();
    assert_eq!(outcomes(&certs.apply(&["_default"])), [("_default", Outcome::Written)]);
    assert_eq!(certs.read("_default"), [URL]);
    assert!(!certs.text("_default/hosts.toml").contains("server"));
    let modes: Vec<_> = certs.tree().into_values().filter(|v| !v.starts_with("644") && v != "folder 755").collect();
    assert!(modes.is_empty(), "{modes:?}");

    let once = certs.tree();
    assert_eq!(outcomes(&certs.apply(&["_default"])), [("_default", Outcome::Unchanged)]);
    assert_eq!(certs.tree(), once);

    assert!(HostsDir::restore(&certs.dir).unwrap().removed_dir);
    assert_eq!(certs.tree(), before);
    certs.restore();
}

#[test]
fn every_registry_gets_an_entry_and_every_file_comes_back() {
    let certs = Certs::with(&[
        ("docker.io/hosts.toml", HUB),
        ("docker.io/corp.pem", "x"),
        ("reg.corp_5000_/ca.crt", "x"),
        ("empty.example/", ""),
        ("lost+found/", ""),
        ("README", "x"),
    ]);
    let inode = |name: &str| fs::metadata(certs.dir.join(name)).unwrap().ino();
    let before = (certs.tree(), inode("docker.io/hosts.toml"));
    let applied = certs.apply(&["_default"]);
    assert_eq!(outcomes(&applied).len(), 4);
    assert_eq!(certs.read("docker.io"), [URL, "https://mirror.corp", "https://registry-1.docker.io"]);
    assert_eq!(certs.read("empty.example"), [URL]);
    assert!(certs.text("reg.corp_5000_/hosts.toml").contains("ca = [\"ca.crt\"]"));
    assert_eq!(inode("docker.io/hosts.toml.before-larder"), before.1);

    let name = |name: &str| Some(name.to_owned());
    assert_eq!(
        shown(&certs, "docker.io"),
        (
            State::Ours,
            Original::Kept,
            vec![name(URL), name("https://mirror.corp"), name("https://registry-1.docker.io")],
            None
        )
    );
    assert_eq!(shown(&certs, "_default"), (State::Ours, Original::None, vec![name(URL), None], None));

    certs.restore();
    assert_eq!((certs.tree(), inode("docker.io/hosts.toml")), before);
}

#[test]
fn a_folder_that_appears_later_gets_an_entry() {
    let certs = Certs::with(&[]);
    certs.apply(&["_default"]);
    certs.put("ghcr.io/hosts.toml", b"server = 'https://ghcr.io'");
    let applied = certs.apply(&["_default"]);
    assert_eq!(outcomes(&applied), [("_default", Outcome::Unchanged), ("ghcr.io", Outcome::Written)]);
    certs.restore();
    assert_eq!(certs.text("ghcr.io/hosts.toml"), "server = 'https://ghcr.io'");
}

#[test]
fn registries_by_name_have_their_folders_alone() {
    let certs = Certs::with(&[("a.b_5000_/", ""), ("other.io/hosts.toml", HUB)]);
    let before = certs.tree();
    assert_eq!(
        outcomes(&certs.apply(&["a.b:5000", "c.d:1", "docker.io"])),
        [("a.b_5000_", Outcome::Written), ("c.d:1", Outcome::Written), ("docker.io", Outcome::Written)]
    );
    assert_eq!(certs.text("other.io/hosts.toml"), HUB);
    // A target that is none any more loses its entry.
    assert_eq!(
        outcomes(&certs.apply(&["docker.io"])),
        [("a.b_5000_", Outcome::Restored), ("c.d:1", Outcome::Restored), ("docker.io", Outcome::Unchanged)]
    );
    assert_eq!(outcomes(&certs.apply(&[])), [("docker.io", Outcome::Restored)]);
    assert_eq!(certs.tree(), before);
}

#[test]
fn a_folder_of_our_own_says_what_the_default_that_it_hides_says() {
    let certs =
        Certs::with(&[("_default/hosts.toml", "[host.\"https://m\"]\nca = 'm.pem'\n"), ("_default/m.pem", "x")]);
    let before = certs.tree();
    certs.apply(&["ghcr.io"]);
    assert_eq!(certs.read("ghcr.io"), [URL, "https://m"]);
    assert!(certs.text("ghcr.io/hosts.toml").contains("\"../_default/m.pem\""));

    // With an entry in the default too, and when the default changes.
    certs.apply(&["_default", "ghcr.io"]);
    assert_eq!(certs.read("ghcr.io"), [URL, "https://m"]);
    certs.put("_default/hosts.toml.before-larder", b"[host.\"https://n\"]\n");
    certs.apply(&["_default", "ghcr.io"]);
    assert_eq!(certs.read("ghcr.io"), [URL, "https://n"]);
    assert_eq!(certs.read("_default"), [URL, "https://n"]);

    certs.put("_default/hosts.toml.before-larder", b"[host.\"https://m\"]\nca = 'm.pem'\n");
    certs.restore();
    assert_eq!(certs.tree(), before);
}

/// While somebody may still read our CA in it, it says the same as before, but for us; also when that is as far as it got.
#[test]
fn a_folder_of_our_own_is_without_us_before_it_goes() {
    let files = [("_default/hosts.toml", "[host.\"https://m\"]\nca = 'm.pem'\n"), ("_default/m.pem", "x")];
    let certs = Certs::with(&files);
    let before = certs.tree();
    let finishes: [fn(&Certs); 2] = [|certs| drop(certs.apply(&["_default", "ghcr.io"])), Certs::restore];
    for finish in finishes {
        certs.apply(&["_default", "ghcr.io"]);
        let withdraw = |name: &str| Folder::new(certs.dir.join(name)).withdraw().unwrap();
        assert!(withdraw("ghcr.io") && !withdraw("_default"));
        assert_eq!(certs.read("ghcr.io"), ["https://m"]);
        assert!(
            certs.text("ghcr.io/hosts.toml").contains("\"../_default/m.pem\"") && certs.has("ghcr.io/larder-ca.pem")
        );
        finish(&certs);
        assert!(!certs.has("ghcr.io") || certs.read("ghcr.io") == [URL, "https://m"]);
    }
    assert_eq!(certs.tree(), before);
}

#[test]
fn a_new_file_in_the_place_of_ours_is_the_new_original() {
    let certs = Certs::with(&[("docker.io/hosts.toml", HUB)]);
    certs.apply(&["docker.io"]);
    certs.put("docker.io/hosts.toml", b"[host.new]\n");
    assert_eq!(shown(&certs, "docker.io").0, State::NotOurs);
    let applied = certs.apply(&["docker.io"]);
    assert_eq!(applied.folders[0].warnings, [Warning::NewOriginal]);
    assert_eq!(certs.read("docker.io"), [URL, "new"]);
    certs.restore();
    assert_eq!(certs.text("docker.io/hosts.toml"), "[host.new]\n");
    assert!(!certs.has("docker.io/hosts.toml.before-larder"));

    // Put there while nobody looked, it isn't overwritten by an older one.
    certs.apply(&["docker.io"]);
    certs.put("docker.io/hosts.toml", b"# newest\n");
    let restored = HostsDir::restore(&certs.dir).unwrap();
    assert!(matches!(restored.folders[0].outcome, Ok(Undone::Theirs)));
    assert_eq!(certs.text("docker.io/hosts.toml"), "# newest\n");
    assert!(!certs.has("docker.io/larder-ca.pem") && !certs.has("docker.io/hosts.toml.before-larder"));
}

#[test]
fn an_edit_of_our_file_is_kept_without_our_table() {
    for original in [Some(HUB), None] {
        let certs = Certs::with(&[("docker.io/", "")]);
        if let Some(text) = original {
            certs.put("docker.io/hosts.toml", text.as_bytes());
        }
        certs.apply(&["docker.io"]);
        let edited = certs.text("docker.io/hosts.toml") + "[host.added]\n";
        certs.put("docker.io/hosts.toml", edited.as_bytes());
        assert_eq!(shown(&certs, "docker.io").0, State::Edited);
        certs.apply(&["docker.io"]);
        assert!(certs.read("docker.io").contains(&"added".to_owned()));
        assert_eq!(shown(&certs, "docker.io").0, State::Ours);
        certs.restore();
        assert_eq!(certs.text("docker.io/hosts.toml"), format!("{}[host.added]\n", original.unwrap_or_default()));

        // The same without an agent in between.
        certs.apply(&["docker.io"]);
        let edited = certs.text("docker.io/hosts.toml") + "[host.more]\n";
        certs.put("docker.io/hosts.toml", edited.as_bytes());
        certs.restore();
        assert!(certs.text("docker.io/hosts.toml").ends_with("[host.added]\n[host.more]\n"));
        assert!(!certs.has("docker.io/larder-ca.pem"));
    }
}

#[test]
fn an_edit_of_our_table_alone_is_undone_and_the_original_stays() {
    let certs = Certs::with(&[("docker.io/hosts.toml", "[host")]);
    let before = certs.tree();
    certs.apply(&["docker.io"]);
    let ours = certs.text("docker.io/hosts.toml");
    certs
        .put("docker.io/hosts.toml", ours.replace("  capabilities", "  skip_verify = true\n  capabilities").as_bytes());
    certs.apply(&["docker.io"]);
    assert_eq!(certs.text("docker.io/hosts.toml"), ours);
    // Without the lines that say what is ours, the table is known by its URL.
    let unmarked = ours.replace("# >>> larder\n", "").replace("# <<< larder\n", "");
    certs.put("docker.io/hosts.toml", unmarked.as_bytes());
    certs.apply(&["docker.io"]);
    assert_eq!(certs.read("docker.io"), [URL]);
    certs.put("docker.io/hosts.toml", ours.as_bytes());
    certs.put("docker.io/hosts.toml.before-larder", b"[host");
    certs.restore();
    assert_eq!(certs.tree(), before);
}

#[test]
fn our_file_removed_is_written_again_and_the_original_still_comes_back() {
    let certs = Certs::with(&[("docker.io/hosts.toml", HUB)]);
    let before = certs.tree();
    for restore_at_once in [false, true] {
        certs.apply(&["docker.io"]);
        fs::remove_file(certs.dir.join("docker.io/hosts.toml")).unwrap();
        assert_eq!(shown(&certs, "docker.io").0, State::Missing);
        if !restore_at_once {
            certs.apply(&["docker.io"]);
            assert_eq!(certs.read("docker.io").len(), 3);
        }
        certs.restore();
        assert_eq!(certs.tree(), before);
    }
}

#[test]
fn a_lost_original_is_taken_from_our_file() {
    let certs = Certs::with(&[("docker.io/hosts.toml", HUB)]);
    for restore_at_once in [false, true] {
        certs.apply(&["docker.io"]);
        fs::remove_file(certs.dir.join("docker.io").join(KEPT)).unwrap();
        assert_eq!(shown(&certs, "docker.io").1, Original::Lost);
        if !restore_at_once {
            assert_eq!(certs.apply(&["docker.io"]).folders[0].warnings, [Warning::OriginalLost]);
        }
        certs.restore();
        assert_eq!(certs.text("docker.io/hosts.toml"), HUB);
    }
}

#[test]
fn a_lost_ca_is_written_again_and_told() {
    let certs = Certs::with(&[]);
    certs.apply(&["_default"]);
    fs::remove_file(certs.dir.join("_default").join(CA)).unwrap();
    assert!(shown(&certs, "_default").3.unwrap().contains("larder hosts apply"));
    assert_eq!(outcomes(&certs.apply(&["_default"])), [("_default", Outcome::Written)]);
    assert_eq!(certs.read("_default"), [URL]);
}

#[test]
fn a_ca_that_somebodys_own_file_names_stays() {
    let certs = Certs::with(&[]);
    certs.apply(&["docker.io"]);
    let theirs = format!("[host.\"{URL}\"]\nca = \"{CA}\"\n");
    certs.put("docker.io/hosts.toml", theirs.as_bytes());
    certs.restore();
    assert_eq!(certs.read("docker.io"), [URL]);
    // And goes when it is named no more.
    certs.put("docker.io/hosts.toml", b"[host.a]\n");
    certs.restore();
    assert!(!certs.has("docker.io/larder-ca.pem"));
}

#[test]
fn a_new_ca_or_none_takes_the_place_of_the_old() {
    let certs = Certs::with(&[]);
    certs.apply(&["_default"]);
    let bundle = Entry { ca_pem: Some(ca_pem() + &ca_pem()), ..entry() };
    certs.hosts(&["_default"]).apply(&bundle).unwrap();
    assert_eq!(certs.text("_default/larder-ca.pem").matches("BEGIN CERTIFICATE").count(), 2);
    certs.hosts(&["_default"]).apply(&plain()).unwrap();
    assert_eq!(certs.read("_default"), ["http://127.0.0.1:7439"]);
    assert!(!certs.has("_default/larder-ca.pem"));
}

#[test]
fn without_tls_and_with_fewer_targets_readers_are_waited_for_once() {
    let waits = |work: &dyn Fn()| {
        let before = WAITS.get();
        work();
        WAITS.get() - before
    };
    let certs = Certs::with(&[("docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n")]);
    assert_eq!(waits(&|| drop(certs.apply(&["docker.io", "ghcr.io", "quay.io"]))), 0);
    let fewer = || drop(certs.hosts(&["quay.io"]).apply(&plain()).unwrap());
    assert_eq!(waits(&fewer), 1);
    assert!(!certs.has("docker.io/larder-ca.pem") && !certs.has("quay.io/larder-ca.pem") && !certs.has("ghcr.io"));
    assert_eq!(waits(&fewer), 0, "nothing is left to be read");
    certs.apply(&["docker.io", "quay.io"]);
    assert_eq!(waits(&|| drop(certs.apply(&["quay.io"]))), 1, "whose folder it is that goes");
    assert_eq!(waits(&|| drop(HostsDir::restore(&certs.dir).unwrap())), 1);
}

#[test]
fn somebody_elses_file_of_our_name_is_left_alone() {
    let certs = Certs::with(&[("docker.io/larder-ca.pem", "mine")]);
    let before = certs.tree();
    let applied = certs.apply(&["docker.io"]);
    assert!(matches!(applied.folders[0].outcome, Err(HostsError::ForeignCa { .. })));
    certs.restore();
    assert_eq!(certs.tree(), before);
}

#[test]
fn links_are_followed_for_reading_and_come_back_as_links() {
    let certs = Certs::with(&[
        ("../elsewhere/hub.toml", HUB),
        ("docker.io/hosts.toml -> ../../elsewhere/hub.toml", ""),
        ("ghcr.io/hosts.toml -> /nowhere", ""),
        ("../elsewhere/quay/hosts.toml", "server = 'https://quay.io'\n"),
        ("quay.io -> ../elsewhere/quay", ""),
        // As kubelet mounts a ConfigMap.
        ("reg.corp/..2026/hosts.toml", "[host.one]\n"),
        ("reg.corp/..data -> ..2026", ""),
        ("reg.corp/hosts.toml -> ..data/hosts.toml", ""),
    ]);
    let before = certs.tree();
    let applied = certs.apply(&["_default"]);
    assert_eq!(applied.failures().count(), 0, "{applied:?}");
    assert_eq!(certs.read("docker.io").len(), 3);
    assert_eq!(certs.read("ghcr.io"), [URL]);
    assert_eq!(certs.read("quay.io"), [URL, "https://quay.io"]);
    assert_eq!(certs.read("reg.corp"), [URL, "one"]);
    assert_eq!(certs.text("../elsewhere/hub.toml"), HUB);

    // What a link leads to may change meanwhile.
    certs.put("../elsewhere/hub.toml", b"[host.two]\n");
    assert!(certs.apply(&["_default"]).changed());
    assert_eq!(certs.read("docker.io"), [URL, "two"]);
    certs.put("../elsewhere/hub.toml", HUB.as_bytes());
    certs.restore();
    assert_eq!(certs.tree(), before);
}

#[test]
fn a_link_to_a_file_of_ours_gets_an_entry_of_its_own() {
    let certs = Certs::with(&[
        ("a.io/hosts.toml -> ../docker.io/hosts.toml", ""),
        ("docker.io/hosts.toml", "[host.one]\n"),
        ("z.io/hosts.toml -> ../docker.io/hosts.toml", ""),
    ]);
    let before = certs.tree();
    certs.apply(&["docker.io"]);
    for folder in ["a.io", "docker.io", "z.io"] {
        assert_eq!(certs.read(folder), [URL, "one"]);
    }
    assert!(!certs.apply(&["docker.io"]).changed());
    certs.restore();
    assert_eq!(certs.tree(), before);
}

#[test]
fn one_bad_folder_doesnt_keep_the_others_from_their_entries() {
    let certs = Certs::with(&[
        ("a.io -> /nowhere", ""),
        ("b.io/hosts.toml/", ""),
        ("c.io/hosts.toml", HUB),
        ("d.io/hosts.toml -> d", ""),
        ("d.io/d -> hosts.toml", ""),
    ]);
    nix::unistd::mkfifo(&certs.dir.join("e.io"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(certs.dir.join("f.io")).unwrap();
    nix::unistd::mkfifo(&certs.dir.join("f.io/hosts.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let before = fs::read_dir(&certs.dir).unwrap().count();
    let applied = certs.apply(&["_default"]);
    let failed: Vec<_> = applied.failures().map(|(name, _)| name).collect();
    assert_eq!(failed, ["a.io", "b.io", "d.io", "f.io"]);
    assert!(applied.failures().all(|(_, e)| e.to_string().contains(".io")));
    assert_eq!(certs.read("c.io")[0], URL);
    assert_eq!(shown(&certs, "a.io").0, State::Unreadable);

    let restored = HostsDir::restore(&certs.dir).unwrap();
    assert_eq!(restored.folders.iter().filter(|f| f.outcome.is_err()).count(), 3);
    assert_eq!(certs.text("c.io/hosts.toml"), HUB);
    assert_eq!(fs::read_dir(&certs.dir).unwrap().count(), before);
}

#[test]
fn malformed_files_are_told_and_come_back() {
    let certs = Certs::with(&[
        ("a.io/hosts.toml", "[host.\"x\"\n"),
        ("b.io/hosts.toml", ""),
        ("c.io/hosts.toml", "\u{feff}[host.x]"),
    ]);
    certs.put("d.io/hosts.toml", b"\xff\xfe\x00");
    let before = certs.tree();
    let applied = certs.apply(&["_default"]);
    let warned: Vec<_> = applied.folders.iter().filter(|f| !f.warnings.is_empty()).map(|f| &f.name).collect();
    assert_eq!(warned, ["a.io", "d.io"]);
    assert_eq!(certs.read("a.io"), [URL]);
    assert_eq!(certs.read("c.io"), [URL, "x"]);
    assert!(!certs.apply(&["_default"]).changed());
    certs.restore();
    assert_eq!(certs.tree(), before);
}

#[test]
fn a_folder_of_ours_that_others_use_stays() {
    let certs = Certs::missing();
    certs.apply(&["_default"]);
    certs.put("_default/corp.crt", b"x");
    certs.restore();
    let left: Vec<_> = certs.tree().into_keys().collect();
    assert_eq!(left, ["certs.d", "certs.d/_default", "certs.d/_default/corp.crt"]);
}

#[test]
fn what_others_write_at_the_same_moment_is_never_lost() {
    let certs = Certs::with(&[("docker.io/hosts.toml", "# 0\n")]);
    certs.put("docker.io/.new/", b"");
    for round in 1..=60_u32 {
        std::thread::scope(|scope| {
            let certs = &certs;
            scope.spawn(move || {
                // A fifth of a millisecond later each time: before, within and after what the other does.
                std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 200));
                certs.put("docker.io/.new/f", format!("# {round}\n").as_bytes());
                fs::rename(certs.dir.join("docker.io/.new/f"), certs.dir.join("docker.io/hosts.toml")).unwrap();
            });
            certs.apply(&["docker.io"]);
        });
        assert_eq!(certs.apply(&["docker.io"]).failures().count(), 0);
        certs.restore();
        assert_eq!(certs.text("docker.io/hosts.toml"), format!("# {round}\n"));
    }
}

#[test]
fn two_at_once_do_no_harm() {
    let certs = Certs::with(&[("docker.io/hosts.toml", HUB)]);
    let before = certs.tree();
    std::thread::scope(|scope| {
        for round in 0..8 {
            let certs = &certs;
            scope.spawn(move || match round % 4 {
                3 => certs.restore(),
                _ => assert_eq!(certs.apply(&["_default"]).failures().count(), 0),
            });
        }
    });
    certs.restore();
    assert_eq!(certs.tree(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_was_there_comes_back_to_the_byte(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            "([a-z]{1,5} = '[a-z]*'\n){0,2}(#[a-z]*\n)?(\\[host\\.[a-z]{1,3}\\]\n){0,2}(x = 1)?".prop_map(String::into_bytes),
        ],
        again in any::<bool>(),
    ) {
        let certs = Certs::with(&[]);
        certs.put("docker.io/hosts.toml", &bytes);
        let before = certs.tree();
        certs.apply(&["_default"]);
        prop_assert_eq!(&certs.read("docker.io")[0], URL);
        if again {
            prop_assert!(!certs.apply(&["_default"]).changed());
        }
        certs.restore();
        prop_assert_eq!(certs.tree(), before);
    }
}
