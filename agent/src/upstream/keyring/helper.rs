use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::RunError;
use super::program::{Output, Program, Runner, one_line};
use super::shared::Shared;
use super::{Credential, Lack, Patience};

/// What a helper says, with exit status 1, where it has nothing for a server.
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";
/// The user in whose name a helper gives an identity token.
const TOKEN_USER: &str = "<token>";

/// The name of a credential helper: the program is `docker-credential-<name>`. Never a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HelperName(String);

/// Docker's credential helpers: programs that are given a server's name, and give its credentials.
#[derive(Debug)]
pub(super) struct Helpers {
    /// Where they are looked for, in this order.
    folders: Vec<PathBuf>,
    hold: Duration,
    shared: Shared<Option<Credential>>,
}

impl HelperName {
    pub(super) fn new(name: &str) -> Option<Self> {
        let sound = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        sound.then(|| Self(name.to_owned()))
    }

    fn program(&self) -> String {
        format!("docker-credential-{}", self.0)
    }
}

impl Helpers {
    pub(super) fn new(folder: Option<PathBuf>, hold: Duration, runner: Runner) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // An empty or relative entry would mean wherever the agent happens to stand.
        let of_path = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
        Self { folders: folder.into_iter().chain(of_path).collect(), hold, shared: Shared::new(runner) }
    }

    /// The credentials of a server. `None` where the helper has none; where it failed, that has been logged.
    pub(super) async fn ask(
        &self,
        helper: &HelperName,
        server: &str,
        patience: Option<Patience>,
    ) -> Result<Option<Credential>, Lack> {
        let name = helper.program();
        let key = format!("{name} {server}");
        let (folders, hold, question) = (self.folders.clone(), self.hold, server.to_owned());
        let outcome = self.shared.get(&name, &key, patience, |runner| {
            let name = name.clone();
            async move {
                let program =
                    Program { path: locate(&folders, name).await?, args: vec!["get".to_owned()], env: vec![] };
                let output = runner.run(&program, question.as_bytes()).await?;
                read(&program, &output).map(|credential| (credential, hold))
            }
        });
        outcome.await.map(|credential| (*credential).clone()).map_err(|error| Lack::new(&name, &error))
    }
}

/// The first of that name in the folders.
async fn locate(folders: &[PathBuf], program: String) -> Result<PathBuf, RunError> {
    for folder in folders {
        let path = folder.join(&program);
        if tokio::fs::metadata(&path).await.is_ok_and(|metadata| metadata.is_file()) {
            return Ok(path);
        }
    }
    Err(RunError::Absent { program })
}

fn read(program: &Program, output: &Output) -> Result<Option<Credential>, RunError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: Zeroizing<String>,
    }
    if !output.status.success() {
        let answer = output.answer.trim_ascii();
        if answer == NOT_FOUND {
            return Ok(None);
        }
        // Helpers say on standard output why they failed. What looks like an answer isn't repeated.
        let words = if answer.starts_with(b"{") { String::new() } else { one_line(answer) };
        let said = [words.as_str(), output.said.as_str()].join(" ").trim().to_owned();
        return Err(RunError::Failed { program: program.path.clone(), status: output.status, said });
    }
    let wrong = |reason: &str| RunError::Answer { program: program.path.clone(), reason: reason.to_owned() };
    let answer: Answer = serde_json::from_slice(&output.answer)
        .map_err(|_| wrong("it should be JSON with ServerURL, Username and Secret"))?;
    if answer.secret.is_empty() {
        return Err(wrong("its Secret is empty"));
    }
    Ok(Some(if answer.username == TOKEN_USER {
        Credential::IdentityToken(answer.secret)
    } else {
        Credential::Password { user: answer.username, password: answer.secret }
    }))
}
