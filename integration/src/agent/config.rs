//! The agent's configuration, as text: the tests read it as an operator writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::Upstream;
use crate::Namespace;

/// What differs from the defaults. Ports, sockets and folders are set by the fixture, unless they are set here.
#[derive(Debug, Clone, Default)]
pub struct AgentConfig {
    // TOML values by section and key.
    values: BTreeMap<(String, String), String>,
    registries: Vec<(String, Vec<Upstream>)>,
    // Registries for which the node's own credentials speak in an outage.
    by_node: BTreeSet<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Where it runs, if not where the test does.
    pub namespace: Option<Namespace>,
    /// What it and its commands are run by: a program and arguments that come before theirs.
    pub wrapper: Vec<String>,
    /// Whether it listens on `::1` in the place of 127.0.0.1.
    pub is_v6: bool,
}

impl AgentConfig {
    /// For an agent on a machine without containerd, that is asked by hand. What it looks for there is in `folder`.
    pub fn without_containerd(folder: &Path) -> Self {
        let mut config = Self::default();
        config
            .set_path("containerd", "hosts_dir", &folder.join("hosts"))
            .set_path("containerd", "socket", &folder.join("no-containerd.sock"))
            .set("containerd", "registries", "[]")
            .set_text("log", "level", "info");
        config
    }

    /// Sets a key to a TOML value: `set("cache", "max_bytes", "\"10MiB\"")`.
    pub fn set(&mut self, section: &str, key: &str, value: impl Into<String>) -> &mut Self {
        self.values.insert((section.to_owned(), key.to_owned()), value.into());
        self
    }

    /// Leaves a key to its default.
    pub fn unset(&mut self, section: &str, key: &str) -> &mut Self {
        self.values.remove(&(section.to_owned(), key.to_owned()));
        self
    }

    /// Sets a key to a piece of text.
    pub fn set_text(&mut self, section: &str, key: &str, value: &str) -> &mut Self {
        self.set(section, key, format!("{value:?}"))
    }

    /// Sets a key to a path.
    pub fn set_path(&mut self, section: &str, key: &str, value: &Path) -> &mut Self {
        self.set(section, key, format!("{value:?}"))
    }

    /// Names a registry and its upstreams, in this order. Plain HTTP and any certificate are allowed.
    pub fn registry(&mut self, name: &str, upstreams: &[&str]) -> &mut Self {
        self.upstreams(name, upstreams.iter().copied().map(Upstream::insecure).collect())
    }

    /// Names a registry and its upstreams, in this order.
    pub fn upstreams(&mut self, name: &str, upstreams: Vec<Upstream>) -> &mut Self {
        self.registries.push((name.to_owned(), upstreams));
        self
    }

    /// While this registry can't be asked, the agent's own credentials speak for all who pull.
    pub fn outage_by_node(&mut self, name: &str) -> &mut Self {
        self.by_node.insert(name.to_owned());
        self
    }

    /// The agent sees the files of the machine through `mount` commands of its own, such as `mount --bind … /etc/hosts`.
    pub fn with_mounts(&mut self, mounts: &[String]) -> &mut Self {
        let script = format!("{} && exec \"$@\"", mounts.join(" && "));
        let wrapper = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &script, "sh"];
        self.wrapper = wrapper.map(str::to_owned).to_vec();
        self
    }

    /// The address that it listens on, as it stands in URLs.
    pub(super) fn loopback(&self) -> &'static str {
        if self.is_v6 { "[::1]" } else { "127.0.0.1" }
    }

    pub(super) fn text(&self, folder: &Path, mirror: u16, metrics: u16) -> String {
        let mut all = Self::default();
        let loopback = self.loopback();
        all.set("mirror", "listen", format!("\"{loopback}:{mirror}\""))
            .set("metrics", "listen", format!("\"{loopback}:{metrics}\""))
            .set_path("cache", "dir", &cache(folder))
            .set_path("admin", "socket", &folder.join("larder.sock"))
            // The disk of a test machine may well be fuller than the default allows.
            .set("cache", "max_disk_percent", "99")
            .set_text("log", "level", "info,larder=debug");
        all.values.extend(self.values.clone());

        let mut text = String::new();
        let mut section = "";
        for ((name, key), value) in &all.values {
            if section != name {
                let _ = writeln!(text, "[{name}]");
                section = name;
            }
            let _ = writeln!(text, "{key} = {value}");
        }
        for (name, upstreams) in &self.registries {
            let _ = writeln!(text, "[[registry]]\nname = {name:?}");
            if self.by_node.contains(name) {
                text.push_str("outage = \"node\"\n");
            }
            upstreams.iter().for_each(|upstream| upstream.write(&mut text));
        }
        text
    }
}

pub(super) fn cache(folder: &Path) -> PathBuf {
    folder.join("cache")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_section_is_written_once() {
        let mut config = AgentConfig::default();
        config.set("cache", "max_bytes", "\"1MiB\"").registry("reg.test", &["http://127.0.0.1:1"]);
        let text = config.text(Path::new("/x"), 1, 2);
        assert_eq!(text.matches("[cache]").count(), 1);
        assert!(
            text.ends_with(
                "name = \"reg.test\"\n[[registry.upstream]]\nurl = \"http://127.0.0.1:1\"\ninsecure = true\n"
            )
        );
    }
}
