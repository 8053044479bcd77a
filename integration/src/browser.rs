//! A browser without a screen: what a page looks like to people, and what it asks for.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::{Folder, Process};

/// Where Debian's packages chromium-headless-shell and chromium have it.
const PROGRAMS: [&str; 2] = ["/usr/bin/chromium-headless-shell", "/usr/bin/chromium"];
const DEADLINE: Duration = Duration::from_secs(30);

/// Chromium with one empty page. Dropped, it ends.
#[derive(Debug)]
pub struct Browser {
    commands: pipe::Sender,
    messages: BufReader<pipe::Receiver>,
    events: VecDeque<Value>,
    session: Option<String>,
    last: u64,
    requests: Vec<String>,
    complaints: Vec<String>,
    _process: Process,
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
        let (orders, answers) = (profile.path().join("orders"), profile.path().join("answers"));
        for path in [&orders, &answers] {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        // Both ends at once: otherwise neither opens before the other.
        let commands = pipe::OpenOptions::new().read_write(true).open_sender(&orders)?;
        let messages = pipe::OpenOptions::new().read_write(true).open_receiver(&answers)?;
        let process = start(program, profile.path(), &orders, &answers)?;
        let mut browser = Self {
            commands,
            messages: BufReader::new(messages),
            events: VecDeque::new(),
            session: None,
            last: 0,
            requests: Vec::new(),
            complaints: Vec::new(),
            _process: process,
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

/// It takes its orders from descriptor 3 and answers on 4.
fn start(program: &Path, profile: &Path, orders: &Path, answers: &Path) -> Result<Process> {
    const REDIRECTED: &str = r#"exec 3<"$1" 4>"$2"; shift 2; exec "$@""#;
    let mut arguments: Vec<OsString> = ["-c", REDIRECTED, "sh"].map(OsString::from).to_vec();
    arguments.extend([orders, answers, program].map(OsString::from));
    let options = [
        "--headless",
        "--remote-debugging-pipe",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        // Nothing is looked up, whatever it would like to.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ];
    arguments.extend(options.map(OsString::from));
    let mut data = OsString::from("--user-data-dir=");
    data.push(profile.join("profile"));
    arguments.push(data);
    Process::start(Path::new("/bin/sh"), arguments, &[], profile.join("log"))
}
