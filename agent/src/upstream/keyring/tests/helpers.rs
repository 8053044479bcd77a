use super::*;

/// A helper that notes whom it was asked for, and says what `answers` has for it.
const NOTING: &str = r#"read server
echo "$1 $server" >> asked
cat "answer-$(echo "$server" | tr -c 'a-z0-9\n' -)" 2>/dev/null && exit 0
echo "credentials not found in native keychain"
exit 1"#;

fn answer(user: &str, secret: &str) -> String {
    format!(r#"{{"ServerURL":"x","Username":"{user}","Secret":"{secret}"}}"#)
}

#[tokio::test]
async fn a_helper_of_the_registrys_own() {
    let node = Node::new();
    node.program("docker-credential-noting", NOTING);
    node.write("answer-reg-corp-5000", &answer("me", "secret"));
    node.write("answer-token-corp", &answer("<token>", "refresh"));
    node.write("answer-https---index-docker-io-v1-", &answer("hub", "secret"));
    node.write("answer-eu-gcr-io", &answer("gcr", "secret"));
    node.write(
        "config.json",
        r#"{"credHelpers":{"reg.corp:5000":"noting","token.corp":"noting","https://index.docker.io/v1/":"noting",
            "*.gcr.io":"noting","none.corp":"noting"},"auths":{"none.corp/a":{"auth":"bWU6cHc="}}}"#,
    );
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "reg.corp:5000/a/b").await, ["me:secret"]);
    assert_eq!(found(&keyring, "token.corp/a").await, ["<refresh>"]);
    assert_eq!(found(&keyring, "docker.io/library/a").await, ["hub:secret"]);
    assert_eq!(found(&keyring, "eu.gcr.io/a").await, ["gcr:secret"]);
    assert_eq!(found(&keyring, "none.corp/a").await, ["me:pw"]);
    assert!(found(&keyring, "quay.io/a").await.is_empty());
    let asked = "get reg.corp:5000\nget token.corp\nget https://index.docker.io/v1/\nget eu.gcr.io\nget none.corp\n";
    assert_eq!(node.read("asked"), asked);

    // Another image of the same registry, and the same question while the answer holds.
    assert_eq!(found(&keyring, "reg.corp:5000/c").await, ["me:secret"]);
    assert_eq!(node.read("asked"), asked);
}

#[tokio::test]
async fn the_store_is_asked_for_what_the_file_lacks() {
    let node = Node::new();
    node.program("docker-credential-noting", NOTING);
    node.write("answer-https---index-docker-io-v1-", &answer("hub", "secret"));
    node.write("answer-https---old-corp-v2-", &answer("old", "secret"));
    node.write("answer-reg-corp", &answer("reg", "secret"));
    node.write(
        "config.json",
        r#"{"auths":{"https://old.corp/v2/":{},"inline.corp":{"auth":"bWU6cHc="}},"credsStore":"noting"}"#,
    );
    let keyring = node.keyring();
    assert_eq!(found(&keyring, "docker.io/library/a").await, ["hub:secret"]);
    assert_eq!(found(&keyring, "old.corp/a").await, ["old:secret"]);
    assert_eq!(found(&keyring, "reg.corp/a").await, ["reg:secret"]);
    assert_eq!(found(&keyring, "inline.corp/a").await, ["me:pw"]);
    assert!(found(&keyring, "quay.io/a").await.is_empty());
    let asked = "get https://index.docker.io/v1/\nget https://old.corp/v2/\nget reg.corp\nget quay.io\n";
    assert_eq!(node.read("asked"), asked);
}

#[tokio::test]
async fn a_helper_that_fails_is_named_with_its_words_and_rests() {
    let (node, (log, _guard)) = (Node::new(), log());
    node.program("docker-credential-broken", "echo run >> runs; echo 'no AWS region'; echo 'try later' >&2; exit 3");
    node.program("docker-credential-chatty", "echo '{\"Secret\":\"hidden\"}'; exit 1");
    node.program("docker-credential-odd", "echo '[\"hidden\"]'");
    node.program("docker-credential-empty", "echo '{\"ServerURL\":\"\",\"Username\":\"u\",\"Secret\":\"\"}'");
    node.write(
        "config.json",
        r#"{"credHelpers":{"broken.corp":"broken","chatty.corp":"chatty","odd.corp":"odd","empty.corp":"empty",
            "absent.corp":"absent"},"auths":{"broken.corp":{"auth":"bWU6cHc="}}}"#,
    );
    let keyring = node.keyring();
    for _ in 0..3 {
        assert_eq!(found(&keyring, "broken.corp/a").await, ["me:pw"]);
    }
    for image in ["chatty.corp/a", "odd.corp/a", "empty.corp/a", "absent.corp/a"] {
        assert!(found(&keyring, image).await.is_empty(), "{image}");
    }
    assert_eq!(node.read("runs"), "run\n");
    let text = log.text();
    for part in
        ["docker-credential-broken ended with exit status: 3: no AWS region try later", "docker-credential-absent is"]
    {
        assert_eq!(log.count(part), 1, "{part}: {text}");
    }
    assert!(text.contains("docker-credential-odd can't be used") && text.contains("Secret is empty"), "{text}");
    assert!(!text.contains("hidden"), "{text}");
    assert_eq!(keyring.0.runner.metrics.runs("docker-credential-broken", "failed"), 1);
}
