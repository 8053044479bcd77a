//! The heart: from a request to bytes.
