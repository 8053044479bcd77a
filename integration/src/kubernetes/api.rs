//! The apiserver as a test asks it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::authority::Identity;
use crate::Namespace;
use crate::http::Dialer;

// An answer that takes longer doesn't come.
const ANSWER: Duration = Duration::from_secs(30);
/// Who has set the fields that [`Api::apply`] sets.
const MANAGER: &str = "larder-integration";

/// The apiserver, as its administrator.
#[derive(Debug, Clone)]
pub struct Api {
    client: Client<HttpsConnector<Dialer>, Full<Bytes>>,
    url: String,
}

/// What the apiserver doesn't take, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status: 403 for what admission refuses, 422 for what isn't valid, 400 or 500 for unknown fields.
    pub status: StatusCode,
    /// What it says.
    pub message: String,
}

impl Api {
    pub(super) fn new(url: &str, ca: &CertificateDer<'static>, user: Identity, network: Namespace) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![user.der], user.key_der)?;
        let dialer = Dialer::within(Some(network));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().wrap_connector(dialer);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), url: url.to_owned() })
    }

    pub(super) async fn is_ready(&self) -> bool {
        self.send(Method::GET, "/readyz", "text/plain", String::new()).await.is_ok_and(|answer| answer.status == 200)
    }

    /// What is at a path, `/api/v1/nodes`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.find(path).await?.with_context(|| format!("{path}: nothing is there"))
    }

    /// What is at a path, if anything.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.ask(Method::GET, path, "application/json", String::new()).await? {
            Ok(value) => Ok(Some(value)),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// What a list at a path has.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.get(path).await?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => anyhow::bail!("{path} is no list"),
        }
    }

    /// Removes what is at a path, without waiting for it to be gone.
    pub async fn delete(&self, path: &str) -> Result<()> {
        let answer = self.ask(Method::DELETE, path, "application/json", String::new()).await?;
        answer.map(drop).map_err(Into::into)
    }

    /// Applies a document as `kubectl apply --server-side` does; a field that its type doesn't have is refused. Fails
    /// only when there is no answer.
    pub async fn apply(&self, document: &Value) -> Result<Result<Value, Refusal>> {
        self.put(document, "").await
    }

    /// The same up to the point where it would be stored.
    pub async fn try_apply(&self, document: &Value) -> Result<Result<Value, Refusal>> {
        self.put(document, "&dryRun=All").await
    }

    async fn put(&self, document: &Value, more: &str) -> Result<Result<Value, Refusal>> {
        let path = self.path_of(document).await?;
        let path = format!("{path}?fieldManager={MANAGER}&fieldValidation=Strict&force=true{more}");
        self.ask(Method::PATCH, &path, "application/apply-patch+yaml", document.to_string()).await
    }

    /// Where a document belongs, by the kinds that the apiserver says it has.
    pub async fn path_of(&self, document: &Value) -> Result<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&document["apiVersion"]), text(&document["kind"]));
        let (name, namespace) = (text(&document["metadata"]["name"]), text(&document["metadata"]["namespace"]));
        let root = if version.contains('/') { "apis" } else { "api" };
        let base = format!("/{root}/{version}");
        let kinds = self.find(&base).await?.with_context(|| format!("{kind} {name}: there is no {version}"))?;
        let of_kind = |resource: &&Value| {
            resource["kind"] == kind.as_str() && !resource["name"].as_str().is_some_and(|name| name.contains('/'))
        };
        let resource = kinds["resources"].as_array().into_iter().flatten().find(of_kind);
        let resource = resource.with_context(|| format!("{version} has no {kind}"))?;
        let plural = text(&resource["name"]);
        Ok(match resource["namespaced"] == true {
            true => {
                ensure!(!namespace.is_empty(), "{kind} {name} names no namespace");
                format!("{base}/namespaces/{namespace}/{plural}/{name}")
            }
            false => format!("{base}/{plural}/{name}"),
        })
    }

    /// Everything in the cluster of one kind, `/apis/…/clusterroles`, by namespace (empty for what has none) and name.
    pub async fn names(&self, path: &str) -> Result<Vec<(String, String)>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let items = self.list(path).await?;
        Ok(items.iter().map(|item| &item["metadata"]).map(|at| (text(&at["namespace"]), text(&at["name"]))).collect())
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, body: String) -> Result<Result<Value, Refusal>> {
        let answer = self.send(method, path, kind, body).await?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status.is_success() {
            return Ok(Ok(value));
        }
        let message =
            value["message"].as_str().map_or_else(|| String::from_utf8_lossy(&answer.body).into(), Into::into);
        Ok(Err(Refusal { status: answer.status, message }))
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: String) -> Result<Answer> {
        let asking = || format!("{method} {path}");
        let request = Request::builder().method(&method).uri(format!("{}{path}", self.url)).header(CONTENT_TYPE, kind);
        let request = request.body(Full::new(Bytes::from(body))).with_context(asking)?;
        let answer = async {
            let response = self.client.request(request).await?;
            let (head, body) = response.into_parts();
            anyhow::Ok(Answer { status: head.status, body: body.collect().await?.to_bytes() })
        };
        tokio::time::timeout(ANSWER, answer).await.with_context(asking)?.with_context(asking)
    }
}

struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl std::error::Error for Refusal {}
