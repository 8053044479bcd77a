//! The endpoint that containerd pulls from.
