//! Scenarios on real containerds: each test starts what it needs and shares nothing with the others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod crash;
mod disk;
mod doctor;
mod faults;
mod harness;
mod hosts;
mod mirror;
mod outage;
mod pull;
mod status;
