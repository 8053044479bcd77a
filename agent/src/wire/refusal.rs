use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::{CertificateError, Error as TlsError};
use tokio::time::Instant;

/// Of each reason, the log has at most one line in this time: who is refused may come again and again.
const APART: Duration = Duration::from_secs(1);

/// Why somebody got nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// A datagram too short to be one of ours.
    Short,
    /// A datagram of a version that this one doesn't know.
    Version,
    /// A datagram that none of the cluster's keys opens.
    Key,
    /// A datagram that has been here before, or too long ago to tell.
    Replay,
    /// A datagram of a member whose clock, or ours, is wrong.
    Clock,
    /// No certificate shown.
    NoCertificate,
    /// A certificate of an authority that isn't trusted, or not signed by it.
    Authority,
    /// A certificate that isn't valid any more, or yet.
    Expired,
    /// A certificate made for another use.
    Usage,
    /// A certificate of an authority that is trusted, and of nobody who is let in.
    Id,
    /// Another node than the one that was dialled.
    Node,
    /// Not TLS.
    Plain,
    /// The other side refused us.
    Alert,
    /// Another failure of the handshake.
    Handshake,
    /// No handshake in time.
    Silent,
    /// More connections than are taken.
    Busy,
}

/// Counts refusals, and says them seldom. Cheap clones of the same figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals {
    counted: Family<ReasonLabel, Counter>,
    said: Arc<Mutex<HashMap<Reason, Said>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    /// Refused since, without a word.
    since: u64,
}

impl Reason {
    const ALL: [Self; 16] = [
        Self::Short,
        Self::Version,
        Self::Key,
        Self::Replay,
        Self::Clock,
        Self::NoCertificate,
        Self::Authority,
        Self::Expired,
        Self::Usage,
        Self::Id,
        Self::Node,
        Self::Plain,
        Self::Alert,
        Self::Handshake,
        Self::Silent,
        Self::Busy,
    ];

    /// Why a handshake failed.
    pub(super) fn of_handshake(error: &io::Error) -> Self {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) else {
            return match error.kind() {
                io::ErrorKind::TimedOut => Self::Silent,
                _ => Self::Handshake,
            };
        };
        match error {
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::InvalidMessage(_) => Self::Plain,
            TlsError::AlertReceived(_) => Self::Alert,
            TlsError::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::Node,
                CertificateError::ApplicationVerificationFailure => Self::Id,
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::Usage,
                _ => Self::Authority,
            },
            _ => Self::Handshake,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Short => "too_short",
            Self::Version => "version",
            Self::Key => "wrong_key",
            Self::Replay => "replay",
            Self::Clock => "clock",
            Self::NoCertificate => "no_certificate",
            Self::Authority => "wrong_ca",
            Self::Expired => "expired",
            Self::Usage => "wrong_usage",
            Self::Id => "wrong_id",
            Self::Node => "wrong_node",
            Self::Plain => "plain",
            Self::Alert => "alert",
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::Busy => "busy",
        }
    }
}

impl Refusals {
    pub(super) fn register(&self, registry: &mut Registry) {
        // From zero on: what first appears as 1 has never risen for Prometheus.
        for reason in Reason::ALL.map(Reason::label) {
            drop(self.counted.get_or_create(&ReasonLabel { reason }));
        }
        registry.register(
            "larder_peer_refused",
            "Connections and datagrams that were refused, by reason",
            self.counted.clone(),
        );
    }

    /// Counts one, and says it if nothing of its kind was said lately.
    pub(super) fn refuse(&self, reason: Reason, from: SocketAddr, why: &dyn fmt::Display) {
        self.counted.get_or_create(&ReasonLabel { reason: reason.label() }).inc();
        if let Some(more) = self.is_to_be_said(reason, Instant::now()) {
            tracing::warn!(reason = reason.label(), peer = %from, more, "refused: {why}");
        }
    }

    /// How many were refused since the last word about this reason; `None` when that was just now.
    fn is_to_be_said(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match said.get_mut(&reason) {
            Some(said) if now.saturating_duration_since(said.at) < APART => {
                said.since += 1;
                None
            }
            Some(said) => {
                said.at = now;
                Some(std::mem::take(&mut said.since))
            }
            None => {
                said.insert(reason, Said { at: now, since: 0 });
                Some(0)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self, reason: Reason) -> u64 {
        self.counted.get_or_create(&ReasonLabel { reason: reason.label() }).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_counted_and_little_is_said() {
        let refusals = Refusals::default();
        refusals.refuse(Reason::Key, SocketAddr::from(([10, 0, 0, 1], 1)), &"no key");
        assert_eq!(refusals.count(Reason::Key), 1);
        let start = Instant::now() + 2 * APART;
        assert_eq!(refusals.is_to_be_said(Reason::Key, start), Some(0));
        for n in 1..100 {
            assert_eq!(refusals.is_to_be_said(Reason::Key, start + n * APART / 100), None);
        }
        assert_eq!(refusals.is_to_be_said(Reason::Replay, start), Some(0), "another reason");
        assert_eq!(refusals.is_to_be_said(Reason::Key, start + APART), Some(99));
        assert_eq!(refusals.is_to_be_said(Reason::Key, start + 2 * APART), Some(0));
    }

    #[test]
    fn handshakes_fail_for_a_reason() {
        let of = |error: TlsError| Reason::of_handshake(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(of(TlsError::NoCertificatesPresented), Reason::NoCertificate);
        assert_eq!(of(CertificateError::UnknownIssuer.into()), Reason::Authority);
        assert_eq!(of(CertificateError::BadSignature.into()), Reason::Authority);
        assert_eq!(of(CertificateError::Expired.into()), Reason::Expired);
        assert_eq!(of(CertificateError::NotValidForName.into()), Reason::Node);
        assert_eq!(of(CertificateError::ApplicationVerificationFailure.into()), Reason::Id);
        assert_eq!(Reason::of_handshake(&io::ErrorKind::TimedOut.into()), Reason::Silent);
        assert_eq!(Reason::of_handshake(&io::ErrorKind::ConnectionReset.into()), Reason::Handshake);
    }
}
