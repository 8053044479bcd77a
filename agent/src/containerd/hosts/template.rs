//! Our host table, from a template that a person can read and override.

use std::io;
use std::path::Path;

use super::error::HostsError;
use super::reading::Reading;

/// The template's name, its text, and the placeholders it may have.
struct Template {
    name: String,
    text: String,
    known: &'static [&'static str],
}

/// Both templates, read and tried out.
pub(super) struct Templates {
    https: Template,
    http: Template,
}

impl Templates {
    /// Reads what the folder has, takes the rest from the binary, and tries both out.
    ///
    /// # Errors
    /// A template that can't be read, has unknown placeholders, or makes anything but one host table.
    pub(super) fn load(folder: Option<&Path>) -> Result<Self, HostsError> {
        let load = |name: &str, built_in: &str, known| -> Result<Template, HostsError> {
            let (name, text) = match folder.map(|folder| folder.join(name)) {
                None => (name.to_owned(), built_in.to_owned()),
                Some(path) => match std::fs::read_to_string(&path) {
                    Ok(text) => (path.display().to_string(), text),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => (name.to_owned(), built_in.to_owned()),
                    Err(source) => return Err(HostsError::TemplateRead { path, source }),
                },
            };
            Ok(Template { name, text, known })
        };
        let templates = Self {
            https: load(
                "mirror-https.toml",
                include_str!("../../../../hosts-toml-templates/mirror-https.toml"),
                &["url", "ca"],
            )?,
            http: load(
                "mirror-http.toml",
                include_str!("../../../../hosts-toml-templates/mirror-http.toml"),
                &["url"],
            )?,
        };
        templates.https("https://127.0.0.1:1", "ca.pem")?;
        templates.http("http://127.0.0.1:1")?;
        Ok(templates)
    }

    /// The table for a mirror with TLS. `ca` is a file name relative to the `hosts.toml`.
    pub(super) fn https(&self, url: &str, ca: &str) -> Result<String, HostsError> {
        self.https.table(url, &[("url", url), ("ca", ca)])
    }

    /// The table for a mirror without TLS.
    pub(super) fn http(&self, url: &str) -> Result<String, HostsError> {
        self.http.table(url, &[("url", url)])
    }
}

impl Template {
    /// The rendered table, checked, with a line's end at its end.
    fn table(&self, url: &str, values: &[(&str, &str)]) -> Result<String, HostsError> {
        let mut table = self.render(values)?;
        let wrong = |why: &str| HostsError::UnsoundTemplate { template: self.name.clone(), why: why.to_owned() };
        let reading = Reading::of(&table).map_err(|why| wrong(&why))?;
        if reading.hosts.len() != 1 || reading.hosts[0].url != url {
            return Err(wrong(&format!("it has to have [host.\"{url}\"] and no other host")));
        }
        if !reading.ordinary {
            return Err(wrong("the host has to be a table with a header of its own, not an inline table"));
        }
        if !reading.root.is_empty() {
            return Err(wrong("a key before the table would be the upstream's, not the mirror's"));
        }
        if !table.ends_with('\n') {
            table.push('\n');
        }
        Ok(table)
    }

    fn render(&self, values: &[(&str, &str)]) -> Result<String, HostsError> {
        let mut out = String::with_capacity(self.text.len() + 64);
        let mut rest = self.text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            out.push_str(before);
            let Some((name, after)) = after.split_once("}}") else {
                let line = self.text[..self.text.len() - after.len()].lines().count();
                return Err(HostsError::OpenPlaceholder { template: self.name.clone(), line });
            };
            let Some((_, value)) = values.iter().find(|(known, _)| *known == name) else {
                let known = self.known.iter().map(|k| format!("{{{{{k}}}}}")).collect::<Vec<_>>().join(", ");
                return Err(HostsError::UnknownPlaceholder {
                    template: self.name.clone(),
                    name: name.to_owned(),
                    known,
                });
            };
            out.push_str(value);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overridden(text: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mirror-https.toml"), text).unwrap();
        Templates::load(Some(folder.path())).and_then(|t| t.https("https://h:1", "x.pem")).map_err(|e| e.to_string())
    }

    #[test]
    fn built_in_tables_say_what_they_must_and_no_more() {
        let templates = Templates::load(None).unwrap();
        assert_eq!(
            templates.https("https://127.0.0.1:7439", "larder-ca.pem").unwrap().parse::<toml::Table>().unwrap(),
            toml::toml! {
                [host."https://127.0.0.1:7439"]
                capabilities = ["pull", "resolve"]
                ca = "larder-ca.pem"
            }
        );
        assert_eq!(
            templates.http("http://[::1]:7439").unwrap().parse::<toml::Table>().unwrap(),
            toml::toml! {
                [host."http://[::1]:7439"]
                capabilities = ["pull", "resolve"]
            }
        );
    }

    #[test]
    fn a_folder_overrides_one_and_leaves_the_other() {
        let table = overridden("[host.\"{{url}}\"]\nca = '{{ca}}'\n[host.\"{{url}}\".header]\nx-node = \"a\"").unwrap();
        assert_eq!(table, "[host.\"https://h:1\"]\nca = 'x.pem'\n[host.\"https://h:1\".header]\nx-node = \"a\"\n");
    }

    #[test]
    fn unsound_templates_are_refused_with_what_is_wrong() {
        for (text, part) in [
            ("[host.\"{{urk}}\"]", "{{urk}}"),
            ("\n[host.\"{{url\"]", "line 2"),
            ("[host.\"https://other\"]", "https://h:1"),
            ("[host.\"{{url}}\"]\n[host.b]", "no other host"),
            ("server = \"{{url}}\"\n[host.\"{{url}}\"]", "upstream"),
            ("[host]\n\"{{url}}\" = {}", "inline"),
            ("[host.\"{{url}}\"]\ncapabilities = [\"pul\"]", "pul"),
            ("[host.\"{{url}}\"", "line 1"),
        ] {
            let error = overridden(text).unwrap_err().replace("https://127.0.0.1:1", "https://h:1");
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
}
