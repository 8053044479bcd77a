//! Two upstreams of one registry: the first has an ill, the second is well.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ill::{Elsewhere, Ill, Illness, Place};
use crate::{Cut, Face, Fault, FaultRegistry, Image, Proxy, Transport, Upstream, When, until};

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

    /// Gives it the image, and everything of it a turn for the worse where that begins with the tag, or in a body.
    pub(super) fn prepare(&self, image: &Image, repository: &str, place: Place, at: u64, elsewhere: &Elsewhere) {
        self.first.add(image, repository, "v1");
        let elsewhere = Elsewhere { own: self.first.url(), ..elsewhere.clone() };
        let at = if place == Place::Start { 0 } else { at };
        let illness = self.ill.at(at, place, &elsewhere);
        let when = match place {
            Place::Resolve => When::path(&format!("/{repository}/manifests/v1")),
            Place::Start => When::path("/sha256:"),
            Place::Middle => When::get(image.largest()),
        };
        match (illness, place) {
            (Illness::Body(fault) | Illness::Answer(fault), Place::Resolve | Place::Start) => {
                self.first.fault(when, fault);
            }
            (Illness::Body(fault), Place::Middle) => self.first.fault(when, fault),
            (Illness::Answer(fault), Place::Middle) => {
                self.first.fault(when.clone().first(1), Fault::CutAt(at, Cut::Close));
                self.first.fault(when, fault);
            }
            (Illness::Door(face), Place::Middle) => self.first.fault(when, Fault::Turn(at, face)),
            (Illness::Proxy, Place::Middle) => self.first.fault(when, Fault::CutAt(at, Cut::Close)),
            (Illness::Door(face), Place::Resolve) => self.first.turn(face),
            (Illness::Proxy, Place::Resolve) => self.demand(0),
            (Illness::Door(_) | Illness::Proxy, Place::Start) | (Illness::Nowhere, _) => {}
        }
    }

    /// Before the manifest is asked for.
    pub(super) fn before_fetch(&self, place: Place) {
        if place != Place::Start {
            return;
        }
        match self.ill {
            Ill::Refuses => self.first.turn(Face::Refusing),
            Ill::UnknownCa => self.first.turn(Face::UnknownCa),
            Ill::ExpiredCertificate => self.first.turn(Face::Expired),
            Ill::ProxyWantsPassword => self.demand(0),
            _ => {}
        }
    }

    /// Before the layer is asked for.
    pub(super) fn before_the_layer(&self, place: Place) {
        if place == Place::Middle && self.ill == Ill::ProxyWantsPassword {
            self.demand(1);
        }
    }

    /// Whether the first was asked in vain, as far as that can be seen at its end.
    pub(super) fn was_met(&self) -> bool {
        self.first.met() > 0 || !self.first.is_listening() || self.proxy.as_ref().is_some_and(Proxy::has_refused)
    }

    /// Well again, without what the trial needed.
    pub(super) async fn recover(&mut self, image: &Image, repository: &str) -> Result<()> {
        self.first.heal();
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
