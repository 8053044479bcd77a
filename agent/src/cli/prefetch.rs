//! `larder prefetch`

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;

use super::block_on;
use crate::admin::{Client, Prefetching};
use crate::config::{Bytes, Config};
use crate::image::ImageName;

/// `larder prefetch`
#[derive(Debug, Args)]
pub struct Arguments {
    /// Images, as containerd is asked for them: nginx:1.29, ghcr.io/acme/app@sha256:…
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<ImageName>,
}

/// Has the running agent fetch images, one after the other. Fails when one of them can't be had; the others are fetched
/// all the same.
///
/// # Errors
/// When there is no agent, or it stops answering.
pub fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    block_on(async {
        let agent = Client::new(&config.admin.socket);
        let mut failed = false;
        for image in &arguments.images {
            let mut last = Prefetching::default();
            let shown = std::io::stderr().is_terminal();
            let outcome = agent.prefetch(image, |line| {
                if shown {
                    eprint!("\r\x1b[K{image}  {}", so_far(&line));
                }
                last = line;
            });
            outcome.await?;
            if shown {
                eprint!("\r\x1b[K");
            }
            match last {
                Prefetching { digest: Some(digest), total, .. } => println!("{image}  {digest}  {}", Bytes(total)),
                Prefetching { error, .. } => {
                    failed = true;
                    eprintln!("{image}: {}", error.as_deref().unwrap_or("the agent ended before it was there"));
                }
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })?
}

fn so_far(line: &Prefetching) -> String {
    if line.total == 0 { "…".to_owned() } else { format!("{} of {}", Bytes(line.present), Bytes(line.total)) }
}
