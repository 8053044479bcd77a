//! `larder doctor --fix`: sets containerd's `config_path`, and nothing else, and only where that is safe.
//!
//! `plan` says what the file would become, or why it is left alone; `edit` changes its text so that comments and order
//! stay; `write` puts it in the place of the old one, which stays beside it; `dump` has containerd itself read it before.
//! containerd is never restarted: the command is said.

mod dump;
mod edit;
mod plan;
#[cfg(test)]
mod tests;
mod write;

use std::io::{self, BufRead, IsTerminal as _, StdinLock, Write};

use anyhow::{Context as _, bail};

use self::plan::{Plan, Refusal};
use self::write::Draft;
use super::facts::Facts;

/// By whose word the file is written.
pub(super) enum Consent<R> {
    /// It was given before.
    Given,
    /// By the answer that comes here.
    Asked(R),
    /// There is nobody to ask.
    Nobodys,
}

impl Consent<StdinLock<'static>> {
    /// Given by `yes`; else it is asked at the terminal, if standard input is one.
    pub(super) fn new(yes: bool) -> Self {
        let stdin = io::stdin();
        match yes {
            true => Self::Given,
            false if stdin.is_terminal() => Self::Asked(stdin.lock()),
            false => Self::Nobodys,
        }
    }
}

/// Mends what can be mended here; whether anything was.
///
/// # Errors
/// When it isn't safe, nobody agrees to it, or the file can't be written. The file is as it was, then.
pub(super) async fn fix(facts: &Facts, consent: Consent<impl BufRead>, out: &mut impl Write) -> anyhow::Result<bool> {
    let plan = match plan::plan(facts) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            writeln!(out, "\nconfig_path is as it should be: --fix has nothing to do.")?;
            return Ok(false);
        }
        Err(Refusal(why)) => bail!("--fix leaves {} alone: {why}; nothing was changed", facts.setup_file.display()),
    };
    show(&plan, out)?;
    let is_agreed = match consent {
        Consent::Given => true,
        Consent::Asked(answers) => ask(answers, out)?,
        Consent::Nobodys => {
            bail!("--fix asks before it writes, and there is no terminal to ask at: add --yes; nothing was changed")
        }
    };
    if !is_agreed {
        bail!("nothing was changed");
    }
    let draft = Draft::write(&plan).with_context(|| format!("{} can't be written", plan.file.display()))?;
    let checked = dump::check(facts, &plan, draft.path()).await;
    let said = checked.with_context(|| "containerd's own reading of the new file; nothing was changed")?;
    let backup = draft.commit(&plan).with_context(|| format!("{} can't be replaced", plan.file.display()))?;
    writeln!(out, "\n{} is written; {said}.", plan.file.display())?;
    if let Some(backup) = backup {
        writeln!(out, "What was there before is {}.", backup.display())?;
    }
    writeln!(out, "It takes effect when containerd starts again; containers go on running meanwhile:")?;
    writeln!(out, "    {}", facts.platform.restart())?;
    Ok(true)
}

fn show(plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    match plan.before {
        Some(_) => writeln!(out, "\n--fix changes {}:", plan.file.display())?,
        None => writeln!(out, "\n--fix makes {}:", plan.file.display())?,
    }
    for line in plan.difference() {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}

fn ask(mut answers: impl BufRead, out: &mut impl Write) -> io::Result<bool> {
    write!(out, "The file that is there now is kept beside it; containerd isn't restarted. Write it? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
