use std::fmt;

/// The media type of a blob, as its registry gave it.
///
/// Kept as text: types that we don't know must pass through unchanged. Only visible ASCII, at most 255 bytes, so that
/// it can always go back into a header.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct MediaType(String);

impl MediaType {
    /// What a blob is when nobody said.
    pub const OCTET_STREAM: &'static str = "application/octet-stream";

    /// The manifest types that a HEAD or GET for a manifest accepts, in containerd's order.
    pub const MANIFESTS: &'static [&'static str] = &[
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    ];

    /// Takes a Content-Type header's value; `None` for what could not be sent on.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let sound = (1..=255).contains(&text.len()) && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        sound.then(|| Self(text.to_owned()))
    }

    /// `application/octet-stream`.
    #[must_use]
    pub fn octet_stream() -> Self {
        Self(Self::OCTET_STREAM.to_owned())
    }

    /// The type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a manifest may have it: any kind of JSON, signed or not, known to us or not; or what is said of anything.
    #[must_use]
    pub fn may_be_manifest(&self) -> bool {
        let essence = self.0.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence.ends_with("json") || essence.ends_with("+prettyjws") || essence == Self::OCTET_STREAM
    }

    /// Whether it is one of [`MediaType::MANIFESTS`], parameters aside.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        let essence = self.0.split(';').next().unwrap_or_default().trim();
        Self::MANIFESTS.contains(&essence)
    }
}

impl TryFrom<String> for MediaType {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(&text).ok_or("not a media type")
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
