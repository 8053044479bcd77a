//! The cluster's DNS: Services without an address of their own, by the addresses that stand behind them.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Result;
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Api;
use crate::Host;
use crate::cluster::dns::Question;

/// The tenth address of the Services' network, where by convention it is.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const DOMAIN: &str = ".svc.cluster.local";

/// Answers at 10.96.0.10 for `<service>.<namespace>.svc.cluster.local`, as the apiserver knows it at that moment.
#[derive(Debug)]
pub struct ClusterDns {
    _running: DropGuard,
}

impl ClusterDns {
    /// Starts it on a machine; others reach it by [`Host::add_route`] to [`ClusterDns::NETWORK`].
    pub fn start(host: &Host, api: &Api) -> Result<Self> {
        host.add_address(ADDRESS)?;
        let socket = host.namespace().inside(|| UdpSocket::bind((ADDRESS, 53)))?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let (stop, api) = (CancellationToken::new(), api.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(answer(socket, &api)).await });
        Ok(Self { _running: stop.drop_guard() })
    }

    /// The Services' network.
    pub const NETWORK: &str = super::control::SERVICES;

    /// Where it listens.
    pub(super) fn address() -> Ipv4Addr {
        ADDRESS
    }
}

async fn answer(socket: tokio::net::UdpSocket, api: &Api) -> std::io::Result<()> {
    let mut packet = [0; 1500];
    loop {
        let (length, from) = socket.recv_from(&mut packet).await?;
        let Some(question) = Question::parse(&packet[..length]) else { continue };
        // An apiserver that doesn't answer leaves who asks without an answer, too.
        if let Ok(addresses) = addresses(api, &question.name()).await {
            socket.send_to(&question.reply(addresses.as_deref()), from).await?;
        }
    }
}

/// The ready addresses of a Service; `None` when there is no such name.
async fn addresses(api: &Api, name: &str) -> Result<Option<Vec<Ipv4Addr>>> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let Some((service, namespace)) = name.strip_suffix(DOMAIN).and_then(|name| name.split_once('.')) else {
        return Ok(None);
    };
    if api.find(&format!("/api/v1/namespaces/{namespace}/services/{service}")).await?.is_none() {
        return Ok(None);
    }
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let slices = api.list(&format!("{path}?labelSelector=kubernetes.io/service-name={service}")).await?;
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    // Of a Service that publishes those that aren't ready, all are called ready.
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    let addresses = ready.flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten());
    Ok(Some(addresses.filter_map(Value::as_str).filter_map(|address| address.parse().ok()).collect()))
}
