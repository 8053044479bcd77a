use super::*;

fn seeds(few: u64) -> Vec<u64> {
    match std::env::var("LARDER_SIM_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let count = std::env::var("LARDER_SIM_SCHEDULES").map_or(few, |count| count.parse().unwrap());
            (0..count).collect()
        }
    }
}

#[test]
fn whatever_goes_wrong_everybody_who_can_has_the_bytes() {
    for seed in seeds(300) {
        let cluster = Cluster::random(seed);
        let outcome = run(&cluster);
        assert_eq!(outcome.wrong, Vec::<String>::new(), "LARDER_SIM_SEED={seed}: {cluster:?}");
        assert_eq!(outcome.messages_at_rest, 0, "LARDER_SIM_SEED={seed}");
    }
}
