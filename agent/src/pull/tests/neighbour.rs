//! Peers that do as a test says, and peers that are another node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::cluster::chain::Parting;
use crate::image::{Access, MediaType, NodeId};
use crate::peers::{Head, Parted, Peer, PeerError, PeerStream};
use crate::pull::{Ended, Pull, Wanted};

/// How a peer gives a blob. Offsets are those of the blob.
#[derive(Debug, Clone)]
pub(super) struct Habit {
    pub(super) registry: &'static str,
    pub(super) access: Access,
    pub(super) whole: bool,
    pub(super) sources: Vec<String>,
    /// Ends there, in disorder.
    pub(super) cut_at: Option<u64>,
    /// Finds there that all of it is wrong, and came from these.
    pub(super) broken_at: Option<(u64, Vec<String>)>,
    /// Sends nothing from there on.
    pub(super) stall_at: Option<u64>,
    pub(super) wrong_byte: Option<u64>,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
    /// Says that the blob has so many bytes.
    pub(super) size: Option<u64>,
    pub(super) parted: Parted,
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            registry: "reg.test",
            access: Access::Anonymous,
            whole: false,
            sources: Vec::new(),
            cut_at: None,
            broken_at: None,
            stall_at: None,
            wrong_byte: None,
            rate: None,
            size: None,
            parted: Parted::Unknown,
        }
    }
}

pub(super) const fn node(number: u8) -> NodeId {
    NodeId::new([number; 16])
}

/// A peer that has a blob.
pub(super) fn peer(number: u8, blob: &Bytes, habit: Habit) -> Peer {
    let (blob, habit) = (blob.clone(), Arc::new(habit));
    Peer::scripted(node(number), move |from, to| {
        let (blob, habit) = (blob.clone(), Arc::clone(&habit));
        async move { Ok(stream(number, blob, &habit, from, to)) }.boxed()
    })
}

fn stream(number: u8, blob: Bytes, habit: &Arc<Habit>, from: u64, to: Option<u64>) -> PeerStream {
    let head = Head {
        size: habit.size.unwrap_or(blob.len() as u64),
        media_type: MediaType::octet_stream(),
        registry: habit.registry.parse().unwrap(),
        access: habit.access,
        whole: habit.whole,
        sources: habit.sources.clone(),
    };
    let (sender, frames) = mpsc::channel(4);
    let (_, parted) = watch::channel(habit.parted.clone());
    let habit = Arc::clone(habit);
    tokio::spawn(async move {
        let end = to.unwrap_or(u64::MAX).min(blob.len() as u64);
        let mut at = from;
        while at < end {
            let next = end.min(at + (64 << 10)).min(habit.cut_at.filter(|&cut| cut > at).unwrap_or(end));
            if habit.cut_at == Some(at) {
                let _ = sender.send(Err(PeerError::Silent { node: node(number) })).await;
                return;
            }
            if let Some((broken_at, sources)) = &habit.broken_at
                && *broken_at <= at
            {
                let (node, parting) = (node(number), Parting::Broken(sources.clone()));
                let _ = sender.send(Err(PeerError::Parted { node, parting })).await;
                return;
            }
            if habit.stall_at.is_some_and(|stall| stall <= at) {
                sender.closed().await;
                return;
            }
            let mut piece = blob.slice(at as usize..next as usize).to_vec();
            if let Some(wrong) = habit.wrong_byte.filter(|wrong| (at..next).contains(wrong)) {
                piece[(wrong - at) as usize] ^= 0xff;
            }
            if sender.send(Ok(piece.into())).await.is_err() {
                return;
            }
            if let Some(rate) = habit.rate {
                sleep(Duration::from_secs_f64((next - at) as f64 / rate as f64)).await;
            }
            at = next;
        }
    });
    PeerStream::scripted(head, frames, parted)
}

/// A peer that is another node: what it has, and what arrives there.
pub(super) fn peer_at(number: u8, pull: &Pull, wanted: &Wanted, access: Access) -> Peer {
    let (pull, wanted) = (pull.clone(), wanted.clone());
    Peer::scripted(node(number), move |from, to| {
        let (pull, wanted) = (pull.clone(), wanted.clone());
        async move {
            let begins_by = Instant::now() + Duration::from_secs(5);
            let mut shared = loop {
                match pull.share(&wanted.digest, &wanted.place.registry, access, from, to).await {
                    Ok(shared) => break shared,
                    // It has yet to begin there.
                    Err(_) if Instant::now() < begins_by => sleep(Duration::from_millis(5)).await,
                    Err(e) => return Err(PeerError::Unreachable { node: node(number), why: e.to_string() }),
                }
            };
            let head = shared.head().clone();
            let (sender, frames) = mpsc::channel(4);
            let (says, parted) = watch::channel(Parted::Unknown);
            tokio::spawn(async move {
                loop {
                    match shared.next().await {
                        Ok(Some(bytes)) => {
                            if sender.send(Ok(bytes)).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(Ended::Broken(sources)) => {
                            let parting = Parting::Broken(sources);
                            let _ = sender.send(Err(PeerError::Parted { node: node(number), parting })).await;
                            return;
                        }
                        Err(_) => {
                            let _ = sender.send(Err(PeerError::Silent { node: node(number) })).await;
                            return;
                        }
                    }
                }
                says.send_replace(shared.parted().await);
            });
            Ok(PeerStream::scripted(head, frames, parted))
        }
        .boxed()
    })
}
