//! Scenarios on real containerds, and on clusters of agents: each test starts what it needs and shares nothing with the others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod background;
mod cluster;
mod crash;
mod crowded;
mod daemonset;
mod dashboards;
mod disk;
mod doctor;
mod failover;
mod families;
mod faults;
mod guard;
mod harness;
mod health;
mod hosts;
mod images;
mod inventory;
mod keep;
mod kubernetes;
mod manifests;
mod mending;
mod mirror;
mod named;
mod outage;
mod own_credentials;
mod packaging;
mod page;
mod pod;
mod private;
mod pull;
mod ranges;
mod status;
mod uninstall;
mod upgrade;
mod upstreams;
