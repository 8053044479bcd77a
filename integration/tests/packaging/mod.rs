//! What users install: that it is made right, and that it works where it is installed.

mod credentials;
mod debian;
mod image;
mod package;
mod scene;
mod setup;
mod systemd;
