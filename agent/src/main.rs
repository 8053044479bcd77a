//! The one binary: arguments in, exit status out.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main()
}
