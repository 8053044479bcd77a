//! What stays in the store, and what goes when room is needed.
