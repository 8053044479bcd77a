use super::error::RunError;

/// Why credentials that there may be were not found: the name of a program, and nothing that it said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// It still runs. What it answers is held for who asks next.
    #[error("{0} has not answered yet")]
    Late(String),
    /// It failed.
    #[error("{0} failed, as the log has it")]
    Failed(String),
}

impl Lack {
    pub(super) fn new(program: &str, error: &RunError) -> Self {
        match error {
            RunError::Late => Self::Late(program.to_owned()),
            _ => Self::Failed(program.to_owned()),
        }
    }
}
