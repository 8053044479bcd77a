use std::time::Instant;

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_000_000_000_000;

fn digest(n: usize) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn blob(n: usize, frees: u64, used: u64) -> Blob {
    Blob { digest: digest(n), size: 10, frees, used, is_open: false }
}

fn image(name: &str, rank: Rank, used: u64, parts: &[usize]) -> Unit {
    let subject = Subject::Image(name.parse().unwrap());
    Unit { subject, rank, used, parts: parts.iter().copied().map(digest).collect() }
}

fn names(plan: &Plan) -> Vec<String> {
    let name = |subject: &Subject| match subject {
        Subject::Image(name) => name.repository.to_string(),
        Subject::Manifest(_) => "manifest".to_owned(),
        Subject::Blob(_) => "blob".to_owned(),
    };
    plan.goes.iter().map(|going| name(&going.subject)).collect()
}

#[test]
fn unused_goes_before_used_and_the_least_recent_first() {
    let blobs: Vec<Blob> = (0..6).map(|n| blob(n, 10, n as u64)).collect();
    let units = || {
        vec![
            image("r.test/running", Rank::InUse, 1, &[0]),
            image("r.test/kept", Rank::Kept, 2, &[1]),
            image("r.test/prefetched", Rank::Wanted, 3, &[2]),
            image("r.test/newer", Rank::Unused, 5, &[3]),
            image("r.test/older", Rank::Unused, 4, &[4]),
        ]
    };
    let plan = |goal, reason| make_room(&blobs, units(), goal, reason, NOW);
    // The last blob is nobody's, and was used at 5 as well.
    assert_eq!(names(&plan(10, Reason::MaxBytes)), ["older"]);
    assert_eq!(names(&plan(11, Reason::MaxBytes)), ["older", "newer"]);
    let all = plan(1000, Reason::MaxBytes);
    assert_eq!(names(&all), ["older", "newer", "blob", "prefetched", "kept", "running"]);
    assert_eq!((all.bytes, all.left), (60, 940));
    let disk = plan(1000, Reason::MaxDiskPercent);
    assert_eq!(names(&disk), ["older", "newer", "blob", "prefetched"]);
    assert_eq!(disk.left, 960);
}

#[test]
fn what_goes_on_stays() {
    let mut blobs = vec![blob(0, 10, NOW - 1), blob(1, 10, 0), blob(2, 10, 0)];
    blobs[1].is_open = true;
    let units = || vec![image("r.test/read", Rank::Unused, 0, &[1, 2])];
    for reason in [Reason::MaxDiskPercent, Reason::Full, Reason::MaxBytes] {
        let plan = make_room(&blobs, units(), 1000, reason, NOW);
        assert_eq!(plan.goes.is_empty(), reason == Reason::MaxDiskPercent, "{reason:?}: {plan:?}");
    }
    assert_eq!(expire(&blobs, units(), NOW, NOW), Plan::default());
}

#[test]
fn what_frees_nothing_is_not_dropped() {
    let blobs = [blob(0, 0, 1), blob(1, 10, 1), blob(2, 10, 2)];
    let units = vec![
        // All of it is containerd's too.
        image("r.test/shared", Rank::Unused, 0, &[0]),
        // All of it is claimed by the one that runs.
        image("r.test/base", Rank::Unused, 0, &[1]),
        image("r.test/running", Rank::InUse, 1, &[1]),
        // Two names of the same.
        image("r.test/a", Rank::Unused, 2, &[2]),
        image("r.test/b", Rank::Unused, 3, &[2]),
    ];
    let plan = make_room(&blobs, units, 1000, Reason::MaxDiskPercent, NOW);
    assert_eq!(names(&plan), ["a", "b"]);
    assert_eq!(plan.bytes, 10);
}

#[test]
fn what_nothing_used_expires() {
    let blobs = [blob(0, 10, 5), blob(1, 10, 50), blob(2, 10, 5), blob(3, 10, 5), blob(4, 0, 5)];
    let units = vec![
        image("r.test/old", Rank::Unused, 5, &[0, 3]),
        image("r.test/new", Rank::Unused, 50, &[1, 3]),
        image("r.test/kept", Rank::Kept, 0, &[4]),
    ];
    let plan = expire(&blobs, units, 10, NOW);
    assert_eq!(names(&plan), ["old", "blob"]);
    assert_eq!(plan.digests(), [digest(0), digest(2)], "what the new one has too stays");
}

#[test]
fn what_containerd_lets_go_goes_unless_it_is_wanted_here() {
    let blobs = vec![blob(0, 0, 5), blob(1, 0, 5), blob(2, 10, 5), blob(3, 10, 5)];
    let units = vec![
        image("r.test/gone", Rank::Unused, 5, &[0, 1]),
        image("r.test/running", Rank::InUse, 5, &[1]),
        image("r.test/other", Rank::Unused, 5, &[2]),
    ];
    let released = [digest(0), digest(1)].into();
    assert_eq!(let_go(blobs, units, &released, NOW).digests(), [digest(0)]);
}

/// A hundred thousand blobs in ten thousand images, half of which share what others have.
#[test]
fn a_large_store_is_planned_in_no_time() {
    let count = 100_000;
    let blobs: Vec<Blob> = (0..count).map(|n| blob(n, 1 << 20, n as u64)).collect();
    let units: Vec<Unit> = (0..10_000)
        .map(|n| {
            let rank = if n % 2 == 0 { Rank::Unused } else { Rank::InUse };
            let parts: Vec<usize> = (0..12).map(|part| (n * 9 + part) % count).collect();
            image(&format!("r.test/app{n}"), rank, n as u64, &parts)
        })
        .collect();
    let begun = Instant::now();
    let plan = make_room(&blobs, units, u64::MAX, Reason::MaxDiskPercent, NOW);
    assert!(begun.elapsed().as_secs_f64() < 2.0, "took {:?}", begun.elapsed());
    assert!(plan.bytes > 0);
}

const RANKS: [Rank; 4] = [Rank::Unused, Rank::Wanted, Rank::Kept, Rank::InUse];
const REASONS: [Reason; 3] = [Reason::MaxBytes, Reason::MaxDiskPercent, Reason::Full];

fn stock() -> impl Strategy<Value = (Vec<Blob>, Vec<Unit>)> {
    let blobs = prop::collection::vec((0u64..3, 0u64..20, prop::bool::weighted(0.1)), 0..24);
    let parts = prop::collection::btree_set(0usize..30, 0..8);
    let units = prop::collection::vec((0usize..4, 0u64..20, parts), 0..10);
    (blobs, units).prop_map(|(blobs, units)| {
        let blobs = blobs.iter().enumerate();
        let blobs = blobs.map(|(n, (size, used, is_open))| Blob { is_open: *is_open, ..blob(n, size * 7, *used) });
        let units = units.iter().enumerate().map(|(n, (rank, used, parts))| {
            let parts: Vec<usize> = parts.iter().copied().collect();
            image(&format!("r.test/app{n}"), RANKS[*rank], *used, &parts)
        });
        (blobs.collect(), units.collect())
    })
}

proptest! {
    #[test]
    fn a_plan_holds_what_it_promises((blobs, units) in stock(), goal in 1u64..200, reason in 0usize..3) {
        let reason = REASONS[reason];
        let plan = make_room(&blobs, units.clone(), goal, reason, NOW);
        let gone: HashSet<Digest> = plan.digests().into_iter().collect();
        let frees: HashMap<Digest, u64> = blobs.iter().map(|blob| (blob.digest, blob.frees)).collect();
        // The sums are right, nothing goes twice, and nothing that containerd holds goes at all.
        prop_assert_eq!(gone.len(), plan.digests().len());
        prop_assert_eq!(gone.iter().map(|digest| frees[digest]).sum::<u64>(), plan.bytes);
        prop_assert!(gone.iter().all(|digest| frees[digest] > 0));
        prop_assert_eq!(plan.left, goal.saturating_sub(plan.bytes));
        let going: HashSet<&Subject> = plan.goes.iter().map(|going| &going.subject).collect();
        for unit in &units {
            let is_going = going.contains(&unit.subject);
            let here = unit.parts.iter().filter(|part| frees.get(part).is_some_and(|bytes| *bytes > 0));
            // Whole or not at all: who stays keeps everything, and who goes keeps what others need.
            for part in here {
                let claimed = units.iter().any(|other| !going.contains(&other.subject) && other.parts.contains(part));
                prop_assert_eq!(gone.contains(part), is_going && !claimed, "{:?}", unit);
            }
            if is_going && reason != Reason::MaxBytes {
                prop_assert!(unit.rank <= Rank::Wanted, "{:?} went for {:?}", unit.rank, reason);
            }
        }
        // Nothing goes beyond the need: without the last that frees anything, the goal isn't reached.
        if let Some(last) = plan.goes.iter().rev().find(|going| going.bytes > 0) {
            prop_assert!(plan.bytes - last.bytes < goal);
        }
    }

    #[test]
    fn only_what_is_unused_expires((blobs, units) in stock(), before in 0u64..20) {
        let plan = expire(&blobs, units.clone(), before, NOW);
        let gone: HashSet<Digest> = plan.digests().into_iter().collect();
        for unit in units.iter().filter(|unit| unit.rank != Rank::Unused || unit.used >= before) {
            prop_assert!(unit.parts.iter().all(|part| !gone.contains(part)));
        }
        for blob in blobs.iter().filter(|blob| gone.contains(&blob.digest)) {
            prop_assert!(!blob.is_open && blob.frees > 0);
        }
    }
}
