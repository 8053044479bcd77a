//! Private.
