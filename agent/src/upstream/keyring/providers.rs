use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use super::error::FileError;
use super::pattern::Pattern;
use super::watched::{Document, Parsed};

/// The API in which plugins are asked, in the versions that there are.
const PLUGIN_API: &str = "credentialprovider.kubelet.k8s.io";
/// The API of the configuration.
const CONFIG_API: &str = "kubelet.config.k8s.io";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// One of kubelet's credential providers, as kubelet's configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Provider {
    /// The name of its program.
    pub(super) name: String,
    /// The images that it is asked for.
    pub(super) images: Vec<Pattern>,
    /// How long its answers hold when they don't say. Zero: they aren't used again.
    pub(super) hold: Duration,
    /// The `apiVersion` of questions and answers.
    pub(super) api: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

/// Reads kubelet's `CredentialProviderConfig`, in YAML or JSON, from all files that it is spread over.
pub(super) fn parse(documents: &[Document]) -> Result<Parsed<Vec<Provider>>, FileError> {
    const WANTED: &str = "a CredentialProviderConfig";
    let (mut value, mut warnings, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for Document { path, content } in documents {
        let file: File = if content.trim_ascii_start().starts_with(b"{") {
            serde_json::from_slice(content).map_err(|e| FileError::json(path, WANTED, &e))?
        } else {
            yaml_serde::from_slice(content).map_err(|e| FileError::yaml(path, WANTED, &e))?
        };
        if file.kind != "CredentialProviderConfig" || !is_known(&file.api_version, CONFIG_API) {
            let wanted = format!("kind should be CredentialProviderConfig, and apiVersion {CONFIG_API}/v1");
            return Err(malformed(path, wanted));
        }
        for entry in file.providers.unwrap_or_default() {
            if !names.insert(entry.name.clone()) {
                return Err(malformed(path, format!("the provider {:?} is there a second time", entry.name)));
            }
            let name = entry.name.clone();
            match entry.provider() {
                Ok(provider) => value.push(provider),
                Err(reason) => warnings.push(format!("the provider {name:?} is left out: {reason}")),
            }
        }
    }
    Ok(Parsed { value, warnings })
}

/// A duration as Kubernetes writes it, such as `12h0m0s` or `1.5h`. A negative one is none at all.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let parsed: SignedDuration = text.parse().ok()?;
    Some(Duration::try_from(parsed).unwrap_or(Duration::ZERO))
}

fn malformed(path: &Path, reason: String) -> FileError {
    FileError::Malformed { path: path.to_owned(), reason }
}

fn is_known(api_version: &str, api: &str) -> bool {
    api_version.split_once('/').is_some_and(|(group, version)| group == api && VERSIONS.contains(&version))
}

/// Fields that a newer kubelet knows besides are none of our business.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    providers: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: String,
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<String>,
    #[serde(default)]
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    require_service_account: Option<bool>,
}

impl Entry {
    fn provider(self) -> Result<Provider, String> {
        // It becomes the name of a file in the folder of programs, and must stay in there.
        if self.name.is_empty() || matches!(self.name.as_str(), "." | "..") || self.name.contains(['/', ' ', '\0']) {
            return Err("its name is no program's".to_owned());
        }
        if !is_known(&self.api_version, PLUGIN_API) {
            return Err(format!("its apiVersion should be {PLUGIN_API}/v1"));
        }
        // Such a provider wants the token of a Pod's service account, and there is no Pod behind our questions.
        if self.token_attributes.is_some_and(|attributes| attributes.require_service_account != Some(false)) {
            return Err("it requires a Pod's service account (tokenAttributes), which only kubelet has".to_owned());
        }
        let images = self.match_images.unwrap_or_default();
        if images.is_empty() {
            return Err("its matchImages is empty".to_owned());
        }
        let images = images
            .iter()
            .map(|text| Pattern::parse(text).ok_or_else(|| format!("its matchImages has {text:?}, which has no host")))
            .collect::<Result<_, _>>()?;
        let hold = self.default_cache_duration.as_deref().map_or(Some(Duration::ZERO), duration);
        let hold = hold.ok_or("its defaultCacheDuration is no duration such as \"12h\"")?;
        let env = self.env.unwrap_or_default();
        // What can't be in an environment would end us, not the plugin.
        if env.iter().any(|v| v.name.is_empty() || v.name.contains(['=', '\0']) || v.value.contains('\0')) {
            return Err("its env has a name or value that no environment can hold".to_owned());
        }
        let env = env.into_iter().map(|variable| (variable.name, variable.value)).collect();
        let args = self.args.unwrap_or_default();
        Ok(Provider { name: self.name, images, hold, api: self.api_version, args, env })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Parsed<Vec<Provider>>, String> {
        let content = zeroize::Zeroizing::new(text.as_bytes().to_vec());
        parse(&[Document { path: "c.yaml".into(), content }]).map_err(|e| e.to_string())
    }

    const EKS: &str = r#"{
      "kind": "CredentialProviderConfig",
      "apiVersion": "kubelet.config.k8s.io/v1",
      "providers": [{
        "name": "ecr-credential-provider",
        "matchImages": ["*.dkr.ecr.*.amazonaws.com", "public.ecr.aws"],
        "defaultCacheDuration": "12h",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "args": ["get-credentials"],
        "env": [{"name": "AWS_REGION", "value": "eu-west-1"}],
        "newInSomeYears": true
      }]
    }"#;

    const TWO: &str = r#"
apiVersion: kubelet.config.k8s.io/v1beta1
kind: CredentialProviderConfig
providers:
  - name: acr-credential-provider
    apiVersion: credentialprovider.kubelet.k8s.io/v1beta1
    defaultCacheDuration: 10m
    matchImages: ["*.azurecr.io", "*.azurecr.cn"]
    args:
      - /etc/kubernetes/azure.json
  - name: gcp
    apiVersion: credentialprovider.kubelet.k8s.io/v1alpha1
    defaultCacheDuration: 0s
    matchImages:
      - gcr.io
    tokenAttributes: {serviceAccountTokenAudience: a, requireServiceAccount: false, cacheType: Token}
"#;

    #[test]
    fn json_and_yaml() {
        let eks = read(EKS).unwrap();
        assert!(eks.warnings.is_empty(), "{:?}", eks.warnings);
        assert_eq!(
            eks.value,
            [Provider {
                name: "ecr-credential-provider".to_owned(),
                images: ["*.dkr.ecr.*.amazonaws.com", "public.ecr.aws"].map(|p| Pattern::parse(p).unwrap()).to_vec(),
                hold: Duration::from_secs(12 * 3600),
                api: "credentialprovider.kubelet.k8s.io/v1".to_owned(),
                args: vec!["get-credentials".to_owned()],
                env: vec![("AWS_REGION".to_owned(), "eu-west-1".to_owned())],
            }]
        );
        assert_eq!(read(&EKS.replace(' ', "\t")).unwrap().value, eks.value);
        let two = read(TWO).unwrap();
        assert!(two.warnings.is_empty(), "{:?}", two.warnings);
        assert_eq!(two.value[0].hold, Duration::from_secs(600));
        assert_eq!(two.value[1].hold, Duration::ZERO);
        assert_eq!(two.value[1].api, "credentialprovider.kubelet.k8s.io/v1alpha1");
    }

    #[test]
    fn one_bad_provider_leaves_the_others() {
        for (good, bad, part) in [
            ("name: gcp", "name: ../gcp", "no program's"),
            ("name: gcp", "name: ..", "no program's"),
            ("credentialprovider.kubelet.k8s.io/v1alpha1", "credentialprovider.kubelet.k8s.io/v7", "apiVersion"),
            ("requireServiceAccount: false", "requireServiceAccount: true", "service account"),
            ("defaultCacheDuration: 0s", "defaultCacheDuration: soon", "no duration"),
            ("- gcr.io", "- /gcr.io", "no host"),
            ("matchImages:\n      - gcr.io", "matchImages: []", "matchImages is empty"),
        ] {
            let parsed = read(&TWO.replace(good, bad)).unwrap();
            assert_eq!(parsed.value.len(), 1, "{bad}");
            assert!(parsed.warnings.len() == 1 && parsed.warnings[0].contains(part), "{:?}", parsed.warnings);
        }
    }

    #[test]
    fn what_kubelet_refuses_as_a_whole() {
        for (good, bad, part) in [
            ("name: gcp", "name: acr-credential-provider", "second time"),
            ("kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v7", "apiVersion"),
            ("kind: CredentialProviderConfig", "kind: KubeletConfiguration", "kind"),
            ("matchImages:\n      - gcr.io", "matchImages: {hidden: 1}", "line "),
            ("providers:", "providers: [", "line "),
        ] {
            let error = read(&TWO.replace(good, bad)).unwrap_err();
            assert!(error.contains("c.yaml") && error.contains(part) && !error.contains("hidden"), "{error}");
        }
        assert!(read("").is_err());
    }

    #[test]
    fn durations_as_kubernetes_writes_them() {
        for (text, millis) in [
            ("12h0m0s", 43_200_000),
            ("10m", 600_000),
            ("1h2m3.5s", 3_723_500),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("0", 0),
            ("0s", 0),
            ("-5m", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "soon", "5", "5 parsecs"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
