mod tags;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::cluster::Member;
use crate::cluster::chain::{Credential, Ticket, Trouble};
use crate::image::{Access, Digest, Registry};

const MIB: u64 = 1 << 20;

fn node(number: u8) -> NodeId {
    NodeId::new([number; 16])
}

fn zone(name: &str) -> Zone {
    name.parse().unwrap()
}

fn key(access: Access) -> Key {
    Key { digest: Digest::of(b"layer"), registry: "reg.example".parse().unwrap(), access }
}

/// An owner's table, a clock, and who asks.
struct Table {
    directory: Directory,
    now: Duration,
    rng: SmallRng,
}

impl Table {
    /// Node 0 owns everything that node `owner` would.
    fn new() -> Self {
        let member = |number| Member {
            node: node(number),
            addr: "127.0.0.1:7441".parse().unwrap(),
            zone: zone(if number < 50 { "a" } else { "b" }),
            start: 1,
            settled: number == 0,
        };
        let ring = Arc::new(Ring::new(node(0), (0..100).map(member)));
        let directory = Directory::new(node(0), ring, 7 << 48);
        Self { directory, now: Duration::from_secs(100), rng: SmallRng::seed_from_u64(1) }
    }

    fn asks(number: u8) -> Ask {
        Ask {
            key: key(Access::Anonymous),
            credential: Credential::None,
            zone: zone(if number < 50 { "a" } else { "b" }),
            size: Some(1 << 30),
            frontier: 0,
            ticket: None,
            to_the_tail: false,
            slow: false,
            troubles: Vec::new(),
            owner_failed: false,
        }
    }

    fn answer(&mut self, number: u8, ask: &Ask) -> Answer {
        let effects = self.directory.ask(self.now, &mut self.rng, AskId(1), node(number), ask);
        match <[Effect; 1]>::try_from(effects).unwrap() {
            [Effect::Answer { to: AskId(1), answered }] => answered.answer,
            effects => panic!("{effects:?}"),
        }
    }

    fn ask(&mut self, number: u8) -> Answer {
        self.answer(number, &Self::asks(number))
    }

    /// What it is told to read from; with its place.
    fn parents(&mut self, number: u8, ask: &Ask) -> (Ticket, Vec<NodeId>) {
        match self.answer(number, ask) {
            Answer::Read { ticket, parents, .. } => (ticket, parents),
            answer => panic!("{answer:?}"),
        }
    }

    fn fetches(&mut self, number: u8, ask: &Ask) -> (Ticket, Lease, u64) {
        match self.answer(number, ask) {
            Answer::Fetch { ticket, lease, upto } => (ticket, lease, upto),
            answer => panic!("{answer:?}"),
        }
    }

    fn report(&mut self, number: u8, report: &Report) -> Verdict {
        self.directory.report(self.now, node(number), report)
    }

    fn reports(ticket: Ticket, lease: Option<Lease>, frontier: u64, state: State) -> Report {
        Report {
            key: key(Access::Anonymous),
            ticket: Some(ticket),
            lease,
            credential: Credential::None,
            size: Some(1 << 30),
            frontier,
            rate: 0,
            lag: 0,
            parent: None,
            zone: zone("a"),
            state,
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        while self.directory.next_deadline() <= self.now {
            let effects = self.directory.tick(self.now, &mut self.rng);
            assert_eq!(effects, []);
        }
    }
}

#[test]
fn the_first_fetches_and_each_other_reads_from_the_one_before() {
    let mut table = Table::new();
    let (first, _, upto) = table.fetches(1, &Table::asks(1));
    assert_eq!(upto, 4 * MIB);
    let (second, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
    let (third, parents) = table.parents(3, &Table::asks(3));
    assert_eq!(parents[0], node(2));
    assert!(first < second && second < third);
    assert_eq!(table.directory.leases(&key(Access::Anonymous)).count(), 1);
}

#[test]
fn those_who_have_all_of_it_take_turns_in_giving_it() {
    let mut table = Table::new();
    let (mut place, ..) = table.fetches(1, &Table::asks(1));
    for newcomer in 2..8 {
        table.report(newcomer - 1, &Table::reports(place, None, 1 << 30, State::Whole));
        table.pass(10);
        let parents;
        (place, parents) = table.parents(newcomer, &Table::asks(newcomer));
        assert_eq!(parents[0], node(newcomer - 1), "nobody has been sent to it");
    }
    table.report(7, &Table::reports(place, None, 1 << 30, State::Whole));
    table.pass(10);
    assert_eq!(table.parents(8, &Table::asks(8)).1[0], node(7));
    table.pass(10);
    let (ninth, parents) = table.parents(9, &Table::asks(9));
    assert_eq!(parents[0], node(1), "the one that gave it longest ago");
    let slow = Trouble { node: node(1), why: Ailment::Slow };
    let complains = Ask { frontier: MIB, ticket: Some(ninth), troubles: vec![slow], ..Table::asks(9) };
    assert_eq!(table.parents(9, &complains).1[0], node(1), "its own link may be slow");
    for newcomer in 10..30 {
        table.pass(10);
        let (_, parents) = table.parents(newcomer, &Table::asks(newcomer));
        assert_ne!(parents[0], node(1), "it gives little");
        table.report(newcomer, &Table::reports(ninth, None, MIB, State::Gone));
    }
}

#[test]
fn a_zones_first_is_known_however_many_have_it_elsewhere() {
    let numbered = |number: u16| {
        let [high, low] = number.to_be_bytes();
        NodeId::new([9, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    };
    let zone_of = |number: u16| zone(if number < 300 { "a" } else { "b" });
    let member = |node: NodeId, zone: Zone, settled: bool| Member {
        node,
        addr: "127.0.0.1:7441".parse().unwrap(),
        zone,
        start: 1,
        settled,
    };
    let others = (0..310).map(|number| member(numbered(number), zone_of(number), false));
    let ring = Ring::new(node(0), others.chain([member(node(0), zone("a"), true)]));
    let mut table = Table::new();
    table.directory = Directory::new(node(0), Arc::new(ring), 7 << 48);
    let becomes_whole = |table: &mut Table, number: u16| {
        let report = Table::reports(Ticket { number: 1, issuer: 0 }, None, 1 << 30, State::Whole);
        table.directory.report(table.now, numbered(number), &Report { zone: zone_of(number), ..report });
    };
    (0..300).for_each(|number| becomes_whole(&mut table, number));
    becomes_whole(&mut table, 300);
    let ask = Ask { zone: zone("b"), ..Table::asks(1) };
    let effects = table.directory.ask(table.now, &mut table.rng, AskId(1), numbered(301), &ask);
    let [Effect::Answer { answered, .. }] = &effects[..] else { panic!("{effects:?}") };
    let Answer::Read { parents, .. } = &answered.answer else { panic!("{:?}", answered.answer) };
    assert_eq!(parents[..], [numbered(300)]);
}

#[test]
fn a_zone_stands_together_and_the_slow_stand_last() {
    let mut table = Table::new();
    let (first, ..) = table.fetches(1, &Table::asks(1));
    let (foreign, parents) = table.parents(60, &Table::asks(60));
    assert_eq!(parents, [node(1)]);
    // Between the two, so that the bytes cross once, however many come.
    let (near, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
    assert!(first < near && near < foreign);
    let (slow, parents) =
        table.parents(60, &Ask { slow: true, to_the_tail: true, ticket: Some(foreign), ..Table::asks(60) });
    assert_eq!(parents[0], node(2));
    let (fast, parents) = table.parents(61, &Table::asks(61));
    assert_eq!(parents[0], node(2), "who is slow stands behind");
    assert!(near < fast && fast < slow);
}

#[test]
fn who_comes_does_not_stand_behind_one_of_its_zone_that_leaves() {
    let mut table = Table::new();
    let (first, lease, upto) = table.fetches(1, &Table::asks(1));
    let (foreign, _) = table.parents(60, &Table::asks(60));
    table.pass(100);
    let verdict = table.report(1, &Table::reports(first, Some(lease), upto, State::Fetching));
    assert_eq!(verdict, Verdict::Ended);
    // It goes on until who reads from it has what there is: that one is to fetch then, not one that has nothing.
    let (near, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(60)]);
    assert!(foreign < near);
    let (_, _, end) = table.fetches(60, &Ask { frontier: upto, ticket: Some(foreign), ..Table::asks(60) });
    assert!(end > upto);
}

#[test]
fn ranges_change_hands_until_enough_are_known_and_then_stay() {
    let mut table = Table::new();
    let mut asks = [1, 2, 3, 4].map(|number| {
        let ask = Table::asks(number);
        let ticket = match table.answer(number, &ask) {
            Answer::Fetch { ticket, .. } | Answer::Read { ticket, .. } => ticket,
            answer => panic!("{answer:?}"),
        };
        Ask { ticket: Some(ticket), ..ask }
    });
    let mut frontier = 0;
    // Two are enough at first, and three from 64 MiB on.
    for (holder, spans) in [(1, &[4][..]), (2, &[8, 32, 32]), (3, &[16])] {
        let at = usize::from(holder) - 1;
        let (ticket, lease, first) = table.fetches(holder, &Ask { frontier, ..asks[at].clone() });
        assert_eq!(first, frontier + spans[0] * MIB);
        for (number, span) in spans.iter().enumerate() {
            frontier += span * MIB;
            // 100 MiB/s each.
            table.pass(10 * span);
            let verdict = table.report(holder, &Table::reports(ticket, Some(lease), frontier, State::Fetching));
            if holder == 3 || number + 1 < spans.len() {
                assert_eq!(verdict, Verdict::GoOn { upto: frontier + 32 * MIB });
            } else {
                assert_eq!(verdict, Verdict::Ended);
            }
        }
        if holder != 3 {
            asks[at].to_the_tail = true;
            let (place, parents) = table.parents(holder, &Ask { frontier, ..asks[at].clone() });
            assert!(place > asks[3].ticket.unwrap());
            assert!(!parents.contains(&node(holder)));
        }
    }
    // One that is slower than that loses its lease at the end of its range, or after some seconds of it.
    let (held, from, upto) = table.directory.leases(&key(Access::Anonymous)).next().unwrap();
    assert_eq!((held, from), (node(3), frontier));
    let lease = table.fetches(3, &asks[2].clone()).1;
    let ticket = asks[2].ticket.unwrap();
    let mut verdict = Verdict::GoOn { upto };
    for step in 1..=20 {
        table.pass(200);
        verdict = table.report(3, &Table::reports(ticket, Some(lease), frontier + step * MIB, State::Fetching));
        if verdict == Verdict::Ended {
            break;
        }
    }
    assert_eq!(verdict, Verdict::Ended);
}

#[test]
fn who_gets_on_is_not_ended_by_the_clock_where_nobody_is_known_to_do_better() {
    let mut table = Table::new();
    let (ticket, lease, upto) = table.fetches(1, &Table::asks(1));
    table.parents(2, &Table::asks(2));
    // As many small blobs on the same link leave it so little.
    let mut frontier = 0;
    while table.now < Duration::from_millis(105_700) {
        table.pass(300);
        frontier += 100_000;
        let verdict = table.report(1, &Table::reports(ticket, Some(lease), frontier, State::Fetching));
        assert_eq!(verdict, Verdict::GoOn { upto });
    }
    table.pass(600);
    assert_eq!(table.report(1, &Table::reports(ticket, Some(lease), frontier, State::Fetching)), Verdict::Ended);
    // Whoever goes on where no chunk ends has its own range end with one.
    let (_, _, upto) = table.fetches(2, &Ask { frontier, ..Table::asks(2) });
    assert_eq!(upto % MIB, 0);
}

#[test]
fn what_is_nearly_done_is_left_to_who_fetches_it() {
    // A small blob, of which so much comes in the first second, and so much in the next ones, while another blob was
    // fetched far faster.
    let reports = |first: u64, then: u64| {
        let mut table = Table::new();
        let (ticket, lease, upto) = table.fetches(1, &Table::asks(1));
        table.parents(2, &Table::asks(2));
        table.pass(40);
        table.report(1, &Table::reports(ticket, Some(lease), upto, State::Fetching));
        let small = Key { digest: Digest::of(b"small"), ..key(Access::Anonymous) };
        let size = Some(512 << 10);
        let ask = |number| Ask { key: small.clone(), size, ..Table::asks(number) };
        let (ticket, lease, upto) = table.fetches(3, &ask(3));
        table.parents(4, &ask(4));
        let mut frontier = 0;
        let goes_on = (1..=12).take_while(|step| {
            table.pass(200);
            let rate = if *step <= 5 { first } else { then };
            frontier += rate / 5;
            let report = Table::reports(ticket, Some(lease), frontier, State::Fetching);
            let report = Report { key: small.clone(), size, rate, ..report };
            table.report(3, &report) == Verdict::GoOn { upto }
        });
        goes_on.count()
    };
    assert_eq!(reports(200 << 10, 200 << 10), 12, "the rest comes within two seconds");
    assert_eq!(reports(60 << 10, 60 << 10), 4, "it would take some more");
    assert_eq!(reports(400 << 10, 1 << 10), 5, "it would have, before it became slow");
}

#[test]
fn who_leaves_its_readers_far_behind_goes_on_where_its_range_ends() {
    for lag in [MIB / 2, 3 * MIB] {
        let mut table = Table::new();
        let (ticket, lease, upto) = table.fetches(1, &Table::asks(1));
        let (second, _) = table.parents(2, &Table::asks(2));
        let reports = |table: &mut Table, frontier: u64, lag: u64| {
            table.pass(400);
            table.report(1, &Report { lag, ..Table::reports(ticket, Some(lease), frontier, State::Fetching) })
        };
        let verdict = reports(&mut table, upto, lag);
        if lag < MIB {
            assert_eq!(verdict, Verdict::Ended, "others may be faster, and have what there is");
            continue;
        }
        let Verdict::GoOn { upto: next } = verdict else { panic!("{verdict:?}") };
        assert!(next > upto);
        let mut frontier = upto;
        for _ in 0..7 {
            frontier += 4 * MIB;
            assert_eq!(reports(&mut table, frontier, lag), Verdict::GoOn { upto: next });
        }
        // Who lags complains, and isn't the one to fetch: it would begin again where it is.
        let complaint = Ask {
            ticket: Some(second),
            frontier: frontier - lag,
            troubles: vec![Trouble { node: node(1), why: Ailment::Slow }],
            ..Table::asks(2)
        };
        assert_eq!(table.parents(2, &complaint).1, [node(1)]);
        assert_eq!(reports(&mut table, next, 0), Verdict::Ended, "they have caught up");
    }
}

#[test]
fn of_two_who_fetch_the_one_behind_leaves_it_to_the_other() {
    let mut table = Table::new();
    let (ticket, lease, upto) = table.fetches(1, &Table::asks(1));
    let slow = |frontier| Table::reports(ticket, Some(lease), frontier, State::Fetching);
    let other = |lease, frontier| {
        let ticket = Ticket { number: 5 << 40, issuer: 3 };
        Table::reports(ticket, Some(Lease(lease)), frontier, State::Fetching)
    };
    table.pass(200);
    assert_eq!(table.report(1, &slow(MIB)), Verdict::GoOn { upto });
    // The other owner let them fetch: one has no more than is fetched here, one clearly has.
    assert_eq!(table.report(2, &other(9, 2 * MIB)), Verdict::Ended);
    assert!(matches!(table.report(3, &other(10, 6 * MIB)), Verdict::GoOn { .. }));
    assert_eq!(table.report(1, &slow(MIB)), Verdict::GoOn { upto }, "whether that one gets on isn't known yet");
    table.pass(200);
    assert!(matches!(table.report(3, &other(10, 7 * MIB)), Verdict::GoOn { .. }));
    assert_eq!(table.report(1, &slow(2 * MIB)), Verdict::Ended);
    let leases = table.directory.leases(&key(Access::Anonymous)).map(|(node, ..)| node).collect::<Vec<_>>();
    assert_eq!(leases, [node(3)]);
    let (_, parents) = table.parents(4, &Table::asks(4));
    assert_eq!(parents[0], node(3));
}

#[test]
fn a_holder_that_is_nearly_done_holds_nobody_up() {
    let fetches_instead = |rate| {
        let mut table = Table::new();
        let small = |number| Ask { size: Some(MIB / 2), ..Table::asks(number) };
        let (holder, lease, _) = table.fetches(1, &small(1));
        let (second, _) = table.parents(2, &small(2));
        for part in 1..=3 {
            table.pass(900);
            let report = Table::reports(holder, Some(lease), part * MIB / 8, State::Fetching);
            table.report(1, &Report { size: Some(MIB / 2), rate, ..report });
        }
        let troubles = vec![Trouble { node: node(1), why: Ailment::Slow }];
        let complaint = Ask { ticket: Some(second), frontier: 3 * MIB / 8, troubles, ..small(2) };
        matches!(table.answer(2, &complaint), Answer::Fetch { .. })
    };
    assert!(!fetches_instead(MIB / 8));
    assert!(fetches_instead(MIB / 32));
}

#[test]
fn one_of_those_who_complain_of_a_holder_fetches_in_its_place() {
    let mut table = Table::new();
    let small = |number| Ask { size: Some(MIB / 2), ..Table::asks(number) };
    let (holder, lease, _) = table.fetches(1, &small(1));
    let (second, _) = table.parents(2, &small(2));
    let (third, _) = table.parents(3, &small(3));
    let slow = |node| vec![Trouble { node, why: Ailment::Slow }];
    let complaint = |number, ticket| Ask { ticket: Some(ticket), troubles: slow(node(1)), ..small(number) };
    // A moment is too short to tell.
    table.parents(2, &complaint(2, second));
    table.pass(900);
    table.report(1, &Table::reports(holder, Some(lease), MIB / 16, State::Fetching));
    table.pass(900);
    table.report(1, &Table::reports(holder, Some(lease), MIB / 8, State::Fetching));
    table.pass(700);
    let (_, parents) = table.parents(3, &complaint(3, third));
    assert_eq!(parents[0], node(2), "the one who reads from the holder finds out");
    assert_eq!(table.fetches(2, &complaint(2, second)).0, second);
    let (_, parents) = table.parents(3, &complaint(3, third));
    assert_eq!(parents, [node(2)]);
    let report = Report { size: Some(MIB / 2), ..Table::reports(holder, Some(lease), MIB / 4, State::Fetching) };
    assert_eq!(table.report(1, &report), Verdict::Ended);
}

#[test]
fn a_holder_that_is_known_to_do_well_goes_on_whoever_complains() {
    let mut table = Table::new();
    let (first, lease, _) = table.fetches(1, &Table::asks(1));
    let (second, _) = table.parents(2, &Table::asks(2));
    let (third, _) = table.parents(3, &Table::asks(3));
    table.pass(800);
    assert_eq!(table.report(1, &Table::reports(first, Some(lease), 4 * MIB, State::Fetching)), Verdict::Ended);
    let holder = Ask { frontier: 4 * MIB, ticket: Some(second), ..Table::asks(2) };
    let (_, lease, _) = table.fetches(2, &holder);
    for at in 2..=5 {
        table.pass(800);
        let report = Table::reports(second, Some(lease), 4 * at * MIB, State::Fetching);
        assert!(matches!(table.report(2, &report), Verdict::GoOn { .. }));
    }
    table.pass(100);
    let troubles = vec![Trouble { node: node(2), why: Ailment::Slow }];
    let complaint = Ask { frontier: 20 * MIB, ticket: Some(third), troubles, ..Table::asks(3) };
    assert_eq!(table.parents(3, &complaint), (third, vec![node(2)]));
}

#[test]
fn of_those_who_complain_in_a_row_the_second_tries_in_the_place_of_the_first() {
    let mut table = Table::new();
    let (holder, lease, _) = table.fetches(1, &Table::asks(1));
    let places: Vec<Ticket> = (2..=5).map(|number| table.parents(number, &Table::asks(number)).0).collect();
    table.pass(900);
    table.report(1, &Table::reports(holder, Some(lease), 3 * MIB, State::Fetching));
    let mut complains = |number: u8| {
        let troubles = vec![Trouble { node: node(number - 1), why: Ailment::Slow }];
        let ticket = Some(places[usize::from(number) - 2]);
        table.parents(number, &Ask { ticket, troubles, ..Table::asks(number) }).1
    };
    assert_eq!(complains(3)[0], node(2), "alone it may be slow itself");
    assert_eq!(complains(4), [node(2), node(1)]);
    assert_eq!(complains(5)[0], node(4), "its parent is about to get more");
}

#[test]
fn who_complains_though_the_holder_is_far_ahead_reads_on() {
    let mut table = Table::new();
    let (holder, lease, _) = table.fetches(1, &Table::asks(1));
    let (second, _) = table.parents(2, &Table::asks(2));
    table.pass(900);
    table.report(1, &Table::reports(holder, Some(lease), MIB, State::Fetching));
    table.pass(900);
    table.report(1, &Table::reports(holder, Some(lease), 3 * MIB, State::Fetching));
    table.pass(700);
    let troubles = vec![Trouble { node: node(1), why: Ailment::Slow }];
    let (place, parents) = table.parents(2, &Ask { ticket: Some(second), troubles, ..Table::asks(2) });
    assert_eq!((place, parents), (second, vec![node(1)]));
}

#[test]
fn who_reads_holds_no_lease_and_is_read_from() {
    let mut table = Table::new();
    let (ticket, ..) = table.fetches(1, &Table::asks(1));
    assert_eq!(table.report(1, &Table::reports(ticket, None, MIB, State::Reading)), Verdict::Noted);
    assert_eq!(table.directory.leases(&key(Access::Anonymous)).count(), 0);
    let (_, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
}

#[test]
fn a_holder_alone_keeps_its_lease_however_slow() {
    let mut table = Table::new();
    let (ticket, lease, _) = table.fetches(1, &Table::asks(1));
    for step in 1..100 {
        table.pass(300);
        let verdict = table.report(1, &Table::reports(ticket, Some(lease), step * 1_000, State::Fetching));
        assert!(matches!(verdict, Verdict::GoOn { .. }), "{verdict:?}");
    }
}

#[test]
fn who_comes_reads_from_a_holder_however_long_that_one_fetches() {
    let mut table = Table::new();
    let (ticket, lease, _) = table.fetches(1, &Table::asks(1));
    // 170 s for a GiB over 50 Mbit/s.
    for step in 1..500 {
        table.pass(300);
        let verdict = table.report(1, &Table::reports(ticket, Some(lease), step * 2 * MIB, State::Fetching));
        assert!(matches!(verdict, Verdict::GoOn { .. }), "{verdict:?}");
    }
    let (_, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
}

#[test]
fn another_owners_lease_goes_on_and_its_tickets_stay_below() {
    let mut table = Table::new();
    let ticket = Ticket { number: 5 << 32, issuer: 3 };
    let report = Table::reports(ticket, Some(Lease(9)), 100 * MIB, State::Fetching);
    assert_eq!(table.report(1, &report), Verdict::GoOn { upto: 132 * MIB });
    let (newcomer, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
    // The other owner may have given out many more.
    assert!(newcomer.number > ticket.number + (1 << 40));
}

#[test]
fn what_came_under_authorization_is_for_its_registry_alone() {
    let mut table = Table::new();
    let report = Report {
        key: key(Access::Authorized),
        ..Table::reports(Ticket { number: 1, issuer: 1 }, None, 1 << 30, State::Whole)
    };
    table.report(1, &report);
    let own = Ask { key: key(Access::Authorized), ..Table::asks(2) };
    assert!(matches!(table.answer(2, &own), Answer::Read { .. }), "its own registry");
    let other: Registry = "evil.example".parse().unwrap();
    let foreign = Ask { key: Key { registry: other, ..key(Access::Anonymous) }, ..Table::asks(3) };
    assert!(matches!(table.answer(3, &foreign), Answer::Fetch { .. }));
    // Until somebody has it from there, or anybody may have it.
    table.report(4, &Table::reports(Ticket { number: 1, issuer: 1 }, None, 1 << 30, State::Whole));
    assert_eq!(table.parents(5, &Ask { key: foreign.key.clone(), ..Table::asks(5) }).1[0], node(4));
}

#[test]
fn a_holder_that_has_it_no_more_costs_one_round_trip() {
    let mut table = Table::new();
    table.report(1, &Table::reports(Ticket { number: 1, issuer: 1 }, None, 1 << 30, State::Whole));
    let (ticket, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
    let absent = Trouble { node: node(1), why: Ailment::Absent };
    let ask = Ask { ticket: Some(ticket), troubles: vec![absent], ..Table::asks(2) };
    table.fetches(2, &ask);
}

/// The shelf of a holder of the one blob: what it says of it first, and later, that all stands as it stood.
fn shelf(generation: u64) -> (Shelf, Shelf) {
    let digest = key(Access::Anonymous).digest;
    let holding = Holding { digest, registries: Vec::new() };
    let (bucket, hash) = (crate::cluster::Bucket::of(&digest), holding.hash());
    let same = Shelf { bucket, generation, hash, all: false, added: Vec::new(), dropped: Vec::new() };
    (Shelf { all: true, added: vec![holding], ..same.clone() }, same)
}

/// The next one, of who holds it no more.
fn dropped((_, same): (Shelf, Shelf)) -> Shelf {
    Shelf { generation: same.generation + 1, hash: 0, dropped: vec![key(Access::Anonymous).digest], ..same }
}

#[test]
fn shelves_are_renewed_by_their_hash_and_told_anew_when_something_was_missed() {
    let mut table = Table::new();
    let (all, same) = shelf(4);
    let tell = |table: &mut Table, shelf: &Shelf| table.directory.announce(table.now, node(1), vec![shelf.clone()]);
    assert_eq!(tell(&mut table, &same).unknown, [same.bucket]);
    assert_eq!(tell(&mut table, &all), Announced::default());
    for _ in 0..4 {
        table.pass(600_000);
        assert_eq!(tell(&mut table, &same), Announced::default());
    }
    assert_eq!(table.parents(2, &Table::asks(2)).1, [node(1)]);
    let dropped = dropped(shelf(4));
    assert_eq!(tell(&mut table, &Shelf { generation: 6, ..dropped.clone() }).unknown, [same.bucket], "5 was missed");
    assert_eq!(tell(&mut table, &dropped), Announced::default());
    assert_eq!(table.directory.len().1, 0);
    // What isn't renewed expires.
    assert_eq!(tell(&mut table, &all), Announced::default());
    table.pass(16 * 60_000);
    table.pass(60_000);
    assert_eq!(table.directory.len().1, 0);
}

/// A reader that was told "absent" while the holder's containerd had other things to do.
#[test]
fn a_holder_that_was_absent_is_found_again() {
    let mut table = Table::new();
    let (all, same) = shelf(1);
    table.directory.announce(table.now, node(1), vec![all]);
    let leaves = |table: &mut Table, number| {
        let place = Ticket { number: 1, issuer: 1 };
        table.report(number, &Table::reports(place, None, 0, State::Gone));
    };
    for (why, minutes) in [(Ailment::Absent, 1), (Ailment::Wrong, 60)] {
        assert_eq!(table.parents(2, &Table::asks(2)).1, [node(1)]);
        table.fetches(2, &Ask { troubles: vec![Trouble { node: node(1), why }], ..Table::asks(2) });
        leaves(&mut table, 2);
        table.fetches(3, &Table::asks(3));
        leaves(&mut table, 3);
        for _ in 0..minutes {
            // It says that all stands as it stood, and that fits.
            let told = table.directory.announce(table.now, node(1), vec![same.clone()]);
            assert_eq!(told, Announced::default());
            table.pass(60_000);
        }
    }
    assert_eq!(table.parents(2, &Table::asks(2)).1, [node(1)]);
    // What it holds no more is gone for good.
    table.directory.announce(table.now, node(1), vec![dropped(shelf(1))]);
    assert_eq!(table.directory.len().1, 0);
}

#[test]
fn a_member_that_goes_takes_all_that_was_known_of_it_along() {
    let mut table = Table::new();
    table.fetches(1, &Table::asks(1));
    table.parents(2, &Table::asks(2));
    table.report(3, &Table::reports(Ticket { number: 1, issuer: 1 }, None, 1 << 30, State::Whole));
    let left: Vec<Member> =
        table.directory.ring.members().iter().filter(|m| m.node != node(1) && m.node != node(3)).cloned().collect();
    let ring = Arc::new(Ring::new(node(0), left));
    assert_eq!(table.directory.ring_changed(table.now, &mut table.rng, ring), []);
    assert_eq!(table.directory.leases(&key(Access::Anonymous)).count(), 0);
    assert_eq!(table.parents(4, &Table::asks(4)).1, [node(2)]);
}

#[test]
fn who_cannot_read_from_the_only_holder_fetches_for_all_but_waits_for_one_that_is_full() {
    let mut table = Table::new();
    table.report(1, &Table::reports(Ticket { number: 1, issuer: 1 }, None, 1 << 30, State::Whole));
    let (second, parents) = table.parents(2, &Table::asks(2));
    assert_eq!(parents, [node(1)]);
    let lost = |why| vec![Trouble { node: node(1), why }];
    // One that is full may have room in a moment.
    let full = Ask { ticket: Some(second), troubles: lost(Ailment::Full), ..Table::asks(2) };
    assert_eq!(table.parents(2, &full).1, [node(1)]);
    let mut table = Table::new();
    table.report(1, &Table::reports(Ticket { number: 1, issuer: 1 }, None, 1 << 30, State::Whole));
    let (second, _) = table.parents(2, &Table::asks(2));
    let (third, _) = table.parents(3, &Table::asks(3));
    table.fetches(2, &Ask { ticket: Some(second), troubles: lost(Ailment::Silent), ..Table::asks(2) });
    let ask = Ask { ticket: Some(third), troubles: lost(Ailment::Silent), ..Table::asks(3) };
    assert_eq!(table.parents(3, &ask).1, [node(2)], "it has lost the same one, and reads from who fetches");
}

/// The first owner was only late: those whom it had told to read say so to both.
#[test]
fn whom_the_second_owner_lets_fetch_stops_when_others_read_by_the_word_of_the_first() {
    let mut table = Table::new();
    let others = |other: u8| {
        let member = |number| Member {
            node: node(number),
            addr: "127.0.0.1:7441".parse().unwrap(),
            zone: zone("a"),
            start: 1,
            settled: number == 0 || number == other,
        };
        Arc::new(Ring::new(node(0), (0..100).map(member)))
    };
    let digest = Digest::of(b"layer");
    let ring = (90..100).map(others).find(|ring| ring.owners_of(&digest).second == Some(node(0))).unwrap();
    table.directory = Directory::new(node(0), ring, 7 << 48);
    let (ticket, lease, _) = table.fetches(1, &Ask { owner_failed: true, ..Table::asks(1) });
    let report = |table: &mut Table| {
        table.pass(200);
        table.report(1, &Table::reports(ticket, Some(lease), MIB, State::Fetching))
    };
    assert!(matches!(report(&mut table), Verdict::GoOn { .. }));
    // Who reads from it stands behind it.
    let (behind, _) = table.parents(2, &Ask { owner_failed: true, ..Table::asks(2) });
    let reads =
        |ticket, parent| Report { parent: Some(node(parent)), ..Table::reports(ticket, None, 0, State::Reading) };
    table.report(2, &reads(behind, 1));
    assert!(matches!(report(&mut table), Verdict::GoOn { .. }));
    table.report(3, &reads(Ticket { number: 2 << 32, issuer: 9 }, 4));
    assert_eq!(report(&mut table), Verdict::Ended);
    let to_the_tail = Ask { owner_failed: true, to_the_tail: true, ..Table::asks(1) };
    let (_, parents) = table.parents(1, &to_the_tail);
    assert_eq!(parents, [node(2), node(3)]);
    // Neither has it any more, although nothing was heard of that here.
    let absent = |number| Trouble { node: node(number), why: Ailment::Absent };
    let (ticket, lease, _) = table.fetches(1, &Ask { troubles: vec![absent(2), absent(3)], ..to_the_tail });
    table.pass(200);
    let again = table.report(1, &Table::reports(ticket, Some(lease), 2 * MIB, State::Fetching));
    assert!(matches!(again, Verdict::GoOn { .. }), "it would begin anew with each report: {again:?}");
}

#[test]
fn who_isnt_owner_says_who_is() {
    let mut table = Table::new();
    let member = |number, settled| Member {
        node: node(number),
        addr: "127.0.0.1:7441".parse().unwrap(),
        zone: zone("a"),
        start: 1,
        settled,
    };
    let ring = Arc::new(Ring::new(node(0), [member(0, true), member(1, true)]));
    let first = ring.owners_of(&key(Access::Anonymous).digest).first.unwrap();
    table.directory = Directory::new(if first == node(0) { node(1) } else { node(0) }, ring, 1);
    assert_eq!(table.ask(5), Answer::NotOwner(Some(first)));
    table.fetches(5, &Ask { owner_failed: true, ..Table::asks(5) });
}
