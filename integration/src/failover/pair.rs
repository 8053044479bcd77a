//! Upstreams of one registry: the first has an ill, the second is well. Where the ill is to be met in the middle of a blob,
//! another stands before them, which is cut there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ill::{Ill, Illness, NO_TOKENS, NOWHERE, Place, SLOW};
use crate::{Challenge, Cut, Face, Fault, FaultRegistry, Image, Proxy, Transport, Upstream, When, until};

/// What the proxy demands. Nobody tells the agent.
const ACCOUNT: (&str, &str) = ("proxy", "secret");

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) ill: Ill,
    /// As image names call it.
    pub(super) name: String,
    first: FaultRegistry,
    cut: FaultRegistry,
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
        Ok(Self { ill, name: format!("{ill}-{copy}.test"), first, cut: FaultRegistry::start().await?, proxy })
    }

    /// As image names call it, where a blob is cut before the ill is met.
    pub(super) fn name_behind_a_cut(&self) -> String {
        format!("behind-a-cut.{}", self.name)
    }

    /// Which of the two.
    pub(super) fn name_for(&self, place: Place) -> String {
        if self.is_behind_a_cut(place) { self.name_behind_a_cut() } else { self.name.clone() }
    }

    fn is_behind_a_cut(&self, place: Place) -> bool {
        place == Place::Middle && !self.ill.begins_in_a_body()
    }

    /// How the agent reaches the one that is cut: by one connection for the blob. With several, none might come so far.
    pub(super) fn cut(&self) -> Upstream {
        Upstream::insecure(&self.cut.url()).max_connections(2)
    }

    /// How the agent reaches the first.
    pub(super) fn upstream(&self, folder: &Path) -> Result<Upstream> {
        if self.ill == Ill::NoSuchName {
            return Ok(Upstream::new(NOWHERE));
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
    pub(super) fn prepare(&self, image: &Image, repository: &str, place: Place, at: u64) {
        self.first.add(image, repository, "v1");
        let at = match place {
            Place::Resolve | Place::Start => 0,
            Place::Tagged | Place::Manifest => at % image.root().bytes.len() as u64,
            Place::Middle => at,
        };
        let illness = self.ill.at(at, place, &self.first.url());
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
        if self.is_behind_a_cut(place) {
            self.cut.add(image, repository, "v1");
            self.cut.fault(when.clone().first(1), Fault::CutAt(at, Cut::Close));
        }
        // Before what leads there: that may hold for this path too.
        self.first.fault(When::path(SLOW), Fault::Silent);
        if let Illness::Answer(fault) | Illness::Body(fault) = illness {
            self.first.fault(when, fault);
        }
    }

    /// Before something is asked for: closes the door, where that is what begins there. In the middle of a blob nobody has
    /// been at it before.
    pub(super) fn before(&self, step: Place, place: Place) {
        if step != if place == Place::Middle { Place::Start } else { place } {
            return;
        }
        match self.ill {
            Ill::Refuses => self.first.turn(Face::Refusing),
            Ill::UnknownCa => self.first.turn(Face::UnknownCa),
            Ill::ExpiredCertificate => self.first.turn(Face::Expired),
            Ill::ProxyWantsPassword => {
                if let Some(proxy) = &self.proxy {
                    proxy.demand(ACCOUNT.0, ACCOUNT.1, 0);
                }
            }
            _ => {}
        }
    }

    /// Whether the first was asked in vain, as far as that can be seen at its end.
    pub(super) fn was_met(&self, place: Place) -> bool {
        // In the middle of a blob nobody can be asked who they are: the second goes on.
        if self.ill == Ill::WantsToken && place != Place::Middle {
            return self.first.count("GET", NO_TOKENS) > 0;
        }
        if self.ill == Ill::RedirectsToTheSlow {
            return !self.first.shown(SLOW).is_empty();
        }
        self.first.met() > 0 || !self.first.is_listening() || self.proxy.as_ref().is_some_and(Proxy::has_refused)
    }

    /// Well again, without what the trial needed.
    pub(super) async fn recover(&mut self, image: &Image, repository: &str) -> Result<()> {
        self.first.heal();
        self.first.knows_head(true);
        self.first.clear_log();
        self.first.forget(image, repository, "v1");
        self.cut.heal();
        self.cut.clear_log();
        self.cut.forget(image, repository, "v1");
        if let Some(proxy) = &self.proxy {
            proxy.demand_nothing();
        }
        // The port is free when the old listener is gone.
        until("the first upstream is back", Duration::from_secs(5), async || self.first.accept().ok())
            .await
            .context(self.name.clone())
    }
}
