use std::path::PathBuf;

/// Why this node can't be a peer.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nobody configured a cluster.
    #[error("[peers] names no `ca`, with `key` or `cert` beside it: there is no cluster")]
    Off,
    /// A file can't be read.
    #[error("the `{key}` {} in [peers] can't be read", path.display())]
    Unreadable {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("the `{key}` {} in [peers] is of no use: {reason}", path.display())]
    Invalid {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file with this node's number can't be read.
    #[error("this node's number in {} can't be read", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file with this node's number holds something else.
    #[error("{} holds no node's number (32 hexadecimal digits); remove it, and this node gets a new one", path.display())]
    NoNumber {
        /// The file.
        path: PathBuf,
    },
    /// The certificate can't be made.
    #[error("this node's certificate can't be issued")]
    Issue(#[from] rcgen::Error),
    /// TLS refuses it.
    #[error("TLS between nodes can't be set up")]
    Tls(#[from] rustls::Error),
}
