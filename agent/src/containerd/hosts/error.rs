use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Why an entry could not be written, taken back or shown.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The folder, its filesystem or its owner doesn't let us write.
    #[error(
        "{} can't be written; mount it writable and run larder as root, or let containerd's config_path and larder's \
         hosts_dir name a folder that can be written",
        path.display()
    )]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file or folder that is mounted by itself: it can't be replaced by a rename.
    #[error("{} is a mount of its own and can't be replaced; mount the folder above it instead", path.display())]
    MountPoint {
        /// The mount.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// containerd before 2.0 can't read a table's name with a bracket in it, and would use no host of the file, the user's
    /// own neither.
    #[error(
        "containerd before 2.0 can't read a hosts.toml that names an address of IPv6; let mirror.listen be an address of \
         IPv4 (127.0.0.1:7439), which nodes without IPv4 have too, or update containerd"
    )]
    Bracket,
    /// Anything else that the filesystem refused.
    #[error("{doing} {} failed", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pipe, a device or a folder where a file should be.
    #[error("{} is no file; containerd can't read it either, remove it", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// More than the bytes that a file of its kind may have.
    #[error("{} has more than {limit} bytes; that is no hosts.toml", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// A folder that is a symbolic link to nothing, as seen from here.
    #[error("{} is a symbolic link to what isn't there; mount its target too, or remove the link", path.display())]
    DanglingFolder {
        /// The link.
        path: PathBuf,
    },
    /// A file has the name of our CA copy, and isn't ours.
    #[error("{} wasn't written by larder; move it away, larder needs the name for its CA", path.display())]
    ForeignCa {
        /// The file.
        path: PathBuf,
    },
    /// The CA that was to be written has no sound certificate: every pull would fail.
    #[error("the node's CA is no PEM certificate; larder would break every pull with it")]
    UnsoundCa,
    /// Another process has held the folder's lock for all the time that we wait.
    #[error("{} is locked by another larder; wait for it, or stop it", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Somebody changed the file between our reading and our writing; theirs stays.
    #[error("{} was changed by somebody at the same moment; larder leaves it for now, apply again", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// A template can't be read.
    #[error("the template {} can't be read", path.display())]
    TemplateRead {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A template has a placeholder that means nothing.
    #[error("the template {template} has an unknown placeholder {{{{{name}}}}}; it may have {known}")]
    UnknownPlaceholder {
        /// The template.
        template: String,
        /// The placeholder.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A template has `{{` without `}}`.
    #[error("the template {template} has {{{{ without }}}} in line {line}")]
    OpenPlaceholder {
        /// The template.
        template: String,
        /// The line, from 1.
        line: usize,
    },
    /// What comes out of a template isn't our host's table alone.
    #[error("the template {template} makes no sound host table: {why}")]
    UnsoundTemplate {
        /// The template.
        template: String,
        /// What is wrong.
        why: String,
    },
    /// The text that was made for a file doesn't say what it should; nothing was written.
    #[error("the hosts of {} can't be put into a new file: {why}; simplify the file by hand", path.display())]
    Unsound {
        /// The file that was to be written.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Something in a folder that a person should know; the entry works nevertheless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// containerd can't read the user's file, and so neither can we: its hosts are left out.
    Malformed {
        /// What is wrong with it.
        why: String,
    },
    /// The user's hosts were written in a way that containerd orders differently from version to version, or not at
    /// all; they stand as ordinary tables now.
    Rewritten,
    /// The user's file has the capability `referrers`, for which containerd before 2.2 drops the whole file.
    Referrers,
    /// The user's file named our mirror itself; that table is left out.
    AlreadyListed,
    /// Somebody replaced or edited the file; what they wrote is the original now.
    NewOriginal,
    /// The original was removed from beside our file; its hosts were taken from ours.
    OriginalLost,
}

/// Why a host in the user's file is no upstream of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdopted {
    /// The file, or something about it, can't be read.
    #[error("{0}")]
    Unreadable(String),
    /// containerd, too, takes no notice of the file.
    #[error("containerd can't read the file: {0}")]
    Malformed(String),
    /// It leads to our own port.
    #[error("it is larder itself")]
    Ourselves,
    /// Nothing may be pulled from it.
    #[error("its capabilities don't have \"pull\"")]
    NoPull,
    /// Its URL has something that we don't do.
    #[error("{0}")]
    Url(String),
    /// A certificate file that it names can't be used. containerd fails pulls for most of these.
    #[error("{} can't be used: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is taken over without a header that we don't send; the text never shows a value.
    #[error("taken over without a header: {0}")]
    Header(String),
    /// It is taken over with the first of its client certificates.
    #[error("taken over with the first of its client certificates alone")]
    FurtherClients,
    /// `_default` sets something for every registry at its own address.
    #[error(
        "certificates, headers and skip_verify outside of a host are meant for each registry's own address; name the \
         registries in a [[registry]] of larder's configuration, or in folders of their own"
    )]
    EveryOwnAddress,
}

impl HostsError {
    /// In one line, with what lies behind it.
    pub(super) fn with_source(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
            Errno::EROFS | Errno::EACCES | Errno::EPERM if doing != "reading" => Self::ReadOnly { path, source },
            Errno::EBUSY => Self::MountPoint { path, source },
            _ => Self::Io { doing, path, source },
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { why } => {
                write!(f, "containerd can't read the file that was here ({why}); its hosts are left out")
            }
            Self::Rewritten => f.write_str("inline tables and dotted keys were rewritten as ordinary tables"),
            Self::Referrers => f.write_str(
                "the capability \"referrers\" makes containerd before 2.2 drop the whole file, larder's mirror included",
            ),
            Self::AlreadyListed => f.write_str("the file named larder's mirror already; that table is left out"),
            Self::NewOriginal => f.write_str("somebody changed the file; what they wrote is the original now"),
            Self::OriginalLost => {
                f.write_str("hosts.toml.before-larder is gone; the hosts were taken from larder's own file")
            }
        }
    }
}
