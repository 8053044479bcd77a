use std::sync::Arc;

use tokio::time::Instant;

use super::super::error::RunError;
use super::super::metrics::Metrics;
use super::super::program::{Program, Runner};
use super::super::shared::Shared;
use super::super::{Patience, Tasks};
use super::*;

fn runner(node: &Node) -> Runner {
    Runner::new(node.pace, Tasks::new(), Metrics::default())
}

fn program(node: &Node, name: &str) -> Program {
    Program { path: node.path(name), args: Vec::new(), env: Vec::new() }
}

#[tokio::test]
async fn a_slow_program_is_killed_with_all_that_it_started() {
    let mut node = Node::new();
    node.program("slow", "echo $$ > leader\nsleep 1000 &\necho $! > child\nwait");
    node.pace.patience = Duration::from_secs(2);
    let error = runner(&node).run(&program(&node, "slow"), b"").await.unwrap_err();
    assert!(matches!(error, RunError::Slow { .. }), "{error}");
    gone(&node.written("leader").await).await;
    gone(&node.written("child").await).await;
}

#[tokio::test]
async fn the_end_of_the_agent_kills_programs_that_run() {
    let node = Node::new();
    node.write("config.json", r#"{"credsStore":"slow"}"#);
    node.program("docker-credential-slow", "echo $$ > leader\nsleep 1000 &\necho $! > child\nwait");
    let keyring = node.keyring();
    let (nothing, ()) = tokio::join!(found(&keyring, "reg.corp/a"), async {
        node.written("child").await;
        keyring.close().await;
    });
    assert!(nothing.is_empty());
    gone(&node.read("leader")).await;
    gone(&node.read("child")).await;
    // And none is started any more.
    fs::remove_file(node.path("leader")).unwrap();
    assert!(found(&keyring, "reg.corp/b").await.is_empty());
    assert!(!node.path("leader").exists());
}

#[tokio::test]
async fn output_is_bounded_and_never_stops_a_program() {
    let node = Node::new();
    node.program("endless", "exec yes");
    let error = runner(&node).run(&program(&node, "endless"), b"").await.unwrap_err();
    assert!(matches!(error, RunError::Endless { .. }), "{error}");

    node.program("loud", "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo answer");
    let output = runner(&node).run(&program(&node, "loud"), b"").await.unwrap();
    assert_eq!(*output.answer, b"answer\n");
    assert_eq!(output.said, "x".repeat(512));
}

#[tokio::test]
async fn a_program_needs_not_hear_the_question() {
    let node = Node::new();
    node.program("deaf", "exec 0<&-; echo answer");
    let question = vec![b'?'; 1 << 20];
    let output = runner(&node).run(&program(&node, "deaf"), &question).await.unwrap();
    assert_eq!(*output.answer, b"answer\n");
}

#[tokio::test]
async fn a_program_that_is_being_replaced_is_waited_for() {
    let node = Node::new();
    node.program("replaced", "echo answer");
    let writer = fs::File::options().append(true).open(node.path("replaced")).unwrap();
    let (runner, program) = (runner(&node), program(&node, "replaced"));
    // The kernel runs no file that is open for writing; the first try is over when the writer goes.
    let (output, ()) = tokio::join!(runner.run(&program, b""), async { drop(writer) });
    assert_eq!(*output.unwrap().answer, b"answer\n");
}

#[tokio::test]
async fn few_run_at_the_same_time() {
    let node = Node::new();
    // Each notes how many are in the room with it.
    node.program("counted", "mkdir room.$$; ls -d room.* | wc -l >> counts; sleep 0.1; rmdir room.$$");
    let runner = runner(&node);
    let program = program(&node, "counted");
    let all = futures_util::future::join_all((0..12).map(|_| runner.run(&program, b""))).await;
    assert!(all.iter().all(Result::is_ok));
    let counts = node.read("counts");
    assert!(counts.lines().count() == 12 && counts.lines().all(|n| n.trim().parse::<u32>().unwrap() <= 4), "{counts}");
}

#[tokio::test]
async fn few_run_at_the_same_time_for_all_files() {
    let node = Node::new();
    node.write("config.json", r#"{"credsStore":"counted"}"#);
    node.program(
        "docker-credential-counted",
        "mkdir room.$$; ls -d room.* | wc -l >> counts; sleep 0.1; rmdir room.$$; echo '{\"Username\":\"me\",\"Secret\":\"pw\"}'",
    );
    let keyring = node.keyring();
    let other = keyring.of_file(&node.path("config.json"));
    let images: Vec<String> = (0..12).map(|n| format!("r{n}.corp/a")).collect();
    let asked = images.iter().zip([&keyring, &other].into_iter().cycle()).map(|(image, keyring)| found(keyring, image));
    assert!(futures_util::future::join_all(asked).await.iter().all(|found| *found == ["me:pw"]));
    let counts = node.read("counts");
    assert!(counts.lines().count() == 12 && counts.lines().all(|n| n.trim().parse::<u32>().unwrap() <= 4), "{counts}");
    assert_eq!(keyring.0.runner.metrics.runs("docker-credential-counted", "ok"), 12);
    // What one was told, the other knows.
    assert_eq!(found(&other, "r0.corp/a").await, ["me:pw"]);
    assert_eq!(found(&keyring, "r1.corp/a").await, ["me:pw"]);
    assert_eq!(keyring.0.runner.metrics.runs("docker-credential-counted", "ok"), 12);
}

#[tokio::test]
async fn a_run_is_waited_for_once() {
    let node = Node::new();
    let shared: Shared<()> = Shared::new(runner(&node));
    let (began, of_run) = (Instant::now(), Duration::from_secs(1));
    for _ in 0..3 {
        let patience = Patience { until: Instant::now() + 2 * of_run, of_run };
        let run = |_| std::future::pending::<Result<((), Duration), RunError>>();
        let outcome = shared.get("program", "key", Some(patience), run).await;
        assert!(outcome.is_err_and(|e| matches!(*e, RunError::Late)));
    }
    assert!(began.elapsed() >= of_run && began.elapsed() < 2 * of_run, "{:?}", began.elapsed());
}

#[tokio::test]
async fn questions_under_way_are_bounded() {
    let node = Node::new();
    let shared: Shared<()> = Shared::new(runner(&node));
    let keys: Vec<String> = (0..1024).map(|n| n.to_string()).collect();
    let waiting =
        futures_util::future::join_all(keys.iter().map(|key| {
            shared.get("program", key, None, |_| std::future::pending::<Result<((), Duration), RunError>>())
        }));
    tokio::select! {
        biased;
        _ = waiting => panic!("none has an answer"),
        outcome = shared.get("program", "one more", None, |_| async { Ok(((), Duration::ZERO)) }) => {
            assert!(outcome.is_err_and(|e| matches!(*Arc::clone(&e), RunError::Busy)));
        }
    }
}
