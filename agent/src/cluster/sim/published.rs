//! The figures that are published, and many more schedules than every run of the tests has time for: `make simulate`.
//!
//! All of them print their seeds.

use std::time::{Duration, Instant};

use super::{Cluster, Figure, Outcome, run};

/// One line for each scenario: what came of it.
fn show(nodes: usize, seed: u64, figures: Vec<Figure>) {
    for Figure { name, cluster } in figures {
        let began = Instant::now();
        let outcome = run(&cluster);
        println!(
            "{nodes} nodes, seed {seed}: {name}: last healthy node {:.3} of the ideal, {:.3} copies in {} requests, {:.1} \
             messages and {:.0} bytes of them a node and second, {:.1} asks and {:.1} streams a node, {:.3} of a copy \
             between zones ({:.0} s)",
            outcome.last_healthy(),
            outcome.copies,
            outcome.upstream_requests,
            outcome.messages_per_second(),
            outcome.message_bytes_per_second(),
            outcome.asks as f64 / nodes as f64,
            outcome.streams as f64 / nodes as f64,
            outcome.crossed as f64 / cluster.blobs.iter().sum::<u64>() as f64,
            began.elapsed().as_secs_f64()
        );
        assert_eq!(outcome.wrong, Vec::<String>::new(), "{name}");
    }
}

#[test]
#[ignore = "takes minutes: make simulate"]
fn a_large_layer_for_all_at_once() {
    for nodes in [8, 50, 100] {
        show(nodes, 1, Figure::herd(nodes, 1));
    }
    show(1_000, 1, Figure::herd(1_000, 1).into_iter().take(6).collect());
    // Pieces of four times the size keep the run short, and cost each hop four times as much.
    let coarse = |figure: Figure| Figure { cluster: Cluster { piece: 256 << 10, ..figure.cluster }, ..figure };
    show(5_000, 1, Figure::herd(5_000, 1).into_iter().take(1).map(coarse).collect());
}

#[test]
#[ignore = "takes minutes: make simulate"]
fn nodes_that_come_and_go_and_a_cluster_in_two() {
    for nodes in [10, 100, 1_000] {
        show(nodes, 1, Figure::unrest(nodes, 1));
    }
}

#[test]
#[ignore = "takes minutes: make simulate"]
fn one_slow_node_where_small_messages_wait() {
    for nodes in [5, 8, 50] {
        show(nodes, 1, Figure::narrow(nodes, 1));
        show(nodes, 1, Figure::image(nodes, 1));
    }
    show(8, 1, Figure::many_small(1));
}

/// `LARDER_SIM_SCHEDULES` says how many, 10,000 if it doesn't.
#[test]
#[ignore = "takes minutes: make simulate"]
fn nobody_is_stuck_in_ten_thousand_schedules() {
    let schedules = std::env::var("LARDER_SIM_SCHEDULES").map_or(10_000, |text| text.parse().unwrap());
    let runs: Vec<(u64, Outcome)> = (0..schedules).map(|seed| (seed, run(&Cluster::random(seed)))).collect();
    let mut beside: Vec<f64> = runs.iter().map(|(_, outcome)| outcome.beside()).collect();
    beside.sort_by(f64::total_cmp);
    let part = |part: f64| beside[((beside.len() - 1) as f64 * part) as usize];
    println!(
        "copies beside those that had to be: {:.2} in the median, {:.2} in 90 of 100, {:.2} in 99, {:.2} at worst",
        part(0.5),
        part(0.9),
        part(0.99),
        part(1.0)
    );
    let longest = |of: fn(&Outcome) -> Duration| runs.iter().map(|(seed, outcome)| (of(outcome), *seed)).max();
    println!("cut off for the longest, with the seed: {:?}", longest(|outcome| outcome.cut_off));
    println!("waited for the longest: {:?}", longest(|outcome| outcome.waited));
    println!("the most that failed in a row: {:?}", runs.iter().map(|(seed, of)| (of.failures, *seed)).max());
    let wrong = runs.into_iter().filter_map(|(seed, of)| of.wrong.into_iter().next().map(|what| (seed, what)));
    let wrong: Vec<(u64, String)> = wrong.collect();
    println!("{} of {schedules} schedules went wrong", wrong.len());
    assert_eq!(wrong, []);
}

/// What one slow node costs where small messages wait differs much from seed to seed: 100 of them.
#[test]
#[ignore = "takes half a minute: make simulate"]
fn an_image_with_one_slow_node_a_hundred_times() {
    for nodes in [5, 8] {
        let of_seed = |seed| Figure::image(nodes, seed).into_iter().map(|figure| (figure.name, run(&figure.cluster)));
        let mut runs: Vec<(&str, f64, f64)> =
            (0..100).flat_map(of_seed).map(|(name, outcome)| (name, outcome.copies, outcome.last_healthy())).collect();
        // Stable: each scene's runs stay in the order of their seeds.
        runs.sort_by_key(|(name, ..)| *name);
        for scene in runs.chunk_by(|a, b| a.0 == b.0) {
            print(nodes, scene[0].0, "copies", &scene.iter().map(|(_, copies, _)| *copies).collect::<Vec<_>>());
            print(nodes, scene[0].0, "of the ideal", &scene.iter().map(|(.., last)| *last).collect::<Vec<_>>());
        }
    }
}

/// A line for what so many seeds gave, each.
fn print(nodes: usize, scene: &str, what: &str, by_seed: &[f64]) {
    let mut sorted = by_seed.to_vec();
    sorted.sort_by(f64::total_cmp);
    let part = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
    let worst = by_seed.iter().position(|of| *of == part(1.0));
    println!(
        "{nodes} nodes, {scene}: {:.2} {what} in the median, {:.2} in 90 of 100, {:.2} at worst (seed {worst:?})",
        part(0.5),
        part(0.9),
        part(1.0)
    );
}
