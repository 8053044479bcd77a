//! What makes a cluster of nodes: etcd and the apiserver, the controllers, the scheduler.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::Result;
use rcgen::KeyPair;

use super::api::Api;
use super::authority::Authority;
use crate::process::output_within;
use crate::{Folder, Host, Process, tool, until};

// Two cores that also build take many times what an idle machine takes, which is 5 s.
const START: Duration = Duration::from_secs(90);
/// How long a command to it may take: Helm waits for the Pods of all nodes.
const COMMAND: Duration = Duration::from_secs(120);
const PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
// The first address of the range is the apiserver's own.
pub(super) const SERVICES: &str = "10.96.0.0/16";
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Whom RBAC lets do everything.
const MASTERS: &str = "system:masters";

/// An apiserver with its etcd, and the controllers and the scheduler once they were asked for. Dropped, all of it ends.
#[derive(Debug)]
pub struct ControlPlane {
    api: Api,
    kubeconfig: PathBuf,
    host: Host,
    // Clients end before what they ask.
    processes: Vec<Process>,
    authority: Authority,
    folder: Folder,
}

impl ControlPlane {
    /// Starts etcd and the apiserver on a machine, and waits until the apiserver says that it is ready: authorization by
    /// RBAC, admission as it is by default, which has Pod Security.
    pub async fn start(host: &Host) -> Result<Self> {
        let folder = Folder::new()?;
        let authority = Authority::new(&folder.path().join("pki"))?;
        let address = IpAddr::V4(host.address());
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let server = authority.issue("kube-apiserver", MASTERS, &names, &[address, IpAddr::V4(SERVICE)])?;
        let url = format!("https://{address}:{PORT}");
        let kubeconfig = authority.kubeconfig(&url, "admin", MASTERS)?;
        let admin = authority.issue("admin-of-the-test", MASTERS, &[], &[])?;
        let [tokens, tokens_public] = ["key", "pub"].map(|kind| accounts(&folder, kind));
        let key = KeyPair::generate()?;
        std::fs::write(&tokens, key.serialize_pem())?;
        std::fs::write(&tokens_public, key.public_key_pem())?;

        let etcd = Process::start_in(
            Some(host.namespace()),
            &program("etcd")?,
            [
                flag("data-dir", folder.path().join("etcd").display()),
                flag("listen-client-urls", ETCD),
                flag("advertise-client-urls", ETCD),
                // What it holds ends with the test.
                "--unsafe-no-fsync".to_owned(),
                flag("log-level", "warn"),
            ],
            &[],
            folder.path().join("etcd.log"),
        )?;
        let apiserver = Process::start_in(
            Some(host.namespace()),
            &program("kube-apiserver")?,
            [
                flag("etcd-servers", ETCD),
                flag("bind-address", "0.0.0.0"),
                flag("advertise-address", address),
                flag("secure-port", PORT),
                flag("tls-cert-file", server.certificate.display()),
                flag("tls-private-key-file", server.key.display()),
                flag("client-ca-file", authority.ca().display()),
                flag("kubelet-client-certificate", server.certificate.display()),
                flag("kubelet-client-key", server.key.display()),
                flag("kubelet-preferred-address-types", "InternalIP"),
                flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
                flag("service-account-key-file", tokens_public.display()),
                flag("service-account-signing-key-file", tokens.display()),
                flag("service-cluster-ip-range", SERVICES),
                flag("authorization-mode", "Node,RBAC"),
                flag("enable-admission-plugins", "NodeRestriction"),
                flag("allow-privileged", "true"),
            ],
            &[],
            folder.path().join("kube-apiserver.log"),
        )?;
        let api = Api::new(&url, authority.der(), admin, host.namespace().clone())?;
        let mut processes = vec![apiserver, etcd];
        let ready = until("the apiserver is ready", START, async || {
            if processes.iter_mut().any(|process| !process.is_running()) {
                return Some(false);
            }
            api.is_ready().await.then_some(true)
        });
        if !ready.await? {
            anyhow::bail!("etcd or the apiserver has ended: run the test alone, and see their logs");
        }
        Ok(Self { api, kubeconfig, host: host.clone(), processes, authority, folder })
    }

    /// Starts the controllers, which make Pods of a DaemonSet, and the scheduler, which gives them to nodes.
    pub fn run_controllers(&mut self) -> Result<()> {
        let manager = [
            flag("service-account-private-key-file", accounts(&self.folder, "key").display()),
            flag("root-ca-file", self.authority.ca().display()),
            flag("cluster-signing-cert-file", self.authority.ca().display()),
            flag("cluster-signing-key-file", self.authority.key().display()),
            flag("use-service-account-credentials", "true"),
            // A node that is silent is found in seconds.
            flag("node-monitor-period", "1s"),
        ];
        self.run("kube-controller-manager", "system:kube-controller-manager", &manager)?;
        self.run("kube-scheduler", "system:kube-scheduler", &[])
    }

    /// Runs a part that is a client of the apiserver.
    fn run(&mut self, name: &str, user: &str, more: &[String]) -> Result<()> {
        let config = self.kubeconfig_of(user, user)?;
        let mut arguments = vec![
            flag("kubeconfig", config.display()),
            flag("authentication-kubeconfig", config.display()),
            flag("authorization-kubeconfig", config.display()),
            flag("bind-address", "127.0.0.1"),
            flag("leader-elect", "false"),
        ];
        arguments.extend_from_slice(more);
        let log = self.folder.path().join(format!("{name}.log"));
        let namespace = Some(self.host.namespace());
        self.processes.insert(0, Process::start_in(namespace, &program(name)?, arguments, &[], log)?);
        Ok(())
    }

    /// What the test asks it by, as its administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Whom its servers' and clients' certificates are signed by, as a file.
    pub(super) fn ca(&self) -> PathBuf {
        self.authority.ca()
    }

    /// A kubeconfig for somebody else.
    pub(super) fn kubeconfig_of(&self, user: &str, group: &str) -> Result<PathBuf> {
        self.authority.kubeconfig(&format!("https://{}:{PORT}", self.host.address()), user, group)
    }

    /// Runs `helm` against it, or any program that goes by `KUBECONFIG`, to its end, and returns what came of it. It has
    /// a home of its own.
    pub async fn command(&self, program: &Path, arguments: &[&str]) -> Result<Output> {
        let [wrapper, inside @ ..] = self.host.namespace().wrapper();
        let home = self.folder.path().join("home");
        std::fs::create_dir_all(&home)?;
        let mut command = tokio::process::Command::new(wrapper);
        command.args(inside).arg(program).args(arguments);
        output_within(COMMAND, command.env("KUBECONFIG", &self.kubeconfig).env("HOME", home)).await
    }
}

/// The key that signs the tokens of service accounts, or its public half.
fn accounts(folder: &Folder, kind: &str) -> PathBuf {
    folder.path().join("pki/service-accounts").with_extension(kind)
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

pub(super) fn program(name: &str) -> Result<PathBuf> {
    tool(&format!("kubernetes/usr/bin/{name}"))
}
