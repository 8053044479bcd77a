//! A browser without a screen: what a page looks like to people, and what it asks for.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Folder;

/// Where Debian's packages chromium-headless-shell and chromium have it.
const PROGRAMS: [&str; 2] = ["/usr/bin/chromium-headless-shell", "/usr/bin/chromium"];
const DEADLINE: Duration = Duration::from_secs(30);

/// Chromium with one empty page. Dropped, it ends.
#[derive(Debug)]
pub struct Browser {
    _child: Child,
    commands: ChildStdin,
    messages: BufReader<ChildStdout>,
    events: VecDeque<Value>,
    session: Option<String>,
    last: u64,
    requests: Vec<String>,
    complaints: Vec<String>,
    // The last to go.
    _profile: Folder,
}

/// What people may have set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `prefers-color-scheme: light`
    Light,
    /// `prefers-color-scheme: dark`
    Dark,
}

impl Browser {
    /// Starts it. Fails, and says what to install, where there is none.
    pub async fn start() -> Result<Self> {
        let program = PROGRAMS.iter().map(Path::new).find(|path| path.exists()).context(
            "Chromium is missing: apt-get install chromium-headless-shell, which integration/setup does as root",
        )?;
        let profile = Folder::new()?;
        let mut child = command(program, profile.path()).spawn().context("starting Chromium")?;
        let commands = child.stdin.take().context("no pipe to Chromium")?;
        let messages = BufReader::new(child.stdout.take().context("no pipe from Chromium")?);
        let mut browser = Self {
            _child: child,
            commands,
            messages,
            events: VecDeque::new(),
            session: None,
            last: 0,
            requests: Vec::new(),
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        ensure!(browser.session.is_some(), "Chromium gives no session: {attached}");
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await?;
        }
        Ok(browser)
    }

    /// From now on the window is so wide and high, as on a phone below 600 pixels, and its owner likes it so.
    pub async fn look(&mut self, width: u32, height: u32, scheme: Scheme) -> Result<()> {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await?;
        let value = if scheme == Scheme::Dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.call("Emulation.setEmulatedMedia", media).await.map(drop)
    }

    /// Opens a page, and waits until it and all that belongs to it is there. Forgets what was before.
    pub async fn open(&mut self, url: &str) -> Result<()> {
        self.events.clear();
        self.requests.clear();
        self.complaints.clear();
        let opened = self.call("Page.navigate", json!({"url": url})).await?;
        if let Some(error) = opened["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.message().await?,
            };
            if self.note(&event) == Some("Page.loadEventFired") {
                break;
            }
        }
        // What it asks for after it was loaded, and what it complains of, come before the answer to this.
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))").await?;
        while let Some(event) = self.events.pop_front() {
            self.note(&event);
        }
        Ok(())
    }

    /// What a piece of script comes to in the page.
    pub async fn evaluate(&mut self, script: &str) -> Result<Value> {
        let parameters = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", parameters).await?;
        ensure!(answer.get("exceptionDetails").is_none(), "{script}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].clone())
    }

    /// A picture of the window, as PNG.
    pub async fn picture(&mut self) -> Result<Vec<u8>> {
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"})).await?;
        Ok(STANDARD.decode(answer["data"].as_str().context("no picture")?)?)
    }

    /// The URLs that the page asked for, its own first; what is in the page itself (`data:`) left out.
    pub fn requests(&self) -> &[String] {
        &self.requests
    }

    /// What stands in its console.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    fn note<'a>(&mut self, event: &'a Value) -> Option<&'a str> {
        let (method, parameters) = (event["method"].as_str()?, &event["params"]);
        match method {
            "Network.requestWillBeSent" => {
                let url = parameters["request"]["url"].as_str().unwrap_or_default();
                if !url.starts_with("data:") {
                    self.requests.push(url.to_owned());
                }
            }
            "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" => {
                self.complaints.push(parameters.to_string());
            }
            _ => {}
        }
        Some(method)
    }

    async fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut command = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&command)?;
        bytes.push(0);
        self.commands.write_all(&bytes).await?;
        loop {
            let message = self.message().await.with_context(|| method.to_owned())?;
            if message["id"] == self.last {
                ensure!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
            self.events.push_back(message);
        }
    }

    async fn message(&mut self) -> Result<Value> {
        let mut bytes = Vec::new();
        let read = timeout(DEADLINE, self.messages.read_until(0, &mut bytes)).await.context("Chromium is silent")??;
        ensure!(read > 0, "Chromium has ended");
        bytes.pop();
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// It takes its orders from descriptor 3 and answers on 4, and ends when these close: which they do when we die.
fn command(program: &Path, profile: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#, "sh"]).arg(program);
    command.args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    // Nothing is looked up, whatever it would like to.
    command.arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost");
    let mut data = std::ffi::OsString::from("--user-data-dir=");
    data.push(PathBuf::from(profile));
    command.arg(data).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}
