//! How a scenario runs: on which containerd, and for how long at most.

use std::time::Duration;

use anyhow::Result;

/// A scenario that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(150);

/// Runs a scenario to its end. An error fails the test, with the whole chain of causes.
pub(crate) fn run(scenario: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, scenario).await });
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(_) => panic!("not done within {LIMIT:?}"),
    }
}

/// Tests named for the containerds that `$scenario`, an async function of the release, runs on.
macro_rules! on_every_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use larder_integration::Release;

            use crate::support::run;

            #[test]
            fn containerd_1_6() {
                run(super::$scenario(Release::Bookworm));
            }

            #[test]
            fn containerd_1_7() {
                run(super::$scenario(Release::Trixie));
            }

            #[test]
            fn containerd_2_sid() {
                run(super::$scenario(Release::Sid));
            }

            #[test]
            #[cfg_attr(not(newest_containerd), ignore = "the newest containerd isn't built: Go isn't here")]
            fn containerd_newest() {
                run(super::$scenario(Release::Newest));
            }
        }
    )+};
}

pub(crate) use on_every_containerd;
