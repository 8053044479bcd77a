use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Config, Outage};

/// Where the configuration is looked for when nobody names a file.
pub const DEFAULT_FILE: &str = "/etc/larder/larder.toml";

/// Less than this a second, and nothing would ever be whole.
const LEAST_RATE: u64 = 64 << 10;

/// What stands before and between the parts of an environment variable's name. Two underscores: Kubernetes makes
/// variables such as `LARDER_PORT` of its own for a Service named `larder`.
const DIVIDER: &str = "__";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the configuration {} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A key, a type or a value is wrong: the text names line and key.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, key, and what would be right.
        message: String,
    },
    /// A variable is wrong.
    #[error("the environment variable {name}: {message}")]
    Environment {
        /// The variable.
        name: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
}

/// The defaults as a file, every key with its meaning.
#[must_use]
pub const fn commented_default() -> &'static str {
    include_str!("default.toml")
}

impl Config {
    /// Reads the file, or [`DEFAULT_FILE`] if it is there, or neither; then the environment.
    ///
    /// # Errors
    /// Whatever is wrong is said with its place; nothing is changed on the node before that.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let (path, text) = match file {
            Some(path) => (path, read(path)?),
            None if Path::new(DEFAULT_FILE).exists() => (Path::new(DEFAULT_FILE), read(Path::new(DEFAULT_FILE))?),
            None => (Path::new(DEFAULT_FILE), String::new()),
        };
        let wrong = |message: String| ConfigError::File { path: path.to_owned(), message };
        let config: Self = toml::from_str(&text).map_err(|e| wrong(explain(&text, &e)))?;
        config.check().map_err(|(key, why)| wrong(format!("line {}: {why}", line_of(&text, &key))))?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|e| wrong(explain(&text, &e)))?;
        let mut config = config;
        // Variables that need each other come one after the other: what counts is whether the last leaves all sound.
        let mut unsound = None;
        for (name, value) in environment {
            let Some(path) = name.strip_prefix("LARDER").and_then(|rest| rest.strip_prefix(DIVIDER)) else { continue };
            let keys: Vec<String> = path.split(DIVIDER).map(str::to_ascii_lowercase).collect();
            let wrong = |message: String| ConfigError::Environment { name: name.clone(), message };
            config = set(&mut table, &keys, &value).map_err(wrong)?;
            unsound = config.check().err().map(|(_, why)| unsound.unwrap_or_else(|| wrong(why)));
        }
        unsound.map_or(Ok(config), Err)
    }

    /// What the types can't say: the key at fault, and why.
    fn check(&self) -> Result<(), (String, String)> {
        let mut seen = HashSet::new();
        for registry in &self.registries {
            if !seen.insert(&registry.name) {
                let again = format!(
                    "[[registry]] {} stands here a second time; put its upstreams into one entry",
                    registry.name
                );
                return Err((format!("\"{}\"", registry.name), again));
            }
            for upstream in &registry.upstreams {
                upstream.check()?;
            }
            let has_own = !self.credentials.is_empty() || registry.has_credentials();
            if registry.outage == Outage::Node && !has_own {
                let why = format!(
                    "outage = \"node\" of {} needs credentials of the agent's own: kubelet_config or docker_config in \
                     [credentials], or those of an upstream",
                    registry.name
                );
                return Err(("outage".to_owned(), why));
            }
        }
        let deadlines = [
            ("reply_deadline", self.mirror.reply_deadline),
            ("connect_timeout", self.mirror.connect_timeout),
            ("header_timeout", self.mirror.header_timeout),
            ("stall_timeout", self.mirror.stall_timeout),
        ];
        for (key, span) in deadlines {
            if span.0 < Duration::from_millis(100) {
                return Err((key.to_owned(), format!("{key} = \"{span}\" is too short; at least 100ms")));
            }
        }
        if self.mirror.listen.port() == 0 {
            return Err((
                "listen".to_owned(),
                "listen in [mirror] needs a port that stays, not 0: hosts.toml names it".to_owned(),
            ));
        }
        self.peers.check()?;
        self.health.check()?;
        if let Some(page) = self.admin.page.filter(|page| !page.ip().is_loopback()) {
            let why =
                format!("page = \"{page}\" is not on loopback: the page shows what this node runs, to whoever asks");
            return Err(("page".to_owned(), why));
        }
        if self.cache.background_rate.0 < LEAST_RATE {
            let why = format!("background_rate = \"{}\" is too little; at least 64KiB", self.cache.background_rate);
            return Err(("background_rate".to_owned(), why));
        }
        if let Some(pattern) = self.cache.ignore.iter().find(|pattern| pattern.is_of_tags()) {
            let why = format!(
                "ignore names \"{}\", but a layer's request names no tag: name the repository",
                pattern.as_str()
            );
            return Err(("ignore".to_owned(), why));
        }
        let paths = [
            ("dir", &self.cache.dir),
            ("socket", &self.containerd.socket),
            ("hosts_dir", &self.containerd.hosts_dir),
            ("socket", &self.admin.socket),
        ];
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err((key.to_owned(), format!("{key} = \"{}\" is not an absolute path", path.display())));
            }
        }
        let credentials = &self.credentials;
        let of_credentials = (credentials.docker_config.iter().map(|path| ("docker_config", path)))
            .chain(credentials.helpers_dir.iter().map(|path| ("helpers_dir", path)))
            .chain(credentials.kubelet_config.iter().map(|path| ("kubelet_config", path)))
            .chain(credentials.kubelet_bin_dir.iter().map(|path| ("kubelet_bin_dir", path)));
        for (key, path) in of_credentials {
            if !path.is_absolute() {
                return Err((key.to_owned(), format!("{key} names \"{}\", which is no absolute path", path.display())));
            }
        }
        if self.containerd.namespaces.is_empty() {
            return Err(("namespaces".to_owned(), "namespaces is empty; containerd's CRI uses \"k8s.io\"".to_owned()));
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// Puts one value at its place and reads the whole again. The value is TOML (`5`, `true`, `["a"]`), or else text.
fn set(table: &mut toml::Table, keys: &[String], value: &str) -> Result<Config, String> {
    let Some((last, sections)) = keys.split_last() else { return Err("it names no key".to_owned()) };
    let as_toml = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    let as_text = toml::Value::String(value.to_owned());
    let mut failure = String::new();
    // Text first: "1.5" or "true" may be meant as text, and a key that wants a number refuses text.
    for candidate in std::iter::once(as_text).chain(as_toml) {
        let mut whole = table.clone();
        let mut at = &mut whole;
        for section in sections {
            let entry = at.entry(section.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            at = entry.as_table_mut().ok_or_else(|| format!("{section} is no section"))?;
        }
        at.insert(last.clone(), candidate);
        match Config::deserialize_table(whole.clone()) {
            Ok(config) => {
                *table = whole;
                return Ok(config);
            }
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

impl Config {
    fn deserialize_table(table: toml::Table) -> Result<Self, String> {
        serde::Deserialize::deserialize(toml::Value::Table(table)).map_err(|e: toml::de::Error| e.message().to_owned())
    }
}

/// Line, key, and what is wrong. Not the line itself, which may hold a secret.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else { return error.message().to_owned() };
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let key = text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    let key = key.map_or(String::new(), |key| format!(", {key}"));
    format!("line {line}{key}: {}", error.message())
}

/// The line on which `needle` last stands, from 1.
fn line_of(text: &str, needle: &str) -> usize {
    text.lines().enumerate().filter(|(_, line)| line.contains(needle)).last().map_or(1, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(file.path()), environment).map_err(|e| e.to_string())
    }

    #[test]
    fn the_commented_default_is_the_default() {
        assert_eq!(load(commented_default(), &[]).unwrap(), Config::default());
        assert_eq!(load("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn the_commented_default_shows_every_key() {
        // Uncommented, the examples in it must be sound too.
        let all: String =
            commented_default().lines().map(|l| l.strip_prefix("#| ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        let config = load(&all, &[]).unwrap();
        assert!(config.cache.max_bytes.is_some() && config.containerd.templates.is_some());
        assert!(config.credentials.helpers_dir.is_some() && config.credentials.kubelet_bin_dir.is_some());
        assert_eq!(config.registries[0].upstreams.len(), 2);
        let peers = &config.peers;
        assert!(peers.is_on() && peers.advertised().is_some() && peers.dns_server().is_some());
        assert!(peers.max_upload.is_some() && peers.max_download_per_peer.is_some());
    }

    #[test]
    fn errors_name_line_and_key_and_remedy() {
        for (text, parts) in [
            ("[mirror]\nlisen = 1", &["line 2", "lisen", "listen"][..]),
            ("[mirror]\nlisten = 1", &["line 2", "listen"]),
            ("[mirror]\n\nstall_timeout = \"ten\"", &["line 3", "ten", "10s"]),
            ("[cache]\nmax_disk_percent = 101", &["line 2", "1 to 100"]),
            ("[cache]\ndir = \"here\"", &["line 2", "absolute"]),
            ("[cache]\nignore = [\"a.b/c/*\", \"a.b/c:v1\"]", &["line 2", "a.b/c:v1", "name the repository"]),
            ("[[registry]]\nname = \"a b\"", &["line 2", "registry"]),
            ("[[registry]]\nname = \"a.b\"\n[[registry.upstream]]\nurl = \"http://h\"", &["line 4", "insecure = true"]),
            ("[[registry]]\nname = \"a.b\"\n[[registry]]\nname = \"a.b\"", &["line 4", "second time"]),
            ("[containerd]\nregistries = [\"*\"]", &["line 2", "_default"]),
            ("[peers]\n\nseeds = [\"a.b:1\"]", &["line 3", "seeds", "dns:NAME"]),
            ("[peers]\nzone = \"a\"\nca = \"/etc/larder/ca.pem\"", &["line 3", "ca", "larder certs"]),
            ("[credentials]\ndocker_config = [\"config.json\"]", &["line 2", "docker_config", "absolute"]),
            ("[[registry]]\nname = \"a.b\"\noutage = \"node\"", &["line 3", "a.b", "kubelet_config"]),
            ("[[registry]]\nname = \"a.b\"\noutage = \"serve\"", &["line 3", "outage", "deny", "node"]),
        ] {
            let error = load(text, &[]).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in: {error}");
            }
        }
    }

    #[test]
    fn the_environment_goes_last() {
        let config = load(
            "[mirror]\nlisten = \"127.0.0.1:1\"",
            &[
                ("LARDER__MIRROR__LISTEN", "127.0.0.1:2"),
                ("LARDER__MIRROR__TLS", "false"),
                ("LARDER__CACHE__MAX_BYTES", "1GiB"),
                ("LARDER__REGISTRY", "[{name=\"docker.io\", upstream=[{url=\"https://m.corp\"}]}]"),
                ("LARDER__PEERS__ZONE", "eu-1a"),
                ("LARDER__PEERS__SEEDS", "dns:larder-peers:7441"),
                ("LARDER__PEERS__MAX_UPLOAD", "100MiB"),
                ("LARDER_PORT", "tcp://10.0.0.1:80"),
            ],
        )
        .unwrap();
        assert_eq!(config.mirror.listen.port(), 2);
        assert!(!config.mirror.tls);
        assert_eq!(config.cache.max_bytes.unwrap().0, 1 << 30);
        assert_eq!(config.registries.len(), 1);
        assert_eq!(config.peers.zone.as_str(), "eu-1a");
        assert_eq!(config.peers.seeds.len(), 1);
        assert_eq!(config.peers.max_upload.unwrap().0, 100 << 20);
        let error = load("", &[("LARDER__MIRROR__TSL", "false")]).unwrap_err();
        assert!(error.contains("LARDER__MIRROR__TSL") && error.contains("tls"), "{error}");
    }

    #[test]
    fn variables_that_need_each_other_come_in_any_order() {
        let pair = [("LARDER__PEERS__CA", "/run/ca.pem"), ("LARDER__PEERS__KEY", "/run/ca.key")];
        for variables in [[pair[0], pair[1]], [pair[1], pair[0]]] {
            assert!(load("", &variables).unwrap().peers.is_on());
        }
        for alone in pair {
            let error = load("", &[alone, ("LARDER__LOG__LEVEL", "debug")]).unwrap_err();
            assert!(error.contains(alone.0), "{error}");
        }
    }
}
