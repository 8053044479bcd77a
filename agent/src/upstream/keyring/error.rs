use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Why a program gave no credentials. Never holds what it wrote to standard output, where the secrets are, other than
/// a helper's own words on why it failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// A Docker config file names a helper that isn't there.
    #[error("{program} is neither in `helpers_dir` nor in PATH; install it, or take it out of the Docker config")]
    Absent {
        /// Its file name.
        program: String,
    },
    /// It couldn't be started.
    #[error("{} can't be started: {source}", program.display())]
    Start {
        /// Its file.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pipes to it failed.
    #[error("{} can't be talked to: {source}", program.display())]
    Pipe {
        /// Its file.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It took too long, and was killed.
    #[error("{} had not answered after {} and was killed", program.display(), humantime::format_duration(*after))]
    Slow {
        /// Its file.
        program: PathBuf,
        /// How long it was given.
        after: Duration,
    },
    /// It wrote more than any answer has, and was killed.
    #[error("{} wrote more than {most} bytes and was killed", program.display())]
    Endless {
        /// Its file.
        program: PathBuf,
        /// The most that is read, in bytes.
        most: u64,
    },
    /// It ended with a failure.
    #[error("{} ended with {status}{}", program.display(), after_colon(said))]
    Failed {
        /// Its file.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, shortened.
        said: String,
    },
    /// It ended well, and its answer is none.
    #[error("the answer of {} can't be used: {reason}", program.display())]
    Answer {
        /// Its file.
        program: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It still runs, and who asked waits no longer.
    #[error("it still runs")]
    Late,
    /// So much is asked at once that this wasn't asked.
    #[error("too many credential programs are asked at once")]
    Busy,
    /// The agent is ending.
    #[error("the agent is ending")]
    Ending,
}

/// Why a file can't be used. Its text says where, and never holds any of the file's content.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// It can't be read.
    #[error("{} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is larger than any such file.
    #[error("{} is larger than {most} bytes, which no such file is", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        most: u64,
    },
    /// A folder with nothing to read in it.
    #[error("no .json, .yaml or .yml file is in the folder {}", path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// It is of another shape.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, and what should be there.
        reason: String,
    },
    /// The disk doesn't answer.
    #[error("{} could not be read within {}: does its disk hang?", path.display(), humantime::format_duration(*after))]
    Hangs {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        after: Duration,
    },
}

impl FileError {
    /// A file that isn't the JSON that it should be. serde's own words may quote the file, and so a secret.
    pub(super) fn json(path: &Path, wanted: &str, error: &serde_json::Error) -> Self {
        use serde_json::error::Category;
        let what = match error.classify() {
            Category::Eof => "the file ends in the middle".to_owned(),
            Category::Syntax | Category::Io => "this is no JSON".to_owned(),
            Category::Data => format!("{wanted} has something else here"),
        };
        let reason = format!("line {}, column {}: {what}", error.line(), error.column());
        Self::Malformed { path: path.to_owned(), reason }
    }

    /// The same for YAML.
    pub(super) fn yaml(path: &Path, wanted: &str, error: &yaml_serde::Error) -> Self {
        let place = error.location().map(|at| format!("line {}, column {}: ", at.line(), at.column()));
        let reason = format!("{}this is no YAML, or {wanted} has something else here", place.unwrap_or_default());
        Self::Malformed { path: path.to_owned(), reason }
    }
}

fn after_colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}
