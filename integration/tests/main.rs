//! Scenarios on real containerds: each test starts what it needs and shares nothing with the others.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
mod support;
