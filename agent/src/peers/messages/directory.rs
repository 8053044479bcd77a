use larder_proto::peers as proto;
use larder_proto::peers::announce_request::Bucket as ProtoBucket;
use larder_proto::peers::ask_reply::Answer as ProtoAnswer;
use larder_proto::peers::report_reply::Verdict as ProtoVerdict;
use larder_proto::peers::report_request::State as ProtoState;
use larder_proto::peers::trouble::Why;

use super::words::{
    Malformed, bytes_of, credential, credential_of, digest, key, key_of, node, nodes, registry, some_node, sources,
    ticket, ticket_of, trace,
};
use crate::cluster::Bucket;
use crate::cluster::chain::{Ailment, Lease, Trouble};
use crate::cluster::directory::{Announced, Answer, Answered, Ask, Holding, Released, Report, Shelf, State, Verdict};
use crate::image::Zone;
use crate::peers::Trace;

/// Nodes of which an asker complains in one message.
const MOST_TROUBLES: usize = 16;
/// Nodes that an answer names.
const MOST_PARENTS: usize = 16;
/// Upstreams that are named with a blob.
const MOST_SOURCES: usize = 32;
/// Holdings in one announcement.
pub const MOST_HOLDINGS: usize = 8192;
/// Registries that gave one blob under authorization.
const MOST_REGISTRIES: usize = 8;

/// An ask on its way out.
#[must_use]
pub fn ask_of(ask: &Ask, pull: &Trace) -> proto::AskRequest {
    let trouble = |trouble: &Trouble| proto::Trouble {
        node: bytes_of(trouble.node),
        why: match trouble.why {
            Ailment::Silent => Why::Silent,
            Ailment::Slow => Why::Slow,
            Ailment::Full => Why::Full,
            Ailment::Absent => Why::Absent,
            Ailment::Wrong => Why::Wrong,
        }
        .into(),
    };
    proto::AskRequest {
        key: key_of(&ask.key),
        size: ask.size.unwrap_or(0),
        frontier: ask.frontier,
        ticket: ticket_of(ask.ticket),
        troubles: ask.troubles.iter().take(MOST_TROUBLES).map(trouble).collect(),
        owner_failed: ask.owner_failed,
        to_the_tail: ask.to_the_tail,
        slow: ask.slow,
        credential: credential_of(&ask.credential),
        trace: pull.to_string(),
        zone: ask.zone.as_str().to_owned(),
    }
}

/// An ask that came, and the pull that it is for.
///
/// # Errors
/// When it makes no sense.
pub fn ask(request: proto::AskRequest) -> Result<(Ask, Trace), Malformed> {
    let trouble = |trouble: &proto::Trouble| {
        let why = match Why::try_from(trouble.why) {
            Ok(Why::Slow) => Ailment::Slow,
            Ok(Why::Full) => Ailment::Full,
            Ok(Why::Absent) => Ailment::Absent,
            Ok(Why::Wrong) => Ailment::Wrong,
            Ok(Why::Silent | Why::Unspecified) | Err(_) => Ailment::Silent,
        };
        Ok(Trouble { node: node(&trouble.node)?, why })
    };
    let ask = Ask {
        key: key(request.key)?,
        credential: credential(&request.credential)?,
        zone: request.zone.parse::<Zone>().map_err(|_| Malformed("a zone"))?,
        size: (request.size != 0).then_some(request.size),
        frontier: request.frontier,
        ticket: ticket(request.ticket),
        to_the_tail: request.to_the_tail,
        slow: request.slow,
        troubles: request.troubles.iter().take(MOST_TROUBLES).map(trouble).collect::<Result<_, _>>()?,
        owner_failed: request.owner_failed,
    };
    Ok((ask, trace(&request.trace)))
}

/// An answer on its way out.
#[must_use]
pub fn answered_of(answered: Answered) -> proto::AskReply {
    let answer = match answered.answer {
        Answer::Fetch { ticket, lease: Lease(lease), upto } => {
            ProtoAnswer::Fetch(proto::Fetch { ticket: ticket_of(Some(ticket)), lease, upto })
        }
        Answer::Read { ticket, parents, ahead } => {
            let parents = parents.into_iter().take(MOST_PARENTS).map(bytes_of).collect();
            ProtoAnswer::Read(proto::Read { ticket: ticket_of(Some(ticket)), parents, ahead })
        }
        Answer::NotOwner(owner) => {
            ProtoAnswer::NotOwner(proto::NotOwner { owner: owner.map(bytes_of).unwrap_or_default() })
        }
        Answer::Alone { absent } => ProtoAnswer::Alone(proto::Alone { absent }),
    };
    let broken_sources = answered.broken_sources.into_iter().take(MOST_SOURCES).collect();
    proto::AskReply { answer: Some(answer), broken_sources }
}

/// An answer that came. One that we don't know is no help.
///
/// # Errors
/// When it makes no sense.
pub fn answered(reply: proto::AskReply) -> Result<Answered, Malformed> {
    let place = |of| ticket(of).ok_or(Malformed("no ticket"));
    let answer = match reply.answer {
        Some(ProtoAnswer::Fetch(fetch)) => {
            Answer::Fetch { ticket: place(fetch.ticket)?, lease: Lease(fetch.lease), upto: fetch.upto }
        }
        Some(ProtoAnswer::Read(read)) => {
            let parents = nodes(&read.parents, MOST_PARENTS)?;
            if parents.is_empty() {
                return Err(Malformed("nobody to read from"));
            }
            Answer::Read { ticket: place(read.ticket)?, parents, ahead: read.ahead }
        }
        Some(ProtoAnswer::NotOwner(not)) => Answer::NotOwner(some_node(&not.owner)?),
        Some(ProtoAnswer::Alone(alone)) => Answer::Alone { absent: alone.absent },
        None => Answer::Alone { absent: false },
    };
    Ok(Answered { answer, broken_sources: sources(reply.broken_sources, MOST_SOURCES) })
}

/// A report on its way out.
#[must_use]
pub fn report_of(report: &Report) -> proto::ReportRequest {
    let (mut broken_sources, mut broken_node) = (Vec::new(), Vec::new());
    let state = match &report.state {
        State::Fetching => ProtoState::Fetching,
        State::Reading => ProtoState::Reading,
        State::Whole => ProtoState::Whole,
        State::Released(Released::Absent) => ProtoState::Absent,
        State::Released(Released::Unauthorized) => ProtoState::Unauthorized,
        State::Released(Released::Unreachable) => ProtoState::Unreachable,
        State::Released(Released::Slow) => ProtoState::Slow,
        State::Gone => ProtoState::Gone,
        State::Broken { sources, node } => {
            broken_sources = sources.iter().take(MOST_SOURCES).cloned().collect();
            broken_node = node.map(bytes_of).unwrap_or_default();
            ProtoState::Broken
        }
    };
    proto::ReportRequest {
        key: key_of(&report.key),
        ticket: ticket_of(report.ticket),
        lease: report.lease.map(|Lease(lease)| lease),
        size: report.size.unwrap_or(0),
        frontier: report.frontier,
        rate: report.rate,
        lag: report.lag,
        state: state.into(),
        broken_sources,
        broken_node,
        credential: credential_of(&report.credential),
        parent: report.parent.map(bytes_of).unwrap_or_default(),
        zone: report.zone.as_str().to_owned(),
    }
}

/// A report that came.
///
/// # Errors
/// When it makes no sense, or says what we don't know: nothing safe could be done about it.
pub fn report(request: proto::ReportRequest) -> Result<Report, Malformed> {
    let state = match ProtoState::try_from(request.state) {
        Ok(ProtoState::Fetching) => State::Fetching,
        Ok(ProtoState::Reading) => State::Reading,
        Ok(ProtoState::Whole) => State::Whole,
        Ok(ProtoState::Absent) => State::Released(Released::Absent),
        Ok(ProtoState::Unauthorized) => State::Released(Released::Unauthorized),
        Ok(ProtoState::Unreachable) => State::Released(Released::Unreachable),
        Ok(ProtoState::Slow) => State::Released(Released::Slow),
        Ok(ProtoState::Gone) => State::Gone,
        Ok(ProtoState::Broken) => State::Broken {
            sources: sources(request.broken_sources, MOST_SOURCES),
            node: some_node(&request.broken_node)?,
        },
        Ok(ProtoState::Unspecified) | Err(_) => return Err(Malformed("a state")),
    };
    Ok(Report {
        key: key(request.key)?,
        ticket: ticket(request.ticket),
        lease: request.lease.map(Lease),
        credential: credential(&request.credential)?,
        size: (request.size != 0).then_some(request.size),
        frontier: request.frontier,
        rate: request.rate,
        lag: request.lag,
        parent: some_node(&request.parent)?,
        zone: request.zone.parse().map_err(|_| Malformed("a zone"))?,
        state,
    })
}

/// A verdict on its way out.
#[must_use]
pub const fn verdict_of(verdict: Verdict) -> proto::ReportReply {
    let verdict = match verdict {
        Verdict::Noted => None,
        Verdict::GoOn { upto } => Some(ProtoVerdict::Upto(upto)),
        Verdict::Ended => Some(ProtoVerdict::Ended(true)),
    };
    proto::ReportReply { verdict }
}

/// A verdict that came. One that we don't know says nothing of a lease.
#[must_use]
pub const fn verdict(reply: &proto::ReportReply) -> Verdict {
    match reply.verdict {
        Some(ProtoVerdict::Upto(upto)) => Verdict::GoOn { upto },
        Some(ProtoVerdict::Ended(_)) => Verdict::Ended,
        None => Verdict::Noted,
    }
}

/// An upstream that is asked about, and whether the asking node found that it sent wrong bytes.
///
/// # Errors
/// When it is no name.
pub fn suspect(request: proto::SuspectRequest) -> Result<(String, bool), Malformed> {
    let proto::SuspectRequest { upstream, broke } = request;
    let name = sources(vec![upstream], 1).pop().ok_or(Malformed("an upstream"))?;
    Ok((name, broke))
}

/// Shelves on their way out.
#[must_use]
pub fn shelves_of(shelves: &[Shelf]) -> proto::AnnounceRequest {
    let holding = |holding: &Holding| proto::Holding {
        digest: holding.digest.to_string(),
        registries: holding.registries.iter().map(ToString::to_string).collect(),
    };
    let bucket = |shelf: &Shelf| ProtoBucket {
        bucket: shelf.bucket.number().into(),
        generation: shelf.generation,
        hash: shelf.hash,
        all: shelf.all,
        added: shelf.added.iter().map(holding).collect(),
        dropped: shelf.dropped.iter().map(ToString::to_string).collect(),
    };
    proto::AnnounceRequest { buckets: shelves.iter().map(bucket).collect() }
}

/// Shelves that came.
///
/// # Errors
/// When they make no sense, or are more than anybody may say at once.
pub fn shelves(request: proto::AnnounceRequest) -> Result<Vec<Shelf>, Malformed> {
    let said: usize = request.buckets.iter().map(|bucket| bucket.added.len() + bucket.dropped.len()).sum();
    if request.buckets.len() > Bucket::COUNT || said > MOST_HOLDINGS {
        return Err(Malformed("more than may be announced at once"));
    }
    request.buckets.into_iter().map(shelf).collect()
}

fn shelf(bucket: ProtoBucket) -> Result<Shelf, Malformed> {
    let of = number(bucket.bucket)?;
    let holding = |holding: proto::Holding| {
        let registries = holding.registries.iter().take(MOST_REGISTRIES);
        let holding = Holding {
            digest: digest(&holding.digest)?,
            registries: registries.map(|name| registry(name)).collect::<Result<_, _>>()?,
        };
        if Bucket::of(&holding.digest) == of { Ok(holding) } else { Err(Malformed("a digest of another bucket")) }
    };
    Ok(Shelf {
        bucket: of,
        generation: bucket.generation,
        hash: bucket.hash,
        all: bucket.all,
        added: bucket.added.into_iter().map(holding).collect::<Result<_, _>>()?,
        dropped: bucket.dropped.iter().map(|dropped| digest(dropped)).collect::<Result<_, _>>()?,
    })
}

fn number(number: u32) -> Result<Bucket, Malformed> {
    u8::try_from(number).ok().and_then(Bucket::new).ok_or(Malformed("a bucket"))
}

/// What an owner says of shelves, on its way out.
#[must_use]
pub fn announced_of(announced: &Announced) -> proto::AnnounceReply {
    let numbers = |buckets: &[Bucket]| buckets.iter().map(|bucket| bucket.number().into()).collect();
    proto::AnnounceReply { unknown: numbers(&announced.unknown), not_owned: numbers(&announced.not_owned) }
}

/// What came of it.
///
/// # Errors
/// When it names what is no bucket.
pub fn announced(reply: &proto::AnnounceReply) -> Result<Announced, Malformed> {
    let buckets = |numbers: &[u32]| numbers.iter().take(Bucket::COUNT).map(|&n| number(n)).collect::<Result<_, _>>();
    Ok(Announced { unknown: buckets(&reply.unknown)?, not_owned: buckets(&reply.not_owned)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::chain::{Credential, Key, Ticket};
    use crate::image::{Access, Digest, NodeId};

    const NODE: NodeId = NodeId::new([4; 16]);
    const PLACE: Ticket = Ticket { number: 3, issuer: 8 };

    fn some_key() -> Key {
        Key { digest: Digest::of(b"x"), registry: "docker.io".parse().unwrap(), access: Access::Anonymous }
    }

    #[test]
    fn asks_and_answers_there_and_back() {
        let troubles = [Ailment::Silent, Ailment::Slow, Ailment::Full, Ailment::Absent, Ailment::Wrong];
        let one = Ask {
            key: some_key(),
            credential: Credential::Keyed([1; 32]),
            zone: "a".parse().unwrap(),
            size: Some(5),
            frontier: 2,
            ticket: Some(PLACE),
            to_the_tail: true,
            slow: true,
            troubles: troubles.into_iter().map(|why| Trouble { node: NODE, why }).collect(),
            owner_failed: true,
        };
        let pull = Trace::new();
        assert_eq!(ask(ask_of(&one, &pull)), Ok((one, pull)));
        for answer in [
            Answer::Fetch { ticket: PLACE, lease: Lease(5), upto: 6 },
            Answer::Read { ticket: PLACE, parents: vec![NODE], ahead: 3 },
            Answer::NotOwner(Some(NODE)),
            Answer::NotOwner(None),
            Answer::Alone { absent: true },
        ] {
            let one = Answered { answer, broken_sources: vec!["https://a.test".to_owned()] };
            assert_eq!(answered(answered_of(one.clone())), Ok(one));
        }
        assert_eq!(answered(proto::AskReply::default()).unwrap().answer, Answer::Alone { absent: false });
    }

    #[test]
    fn reports_there_and_back() {
        let broken = State::Broken { sources: vec!["a".to_owned()], node: Some(NODE) };
        let released = [Released::Absent, Released::Unauthorized, Released::Unreachable, Released::Slow];
        let states = [State::Fetching, State::Reading, State::Whole, State::Gone, broken];
        for state in released.into_iter().map(State::Released).chain(states) {
            let one = Report {
                key: some_key(),
                ticket: Some(PLACE),
                lease: Some(Lease(0)),
                credential: Credential::Anonymous,
                size: None,
                frontier: 1,
                rate: 2,
                lag: 3,
                parent: Some(NODE),
                zone: "a".parse().unwrap(),
                state,
            };
            assert_eq!(report(report_of(&one)), Ok(one));
        }
        for one in [Verdict::Noted, Verdict::GoOn { upto: 7 }, Verdict::Ended] {
            assert_eq!(verdict(&verdict_of(one)), one);
        }
        assert_eq!(report(proto::ReportRequest { state: 99, ..Default::default() }), Err(Malformed("a state")));
    }

    #[test]
    fn shelves_there_and_back() {
        let digest = Digest::of(b"x");
        let holding = Holding { digest, registries: vec!["ghcr.io".parse().unwrap()] };
        let one = Shelf {
            bucket: Bucket::of(&digest),
            generation: 1,
            hash: 2,
            all: true,
            added: vec![holding],
            dropped: vec![digest],
        };
        assert_eq!(shelves(shelves_of(std::slice::from_ref(&one))), Ok(vec![one.clone()]));
        let elsewhere = Bucket::all().find(|bucket| *bucket != one.bucket).unwrap();
        let lost = Shelf { bucket: elsewhere, ..one };
        assert!(shelves(shelves_of(&[lost])).is_err(), "what can't be found there isn't taken in");
        let said = Announced { unknown: vec![elsewhere], not_owned: vec![Bucket::of(&digest)] };
        assert_eq!(announced(&announced_of(&said)), Ok(said));
        assert!(announced(&proto::AnnounceReply { unknown: vec![128], not_owned: vec![] }).is_err());
    }
}
