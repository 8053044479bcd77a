use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

/// Why containerd gave no answer, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error("there is no socket {}; containerd isn't running, or containerd.socket names the wrong one", socket.display())]
    SocketMissing {
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// The socket is there, but not for us.
    #[error("no permission to open {}; it takes root, or the socket's group", socket.display())]
    PermissionDenied {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket is there, but nobody listens at it.
    #[error("nobody listens at {}; containerd has stopped or is starting", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection failed or broke.
    #[error("the connection to {} failed", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("no answer to {call} from {} within {after:?}", socket.display())]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        call: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The service asked for isn't there. For the runtime interface: its plugin is switched off or failed to load.
    #[error("{} doesn't serve {call}; the plugin behind it is switched off or failed to load", socket.display())]
    NotServed {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        call: &'static str,
    },
    /// containerd answered with an error.
    #[error("{call} at {} failed ({code:?}): {message}", socket.display())]
    Status {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        call: &'static str,
        /// The kind of error, as gRPC has them.
        code: Code,
        /// What containerd said.
        message: String,
    },
    /// containerd didn't say where its content is.
    #[error("containerd at {} doesn't say where its content store is", socket.display())]
    NoContentRoot {
        /// The socket.
        socket: PathBuf,
    },
    /// The name of a namespace has characters that can't be sent.
    #[error("{name:?} is no namespace of containerd; they are ASCII, such as \"k8s.io\"")]
    Namespace {
        /// The name.
        name: String,
    },
}

impl ClientError {
    /// Whether containerd itself couldn't be asked, as opposed to what it answered.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::SocketMissing { .. } | Self::PermissionDenied { .. } | Self::Refused { .. } | Self::Connect { .. }
        )
    }

    /// Whether it answered that it hasn't got what was asked for.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { code: Code::NotFound, .. })
    }

    pub(super) fn from_io(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::SocketMissing { socket },
            io::ErrorKind::PermissionDenied => Self::PermissionDenied { socket },
            io::ErrorKind::ConnectionRefused => Self::Refused { socket },
            _ => Self::Connect { socket, source },
        }
    }

    pub(super) fn from_status(socket: &Path, call: &'static str, status: &Status) -> Self {
        if let Some(cause) = io_cause(status) {
            // Only the kind and the text outlive the status, which owns the error.
            return Self::from_io(socket, io::Error::new(cause.kind(), cause.to_string()));
        }
        let socket = socket.to_path_buf();
        match status.code() {
            Code::Unimplemented => Self::NotServed { socket, call },
            code => Self::Status { socket, call, code, message: status.message().to_owned() },
        }
    }
}

/// The system's error at the bottom of a failed connection.
fn io_cause(status: &Status) -> Option<&io::Error> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}
