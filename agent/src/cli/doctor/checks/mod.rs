//! From facts to findings: pure functions, one for each thing that can be wrong.

mod canary;
mod config;
mod hosts;
mod node;
mod runtime;

use super::facts::Facts;
use super::finding::Finding;

/// Everything, in the order in which a person wants to read it.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let checks = [
        canary::canary,
        runtime::runtime,
        config::config,
        hosts::hosts,
        node::proxy,
        node::port,
        node::disk,
        node::clock,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}

#[cfg(test)]
mod tests;
