//! A roll-out with `maxSurge: 1`: the new Pod is ready before the old one is told to end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use larder_integration::{FaultRegistry, Image, Release, until};

use super::node;
use crate::support::{Case, run};

/// The registry is gone, and images are pulled one after the other: none fails.
#[test]
fn no_pull_fails() {
    run(async {
        let mut registry = FaultRegistry::start().await?;
        let image = Image::many_layers(3, 6, 1500);
        registry.add(&image, "acme/app", "v1");
        let case = Case { release: Release::Sid, tls: true };
        let (node, set) = node(case, &registry, "presets/plain").await?;
        let containerd = &node.containerd;
        let mut old = set.start(containerd, "larder-0").await?;
        let id = containerd.pull("reg.test/acme/app:v1").await?;
        registry.refuse();
        let (done, pulls) = (AtomicBool::new(false), AtomicUsize::new(0));
        let pulling = async {
            while !done.load(Ordering::Relaxed) {
                containerd.forget("reg.test/acme/app", &id).await?;
                containerd.pull("reg.test/acme/app:v1").await?;
                pulls.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let upgrading = async {
            for round in 1..4 {
                let new = set.start(containerd, &format!("larder-{round}")).await?;
                let before = pulls.load(Ordering::Relaxed);
                let begun = Instant::now();
                containerd.end_pod(&old, set.grace()).await?;
                println!("the old Pod has ended after {:?}", begun.elapsed());
                ensure!(old.log().contains("the store is free"), "{}", old.log());
                let some = async || (pulls.load(Ordering::Relaxed) > before + 1).then_some(());
                until("pulls go on", Duration::from_secs(20), some).await.with_context(|| new.log())?;
                ensure!(set.probe(containerd, &new, "readinessProbe").await?);
                old = new;
            }
            done.store(true, Ordering::Relaxed);
            Ok(old)
        };
        let (pulled, upgraded) = tokio::join!(pulling, upgrading);
        pulled?;
        containerd.end_pod(&upgraded?, set.grace()).await
    });
}
