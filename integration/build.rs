//! Tells the tests whether the newest containerd was built here, so that its scenarios are shown as ignored where not.

use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(newest_containerd)");
    println!("cargo::rerun-if-env-changed=LARDER_TOOLS");
    let tools = std::env::var_os("LARDER_TOOLS").map_or_else(|| PathBuf::from("../.tools"), PathBuf::from);
    // The folder's own time changes when a tool comes or goes.
    println!("cargo::rerun-if-changed={}", tools.display());
    if tools.join("containerd-newest/VERSION").exists() {
        println!("cargo::rustc-cfg=newest_containerd");
    }
}
