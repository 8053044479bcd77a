//! What tags mean.

use super::*;
use crate::image::MediaType;

fn asked(max_age: u64) -> TagAsk {
    let key = TagKey {
        registry: "reg.example".parse().unwrap(),
        repository: "app".parse().unwrap(),
        tag: "latest".parse().unwrap(),
        credential: Credential::None,
    };
    TagAsk { key, max_age: Duration::from_secs(max_age), waited: None, owner_failed: false }
}

fn meaning() -> TagMeaning {
    TagMeaning {
        digest: Digest::of(b"manifest"),
        media_type: MediaType::octet_stream(),
        size: 7,
        age: Duration::ZERO,
        access: Access::Anonymous,
    }
}

impl Table {
    fn tag(&mut self, id: u64, number: u8, max_age: u64) -> Option<TagAnswer> {
        self.tag_as(id, number, &asked(max_age))
    }

    /// One that comes again, and first came so many milliseconds ago.
    fn tag_again(&mut self, id: u64, number: u8, waited: u64) -> Option<TagAnswer> {
        self.tag_as(id, number, &TagAsk { waited: Some(Duration::from_millis(waited)), ..asked(0) })
    }

    fn tag_as(&mut self, id: u64, number: u8, ask: &TagAsk) -> Option<TagAnswer> {
        let effects = self.directory.ask_tag(self.now, &mut self.rng, AskId(id), node(number), ask);
        match effects.as_slice() {
            [] => None,
            [Effect::Tag { to, answer }] if *to == AskId(id) => Some(answer.clone()),
            effects => panic!("{effects:?}"),
        }
    }

    fn tag_lease(&mut self, id: u64, number: u8) -> Lease {
        match self.tag(id, number, 0) {
            Some(TagAnswer::Lease(lease)) => lease,
            answer => panic!("{answer:?}"),
        }
    }

    /// `None`: it isn't the lease of that node.
    fn told(&mut self, number: u8, lease: Lease, meaning: Option<TagMeaning>) -> Option<Vec<(u64, TagAnswer)>> {
        let (key, from) = (asked(0).key, node(number));
        self.directory.report_tag(self.now, &mut self.rng, from, (&key, lease), meaning).map(answers)
    }

    fn still_asks(&mut self, number: u8, lease: Lease) {
        self.directory.still_asks_tag(self.now, node(number), &asked(0).key, lease);
    }

    /// Lets time pass, a look at a time; what is said meanwhile.
    fn wait(&mut self, milliseconds: u64) -> Vec<(u64, TagAnswer)> {
        let until = self.now + Duration::from_millis(milliseconds);
        let mut said = Vec::new();
        while self.now < until {
            self.now = self.directory.next_deadline().clamp(self.now, until);
            said.extend(answers(self.directory.tick(self.now, &mut self.rng)));
        }
        said
    }
}

fn answers(effects: Vec<Effect>) -> Vec<(u64, TagAnswer)> {
    let answer = |effect| match effect {
        Effect::Tag { to, answer } => (to.0, answer),
        effect => panic!("{effect:?}"),
    };
    effects.into_iter().map(answer).collect()
}

#[test]
fn one_asks_and_all_who_ask_meanwhile_share_its_answer() {
    let mut table = Table::new();
    let lease = table.tag_lease(1, 1);
    assert_eq!((table.tag(2, 2, 0), table.tag(3, 3, 60)), (None, None));
    let told = table.told(1, lease, Some(meaning())).unwrap();
    assert_eq!(told, [2, 3].map(|id| (id, TagAnswer::Meaning(meaning()))));
    // Who asks after that asks anew, unless it takes an older answer.
    table.pass(10_000);
    let older = TagMeaning { age: Duration::from_secs(10), ..meaning() };
    assert_eq!(table.tag(4, 4, 11), Some(TagAnswer::Meaning(older.clone())));
    table.tag_lease(5, 5);
    assert_eq!(table.directory.newest_tag(table.now, &asked(0).key), Some(older));
}

#[test]
fn failures_pass_on_to_more_and_nobody_waits_for_a_third() {
    let mut table = Table::new();
    let lease = table.tag_lease(1, 1);
    for id in 2..9 {
        assert_eq!(table.tag(id, id as u8, 0), None);
    }
    let next = table.told(1, lease, None).unwrap();
    let [(2, TagAnswer::Lease(second)), (3, TagAnswer::Lease(_))] = next[..] else { panic!("{next:?}") };
    assert_eq!(table.told(1, lease, None), None, "it has been given back already");
    let last = table.told(2, second, None).unwrap();
    assert_eq!(last, [4, 5, 6, 7, 8].map(|id| (id, TagAnswer::Alone)));
}

#[test]
fn nobody_waits_for_long() {
    let mut table = Table::new();
    table.tag_lease(1, 1);
    assert_eq!(table.tag(2, 2, 0), None);
    table.now += Duration::from_millis(1_500);
    assert!(table.directory.next_deadline() <= table.now);
    let effects = table.directory.tick(table.now, &mut table.rng);
    assert_eq!(answers(effects), [(2, TagAnswer::Alone)]);
}

#[test]
fn who_comes_again_waits_as_long_as_another_asks() {
    let mut table = Table::new();
    let lease = table.tag_lease(1, 1);
    let mut said = Vec::new();
    for second in 0..4 {
        assert_eq!(table.tag_again(10 + second, 2, 1_000 * second), None);
        said.extend(table.wait(500));
        table.still_asks(1, lease);
        said.extend(table.wait(1_000));
        table.still_asks(1, lease);
    }
    assert_eq!(said, [10, 11, 12, 13].map(|id| (id, TagAnswer::StillAsked)));
    assert_eq!(table.told(1, lease, Some(meaning())), Some(Vec::new()), "nobody waits at this moment");
    table.wait(100);
    let told = TagMeaning { age: Duration::from_millis(100), ..meaning() };
    assert_eq!(table.tag_again(20, 2, 6_100), Some(TagAnswer::Meaning(told)), "it came since");
    table.tag_lease(21, 3);
}

#[test]
fn a_holder_that_says_nothing_is_passed_over_and_its_late_answer_taken() {
    let mut table = Table::new();
    let lease = table.tag_lease(1, 1);
    table.wait(600);
    assert_eq!(table.tag_again(2, 2, 0), None);
    let said = table.wait(1_500);
    let [(2, TagAnswer::Lease(second))] = said[..] else { panic!("{said:?}") };
    // Of those who ask now there are two already.
    assert!(matches!(table.tag_again(3, 3, 0), Some(TagAnswer::Lease(_))));
    assert_eq!(table.tag_again(4, 4, 0), None);
    assert_eq!(table.told(1, lease, Some(meaning())), Some(vec![(4, TagAnswer::Meaning(meaning()))]));
    assert_eq!(table.told(1, lease, Some(meaning())), None, "once");
    assert_eq!(table.told(2, second, None), Some(Vec::new()));
}

#[test]
fn only_who_was_given_a_lease_is_believed() {
    let mut table = Table::new();
    let lease = table.tag_lease(1, 1);
    assert_eq!(table.tag(2, 2, 0), None);
    for (number, lease) in [(3, lease), (1, Lease(lease.0 ^ 1)), (2, Lease(0))] {
        assert_eq!(table.told(number, lease, Some(meaning())), None);
    }
    assert_eq!(table.directory.newest_tag(table.now, &asked(0).key), None);
    assert_eq!(table.told(1, lease, Some(meaning())), Some(vec![(2, TagAnswer::Meaning(meaning()))]));
}
