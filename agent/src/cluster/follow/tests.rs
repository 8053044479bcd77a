use proptest::prelude::*;

use super::*;
use crate::cluster::chain::{Ailment, Beat, Credential, Key, Lease, Parting, Trouble};
use crate::cluster::directory::{Ask, Released, Report, Verdict};
use crate::image::{Access, Digest, Zone};

const SIZE: u64 = 100 << 20;

fn node(number: u8) -> NodeId {
    NodeId::new([number; 16])
}

fn ticket(number: u64) -> Ticket {
    Ticket { number, issuer: 0 }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn follow() -> Follow {
    let key = Key { digest: Digest::of(b"layer"), registry: "reg.example".parse().unwrap(), access: Access::Anonymous };
    let sought = Sought { key, credential: Credential::None, zone: Zone::default() };
    let owners = Owners { first: Some(node(100)), second: Some(node(101)) };
    Follow::new(millis(0), node(50), sought, Some(SIZE), 0, owners)
}

fn asks(follow: &mut Follow) -> Vec<(u64, NodeId, Ask)> {
    let ask = |action| match action {
        Action::Ask { number, owner, ask } => Some((number, owner, *ask)),
        _ => None,
    };
    follow.actions().into_iter().filter_map(ask).collect()
}

fn reports(follow: &mut Follow) -> Vec<(NodeId, Report)> {
    let report = |action| match action {
        Action::Report { owner, report } => Some((owner, *report)),
        _ => None,
    };
    follow.actions().into_iter().filter_map(report).collect()
}

fn answered(answer: Answer) -> Answered {
    Answered { answer, broken_sources: Vec::new() }
}

fn read(number: u64, parents: &[u8]) -> Answered {
    let parents = parents.iter().map(|parent| node(*parent)).collect();
    answered(Answer::Read { ticket: ticket(number), parents, ahead: 1 })
}

fn opening(follow: &Follow) -> Opening {
    match follow.turn() {
        Turn::Peer(opening) => opening,
        turn => panic!("{turn:?}"),
    }
}

/// A beat of parent 10, which reads from 9, which reads from 8.
fn beat(frontiers: [u64; 3], rates: [u64; 3]) -> Beat {
    let hop = |at: usize| {
        let number = 10 - at as u8;
        Hop { node: node(number), ticket: Some(ticket(number.into())), frontier: frontiers[at], rate: rates[at] }
    };
    Beat { path: (0..3).map(hop).collect() }
}

/// One that reads from node 10, at place 50, since 1 ms.
fn reading() -> (Follow, Opening) {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, read(50, &[10]));
    let opening = opening(&follow);
    follow.opened(millis(1), opening.number);
    follow.actions();
    (follow, opening)
}

#[test]
fn a_late_owner_is_passed_over_and_then_a_piece_is_fetched() {
    let mut follow = follow();
    assert_eq!(asks(&mut follow)[0].1, node(100));
    assert_eq!(follow.turn(), Turn::Wait);
    assert_eq!(follow.next_deadline(), Some(millis(100)));
    follow.tick(millis(100));
    let [(number, owner, ref ask)] = asks(&mut follow)[..] else { panic!() };
    assert_eq!((owner, ask.owner_failed), (node(101), true));
    assert_eq!(follow.next_deadline(), Some(millis(200)));
    follow.tick(millis(200));
    follow.tick(follow.next_deadline().unwrap());
    assert_eq!(follow.turn(), Turn::Upstream { upto: PIECE });
    // An answer takes it back into the chain.
    follow.answered(millis(310), number, read(7, &[3]));
    assert_eq!(opening(&follow).node, node(3));
    assert!(follow.actions().contains(&Action::Placed(ticket(7))));
}

#[test]
fn who_sends_to_an_owner_that_is_gone_is_asked_in_its_place_and_once() {
    let mut follow = follow();
    // The first one's ring is behind: for it, 200 is an owner still.
    let [(first, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), first, answered(Answer::NotOwner(Some(node(200)))));
    let [(gone, owner, _)] = asks(&mut follow)[..] else { panic!() };
    assert_eq!(owner, node(200));
    // It may be the second one then, and not know yet that it is the first.
    follow.unanswered(millis(1), gone);
    let [(again, owner, ref ask)] = asks(&mut follow)[..] else { panic!() };
    assert_eq!((owner, ask.owner_failed), (node(100), true));
    follow.answered(millis(1), again, answered(Answer::NotOwner(Some(node(200)))));
    let [(second, owner, ref ask)] = asks(&mut follow)[..] else { panic!() };
    assert_eq!((owner, ask.owner_failed), (node(101), true));
    // The same with the second one: a piece then, and no more asks for now.
    follow.answered(millis(2), second, answered(Answer::NotOwner(Some(node(200)))));
    let [(gone, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.unanswered(millis(2), gone);
    let [(again, owner, _)] = asks(&mut follow)[..] else { panic!() };
    assert_eq!(owner, node(101));
    follow.answered(millis(2), again, answered(Answer::NotOwner(Some(node(200)))));
    assert_eq!((asks(&mut follow), follow.turn()), (Vec::new(), Turn::Upstream { upto: PIECE }));
}

#[test]
fn who_fetches_for_itself_has_work_however_far_the_frontier_leaps() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, answered(Answer::Alone { absent: false }));
    assert_eq!(follow.turn(), Turn::Upstream { upto: PIECE });
    // What a reader far ahead had, up to there.
    follow.arrived(millis(2), 80 << 20);
    assert!(matches!(follow.turn(), Turn::Upstream { upto } if upto > 80 << 20), "{:?}", follow.turn());
}

#[test]
fn a_lease_that_is_over_when_it_comes_is_reported_at_once() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.arrived(millis(1), 6 << 20);
    let lease = Answer::Fetch { ticket: ticket(1), lease: Lease(5), upto: 4 << 20 };
    follow.answered(millis(2), number, answered(lease));
    let [(owner, ref report)] = reports(&mut follow)[..] else { panic!() };
    assert_eq!((owner, report.lease, report.frontier), (node(100), Some(Lease(5)), 6 << 20));
    follow.arrived(millis(3), 7 << 20);
    follow.reported(millis(3), Lease(5), Verdict::GoOn { upto: 15 << 20 });
    assert_eq!(follow.turn(), Turn::Upstream { upto: 15 << 20 });
}

#[test]
fn over_full_links_answers_and_peers_are_waited_for_longer() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.expect(millis(400));
    follow.tick(millis(399));
    assert_eq!((asks(&mut follow), follow.turn()), (Vec::new(), Turn::Wait));
    follow.answered(millis(399), number, read(50, &[10]));
    let first = opening(&follow);
    follow.tick(millis(399 + 1_199));
    assert_eq!(opening(&follow), first, "its connection has to be made first");
    // With the links idle again, what is late is late.
    follow.expect(millis(100));
    follow.tick(millis(399 + 1_200));
    assert!(!matches!(follow.turn(), Turn::Peer(_)));
}

#[test]
fn what_the_first_owner_says_counts_however_late_it_comes() {
    let mut follow = follow();
    let [(first, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.tick(millis(100));
    let [(second, ..)] = asks(&mut follow)[..] else { panic!() };
    let lease = Answer::Fetch { ticket: ticket(1), lease: Lease(5), upto: 4 << 20 };
    follow.answered(millis(110), second, answered(lease));
    assert_eq!(follow.turn(), Turn::Upstream { upto: 4 << 20 });
    follow.actions();
    // There, somebody else fetches it already: who has come further is for the first one to judge.
    follow.answered(millis(120), first, read(50, &[10]));
    assert_eq!(follow.turn(), Turn::Upstream { upto: 4 << 20 }, "without a pause");
    let told: Vec<_> =
        reports(&mut follow).into_iter().map(|(owner, report)| (owner, report.lease, report.state)).collect();
    assert_eq!(told, [(node(101), None, State::Reading), (node(100), Some(Lease(5)), State::Fetching)]);
    follow.reported(millis(121), Lease(5), Verdict::Ended);
    let actions = follow.actions();
    let [Action::Yields, Action::Ask { number, owner, ask }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((*owner, ask.to_the_tail), (node(100), true), "it has answered: it is asked again");
    follow.answered(millis(122), *number, read(50, &[10]));
    assert_eq!(opening(&follow).node, node(10));
}

#[test]
fn a_lease_of_the_first_owner_takes_the_place_of_one_of_the_second() {
    let mut follow = follow();
    let [(first, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.tick(millis(100));
    let [(second, ..)] = asks(&mut follow)[..] else { panic!() };
    let lease = |number, lease, upto| answered(Answer::Fetch { ticket: ticket(number), lease: Lease(lease), upto });
    follow.answered(millis(110), second, lease(90, 5, 4 << 20));
    follow.arrived(millis(115), 1 << 20);
    follow.actions();
    follow.answered(millis(120), first, lease(1, 6, 8 << 20));
    assert_eq!(follow.turn(), Turn::Upstream { upto: 8 << 20 });
    let actions = follow.actions();
    // Its readers stay: their tickets are higher than its new one.
    assert!(!actions.contains(&Action::Yields) && actions.contains(&Action::Placed(ticket(1))), "{actions:?}");
    let told = actions.into_iter().filter_map(|action| match action {
        Action::Report { owner, report } => Some((owner, report.lease, report.frontier, report.state)),
        _ => None,
    });
    let expected = [(node(101), None, 1 << 20, State::Reading), (node(100), Some(Lease(6)), 1 << 20, State::Fetching)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn a_piece_ends_with_a_chunk() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.arrived(millis(1), 1_000);
    follow.answered(millis(2), number, answered(Answer::Alone { absent: false }));
    assert_eq!(follow.turn(), Turn::Upstream { upto: PIECE });
}

#[test]
fn where_nobody_owns_it_all_of_it_is_fetched_until_somebody_does() {
    let Follow { sought, .. } = follow();
    let mut follow = Follow::new(millis(0), node(50), sought, Some(SIZE), 0, Owners { first: None, second: None });
    assert_eq!((follow.turn(), follow.next_deadline()), (Turn::Upstream { upto: u64::MAX }, None));
    follow.owners_changed(millis(10), Owners { first: Some(node(1)), second: None });
    assert_eq!(follow.next_deadline(), Some(millis(10)));
    follow.tick(millis(10));
    assert!(matches!(asks(&mut follow)[..], [(_, owner, _)] if owner == node(1)));
    follow.owners_changed(millis(20), Owners { first: None, second: None });
    assert!(follow.next_deadline().is_none_or(|at| at < Duration::from_secs(60)), "{follow:?}");
}

#[test]
fn when_no_owner_answers_all_of_it_is_fetched_at_once() {
    let mut follow = follow();
    for _ in 0..2 {
        let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
        follow.unanswered(millis(1), number);
    }
    assert!(matches!(follow.turn(), Turn::Upstream { .. }));
}

#[test]
fn a_holder_reports_at_half_and_at_the_end_and_gives_way() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, answered(Answer::Fetch { ticket: ticket(1), lease: Lease(5), upto: 4 << 20 }));
    assert_eq!(follow.turn(), Turn::Upstream { upto: 4 << 20 });
    follow.actions();
    follow.arrived(millis(10), 1 << 20);
    assert_eq!(follow.actions(), []);
    follow.arrived(millis(20), 2 << 20);
    assert_eq!(follow.actions().len(), 1);
    follow.reported(millis(21), Lease(5), Verdict::GoOn { upto: 8 << 20 });
    assert_eq!(follow.turn(), Turn::Upstream { upto: 8 << 20 });
    follow.arrived(millis(30), 8 << 20);
    assert_eq!((follow.actions().len(), follow.turn()), (1, Turn::Wait));
    follow.reported(millis(31), Lease(5), Verdict::Ended);
    let actions = follow.actions();
    assert_eq!(actions[0], Action::Yields);
    let Action::Ask { ask, .. } = &actions[1] else { panic!("{actions:?}") };
    assert!(ask.to_the_tail && ask.frontier == 8 << 20);
}

/// One whose range of 4 MiB has ended, while its reader lagged; it came after so many ms.
fn goes_on_after(took: u64) -> Follow {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, answered(Answer::Fetch { ticket: ticket(1), lease: Lease(5), upto: 4 << 20 }));
    follow.readers_lag(3 << 20);
    (1..=4).for_each(|mib| follow.arrived(millis(took * mib / 4), mib << 20));
    follow.reported(millis(took), Lease(5), Verdict::Ended);
    follow.actions();
    follow
}

#[test]
fn who_goes_on_after_its_range_ends_with_what_is_on_its_way() {
    let mut follow = goes_on_after(100);
    assert_eq!(follow.turn(), Turn::Upstream { upto: 8 << 20 });
    // Its reader has caught up: who takes over now would fetch the rest of this again.
    follow.readers_lag(0);
    follow.arrived(millis(150), 6 << 20);
    follow.tick(millis(300));
    assert_eq!((follow.actions(), follow.turn()), (Vec::new(), Turn::Upstream { upto: 8 << 20 }));
    let mut cut = goes_on_after(100);
    cut.readers_lag(0);
    cut.arrived(millis(150), 6 << 20);

    follow.arrived(millis(350), 8 << 20);
    let actions = follow.actions();
    let [Action::Yields, Action::Ask { ask, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert!(ask.to_the_tail && ask.frontier == 8 << 20);

    // What doesn't come is not waited for.
    cut.tick(millis(1_200));
    assert_eq!(cut.actions()[0], Action::Yields);
}

#[test]
fn who_is_slow_goes_on_by_small_pieces() {
    let mut follow = goes_on_after(4_000);
    assert_eq!(follow.turn(), Turn::Upstream { upto: 5 << 20 });
    follow.readers_lag(0);
    follow.arrived(millis(4_100), (4 << 20) + (100 << 10));
    assert_eq!(follow.actions()[0], Action::Yields);
}

#[test]
fn who_gets_no_verdict_goes_on_and_tells_the_other_owner() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, answered(Answer::Fetch { ticket: ticket(1), lease: Lease(5), upto: 4 << 20 }));
    follow.arrived(millis(30), 4 << 20);
    follow.actions();
    follow.tick(millis(130));
    assert_eq!(follow.turn(), Turn::Upstream { upto: (4 << 20) + PIECE });
    let [Action::Report { owner, .. }] = follow.actions()[..] else { panic!() };
    assert_eq!(owner, node(101));
}

#[test]
fn a_silent_parent_is_left_for_the_one_beyond_it() {
    let (mut follow, first) = reading();
    follow.arrived(millis(100), 1_000);
    follow.beat(millis(200), first.number, beat([9_000, 9_000, 9_000], [1, 1, 1]));
    assert_eq!(follow.next_deadline(), Some(millis(800)));
    follow.tick(millis(800));
    let second = opening(&follow);
    assert_eq!((second.node, second.instead_of), (node(9), Some(node(10))));
    // And when nobody on the path is there, the owner is asked, and told so.
    follow.lost(millis(801), second.number);
    assert_eq!(opening(&follow).node, node(8));
    follow.lost(millis(802), opening(&follow).number);
    let [(_, _, ref ask)] = asks(&mut follow)[..] else { panic!() };
    let troubled: Vec<NodeId> = ask.troubles.iter().map(|trouble| trouble.node).collect();
    assert_eq!(troubled, [node(8), node(9), node(10)]);
    assert_eq!(ask.ticket, Some(ticket(50)));
}

#[test]
fn a_reader_that_starves_moves_up_and_one_that_is_slow_itself_goes_to_the_tail() {
    let (mut follow, first) = reading();
    let fast = 100 << 20;
    let mut at = 1;
    // What the parent has comes at once; it hasn't got much, and the one beyond it has.
    while opening(&follow) == first {
        at += 100;
        assert!(at < 3_000, "it stays with a parent that starves it");
        follow.arrived(millis(at), at * 1_000);
        follow.beat(millis(at), first.number, beat([at * 1_000, at * 100_000, at * 100_000], [1_000_000, fast, fast]));
    }
    let second = opening(&follow);
    assert_eq!((second.node, second.instead_of), (node(9), Some(node(10))));
    follow.opened(millis(at + 1), second.number);
    follow.actions();
    follow.parted(millis(at + 900), second.number, &Parting::Displaced);
    let [(number, _, ref ask)] = asks(&mut follow)[..] else { panic!() };
    assert!(ask.to_the_tail && ask.slow);
    follow.answered(millis(at + 901), number, read(70, &[10]));
    // It doesn't try that again for a while.
    let third = opening(&follow);
    follow.opened(millis(at + 902), third.number);
    for step in 0..50 {
        at += 100;
        follow.arrived(millis(at + 902), 10_000_000 + step);
        follow.beat(millis(at + 902), third.number, beat([90 << 20, 99 << 20, 99 << 20], [fast, fast, fast]));
        assert_eq!(opening(&follow), third);
    }
}

#[test]
fn who_has_had_nothing_complains_where_the_bytes_are_but_not_at_its_parent() {
    // Frontiers of the parent, and beyond it.
    for (frontiers, complains) in [([0, 1, 1], true), ([0, 0, 0], false), ([1, 1, 1], false)] {
        let (mut follow, first) = reading();
        follow.actions();
        for at in (200..=2_400).step_by(200) {
            follow.beat(millis(at), first.number, beat(frontiers, [0; 3]));
            follow.tick(millis(at));
        }
        let asks = asks(&mut follow);
        if complains {
            assert_eq!(opening(&follow), first);
            let [(.., ref ask)] = asks[..] else { panic!() };
            assert_eq!(ask.troubles, [Trouble { node: node(10), why: Ailment::Slow }]);
        } else {
            assert_eq!(follow.turn(), Turn::Upstream { upto: PIECE });
        }
    }
}

#[test]
fn behind_a_trickle_the_whole_holder_beyond_is_tried_where_the_link_has_room() {
    // At 20 kB a second. More wouldn't come from anybody; much is left; little is, for seconds; and for less than one.
    for (room, had, moves) in
        [(0, 0, false), (10 << 20, 0, true), (10 << 20, 440 << 10, true), (10 << 20, 501_000, false)]
    {
        let (mut follow, first) = reading();
        follow.learnt_size(512 << 10);
        follow.link_has_room(room);
        for at in (200..=1_000).step_by(200) {
            let mut beat = beat([had + at * 20, 512 << 10, 0], [20_000, 0, 0]);
            beat.path.truncate(2);
            beat.path[1].ticket = None;
            follow.arrived(millis(at), had + at * 20);
            follow.beat(millis(at), first.number, beat);
            follow.tick(millis(at));
        }
        let now = opening(&follow);
        let expected = if moves { (node(9), Some(node(10))) } else { (first.node, first.instead_of) };
        assert_eq!((now.node, now.instead_of), expected, "room {room}, had {had}");
    }
}

#[test]
fn room_that_the_holder_has_refuted_is_no_reason_again() {
    let (mut follow, _) = reading();
    follow.learnt_size(512 << 20);
    follow.link_has_room(10 << 20);
    let starved_from = |follow: &mut Follow, from: u64| {
        for at in (from + 200..=from + 2_000).step_by(200) {
            let opening = opening(follow);
            if opening.node != node(10) {
                return true;
            }
            let mut beat = beat([at * 20, 512 << 20, 0], [20_000, 0, 0]);
            beat.path.truncate(2);
            beat.path[1].ticket = None;
            follow.arrived(millis(at), at * 20);
            follow.beat(millis(at), opening.number, beat);
            follow.tick(millis(at));
        }
        false
    };
    assert!(starved_from(&mut follow, 0));
    let whole = opening(&follow);
    assert_eq!((whole.node, whole.instead_of), (node(9), Some(node(10))));
    follow.opened(millis(2_010), whole.number);
    // It has held both against each other: they took alike.
    follow.parted(millis(2_800), whole.number, &Parting::Full(vec![node(10)]));
    let back = opening(&follow);
    assert_eq!(back.node, node(10));
    follow.opened(millis(2_810), back.number);
    for from in [3_000, 15_000, 40_000] {
        assert!(!starved_from(&mut follow, from), "a healthy parent would lose its place");
    }
}

#[test]
fn who_was_found_slow_does_not_stay_behind_one_that_has_less() {
    let (mut follow, before) = reading();
    follow.arrived(millis(2), 20 << 20);
    follow.parted(millis(100), before.number, &Parting::Displaced);
    let [(number, _, ref ask)] = asks(&mut follow)[..] else { panic!() };
    assert!(ask.to_the_tail && ask.slow);
    follow.answered(millis(101), number, read(60, &[11]));
    let slow = opening(&follow);
    follow.opened(millis(102), slow.number);
    for at in (200..=800).step_by(200) {
        let mut beat = beat([5 << 20, 40 << 20, 40 << 20], [100_000, 10 << 20, 10 << 20]);
        beat.path[0].node = node(11);
        follow.beat(millis(at), slow.number, beat);
    }
    assert_eq!((opening(&follow).node, opening(&follow).instead_of), (node(9), Some(node(11))));
}

#[test]
fn a_parent_that_speaks_on_another_stream_is_not_silent() {
    let (mut follow, opening) = reading();
    follow.speaks(opening.number, millis(500));
    follow.tick(millis(601));
    assert_eq!(follow.turn(), Turn::Peer(opening));
    assert_eq!(follow.next_deadline(), Some(millis(1_100)));
    follow.speaks(opening.number + 1, millis(1_000));
    follow.tick(millis(1_100));
    assert_ne!(follow.turn(), Turn::Peer(opening), "that was of another turn");
}

/// A limit of this node's own lets a piece through every three seconds.
#[test]
fn who_holds_itself_back_takes_nobody_for_silent_or_slow() {
    let (mut follow, first) = reading();
    let fast = 100 << 20;
    let mut now = millis(1);
    for piece in 1..5 {
        // The peer's signs lie behind what isn't taken yet.
        follow.arrived(now, piece * 256 * 1024);
        follow.beat(now, first.number, beat([20 << 20, 90 << 20, 90 << 20], [fast, fast, fast]));
        let until = now + millis(3_000);
        follow.rests(now, first.number, until);
        // How far it is, is told a little later.
        follow.arrived(now + millis(80), piece * 256 * 1024 + 1);
        while let Some(at) = follow.next_deadline().filter(|at| *at < until) {
            follow.tick(at);
        }
        now = until;
    }
    assert_eq!((opening(&follow), asks(&mut follow).len()), (first, 0), "nobody is left, and nothing complained of");
    follow.tick(now + millis(599));
    assert_eq!(opening(&follow), first);
    follow.tick(now + millis(600));
    assert_eq!(opening(&follow).node, node(9), "who is silent after that is silent");
}

#[test]
fn of_a_small_blob_too() {
    let (mut follow, first) = reading();
    follow.learnt_size(1 << 20);
    follow.arrived(millis(2), 256 << 10);
    follow.rests(millis(3), first.number, millis(5_000));
    while let Some(at) = follow.next_deadline().filter(|at| *at < millis(5_600)) {
        follow.tick(at);
        assert_eq!((opening(&follow), asks(&mut follow).len()), (first, 0), "{at:?}");
    }
}

#[test]
fn who_all_receive_slowly_stay_where_they_are() {
    let (mut follow, first) = reading();
    for step in 1..50 {
        let at = step * 100;
        follow.arrived(millis(at), at * 1_000);
        follow.beat(millis(at), first.number, beat([at * 1_000, at * 1_001, at * 1_002], [1_000_000; 3]));
    }
    assert_eq!(opening(&follow), first);
}

#[test]
fn a_full_parent_sends_on_and_one_that_yields_leads_to_the_owner() {
    let (mut follow, first) = reading();
    follow.parted(millis(5), first.number, &Parting::Full(vec![node(11), node(50)]));
    let second = opening(&follow);
    assert_eq!(second.node, node(11));
    follow.opened(millis(6), second.number);
    follow.actions();
    follow.parted(millis(7), second.number, &Parting::Yielded);
    assert_eq!(asks(&mut follow).len(), 1);
    assert_eq!(follow.turn(), Turn::Wait);
}

#[test]
fn a_full_parent_whose_reader_fell_silent_is_asked_for_that_ones_place() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, read(50, &[11, 10, 9]));
    follow.lost(millis(5), opening(&follow).number);
    let to_10 = opening(&follow);
    assert_eq!((to_10.node, to_10.instead_of), (node(10), None));
    follow.parted(millis(6), to_10.number, &Parting::Full(vec![node(11)]));
    let again = opening(&follow);
    assert_eq!((again.node, again.instead_of), (node(10), Some(node(11))));
    follow.parted(millis(7), again.number, &Parting::Full(vec![node(11)]));
    assert_eq!(opening(&follow).node, node(9), "once");
}

#[test]
fn who_fetches_and_reaches_neither_owner_tells_them_no_sooner_than_ever() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(1), number, answered(Answer::Fetch { ticket: ticket(50), lease: Lease(7), upto: 4 << 20 }));
    let owners = |follow: &mut Follow| reports(follow).iter().map(|(owner, _)| *owner).collect::<Vec<_>>();
    follow.actions();
    follow.tick(millis(201));
    assert_eq!(owners(&mut follow), [node(100)]);
    follow.unreported(millis(201), node(100), Lease(7));
    assert_eq!(owners(&mut follow), [node(101)]);
    // Were they told at once, and failed so, this would never end.
    follow.unreported(millis(201), node(101), Lease(7));
    assert_eq!(owners(&mut follow), []);
    assert_eq!(follow.next_deadline(), Some(millis(401)));
    follow.tick(millis(401));
    assert_eq!(owners(&mut follow), [node(101)]);
    follow.unreported(millis(401), node(101), Lease(7));
    assert_eq!(owners(&mut follow), []);
}

#[test]
fn a_parent_that_beats_and_brings_nothing_is_waited_for_two_seconds() {
    let (mut follow, first) = reading();
    let mut at = 1;
    while opening(&follow) == first {
        at += 200;
        follow.beat(millis(at), first.number, beat([0; 3], [0; 3]));
        follow.tick(millis(at));
        if !matches!(follow.turn(), Turn::Peer(_)) {
            break;
        }
    }
    assert!((1_900..=2_300).contains(&at), "{at} ms");
    assert!(!follow.actions().contains(&Action::KeptWaiting(node(10))), "it has nothing to give");
    assert_eq!(follow.turn(), Turn::Upstream { upto: PIECE });
    // Then it has to bring something before others are asked again.
    assert_eq!(asks(&mut follow), []);
    follow.tick(millis(at) + ASK_AGAIN);
    assert_eq!(asks(&mut follow).len(), 1);
    assert_eq!(follow.turn(), Turn::Upstream { upto: PIECE });
}

#[test]
fn who_has_more_and_sends_nothing_is_told_of_and_other_readings_pass_it_over() {
    let (mut waits, first) = reading();
    let holder = Hop { node: node(10), ticket: None, frontier: SIZE, rate: 0 };
    for at in (201..=2_401).step_by(200) {
        waits.beat(millis(at), first.number, Beat { path: vec![holder] });
        waits.tick(millis(at));
    }
    assert!(waits.actions().contains(&Action::KeptWaiting(node(10))));
    assert_eq!(waits.turn(), Turn::Upstream { upto: PIECE });

    let mut other = follow();
    other.pass_over(vec![node(10)]);
    let [(number, ..)] = asks(&mut other)[..] else { panic!() };
    other.answered(millis(1), number, read(50, &[10]));
    let [(number, _, ref ask)] = asks(&mut other)[..] else { panic!("{:?}", other.turn()) };
    assert_eq!(ask.troubles, [Trouble { node: node(10), why: Ailment::Full }]);
    other.answered(millis(2), number, answered(Answer::Alone { absent: false }));
    assert_eq!(other.turn(), Turn::Upstream { upto: PIECE });
    // It is better than nothing.
    other.upstream_failed(millis(3), Released::Unreachable);
    let [(number, _, ref ask)] = asks(&mut other)[..] else { panic!() };
    assert_eq!(ask.troubles, []);
    other.answered(millis(4), number, read(50, &[10]));
    assert_eq!(opening(&other).node, node(10));
}

#[test]
fn who_gets_little_complains_and_reads_on_until_the_owner_has_said_who_fetches() {
    let (mut follow, first) = reading();
    follow.learnt_size(512 << 10);
    follow.arrived(millis(100), 64 << 10);
    follow.actions();
    for at in (200..=1_000).step_by(200) {
        follow.beat(millis(at), first.number, beat([64 << 10, 128 << 10, 128 << 10], [1000, 1000, 1000]));
        follow.tick(millis(at));
    }
    assert_eq!(asks(&mut follow).len(), 0);
    follow.beat(millis(2_000), first.number, beat([64 << 10, 128 << 10, 128 << 10], [1000, 1000, 1000]));
    follow.tick(millis(2_000));
    let asked = asks(&mut follow);
    let [(number, owner, ask)] = &asked[..] else { panic!("{asked:?}") };
    assert!(ask.troubles.iter().any(|trouble| trouble.why == Ailment::Slow && trouble.node == first.node));
    assert_eq!((*owner, opening(&follow)), (node(100), first));
    let place = follow.ticket().unwrap();
    let fetch = Answer::Fetch { ticket: place, lease: Lease(7), upto: 4 << 20 };
    follow.answered(millis(2_010), *number, answered(fetch));
    assert_eq!(follow.turn(), Turn::Upstream { upto: 4 << 20 });
}

#[test]
fn who_gets_little_of_a_large_blob_asks_for_another_and_reads_on_meanwhile() {
    let (mut follow, first) = reading();
    let goes_on = |follow: &mut Follow, from: u64| {
        follow.arrived(millis(from), from << 8);
        for at in (from..from + 1_000).step_by(100) {
            follow.beat(millis(at), first.number, beat([64 << 10, 128 << 10, 128 << 10], [1000, 1000, 1000]));
            follow.tick(millis(at));
        }
        assert_eq!(asks(follow).len(), 0);
        follow.tick(millis(from + 1_000));
    };
    goes_on(&mut follow, 100);
    let asked = asks(&mut follow);
    let [(number, owner, ask)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((*owner, &ask.troubles[..]), (node(100), &[Trouble { node: first.node, why: Ailment::Slow }][..]));
    follow.answered(millis(1_110), *number, read(50, &[10, 9]));
    assert_eq!(opening(&follow), first, "nobody has it sooner");
    goes_on(&mut follow, 1_110);
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.answered(millis(2_120), number, read(50, &[9, 8]));
    let second = opening(&follow);
    assert_eq!((second.node, second.instead_of), (node(9), Some(first.node)));
    follow.lost(millis(2_130), second.number);
    follow.lost(millis(2_140), opening(&follow).number);
    assert_eq!(opening(&follow).node, first.node, "better than nobody");
}

#[test]
fn who_waits_for_one_that_reads_what_it_gave_before_asks_for_another_and_does_not_go_to_itself() {
    let mut follow = follow();
    let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
    follow.arrived(millis(1), 8 << 20);
    follow.answered(millis(1), number, read(50, &[10]));
    let opening = opening(&follow);
    follow.opened(millis(1), opening.number);
    // Slowly; and beyond is this node, where it was before.
    let path = |frontier: u64| {
        let parent = Hop { node: node(10), ticket: Some(ticket(10)), frontier, rate: 1 << 20 };
        let me = Hop { node: node(50), ticket: Some(ticket(9)), frontier: 8 << 20, rate: 10 << 20 };
        Beat { path: vec![parent, me] }
    };
    let mut asked = Vec::new();
    for at in (200..=2_200).step_by(200) {
        follow.beat(millis(at), opening.number, path(at << 10));
        follow.tick(millis(at));
        assert_eq!(follow.turn(), Turn::Peer(opening));
        for (number, _, ask) in asks(&mut follow) {
            assert_eq!(ask.troubles, [Trouble { node: node(10), why: Ailment::Slow }]);
            asked.push(at);
            // At first there is nobody else.
            follow.answered(millis(at), number, if asked.len() == 1 { read(50, &[10]) } else { read(50, &[3, 10]) });
        }
        if asked.len() > 1 {
            break;
        }
    }
    assert_eq!(asked, [1_200, 2_200]);
    assert_eq!(self::opening(&follow).node, node(3));
}

#[test]
fn who_is_ahead_of_one_that_catches_up_does_not_speak_against_it() {
    for (rate, speaks) in [(5 << 20, false), (1 << 20, true)] {
        let mut follow = follow();
        let [(number, ..)] = asks(&mut follow)[..] else { panic!() };
        follow.arrived(millis(1), 30 << 20);
        follow.answered(millis(1), number, read(50, &[10]));
        let opening = opening(&follow);
        follow.opened(millis(1), opening.number);
        let mut has_spoken = false;
        for at in (200..=1_800).step_by(200) {
            let parent =
                Hop { node: node(10), ticket: Some(ticket(10)), frontier: (22 << 20) + rate * at / 1_000, rate };
            let before = Hop { node: node(9), ticket: Some(ticket(9)), frontier: 90 << 20, rate };
            follow.beat(millis(at), opening.number, Beat { path: vec![parent, before] });
            if parent.frontier >= 30 << 20 {
                break;
            }
            follow.tick(millis(at));
            has_spoken |= asks(&mut follow).iter().any(|(.., ask)| !ask.troubles.is_empty());
        }
        assert_eq!(has_spoken, speaks, "at {rate} bytes a second");
    }
}

#[test]
fn what_a_parent_said_before_its_bytes_came_does_not_make_it_one_that_catches_up() {
    let (mut follow, first) = reading();
    let mut asked = Vec::new();
    for at in (100..=1_200).step_by(100) {
        // 100 kB a second, of which each beat knows all but what came last.
        follow.beat(millis(at), first.number, beat([at * 100 - 5_000, 64 << 20, 64 << 20], [100_000, 0, 0]));
        follow.arrived(millis(at), at * 100);
        follow.tick(millis(at));
        asked.extend(asks(&mut follow).iter().map(|_| at));
    }
    assert_eq!(asked, [1_100], "a second after the first bytes");
}

#[test]
fn who_gets_little_and_reaches_no_owner_reads_on() {
    let (mut follow, first) = reading();
    follow.ranks.failed(millis(1), node(100));
    follow.ranks.failed(millis(1), node(101));
    for at in (100..=4_500).step_by(100) {
        follow.arrived(millis(at), at << 8);
        follow.beat(millis(at), first.number, beat([64 << 10, 128 << 10, 128 << 10], [1000, 1000, 1000]));
        follow.tick(millis(at));
        assert_eq!(opening(&follow), first);
        assert!(follow.next_deadline() > Some(millis(at)), "it waits");
    }
    assert_eq!(asks(&mut follow).len(), 0);
}

#[test]
fn who_gets_much_asks_for_nobody_else() {
    let (mut follow, first) = reading();
    for at in (100..=3_000).step_by(100) {
        let frontier = at * (10 << 10);
        follow.arrived(millis(at), frontier);
        follow.beat(millis(at), first.number, beat([frontier; 3], [10 << 20; 3]));
        follow.tick(millis(at));
    }
    assert_eq!(asks(&mut follow).len(), 0);
}

#[test]
fn who_gets_nothing_after_a_complaint_fetches_for_itself() {
    let (mut follow, first) = reading();
    follow.arrived(millis(100), 64 << 10);
    let mut complaints = 0;
    let mut alone_at = None;
    for at in (200..=8_000).step_by(100) {
        follow.beat(millis(at), first.number, beat([64 << 10, 128 << 10, 128 << 10], [1000, 1000, 1000]));
        follow.tick(millis(at));
        for (number, ..) in asks(&mut follow) {
            complaints += 1;
            follow.unanswered(millis(at), number);
        }
        if matches!(follow.turn(), Turn::Upstream { .. }) {
            alone_at = alone_at.or(Some(at));
        }
    }
    assert!(complaints >= 1 && alone_at.is_some_and(|at| at <= 4_500), "{complaints} {alone_at:?}");
}

#[test]
fn all_of_it_is_reported_and_nothing_waited_for() {
    let (mut follow, _) = reading();
    follow.arrived(millis(10), SIZE);
    assert_eq!((follow.turn(), follow.next_deadline()), (Turn::Wait, None));
    follow.is_whole(millis(11));
    // Both owners knew of the reading.
    let reports = follow.actions().into_iter().filter_map(|action| match action {
        Action::Report { owner, report } if report.state == State::Whole => Some(owner),
        _ => None,
    });
    assert_eq!(reports.collect::<Vec<_>>(), [node(100), node(101)]);
    follow.leave(millis(12));
    assert_eq!(follow.actions(), []);
}

/// Anything that can come, at any time.
#[derive(Copy, Debug, Clone)]
enum Comes {
    Time(u64),
    Answer(u8, u8),
    Unanswered,
    Verdict(u8),
    Opened,
    Beat(u8, u8),
    Rests(u64),
    Parted(u8),
    Lost,
    Bytes(u64),
    UpstreamFailed,
    Owners(u8),
}

fn comes() -> impl Strategy<Value = Comes> {
    prop_oneof![
        (0..3_000u64).prop_map(Comes::Time),
        (0..5u8, 0..8u8).prop_map(|(what, who)| Comes::Answer(what, who)),
        Just(Comes::Unanswered),
        (0..3u8).prop_map(Comes::Verdict),
        Just(Comes::Opened),
        (0..4u8, 0..8u8).prop_map(|(length, who)| Comes::Beat(length, who)),
        (0..2_000u64).prop_map(Comes::Rests),
        (0..10u8).prop_map(Comes::Parted),
        Just(Comes::Lost),
        (1..8_000_000u64).prop_map(Comes::Bytes),
        Just(Comes::UpstreamFailed),
        (0..4u8).prop_map(Comes::Owners),
    ]
}

fn happens(follow: &mut Follow, now: Duration, event: Comes, asked: &mut Vec<u64>, lease: &mut Option<Lease>) {
    let opening = match follow.turn() {
        Turn::Peer(opening) => opening.number,
        _ => 0,
    };
    match event {
        Comes::Time(_) => {}
        Comes::Answer(what, who) => {
            let Some(number) = asked.pop() else { return };
            let answer = match what {
                0 => {
                    *lease = Some(Lease(u64::from(who)));
                    let upto = follow.frontier + (4 << 20);
                    Answer::Fetch { ticket: ticket(u64::from(who) * 10), lease: Lease(u64::from(who)), upto }
                }
                1 => Answer::Alone { absent: who == 0 },
                2 => Answer::NotOwner((who < 4).then(|| node(100 + who))),
                _ => return follow.answered(now, number, read(u64::from(who) * 10, &[who, who + 1])),
            };
            follow.answered(now, number, answered(answer));
        }
        Comes::Unanswered => {
            if let Some(number) = asked.pop() {
                follow.unanswered(now, number);
            }
        }
        Comes::Verdict(what) => {
            let Some(lease) = *lease else { return };
            match what {
                0 => follow.reported(now, lease, Verdict::Ended),
                1 => follow.reported(now, lease, Verdict::GoOn { upto: follow.frontier + (8 << 20) }),
                _ => follow.unreported(now, node(100), lease),
            }
        }
        Comes::Opened => follow.opened(now, opening),
        Comes::Beat(length, who) => {
            let hop = |at| Hop {
                node: node(who + at),
                ticket: Some(ticket(1)),
                frontier: u64::from(who) << 23,
                rate: 1 << 30,
            };
            follow.beat(now, opening, Beat { path: (0..length).map(hop).collect() });
        }
        Comes::Rests(rest) => follow.rests(now, opening, now + millis(rest)),
        Comes::Parted(how) => {
            let parting = match how {
                0 => Parting::Held,
                1 => Parting::Sent,
                2 => Parting::Broken(Vec::new()),
                3 => Parting::Yielded,
                4 => Parting::Displaced,
                5 => Parting::NotLower,
                6 => Parting::Absent,
                7 => Parting::Full(vec![node(3), node(50)]),
                8 => Parting::Failed,
                _ => Parting::Stopping,
            };
            follow.parted(now, opening, &parting);
        }
        Comes::Lost => follow.lost(now, opening),
        Comes::Bytes(bytes) => {
            if !matches!(follow.turn(), Turn::Wait) {
                follow.arrived(now, (follow.frontier + bytes).min(SIZE));
            }
        }
        Comes::UpstreamFailed => follow.upstream_failed(now, Released::Unreachable),
        Comes::Owners(which) => {
            let owner = |bit: u8| (which & bit != 0).then(|| node(100 + bit));
            follow.owners_changed(now, Owners { first: owner(1), second: owner(1).and(owner(2)) });
        }
    }
}

proptest! {
    /// Whatever comes, in whatever order: as long as bytes are missing there is a deadline, and whoever hears nothing more
    /// fetches from upstream before long.
    #[test]
    fn it_is_never_stuck(events in prop::collection::vec(comes(), 0..120)) {
        let mut follow = follow();
        let (mut now, mut asked, mut lease) = (millis(0), Vec::new(), None);
        for event in events {
            if let Comes::Time(passes) = event {
                let until = now + millis(passes);
                while let Some(at) = follow.next_deadline().filter(|at| *at <= until) {
                    now = now.max(at);
                    follow.tick(now);
                    let again = follow.next_deadline();
                    prop_assert!(again != Some(at) || at < now, "a deadline that stays: {follow:?}");
                    asked.extend(asks(&mut follow).into_iter().map(|(number, ..)| number));
                }
                now = until;
            }
            happens(&mut follow, now, event, &mut asked, &mut lease);
            asked.extend(asks(&mut follow).into_iter().map(|(number, ..)| number));
            let is_alone = follow.ranks.owners().first.is_none();
            let goes_alone = is_alone && matches!(follow.turn(), Turn::Upstream { .. });
            prop_assert!(follow.has_all() || goes_alone || follow.next_deadline().is_some());
        }
        // Silence.
        let silent_since = now;
        while !follow.has_all() && !matches!(follow.turn(), Turn::Upstream { .. }) {
            let at = follow.next_deadline();
            prop_assert!(at.is_some(), "{follow:?}");
            now = now.max(at.unwrap_or_default()) + Duration::from_micros(1);
            follow.tick(now);
            follow.actions();
            prop_assert!(now < silent_since + Duration::from_secs(8), "nothing happens: {follow:?}");
        }
    }
}
