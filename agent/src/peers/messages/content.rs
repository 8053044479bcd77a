use larder_proto::peers as proto;
use larder_proto::peers::parting::Why;

use super::words::{
    Malformed, access, access_of, bytes_of, key, key_of, node, nodes, registry, some_node, sources, ticket, ticket_of,
    trace,
};
use crate::cluster::chain::{Beat, Hop, Key, Parting, Ticket};
use crate::image::{MediaType, NodeId};
use crate::peers::{Head, Trace};

/// Upstreams that are named with a blob.
const MOST_SOURCES: usize = 32;
/// Readers of a full sender that are named.
const MOST_OTHERS: usize = 16;

/// What a peer asks to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadAsk {
    /// The blob, and as which it is wanted.
    pub key: Key,
    /// From this byte on.
    pub from: u64,
    /// To this one; `None` for the end of the blob.
    pub end: Option<u64>,
    /// The reader's place in the chain; none for content that is whole.
    pub ticket: Option<Ticket>,
    /// The reader knows of nobody else.
    pub insists: bool,
    /// The sender's reader that this one comes in place of, since it was slow.
    pub instead_of: Option<NodeId>,
    /// A part that is read beside what comes next, of what is whole: no place in the chain is taken for it.
    pub aside: bool,
    /// The pull that it is for.
    pub trace: Trace,
}

/// What came as a request.
///
/// # Errors
/// When it makes no sense.
pub fn read_ask(request: proto::ReadRequest) -> Result<ReadAsk, Malformed> {
    let proto::ReadRequest { key: of, offset, end, ticket: place, insists, instead_of, trace: pull, aside } = request;
    if end != 0 && end < offset {
        return Err(Malformed("a range that ends before it begins"));
    }
    Ok(ReadAsk {
        key: key(of)?,
        from: offset,
        end: (end != 0).then_some(end),
        ticket: ticket(place),
        insists,
        instead_of: some_node(&instead_of)?,
        aside,
        trace: trace(&pull),
    })
}

/// What goes out as a request.
#[must_use]
pub fn read_request(ask: &ReadAsk) -> proto::ReadRequest {
    proto::ReadRequest {
        key: key_of(&ask.key),
        offset: ask.from,
        end: ask.end.unwrap_or(0),
        ticket: ticket_of(ask.ticket),
        insists: ask.insists,
        instead_of: ask.instead_of.map(bytes_of).unwrap_or_default(),
        trace: ask.trace.to_string(),
        aside: ask.aside,
    }
}

/// What a sender says before the bytes.
///
/// # Errors
/// When it makes no sense.
pub fn head(head: proto::Head) -> Result<Head, Malformed> {
    Ok(Head {
        size: head.size,
        media_type: MediaType::new(&head.media_type).ok_or(Malformed("a media type"))?,
        registry: registry(&head.registry)?,
        access: access(head.access),
        whole: head.whole,
        sources: sources(head.sources, MOST_SOURCES),
    })
}

/// The same on its way out.
#[must_use]
pub fn head_of(head: &Head) -> proto::Head {
    proto::Head {
        size: head.size,
        media_type: head.media_type.to_string(),
        registry: head.registry.to_string(),
        access: access_of(head.access),
        whole: head.whole,
        sources: head.sources.iter().take(MOST_SOURCES).cloned().collect(),
    }
}

/// How far a sender and those before it have got.
///
/// # Errors
/// When it names nobody, or what is no node.
pub fn beat(beat: proto::Beat) -> Result<Beat, Malformed> {
    let hop = |hop: proto::Hop| {
        let proto::Hop { node: of, ticket: place, frontier, rate } = hop;
        Ok(Hop { node: node(&of)?, ticket: ticket(place), frontier, rate })
    };
    let path: Vec<Hop> = beat.path.into_iter().take(Beat::MAX_PATH).map(hop).collect::<Result<_, _>>()?;
    if path.is_empty() { Err(Malformed("a beat of nobody")) } else { Ok(Beat { path }) }
}

/// The same on its way out.
#[must_use]
pub fn beat_of(beat: &Beat) -> proto::Beat {
    let hop = |hop: &Hop| {
        let Hop { node, ticket, frontier, rate } = *hop;
        proto::Hop { node: bytes_of(node), ticket: ticket_of(ticket), frontier, rate }
    };
    proto::Beat { path: beat.path.iter().take(Beat::MAX_PATH).map(hop).collect() }
}

/// How a sender ends. A reason that we don't know is a failure: there is another peer, or upstream.
///
/// # Errors
/// When it names what is no node.
pub fn parting(parting: proto::Parting) -> Result<Parting, Malformed> {
    Ok(match Why::try_from(parting.why) {
        Ok(Why::Held) => Parting::Held,
        Ok(Why::Sent) => Parting::Sent,
        Ok(Why::Broken) => Parting::Broken(sources(parting.sources, MOST_SOURCES)),
        Ok(Why::Yielded) => Parting::Yielded,
        Ok(Why::Displaced) => Parting::Displaced,
        Ok(Why::NotLower) => Parting::NotLower,
        Ok(Why::Absent) => Parting::Absent,
        Ok(Why::Full) => Parting::Full(nodes(&parting.others, MOST_OTHERS)?),
        Ok(Why::Stopping) => Parting::Stopping,
        Ok(Why::Failed | Why::Unspecified) | Err(_) => Parting::Failed,
    })
}

/// The same on its way out.
#[must_use]
pub fn parting_of(parting: &Parting) -> proto::Parting {
    let (mut sources, mut others) = (Vec::new(), Vec::new());
    let why = match parting {
        Parting::Held => Why::Held,
        Parting::Sent => Why::Sent,
        Parting::Broken(from) => {
            sources = from.iter().take(MOST_SOURCES).cloned().collect();
            Why::Broken
        }
        Parting::Yielded => Why::Yielded,
        Parting::Displaced => Why::Displaced,
        Parting::NotLower => Why::NotLower,
        Parting::Absent => Why::Absent,
        Parting::Full(readers) => {
            others = readers.iter().take(MOST_OTHERS).map(|reader| bytes_of(*reader)).collect();
            Why::Full
        }
        Parting::Failed => Why::Failed,
        Parting::Stopping => Why::Stopping,
    };
    proto::Parting { why: why.into(), sources, others }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Access, Digest};

    const NODE: NodeId = NodeId::new([3; 16]);

    #[test]
    fn there_and_back() {
        let key = Key { digest: Digest::of(b"x"), registry: "docker.io".parse().unwrap(), access: Access::Authorized };
        let ticket = Some(Ticket { number: 7, issuer: 9 });
        let ask = ReadAsk {
            key,
            from: 5,
            end: Some(9),
            ticket,
            insists: true,
            instead_of: Some(NODE),
            aside: false,
            trace: Trace::new(),
        };
        assert_eq!(read_ask(read_request(&ask)), Ok(ask.clone()));
        let whole = ReadAsk { end: None, ticket: None, instead_of: None, insists: false, aside: true, ..ask };
        assert_eq!(read_ask(read_request(&whole)), Ok(whole));

        let path = vec![
            Hop { node: NODE, ticket, frontier: 1, rate: 2 },
            Hop { node: NODE, ticket: None, frontier: 3, rate: 0 },
        ];
        let said = Beat { path };
        assert_eq!(beat(beat_of(&said)), Ok(said));
        for one in [
            Parting::Held,
            Parting::Sent,
            Parting::Broken(vec!["a.test".to_owned()]),
            Parting::Yielded,
            Parting::Displaced,
            Parting::NotLower,
            Parting::Absent,
            Parting::Full(vec![NODE]),
            Parting::Failed,
            Parting::Stopping,
        ] {
            assert_eq!(parting(parting_of(&one)), Ok(one));
        }
    }

    #[test]
    fn what_makes_no_sense() {
        assert!(beat(proto::Beat::default()).is_err());
        assert_eq!(parting(proto::Parting { why: 99, ..Default::default() }), Ok(Parting::Failed));
        let mut request = proto::ReadRequest { offset: 5, end: 4, ..Default::default() };
        assert_eq!(read_ask(request.clone()), Err(Malformed("a range that ends before it begins")));
        request.end = 0;
        assert_eq!(read_ask(request), Err(Malformed("no key")));
    }
}
