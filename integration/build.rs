//! Tells the tests what was built here, so that scenarios of what wasn't are shown as ignored.

use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(newest_containerd, kubernetes)");
    println!("cargo::rerun-if-env-changed=LARDER_TOOLS");
    let tools = std::env::var_os("LARDER_TOOLS").map_or_else(|| PathBuf::from("../.tools"), PathBuf::from);
    // The folder's own time changes when a tool comes or goes.
    println!("cargo::rerun-if-changed={}", tools.display());
    let is_built = |tool: &str| tools.join(tool).join("VERSION").exists();
    if is_built("containerd-newest") {
        println!("cargo::rustc-cfg=newest_containerd");
    }
    // Nodes of it run the newest containerd.
    if is_built("kubernetes") && is_built("containerd-newest") {
        println!("cargo::rustc-cfg=kubernetes");
    }
}
