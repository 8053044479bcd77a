//! Registries: requests, tokens, deadlines.
