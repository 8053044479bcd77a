use nix::sys::stat::Mode;

use super::*;

const API: &str = "credentialprovider.kubelet.k8s.io/v1";

/// kubelet's configuration with these providers: name, what of its entry isn't usual.
fn providers(entries: &[(&str, &str)]) -> String {
    let mut text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n".to_owned();
    for (name, more) in entries {
        text.push_str(&format!(
            "- {{name: {name}, apiVersion: {API}, defaultCacheDuration: 1h, matchImages: [\"*.corp\"]{more}}}\n"
        ));
    }
    text
}

/// A script that notes the question and answers it, for `auth` in JSON.
fn answering(scope: &str, duration: &str, auth: &str) -> String {
    let answer = format!(
        r#"{{"apiVersion":"{API}","kind":"CredentialProviderResponse","cacheKeyType":"{scope}"{duration},"auth":{auth}}}"#
    );
    format!("cat >> questions; echo >> questions; cat <<'END'\n{answer}\nEND")
}

/// The images that plugins were asked for.
fn asked(node: &Node) -> Vec<String> {
    let questions = node.read("questions");
    let image = |question: &str| {
        let question: serde_json::Value = serde_json::from_str(question).unwrap();
        question["image"].as_str().unwrap().to_owned()
    };
    questions.lines().map(image).collect()
}

#[tokio::test]
async fn a_plugin_is_asked_as_kubelet_asks() {
    let node = Node::new();
    node.write("providers.yaml", &providers(&[("plugin", ", args: [one, two], env: [{name: SPOKEN, value: yes}]")]));
    let noting = "echo \"$* $SPOKEN ${PATH:+inherited}\" > seen\n";
    let auth = r#"{"reg.corp":{"username":"me","password":"pw"},"*.corp":{"username":"any","password":"pw"},
        "other.corp":{"username":"other","password":"pw"}}"#;
    node.program("plugin", &format!("{noting}{}", answering("Registry", "", auth)));
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "reg.corp/a/b").await, ["me:pw", "any:pw"]);
    assert_eq!(node.read("seen"), "one two yes inherited\n");
    let question: serde_json::Value = serde_json::from_str(&node.read("questions")).unwrap();
    let expected = serde_json::json!({"apiVersion": API, "kind": "CredentialProviderRequest", "image": "reg.corp/a/b"});
    assert_eq!(question, expected);

    // Not for it.
    assert!(found(&keyring, "a.b.corp/a").await.is_empty());
    assert!(found(&keyring, "docker.io/library/a").await.is_empty());
    assert_eq!(asked(&node).len(), 1);
}

#[tokio::test]
async fn answers_hold_for_what_they_say() {
    let images = ["one.corp/a", "one.corp/a", "one.corp/b", "two.corp/a", "one.corp/a", "two.corp/a", "one.corp/b"];
    for (scope, runs) in [
        ("Image", &["one.corp/a", "one.corp/b", "two.corp/a"][..]),
        ("Registry", &["one.corp/a", "two.corp/a"]),
        // That the first answer is everybody's is known once it is there.
        ("Global", &["one.corp/a", "one.corp/a"]),
    ] {
        let node = Node::new();
        node.write("providers.yaml", &providers(&[("plugin", "")]));
        node.program("plugin", &answering(scope, "", r#"{"*.corp":{"username":"me","password":"pw"}}"#));
        let keyring = node.keyring();
        for image in images {
            assert_eq!(found(&keyring, image).await, ["me:pw"], "{scope} {image}");
        }
        let mut asked = asked(&node);
        asked.dedup_by(|a, b| scope == "Image" && a == b);
        assert_eq!(asked, runs, "{scope}");
    }
}

#[tokio::test]
async fn answers_that_do_not_hold_are_not_used_again() {
    for duration in [r#","cacheDuration":"0s""#, r#","cacheDuration":"-1h""#] {
        let node = Node::new();
        node.write("providers.yaml", &providers(&[("plugin", "")]));
        node.program("plugin", &answering("Registry", duration, r#"{"*.corp":{"username":"me","password":"pw"}}"#));
        let keyring = node.keyring();
        for _ in 0..3 {
            assert_eq!(found(&keyring, "one.corp/a").await, ["me:pw"]);
        }
        assert_eq!(asked(&node).len(), 3, "{duration}");
    }
}

#[tokio::test]
async fn one_run_for_all_who_ask_and_for_who_comes_after_they_left() {
    let node = Node::new();
    nix::unistd::mkfifo(&node.path("gate"), Mode::S_IRWXU).unwrap();
    node.write("providers.yaml", &providers(&[("plugin", "")]));
    let waiting = "echo run >> runs; read go < gate\n";
    let answer = answering("Registry", "", r#"{"*.corp":{"username":"me","password":"pw"}}"#);
    node.program("plugin", &format!("{waiting}{answer}"));
    let keyring = node.keyring();

    // Who asks first leaves while the plugin runs.
    tokio::select! {
        _ = found(&keyring, "one.corp/a") => panic!("the plugin waits for the gate"),
        _ = node.written("runs") => {}
    }
    let open = async {
        let gate = node.path("gate");
        tokio::task::spawn_blocking(move || fs::write(gate, "go\n")).await.unwrap().unwrap();
    };
    let all = futures_util::future::join_all(["one.corp/a", "one.corp/b", "one.corp/c"].map(|i| found(&keyring, i)));
    let (all, ()) = tokio::join!(all, open);
    assert!(all.iter().all(|found| found == &["me:pw"]), "{all:?}");
    assert_eq!(node.read("runs"), "run\n");
}

#[tokio::test]
async fn one_failing_plugin_keeps_no_other_from_answering() {
    let (mut node, (log, _guard)) = (Node::new(), log());
    node.pace.patience = Duration::from_secs(3);
    let names = ["absent", "failing", "odd", "older", "slow", "token", "good", "late"];
    let entries = names.map(|name| match name {
        "token" => (name, ", tokenAttributes: {requireServiceAccount: true}"),
        _ => (name, ""),
    });
    node.write("providers.yaml", &providers(&entries));
    node.program("failing", "echo 'hidden'; echo 'no metadata\nservice' >&2; exit 7");
    node.program("odd", "echo '{\"auth\":\"hidden\"}'");
    let current = answering("Image", "", r#"{"*.corp":{"username":"u","password":"hidden"}}"#);
    node.program("older", &current.replace("/v1\"", "/v1beta1\""));
    node.program("slow", "echo hidden; exec sleep 1000");
    node.program("token", "touch started");
    node.program("good", &answering("Image", "", r#"{"*.corp":{"username":"good","password":"pw"}}"#));
    node.program("late", &answering("Image", "", r#"{"one.corp":{"username":"late","password":"pw"}}"#));
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "one.corp/a").await, ["late:pw", "good:pw"]);
    let text = log.text();
    for part in [
        "absent can't be started",
        "failing ended with exit status: 7: no metadata service",
        "odd can't be used",
        "older can't be used: it should be a CredentialProviderResponse of credentialprovider.kubelet.k8s.io/v1",
        "slow had not answered after 3s",
        "\"token\" is left out",
    ] {
        assert_eq!(log.count(part), 1, "{part}: {text}");
    }
    assert!(!text.contains("hidden") && !node.path("started").exists(), "{text}");
    assert_eq!(keyring.0.runner.metrics.runs("failing", "failed"), 1);
    assert_eq!(keyring.0.runner.metrics.runs("good", "ok"), 1);
}

#[tokio::test]
async fn the_configuration_may_change_and_be_a_folder() {
    let node = Node::new();
    fs::create_dir(node.path("providers.yaml")).unwrap();
    node.write("providers.yaml/10.yaml", &providers(&[("plugin", "")]));
    node.write("providers.yaml/ignored.txt", "neither YAML nor: [");
    let programs = node.path("bin");
    fs::create_dir(&programs).unwrap();
    for name in ["plugin", "second"] {
        let auth = format!(r#"{{"*.corp":{{"username":"{name}","password":"pw"}}}}"#);
        node.program(&format!("bin/{name}"), &answering("Registry", "", &auth));
    }
    let config = Credentials {
        kubelet_config: Some(node.path("providers.yaml")),
        kubelet_bin_dir: Some(programs),
        ..Credentials::default()
    };
    let keyring = Keyring::with_pace(&config, node.pace);
    assert_eq!(found(&keyring, "one.corp/a").await, ["plugin:pw"]);

    // What the first has answered holds on when a second one joins it.
    node.write("providers.yaml/20.yaml", &providers(&[("second", "")]));
    assert_eq!(found(&keyring, "one.corp/a").await, ["plugin:pw", "second:pw"]);
    assert_eq!(asked(&node).len(), 2);

    // Twice the same name is what kubelet refuses; what was before goes on.
    node.write("providers.yaml/20.yaml", &providers(&[("plugin", ", args: [x]")]));
    assert_eq!(found(&keyring, "one.corp/a").await, ["plugin:pw", "second:pw"]);

    fs::remove_file(node.path("providers.yaml/10.yaml")).unwrap();
    assert_eq!(found(&keyring, "one.corp/a").await, ["plugin:pw"]);
    assert_eq!(asked(&node).len(), 3);
}
