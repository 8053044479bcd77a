//! What becomes of one node: starting anew, moving, being doubted, having a twin.

use std::time::Duration;

use crate::cluster::{BadPacket, Effect};
use crate::image::Digest;

use super::world::{World, addr, node};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// That many nodes that know each other and are settled, and hosts for a few more.
fn cluster(nodes: usize) -> World {
    let mut world = World::new(11, nodes + 4);
    for host in 0..nodes {
        world.start(host, host);
    }
    world.run_until("all are settled", secs(20), World::is_settled);
    for host in 0..nodes {
        world.told(host);
    }
    world
}

#[test]
fn who_starts_anew_takes_its_own_place_at_once() {
    let mut world = cluster(6);
    let before = world.sees(0, 5).unwrap();
    world.crash(5);
    world.start(5, 5);
    world.run_until("the new process is known", secs(3), |world| {
        (0..5).all(|host| world.sees(host, 5).is_some_and(|member| member.start > before.start))
    });
    // It has to settle anew: what the old process remembered is gone.
    assert!(!world.sees(0, 5).unwrap().settled);
    world.run_until("it is settled again", secs(7), World::is_settled);
    let told = world.told(0);
    assert!(matches!(told.as_slice(), [Effect::Restarted(member)] if member.node == node(5)), "{told:?}");
}

#[test]
fn a_newcomer_knows_at_once_who_owns_what() {
    let mut world = cluster(30);
    world.start(30, 30);
    let took = world.run_until("the newcomer sees the ring of the others", secs(3), |world| {
        world.ring(30).changed(&world.ring(0)).is_empty()
    });
    assert!(!world.sees(0, 30).is_some_and(|member| member.settled), "after {took:?}");
    world.run_until("it is one of them", secs(10), World::is_settled);
}

#[test]
fn who_moves_to_another_address_is_found_there() {
    let mut world = cluster(4);
    world.crash(3);
    world.start(4, 3);
    world.run_until("it is known at its new address", secs(5), |world| {
        (0..3).all(|host| world.sees(host, 3).is_some_and(|member| member.addr == addr(4)))
    });
    world.run_until("it is settled", secs(10), World::is_settled);
    assert!(!world.told(4).iter().any(|effect| matches!(effect, Effect::Twin { .. })));
}

#[test]
fn whose_address_changes_while_it_runs_keeps_its_place() {
    let mut world = cluster(6);
    let before = world.sees(0, 5).unwrap();
    world.relocate(5, 6);
    world.run_until("it is known at its new address", secs(3), |world| {
        (0..5).all(|host| world.sees(host, 5).is_some_and(|member| member.addr == addr(6)))
    });
    assert!(world.is_settled(), "it is the same process");
    assert_eq!(world.sees(0, 5).unwrap().start, before.start);
    let told = world.told(0);
    assert!(matches!(told.as_slice(), [Effect::Moved(member)] if member.addr == addr(6)), "{told:?}");
    assert_eq!(world.told(6), vec![]);
}

#[test]
fn whose_address_changed_long_ago_is_found_when_it_knows() {
    let mut world = cluster(6);
    // What is sent to the old address arrives nowhere.
    world.sides[5] = 1;
    world.run_until("it is taken for dead", secs(60), |world| (0..5).all(|host| world.sees(host, 5).is_none()));
    world.run(secs(60));
    world.relocate(5, 6);
    world.run_until("it is known at its new address", secs(40), |world| {
        (0..5).all(|host| world.sees(host, 5).is_some_and(|member| member.addr == addr(6))) && world.agrees()
    });
    world.run_until("it is settled", secs(10), World::is_settled);
    assert!(!world.told(6).iter().any(|effect| matches!(effect, Effect::Twin { .. })));
}

#[test]
fn a_clock_that_was_set_back_keeps_nobody_out() {
    let mut world = cluster(4);
    world.crash(3);
    world.start_as(3, 3, 5);
    world
        .run_until("it is known", secs(10), |world| (0..3).all(|host| world.sees(host, 3).is_some()) && world.agrees());
    // From another address too: nobody lives at the old one.
    world.crash(3);
    world.start_as(5, 3, 6);
    world.run_until("it is known elsewhere", secs(20), |world| {
        (0..3).all(|host| world.sees(host, 3).is_some_and(|member| member.addr == addr(5)))
    });
    let told = world.told(5);
    assert!(!told.iter().any(|effect| matches!(effect, Effect::Twin { .. })), "{told:?}");
}

#[test]
fn halves_that_have_forgotten_each_other_meet_at_the_seeds() {
    let mut world = cluster(8);
    world.sides[4..].fill(1);
    world.run(secs(2 * 3600));
    world.sides.fill(0);
    world.run_until("they have met", secs(120), World::agrees);
}

#[test]
fn who_leaves_is_gone_at_once() {
    let mut world = cluster(20);
    world.leave(7);
    let took = world.run_until("all know", secs(5), World::agrees);
    assert!(took <= secs(2), "{took:?}");
    // And why: nobody has lost it.
    for host in (0..20).filter(|host| *host != 7) {
        let told = world.told(host);
        assert!(matches!(told.as_slice(), [Effect::Left(member)] if member.node == node(7)), "at {host}: {told:?}");
    }
    world.crash(8);
    world.run_until("its death is known", secs(60), World::agrees);
    let told = world.told(0);
    assert!(matches!(told.as_slice(), [Effect::Down(member)] if member.node == node(8)), "{told:?}");
    // Who left comes back as anybody.
    world.start(7, 7);
    world.run_until("it is back", secs(10), World::is_settled);
}

#[test]
fn of_twins_the_later_one_stays_and_both_tell() {
    let mut world = cluster(8);
    // Host 8 was cloned from host 3.
    world.start(8, 3);
    world.run_until("the older one has yielded", secs(10), |world| {
        world.hosts[3].as_ref().unwrap().members.others() == 0
            && (0..8).filter(|host| *host != 3).all(|host| world.sees(host, 3).is_some_and(|it| it.addr == addr(8)))
    });
    let (old, new) = (world.told(3), world.told(8));
    assert!(old.contains(&Effect::Twin { addr: addr(8), yielded: true }), "{old:?}");
    assert!(new.contains(&Effect::Twin { addr: addr(3), yielded: false }), "{new:?}");
    // No fight: nobody's place changes any more.
    world.run(secs(10));
    for host in 0..8 {
        world.told(host);
    }
    world.run(secs(120));
    for host in (0..8).filter(|host| *host != 3) {
        assert_eq!(world.told(host), vec![], "at {host}");
        assert_eq!(world.sees(host, 3).unwrap().addr, addr(8));
    }
    assert!(world.ring(3).owners_of(&Digest::of(b"")).first.is_none(), "who yielded owns nothing, and nobody does");
    // When the other one goes, it comes back.
    world.leave(8);
    world.run_until("it is back", secs(180), |world| {
        (0..8).filter(|host| *host != 3).all(|host| world.sees(host, 3).is_some_and(|it| it.addr == addr(3)))
    });
}

#[test]
fn who_is_doubted_and_dead_is_dead_sooner() {
    let deadline = |doubt: bool| {
        let mut world = cluster(60);
        world.crash(9);
        if doubt {
            let now = world.now;
            world.with(0, |host| host.members.suspect(now, node(9)));
        }
        world.run_until("the death is known", secs(40), World::agrees)
    };
    assert!(deadline(true) <= deadline(false));
    assert!(deadline(true) < secs(12), "{:?}", deadline(true));
}

#[test]
fn who_is_doubted_and_alive_stays() {
    let mut world = cluster(20);
    // Only the one who doubts can't reach it.
    for _ in 0..5 {
        let now = world.now;
        world.with(0, |host| host.members.suspect(now, node(9)));
        world.run(secs(2));
    }
    world.run(secs(20));
    assert!(world.is_settled());
    for host in 0..20 {
        assert_eq!(world.told(host), vec![]);
    }
}

#[test]
fn three_nodes_bear_with_a_bad_network() {
    let mut world = cluster(3);
    world.loss = 0.05;
    world.run(secs(1800));
    for host in 0..3 {
        assert_eq!(world.told(host), vec![], "at {host}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_and_changes_nothing() {
    let mut world = cluster(2);
    let now = world.now;
    world.with(0, |host| {
        for packet in [&b""[..], b"\0", b"\0\x05hello", b"\x09", b"\x05\xff\xff\xff\xff\xff", &[0xff; 1340]] {
            assert_eq!(host.members.receive(now, packet), Err(BadPacket::Unreadable), "{packet:?}");
        }
        assert_eq!(host.members.effect(), None);
    });
    assert!(world.is_settled());
}

proptest::proptest! {
    #[test]
    fn no_packet_is_fatal(packets in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..200), 0..20)) {
        let mut world = cluster(2);
        let now = world.now;
        world.with(0, |host| {
            for packet in packets {
                let _ = host.members.receive(now, &packet);
            }
        });
        world.run(secs(3));
    }
}
