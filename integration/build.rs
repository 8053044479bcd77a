//! Tells the tests what was built here by Go, so that scenarios without their tool are shown as ignored.

use std::path::PathBuf;

/// What `cfg` says that a tool is there.
const BUILT: [(&str, &[&str]); 2] =
    [("newest_containerd", &["containerd-newest"]), ("renderers", &["helm", "helm-3", "kustomize"])];

fn main() {
    println!("cargo::rerun-if-env-changed=LARDER_TOOLS");
    let tools = std::env::var_os("LARDER_TOOLS").map_or_else(|| PathBuf::from("../.tools"), PathBuf::from);
    // The folder's own time changes when a tool comes or goes.
    println!("cargo::rerun-if-changed={}", tools.display());
    for (name, folders) in BUILT {
        println!("cargo::rustc-check-cfg=cfg({name})");
        if folders.iter().all(|folder| tools.join(folder).join("VERSION").exists()) {
            println!("cargo::rustc-cfg={name}");
        }
    }
}
