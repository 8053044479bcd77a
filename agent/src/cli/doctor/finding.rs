use std::process::ExitCode;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; containerd comes to us all the same.
    Note,
    /// It couldn't be checked.
    Unknown,
    /// Keeps containerd from us, or will.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check it comes from: `canary`, `place`, `containerd`, `config`, `hosts`, `rights`, `selinux`, `proxy`,
    /// `authorities`, `peers`, `port`, `disk`, `clock`, `textfile`.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is so.
    pub what: String,
    /// Where it stands: `file:line`, a folder, a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Why that matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about it. Several: one of them is enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mend: Vec<Mend>,
}

/// Something to do: what, and the very lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mend {
    /// In words, with the file or the place where to type it.
    pub how: String,
    /// The lines for the file or the shell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// The command that brings it into effect, where it takes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
}

/// What all findings come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All is well.
    Fine,
    /// There are problems.
    Problems,
    /// No problem was found, but not everything could be looked at.
    Unchecked,
}

impl Finding {
    pub(super) fn new(check: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Self { check, severity, what: what.into(), place: None, why: None, mend: Vec::new() }
    }

    pub(super) fn at(mut self, place: &(impl std::fmt::Display + ?Sized)) -> Self {
        self.place = Some(place.to_string());
        self
    }

    pub(super) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    pub(super) fn mended_by(mut self, mend: impl IntoIterator<Item = Mend>) -> Self {
        self.mend.extend(mend);
        self
    }
}

impl Mend {
    pub(super) fn new<L: Into<String>>(how: impl Into<String>, lines: impl IntoIterator<Item = L>) -> Self {
        Self { how: how.into(), lines: lines.into_iter().map(Into::into).collect(), then: None }
    }

    /// A command to run.
    pub(super) fn run(command: impl Into<String>) -> Self {
        Self::new("run", [command.into()])
    }

    pub(super) fn then(mut self, command: impl Into<String>) -> Self {
        self.then = Some(command.into());
        self
    }
}

impl Outcome {
    /// The worst of them decides.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        match findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Problem) => Self::Problems,
            Some(Severity::Unknown) => Self::Unchecked,
            _ => Self::Fine,
        }
    }

    /// For scripts: 0, 1 or 2.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Fine => 0,
            Self::Problems => 1,
            Self::Unchecked => 2,
        })
    }
}
