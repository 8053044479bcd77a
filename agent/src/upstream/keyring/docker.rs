use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::FileError;
use super::helper::{HelperName, Helpers};
use super::pattern::{Image, Pattern};
use super::watched::{Document, Parsed};
use super::{Credential, Match, Matches, Patience};
use crate::image::Registry;

/// The name by which Docker's tools ask their helpers for Docker Hub's credentials.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// As Docker writes it; Kubernetes takes it without padding too.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials of a Docker `config.json`, which is what a Secret's `.dockerconfigjson` is too.
#[derive(Debug)]
pub(super) struct DockerConfig {
    auths: Vec<(Pattern, Credential)>,
    /// Keys of `auths` whose credentials are in the store.
    stored: Vec<(Pattern, String)>,
    helpers: Vec<(Pattern, String, HelperName)>,
    store: Option<HelperName>,
}

impl DockerConfig {
    pub(super) fn parse(documents: &[Document]) -> Result<Parsed<Self>, FileError> {
        let mut config = Self { auths: Vec::new(), stored: Vec::new(), helpers: Vec::new(), store: None };
        let mut warnings = Vec::new();
        for Document { path, content } in documents {
            let file: File =
                serde_json::from_slice(content).map_err(|e| FileError::json(path, "a Docker config", &e))?;
            if file.auths.is_none() && file.cred_helpers.is_none() && file.creds_store.is_none() {
                warnings.push("there is neither auths nor credHelpers nor credsStore in it".to_owned());
            }
            for (key, entry) in file.auths.into_iter().flatten() {
                let Some(pattern) = Pattern::of_key(&key) else {
                    warnings.push(format!("auths: {key:?} is the name of no registry"));
                    continue;
                };
                match entry.unwrap_or_default().credential() {
                    Ok(Some(credential)) => config.auths.push((pattern, credential)),
                    Ok(None) => config.stored.push((pattern, key)),
                    Err(reason) => warnings.push(format!("auths: {key:?}: {reason}")),
                }
            }
            for (key, name) in file.cred_helpers.into_iter().flatten() {
                match (Pattern::of_key(&key), HelperName::new(&name)) {
                    (Some(pattern), Some(name)) => config.helpers.push((pattern, key, name)),
                    (None, _) => warnings.push(format!("credHelpers: {key:?} is the name of no registry")),
                    (_, None) => warnings.push(format!("credHelpers: {key:?} names {name:?}, which is no helper")),
                }
            }
            if let Some(name) = file.creds_store.filter(|name| !name.is_empty()) {
                config.store = HelperName::new(&name);
                if config.store.is_none() {
                    warnings.push(format!("credsStore names {name:?}, which is no helper"));
                }
            }
        }
        Ok(Parsed { value: config, warnings })
    }

    /// What the file has for an image. A helper of the registry's own is asked in the place of the store, and the store
    /// only where the file itself has nothing.
    pub(super) async fn find(&self, image: &Image, helpers: &Helpers, patience: Option<Patience>) -> Matches {
        let inline = self.auths.iter().filter(|(pattern, _)| pattern.matches(image));
        let mut found: Vec<Match> = inline
            .map(|(pattern, credential)| Match { rank: pattern.rank(), credential: credential.clone() })
            .collect();
        let helper = self.helpers.iter().filter(|(pattern, ..)| pattern.matches(image));
        let asked = if let Some((pattern, key, name)) = helper.max_by_key(|(pattern, ..)| pattern.rank()) {
            // Docker asks with the very key, or by the host's name where the key stands for many.
            let server = if pattern.has_wildcard() { server_of(image) } else { key };
            Some((pattern.rank(), name, server))
        } else if let Some(store) = self.store.as_ref().filter(|_| found.is_empty()) {
            let stored = self.stored.iter().filter(|(pattern, _)| pattern.matches(image) && !pattern.has_wildcard());
            let known = stored.max_by_key(|(pattern, _)| pattern.rank());
            let by_host = || (image.registry_rank(), server_of(image));
            let (rank, server) = known.map_or_else(by_host, |(pattern, key)| (pattern.rank(), key.as_str()));
            Some((rank, store, server))
        } else {
            None
        };
        let mut lack = None;
        if let Some((rank, helper, server)) = asked {
            match helpers.ask(helper, server, patience).await {
                Ok(credential) => found.extend(credential.map(|credential| Match { rank, credential })),
                Err(of_helper) => lack = Some(of_helper),
            }
        }
        Matches { found, lack }
    }
}

fn server_of(image: &Image) -> &str {
    if image.registry() == Registry::DOCKER_HUB { DOCKER_HUB_SERVER } else { image.registry() }
}

/// The parts of the file that are about credentials.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// `user:password` in base64.
    auth: Option<Zeroizing<String>>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    identitytoken: Option<Zeroizing<String>>,
}

impl Entry {
    /// `None`: the entry only says that the store has one.
    fn credential(self) -> Result<Option<Credential>, &'static str> {
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            return decode(&auth).map(Some);
        }
        match (self.username.filter(|user| !user.is_empty()), self.password) {
            (Some(user), Some(password)) => Ok(Some(Credential::Password { user, password })),
            (None, None) => Ok(None),
            _ => Err("username and password belong together"),
        }
    }
}

fn decode(auth: &str) -> Result<Credential, &'static str> {
    const WRONG: &str = "its auth isn't user:password in base64";
    let decoded = Zeroizing::new(BASE64.decode(auth).map_err(|_| WRONG)?);
    let (user, password) = std::str::from_utf8(&decoded).ok().and_then(|text| text.split_once(':')).ok_or(WRONG)?;
    if user.is_empty() {
        return Err(WRONG);
    }
    // Docker once padded with zero bytes.
    let password = Zeroizing::new(password.trim_end_matches('\0').to_owned());
    Ok(Credential::Password { user: user.to_owned(), password })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Parsed<DockerConfig>, FileError> {
        let content = Zeroizing::new(text.as_bytes().to_vec());
        DockerConfig::parse(&[Document { path: "config.json".into(), content }])
    }

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) }
    }

    #[test]
    fn entries() {
        let auth = |text: &str| parse(&format!(r#"{{"auths":{{"r.io":{text}}}}}"#)).unwrap();
        for (text, expected) in [
            (r#"{"auth":"bWU6cHc="}"#, password("me", "pw")),
            (r#"{"auth":"bWU6cHc"}"#, password("me", "pw")),
            (r#"{"auth":"bWU6cDp3"}"#, password("me", "p:w")),
            (r#"{"auth":"bWU6cHcAAA=="}"#, password("me", "pw")),
            (r#"{"auth":"bWU6"}"#, password("me", "")),
            (r#"{"username":"me","password":"pw","email":"a@b"}"#, password("me", "pw")),
            (r#"{"auth":"bWU6","identitytoken":"t"}"#, Credential::IdentityToken(Zeroizing::new("t".to_owned()))),
        ] {
            let parsed = auth(text);
            assert_eq!(parsed.value.auths[0].1, expected, "{text}");
            assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
        }
        for empty in ["{}", "null", r#"{"auth":"","username":""}"#] {
            assert_eq!(auth(empty).value.stored.len(), 1, "{empty}");
        }
        for bad in [r#"{"auth":"%"}"#, r#"{"auth":"bWU="}"#, r#"{"auth":"OnB3"}"#, r#"{"username":"me"}"#] {
            let parsed = auth(bad);
            assert!(parsed.value.auths.is_empty() && parsed.warnings[0].contains("r.io"), "{bad}");
        }
    }

    #[test]
    fn errors_name_the_place_and_no_secret() {
        for (text, part) in [
            ("{\"auths\":{\"r.io\":{\"auth\":\"secret", "ends in the middle"),
            ("", "ends in the middle"),
            ("{\"auths\":{\"r.io\":\n\"secret\"}}", "line 2"),
            ("{\"auths\":{\"r.io\":{\"auth\":{\"secret\":1}}}}", "a Docker config has something else"),
            ("secret", "no JSON"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(part) && !error.contains("secret"), "{error}");
        }
        let parsed = parse(r#"{"r.io":{"auth":"c2VjcmV0OnNlY3JldA=="}}"#).unwrap();
        assert!(parsed.warnings[0].contains("auths"), "{:?}", parsed.warnings);
    }

    #[test]
    fn helpers_are_names_and_no_paths() {
        let parsed = parse(r#"{"credHelpers":{"a.io":"../../bin/sh","b.io":"ecr-login"},"credsStore":"a b"}"#).unwrap();
        assert_eq!(parsed.value.helpers.len(), 1);
        assert!(parsed.value.store.is_none());
        assert_eq!(parsed.warnings.len(), 2, "{:?}", parsed.warnings);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}", auth in "[A-Za-z0-9+/=]{0,12}") {
            let _ = parse(&text);
            let _ = parse(&format!(r#"{{"auths":{{"r.io":{{"auth":"{auth}"}}}}}}"#));
        }

        #[test]
        fn what_was_encoded_is_decoded(user in "[^:\0]{1,12}", secret in "[^\0]{0,12}", padded: bool) {
            let auth = BASE64.encode(format!("{user}:{secret}"));
            let auth = if padded { &auth } else { auth.trim_end_matches('=') };
            prop_assert_eq!(decode(auth), Ok(password(&user, &secret)));
        }
    }
}
