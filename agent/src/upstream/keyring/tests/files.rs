use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;

use super::*;

/// `{"auths": {…}}` with the password `pw` for each.
fn auths(entries: &[(&str, &str)]) -> String {
    let entries = entries.iter().map(|(key, user)| format!(r#""{key}":{{"username":"{user}","password":"pw"}}"#));
    format!(r#"{{"auths":{{{}}}}}"#, entries.collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn the_closest_entry_comes_first() {
    let node = Node::new();
    node.write(
        "config.json",
        &auths(&[
            ("*.corp", "any"),
            ("reg.corp", "host"),
            ("https://reg.corp/v2/team/", "team"),
            ("reg.corp/team/app", "app"),
            ("reg.corp:5000", "port"),
            ("https://index.docker.io/v1/", "hub"),
        ]),
    );
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "reg.corp/team/app").await, ["app:pw", "team:pw", "host:pw", "any:pw"]);
    assert_eq!(found(&keyring, "reg.corp/other").await, ["host:pw", "any:pw"]);
    assert_eq!(found(&keyring, "reg.corp:5000/team/app").await, ["port:pw"]);
    assert_eq!(found(&keyring, "docker.io/library/nginx").await, ["hub:pw"]);
    assert!(found(&keyring, "quay.io/a/b").await.is_empty());
}

#[tokio::test]
async fn the_first_of_several_files_comes_first_and_nothing_comes_twice() {
    let node = Node::new();
    node.write("config.json", &auths(&[("reg.corp", "one")]));
    node.write("second.json", &auths(&[("reg.corp", "two"), ("*.corp", "one"), ("reg.corp/a", "path")]));
    let config = Credentials {
        docker_config: vec![node.path("config.json"), node.path("second.json")],
        ..Credentials::default()
    };
    let keyring = Keyring::new(&config);
    assert!(!keyring.is_empty() && Keyring::new(&Credentials::default()).is_empty());
    assert_eq!(found(&keyring, "reg.corp/a").await, ["path:pw", "one:pw", "two:pw"]);
}

#[tokio::test]
async fn files_are_read_anew() {
    let (node, (log, _guard)) = (Node::new(), log());
    node.write("config.json", &auths(&[("reg.corp", "old")]));
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "reg.corp/a").await, ["old:pw"]);

    // Written over, to the same length, within the same tick of the clock.
    let tick = fs::metadata(node.path("config.json")).unwrap().modified().unwrap();
    node.write("config.json", &auths(&[("reg.corp", "new")]));
    fs::File::options().write(true).open(node.path("config.json")).unwrap().set_modified(tick).unwrap();
    assert_eq!(found(&keyring, "reg.corp/a").await, ["new:pw"]);

    // Replaced by a rename, with an old time of change, as a Secret's volume does.
    node.write("next.json", &auths(&[("reg.corp", "two")]));
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(node.path("next.json")).unwrap().set_modified(hour_ago).unwrap();
    fs::rename(node.path("next.json"), node.path("config.json")).unwrap();
    assert_eq!(found(&keyring, "reg.corp/a").await, ["two:pw"]);

    // Half-written: what was there before holds, and it is said once.
    for half in ["", "{\"auths\":", "{\"auths\":{\"reg.corp\":{\"username\":\"hidden"] {
        node.write("config.json", half);
        assert_eq!(found(&keyring, "reg.corp/a").await, ["two:pw"]);
    }
    assert_eq!(log.count("what was read before is kept"), 1, "{}", log.text());
    assert!(!log.text().contains("hidden"), "{}", log.text());

    node.write("config.json", &auths(&[("reg.corp", "end")]));
    assert_eq!(found(&keyring, "reg.corp/a").await, ["end:pw"]);
    assert_eq!(log.count("read anew"), 1, "{}", log.text());

    // Taken away: so are its credentials.
    fs::remove_file(node.path("config.json")).unwrap();
    for _ in 0..2 {
        assert!(found(&keyring, "reg.corp/a").await.is_empty());
    }
    assert_eq!(log.count("no such file"), 1, "{}", log.text());
}

#[tokio::test]
async fn between_looks_nothing_is_read() {
    let mut node = Node::new();
    node.pace.look = Duration::from_secs(3600);
    node.write("config.json", &auths(&[("reg.corp", "old")]));
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "reg.corp/a").await, ["old:pw"]);
    node.write("config.json", &auths(&[("reg.corp", "new")]));
    assert_eq!(found(&keyring, "reg.corp/a").await, ["old:pw"]);
}

#[tokio::test]
async fn one_bad_entry_leaves_the_others_and_is_named_once() {
    let (node, (log, _guard)) = (Node::new(), log());
    node.write(
        "config.json",
        r#"{"auths":{"bad.corp":{"auth":"aGlkZGVu"},"reg.corp":{"username":"me","password":"pw"}}}"#,
    );
    let keyring = node.keyring();
    for _ in 0..3 {
        assert_eq!(found(&keyring, "reg.corp/a").await, ["me:pw"]);
        assert!(found(&keyring, "bad.corp/a").await.is_empty());
    }
    assert_eq!(log.count("bad.corp"), 1, "{}", log.text());
    assert!(!log.text().contains("aGlkZGVu") && !log.text().contains("hidden"), "{}", log.text());
}

#[tokio::test]
async fn what_is_no_file_or_far_too_large_is_said() {
    let (node, (log, _guard)) = (Node::new(), log());
    fs::create_dir(node.path("config.json")).unwrap();
    assert!(found(&node.keyring(), "reg.corp/a").await.is_empty());
    assert!(log.text().contains("can't be read"), "{}", log.text());

    fs::remove_dir(node.path("config.json")).unwrap();
    fs::File::create(node.path("config.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(found(&node.keyring(), "reg.corp/a").await.is_empty());
    assert!(log.text().contains("is larger than"), "{}", log.text());
}

#[tokio::test]
async fn a_file_that_hangs_holds_up_one_call_and_one_thread() {
    let (node, (log, _guard)) = (Node::new(), log());
    node.write("second.json", &auths(&[("reg.corp", "two")]));
    // Opened for reading, it waits for a writer.
    nix::unistd::mkfifo(&node.path("config.json"), Mode::S_IRWXU).unwrap();
    let docker_config = vec![node.path("config.json"), node.path("second.json")];
    let keyring = Keyring::with_pace(&Credentials { docker_config, ..Credentials::default() }, node.pace);
    for _ in 0..100 {
        assert_eq!(found(&keyring, "reg.corp/a").await, ["two:pw"]);
    }
    assert_eq!(log.count("does its disk hang?"), 1, "{}", log.text());

    let (path, content) = (node.path("config.json"), auths(&[("reg.corp", "one")]));
    let writing = move || {
        let mut pipe = fs::File::options().write(true).open(&path).unwrap();
        // Whoever looks from here on finds a file.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &content).unwrap();
        io::Write::write_all(&mut pipe, content.as_bytes()).unwrap();
    };
    tokio::task::spawn_blocking(writing).await.unwrap();
    while found(&keyring, "reg.corp/a").await != ["one:pw", "two:pw"] {
        tokio::task::yield_now().await;
    }
}
