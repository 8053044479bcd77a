//! What runs on the admin socket and the metrics port.
