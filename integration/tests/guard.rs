//! Who is contacted: on a machine that has what clouds have at 169.254.169.254, judged by who comes there, and not by what is
//! replied.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, ensure};
use larder_integration::{Agent, AgentConfig, Fault, FaultRegistry, Folder, Image, Namespace, Puller, When};

use crate::support::run;

const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Of HTTP, of HTTPS, and one that the configuration names.
const PORTS: [u16; 3] = [80, 443, 5000];
/// Its address in all its forms, and names of it: `both.test` has one besides it to which no way leads.
const PLACES: [&str; 8] = [
    "169.254.169.254",
    "169.254.169.254:5000",
    "[::ffff:169.254.169.254]",
    "2852039166",
    "0xa9fea9fe:5000",
    "metadata.test",
    "metadata.test:5000",
    "both.test",
];

/// What has that address. It answers nobody: who is connected has come too far.
struct Metadata(Vec<TcpListener>);

impl Metadata {
    fn start_in(namespace: &Namespace) -> Result<Self> {
        namespace.ip(&format!("addr add {METADATA}/32 dev lo\n"))?;
        let listen = |port| -> std::io::Result<TcpListener> {
            let listener = TcpListener::bind((METADATA, port))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Ok(Self(PORTS.into_iter().map(|port| namespace.inside(|| listen(port))).collect::<std::io::Result<_>>()?))
    }

    /// How many were connected since this was asked last, also those that have left.
    fn callers(&self) -> Result<usize> {
        let mut callers = 0;
        for listener in &self.0 {
            loop {
                match listener.accept() {
                    Ok(_) => callers += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(callers)
    }

    fn ensure_nobody_came(&self, how: &str) -> Result<()> {
        let callers = self.callers()?;
        ensure!(callers == 0, "{how}: it was contacted {callers} times");
        Ok(())
    }
}

/// Neither an image's name leads there, nor a redirect, nor a challenge, whatever a name resolves to, also where another
/// registry's upstream is there; and that one is contacted.
#[test]
fn what_has_the_metadata_services_address_is_contacted_where_the_configuration_names_it() {
    run(async {
        let (folder, namespace) = (Folder::new()?, Namespace::new()?);
        let metadata = Metadata::start_in(&namespace)?;
        let registry = FaultRegistry::start_within(&namespace, (Ipv4Addr::LOCALHOST, 5000).into())?;
        let hosts = folder.path().join("hosts-file");
        std::fs::write(&hosts, format!("{METADATA} metadata.test\n10.9.9.9 both.test\n{METADATA} both.test\n"))?;
        let mut config = AgentConfig::without_containerd(folder.path());
        config.namespace = Some(namespace);
        config
            .with_mounts(&[format!("mount --bind {} /etc/hosts", hosts.display())])
            .set_text("mirror", "header_timeout", "2s")
            .registry("reg.test", &[&registry.url()])
            .registry("named.test", &[&format!("http://{METADATA}:5000")]);
        let agent = Agent::start(&folder.path().join("agent"), &config).await?;
        let whats = ["manifests/v1".to_owned(), format!("blobs/{}", Image::tiny(1).largest().digest)];

        for place in PLACES {
            let puller = Puller::new(&agent, place, None);
            for what in &whats {
                let reply = puller.get("acme/app", what).await?;
                ensure!(!reply.status.is_success(), "{place}: {what}: {reply:?}");
                metadata.ensure_nobody_came(&format!("ns={place}: {what}"))?;
            }
        }

        let puller = Puller::new(&agent, "reg.test", None);
        let urls = PLACES.iter().flat_map(|place| ["https", "http"].map(|scheme| format!("{scheme}://{place}/latest")));
        let faults = urls.flat_map(|url| {
            let challenge = format!("Bearer realm=\"{url}\",service=\"cloud\"");
            [Fault::status_with(401, "www-authenticate", &challenge), Fault::Redirect(url)]
        });
        for (number, fault) in faults.enumerate() {
            // Of each its own: what was learned of one repository says nothing of the next.
            let repository = format!("acme/app{number}");
            registry.fault(When::path(&format!("/{repository}/")), fault.clone());
            for what in &whats {
                let before = registry.met();
                let reply = puller.get(&repository, what).await?;
                ensure!(!reply.status.is_success(), "{fault:?}: {what}: {reply:?}");
                ensure!(registry.met() > before, "{fault:?}: {what}: the registry wasn't asked");
                metadata.ensure_nobody_came(&format!("{fault:?}: {what}"))?;
            }
        }

        let reply = Puller::new(&agent, "named.test", None).get("acme/app", "manifests/v1").await?;
        ensure!(!reply.status.is_success(), "{reply:?}");
        ensure!(metadata.callers()? > 0, "the configuration names it, and it wasn't contacted");
        Ok(())
    });
}
