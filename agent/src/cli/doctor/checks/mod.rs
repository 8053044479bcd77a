//! From facts to findings: pure functions, one for each thing that can be wrong.

mod authorities;
mod canary;
mod config;
mod hosts;
mod left_out;
mod leftovers;
mod node;
mod peers;
mod place;
mod proxy;
mod rights;
mod runtime;
mod selinux;
mod textfile;

use super::facts::Facts;
use super::finding::Finding;

/// Everything, in the order in which a person wants to read it.
pub(super) fn all(facts: &Facts) -> Vec<Finding> {
    let checks = [
        canary::canary,
        place::place,
        runtime::runtime,
        config::config,
        hosts::hosts,
        left_out::left_out,
        leftovers::leftovers,
        rights::rights,
        selinux::selinux,
        proxy::on_the_way_to_us,
        proxy::ours_and_containerds,
        authorities::authorities,
        peers::peers,
        node::port,
        node::disk,
        node::clock,
        textfile::textfile,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}

#[cfg(test)]
pub(super) mod tests;
