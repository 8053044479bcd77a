//! Two upstreams of one registry: the first has an ill, the second is well.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ill::{Elsewhere, Ill, Illness, NO_TOKENS, Place};
use crate::{Challenge, Cut, Face, Fault, FaultRegistry, Image, Proxy, Transport, Upstream, When, until};

/// What the proxy demands. Nobody tells the agent.
const ACCOUNT: (&str, &str) = ("proxy", "secret");

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) ill: Ill,
    /// As image names call it.
    pub(super) name: String,
    first: FaultRegistry,
    proxy: Option<Proxy>,
}

impl Pair {
    /// A pair whose first upstream is still well.
    pub(super) async fn start(ill: Ill, copy: usize) -> Result<Self> {
        let proxy = if ill == Ill::ProxyWantsPassword { Some(Proxy::start().await?) } else { None };
        let first = FaultRegistry::start_over(ill.transport()).await?;
        if ill == Ill::WantsToken {
            // As long as it is well, its token server is too: no caller is there without a token.
            first.challenge(Some(Challenge::bearer().open("*")));
        }
        Ok(Self { ill, name: format!("{ill}-{copy}.test"), first, proxy })
    }

    /// How the agent reaches the first.
    pub(super) fn upstream(&self, folder: &Path) -> Result<Upstream> {
        if self.ill == Ill::NoSuchName {
            return Ok(Upstream::new("https://nowhere.invalid"));
        }
        let url = self.first.url();
        if self.ill.transport() == Transport::Plain {
            let upstream = Upstream::insecure(&url);
            return Ok(match &self.proxy {
                Some(proxy) => upstream.proxy(&proxy.url()),
                None => upstream,
            });
        }
        let ca = folder.join(format!("{}.pem", self.name));
        std::fs::write(&ca, self.first.ca())?;
        Ok(Upstream::new(&url).ca(&ca))
    }

    /// Host and port of the first.
    pub(super) fn host(&self) -> String {
        self.first.host()
    }

    /// Gives it the image, and the faults of its answers that are to come. Doors close later: [`Pair::before`].
    pub(super) fn prepare(&self, image: &Image, repository: &str, place: Place, at: u64, elsewhere: &Elsewhere) {
        self.first.add(image, repository, "v1");
        let elsewhere = Elsewhere { own: self.first.url(), ..elsewhere.clone() };
        let at = match place {
            Place::Resolve | Place::Start => 0,
            Place::Tagged | Place::Manifest => at % image.root().bytes.len() as u64,
            Place::Middle => at,
        };
        let illness = self.ill.at(at, place, &elsewhere);
        let tagged = When::path(&format!("/{repository}/manifests/v1"));
        let when = match place {
            Place::Resolve => tagged,
            Place::Tagged => {
                self.first.knows_head(false);
                tagged.method("GET")
            }
            Place::Manifest => When::get(image.root()),
            Place::Start | Place::Middle => When::get(image.largest()),
        };
        match (illness, place) {
            (Illness::Answer(fault), Place::Middle) => {
                self.first.fault(when.clone().first(1), Fault::CutAt(at, Cut::Close));
                self.first.fault(when, fault);
            }
            (Illness::Answer(fault) | Illness::Body(fault), _) => self.first.fault(when, fault),
            (Illness::Door(face), Place::Middle) => self.first.fault(when, Fault::Turn(at, face)),
            (Illness::Proxy, Place::Middle) => self.first.fault(when, Fault::CutAt(at, Cut::Close)),
            (Illness::Door(_) | Illness::Proxy | Illness::Nowhere, _) => {}
        }
    }

    /// Before something is asked for: closes the door, where that is what begins there.
    pub(super) fn before(&self, step: Place, place: Place) {
        match self.ill {
            Ill::Refuses if step == place => self.first.turn(Face::Refusing),
            Ill::UnknownCa if step == place => self.first.turn(Face::UnknownCa),
            Ill::ExpiredCertificate if step == place => self.first.turn(Face::Expired),
            Ill::ProxyWantsPassword if step == place => self.demand(0),
            // The request that is cut passes, the next doesn't.
            Ill::ProxyWantsPassword if step == Place::Start && place == Place::Middle => self.demand(1),
            _ => {}
        }
    }

    /// Whether the first was asked in vain, as far as that can be seen at its end.
    pub(super) fn was_met(&self, place: Place) -> bool {
        // In the middle it is cut, and the second goes on.
        if self.ill == Ill::WantsToken && place != Place::Middle {
            return self.first.count("GET", NO_TOKENS) > 0;
        }
        self.first.met() > 0 || !self.first.is_listening() || self.proxy.as_ref().is_some_and(Proxy::has_refused)
    }

    /// Well again, without what the trial needed.
    pub(super) async fn recover(&mut self, image: &Image, repository: &str) -> Result<()> {
        self.first.heal();
        self.first.knows_head(true);
        self.first.clear_log();
        self.first.forget(image, repository, "v1");
        if let Some(proxy) = &self.proxy {
            proxy.demand_nothing();
        }
        // The port is free when the old listener is gone.
        until("the first upstream is back", Duration::from_secs(5), async || self.first.accept().ok())
            .await
            .context(self.name.clone())
    }

    fn demand(&self, after: usize) {
        if let Some(proxy) = &self.proxy {
            proxy.demand(ACCOUNT.0, ACCOUNT.1, after);
        }
    }
}
