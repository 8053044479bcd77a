//! The environment that containerd will be started with, as files say: systemd's units and what distributions read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::facts::Proxies;
use super::platform::Platform;
use crate::containerd::setup::Files;

/// Where systemd looks for units, the most important first.
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What k3s and RKE2 put before a variable that is for containerd alone.
const FOR_CONTAINERD: &str = "CONTAINERD_";

/// The proxies that the files of this distribution name, and the files that have them. `None`: no such file is seen.
pub(super) fn read(files: &impl Files, platform: Platform) -> Option<(Proxies, Vec<PathBuf>)> {
    let mut reader = Reader { files, variables: BTreeMap::new(), sources: Vec::new(), is_seen: false };
    match platform {
        Platform::Microk8s => reader.environment_file(Path::new("/var/snap/microk8s/current/args/containerd-env")),
        Platform::K3s => reader.units(&["k3s", "k3s-agent"]),
        Platform::Rke2 => reader.units(&["rke2-server", "rke2-agent"]),
        Platform::K0s => reader.units(&["k0scontroller", "k0sworker"]),
        _ => reader.units(&["containerd"]),
    }
    if !reader.is_seen {
        return None;
    }
    let Reader { mut variables, sources, .. } = reader;
    if matches!(platform, Platform::K3s | Platform::Rke2) {
        let own: Vec<_> = variables
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(FOR_CONTAINERD)?.to_owned(), value.clone())))
            .collect();
        variables.extend(own);
    }
    let proxies = Proxies::of(|name| variables.get(name).cloned());
    Some((proxies, sources))
}

struct Reader<'a, F> {
    files: &'a F,
    variables: BTreeMap<String, String>,
    /// Those that set a variable of a proxy.
    sources: Vec<PathBuf>,
    is_seen: bool,
}

impl<F: Files> Reader<'_, F> {
    fn units(&mut self, names: &[&str]) {
        for name in names {
            let unit = format!("{name}.service");
            let file =
                UNIT_FOLDERS.iter().map(|folder| Path::new(folder).join(&unit)).find(|path| self.files.exists(path));
            let mut drop_ins = BTreeMap::new();
            // What stands in a more important folder hides its namesakes.
            for folder in UNIT_FOLDERS.iter().rev() {
                let folder = Path::new(folder).join(format!("{unit}.d"));
                let names = self.files.names(&folder);
                drop_ins.extend(names.into_iter().filter(|name| name.ends_with(".conf")).map(|name| {
                    let path = folder.join(&name);
                    (name, path)
                }));
            }
            for path in file.into_iter().chain(drop_ins.into_values()) {
                self.unit(&path, name);
            }
        }
    }

    fn unit(&mut self, path: &Path, name: &str) {
        let Ok(text) = self.files.read(path) else { return };
        self.is_seen = true;
        // A backslash at its end takes a line on.
        let text = text.replace("\\\n", " ");
        for line in text.lines().map(str::trim) {
            if let Some(list) = line.strip_prefix("Environment=") {
                if list.trim().is_empty() {
                    self.variables.clear();
                }
                for word in words(list) {
                    self.set(&word, path);
                }
            } else if let Some(file) = line.strip_prefix("EnvironmentFile=") {
                let file =
                    file.trim().trim_start_matches('-').trim_matches('"').replace("%N", name).replace("%n", name);
                if !file.is_empty() {
                    self.environment_file(Path::new(&file));
                }
            }
        }
    }

    fn environment_file(&mut self, path: &Path) {
        let Ok(text) = self.files.read(path) else { return };
        self.is_seen = true;
        let lines = text.lines().map(|line| line.trim().trim_start_matches("export ").trim());
        for line in lines.filter(|line| !line.starts_with(['#', ';'])) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches(|c| c == '"' || c == '\'');
            self.set(&format!("{}={value}", name.trim()), path);
        }
    }

    fn set(&mut self, assignment: &str, path: &Path) {
        let Some((name, value)) = assignment.split_once('=') else { return };
        if name.to_ascii_uppercase().ends_with("_PROXY") && self.sources.last().is_none_or(|last| last != path) {
            self.sources.push(path.to_owned());
        }
        self.variables.insert(name.to_owned(), value.to_owned());
    }
}

/// Words as systemd takes them apart: at blanks, but for those within quotes. `%%` is a percent sign.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in text.replace("%%", "%").chars() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            (c, _) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::setup::InMemory;

    #[test]
    fn units_and_their_drop_ins() {
        let unit = "[Service]\nExecStart=/usr/bin/containerd\n";
        let files = InMemory::new([
            ("/lib/systemd/system/containerd.service", unit),
            (
                "/etc/systemd/system/containerd.service.d/10-proxy.conf",
                "[Service]\nEnvironment=\"HTTP_PROXY=http://p:3128\" 'HTTPS_PROXY=http://p:3128' \\\n  NO_PROXY=.corp,10.0.0.0/8\n",
            ),
            (
                "/lib/systemd/system/containerd.service.d/10-proxy.conf",
                "[Service]\nEnvironment=HTTPS_PROXY=http://hidden\n",
            ),
            (
                "/etc/systemd/system/containerd.service.d/20-more.conf",
                "[Service]\nEnvironmentFile=-/etc/default/containerd\n",
            ),
            ("/etc/default/containerd", "# ours\nHTTPS_PROXY=\"http://q%20:3128\"\n"),
        ]);
        let (proxies, sources) = read(&files, Platform::Plain).unwrap();
        assert_eq!(proxies.https.as_deref(), Some("http://q%20:3128"));
        assert_eq!(proxies.http.as_deref(), Some("http://p:3128"));
        assert_eq!(proxies.no.as_deref(), Some(".corp,10.0.0.0/8"));
        let sources: Vec<_> = sources.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(sources, ["/etc/systemd/system/containerd.service.d/10-proxy.conf", "/etc/default/containerd"]);
        // An empty assignment forgets what was before.
        let files = InMemory::new([(
            "/etc/systemd/system/containerd.service",
            "Environment=HTTPS_PROXY=http://p\nEnvironment=\n",
        )]);
        assert_eq!(read(&files, Platform::Plain).unwrap().0, Proxies::default());
    }

    #[test]
    fn each_distributions_own_files() {
        let unit =
            "[Service]\nEnvironmentFile=-/etc/default/%N\nEnvironmentFile=-/etc/systemd/system/k3s.service.env\n";
        let files = InMemory::new([
            ("/etc/systemd/system/k3s.service", unit),
            ("/etc/systemd/system/k3s.service.env", "HTTPS_PROXY=http://a\nCONTAINERD_HTTPS_PROXY=http://b\n"),
            ("/etc/default/k3s", "NO_PROXY='x'\n"),
        ]);
        let (proxies, _) = read(&files, Platform::K3s).unwrap();
        assert_eq!((proxies.https.as_deref(), proxies.no.as_deref()), (Some("http://b"), Some("x")));
        let files =
            InMemory::new([("/var/snap/microk8s/current/args/containerd-env", "export https_proxy=http://c\n")]);
        assert_eq!(read(&files, Platform::Microk8s).unwrap().0.https.as_deref(), Some("http://c"));
        let files = InMemory::new([("/etc/systemd/system/rke2-agent.service", "Environment=HTTPS_PROXY=http://d\n")]);
        assert_eq!(read(&files, Platform::Rke2).unwrap().0.https.as_deref(), Some("http://d"));
        // Nothing of it is seen from a Pod.
        assert_eq!(read(&InMemory::new([]), Platform::Plain), None);
    }
}
