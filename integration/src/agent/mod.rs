//! The agent under test: the real binary, with its configuration, cache and ports in a folder of its own.

mod config;
mod metrics;
mod upstream;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use config::AgentConfig;
pub use metrics::Metrics;
pub use upstream::Upstream;

use crate::process::output_within;
use crate::{Http, Namespace, Process, free_port, until};

/// The variable that sets `admin.socket`.
const SOCKET: &str = "LARDER__ADMIN__SOCKET";
const START: Duration = Duration::from_secs(10);

/// An agent. Dropped, it is killed.
#[derive(Debug)]
pub struct Agent {
    folder: PathBuf,
    mirror: u16,
    metrics: u16,
    environment: Vec<(String, String)>,
    namespace: Option<Namespace>,
    wrapper: Vec<String>,
    loopback: &'static str,
    http: Http,
    process: Option<Process>,
}

impl Agent {
    /// Starts one in `folder`, and waits until it says that it is ready.
    pub async fn start(folder: &Path, config: &AgentConfig) -> Result<Self> {
        let mut agent = Self::prepare(folder, config)?;
        agent.start_again().await?;
        Ok(agent)
    }

    /// Writes the configuration only: for commands that need no running agent.
    pub fn prepare(folder: &Path, config: &AgentConfig) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (mirror, metrics) = (free_port()?, free_port()?);
        let agent = Self {
            folder: folder.to_owned(),
            mirror,
            metrics,
            environment: config.environment.clone(),
            namespace: config.namespace.clone(),
            wrapper: config.wrapper.clone(),
            loopback: config.loopback(),
            http: Http::within(config.namespace.clone()),
            process: None,
        };
        std::fs::write(agent.config(), config.text(folder, mirror, metrics))?;
        Ok(agent)
    }

    /// Another one on the same node, as an upgrade starts it beside this one: of the same configuration, ports and
    /// folders, with an admin socket of its own. It isn't started yet.
    pub fn beside(&self, name: &str) -> Result<Self> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(self.config(), folder.join("larder.toml"))?;
        let socket = folder.join("larder.sock").display().to_string();
        let mut environment = self.environment.clone();
        environment.retain(|(name, _)| name != SOCKET);
        environment.push((SOCKET.to_owned(), socket));
        let (namespace, http) = (self.namespace.clone(), Http::within(self.namespace.clone()));
        let wrapper = self.wrapper.clone();
        Ok(Self { folder, environment, namespace, wrapper, http, process: None, ..*self })
    }

    /// Gives its mirror another port, before it is started.
    pub fn move_mirror(&mut self) -> Result<()> {
        let before = self.address();
        self.mirror = free_port()?;
        let text = std::fs::read_to_string(self.config())?;
        let moved = text.replacen(&format!("listen = \"{before}\""), &format!("listen = \"{}\"", self.address()), 1);
        ensure!(moved != text, "the configuration has no {before}: {text}");
        Ok(std::fs::write(self.config(), moved)?)
    }

    /// Whether `larder status --probe` says so.
    pub async fn probe(&self, what: &str) -> Result<bool> {
        Ok(self.command(&["status", "--probe", what]).await?.status.success())
    }

    /// Waits until its own probe says that it is ready: it serves, or waits to take over.
    pub async fn stands_by(&mut self) -> Result<()> {
        until("the agent stands by", START, async || self.probe("ready").await.is_ok_and(|yes| yes).then_some(())).await
    }

    /// SIGTERM, and no waiting.
    pub fn tell_to_end(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.process()?.id().cast_signed()), Signal::SIGTERM)?)
    }

    /// Runs it (again), and waits until it is ready.
    pub async fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// Runs it (again), and doesn't wait.
    pub fn launch(&mut self) -> Result<()> {
        self.process = None;
        self.process = Some(self.start_command(&["run"], self.folder.join("log"))?);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.metrics_url());
        let Some(process) = &mut self.process else { bail!("the agent isn't running") };
        let http = &self.http;
        let ended = until("the agent is ready", START, async || {
            if !process.is_running() {
                return Some(true);
            }
            let reply = http.get(&url).await.ok()?;
            (reply.status == StatusCode::OK).then_some(false)
        })
        .await?;
        ensure!(!ended, "the agent has ended: {}", process.log());
        Ok(())
    }

    /// Whether it hasn't ended.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// SIGTERM; fails when it takes more than ten seconds to end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.terminate(Duration::from_secs(10))
    }

    /// SIGKILL to all of its processes.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP to the process that serves: the child where there is one, since the parent watches over it.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT to the process that serves, if it is still there.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// The id of the process that serves.
    pub fn serving(&self) -> Result<u32> {
        let process = self.process()?;
        Ok(process.children().first().copied().unwrap_or_else(|| process.id()))
    }

    /// The mirror over plain HTTP, `http://127.0.0.1:…`.
    pub fn mirror(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The mirror's address and port: `127.0.0.1:…`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.loopback, self.mirror)
    }

    /// The mirror's port.
    pub fn mirror_port(&self) -> u16 {
        self.mirror
    }

    /// A client for requests to it.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The port that Prometheus reads, `http://127.0.0.1:…`.
    pub fn metrics_url(&self) -> String {
        format!("http://{}:{}", self.loopback, self.metrics)
    }

    /// What it shows to Prometheus now.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.exposition().await?)
    }

    /// The same, word for word.
    pub async fn exposition(&self) -> Result<String> {
        let reply = self.http.get(&format!("{}/metrics", self.metrics_url())).await?;
        Ok(String::from_utf8_lossy(&reply.expect(StatusCode::OK)?.body).into_owned())
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("larder.toml")
    }

    /// The folder of its cache, unless the configuration says otherwise.
    pub fn cache(&self) -> PathBuf {
        config::cache(&self.folder)
    }

    /// The folder of its configuration, its log and its cache.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Runs `larder` with these arguments and this agent's configuration, whether the agent runs or not.
    pub async fn command(&self, arguments: &[&str]) -> Result<Output> {
        self.command_for(arguments, Duration::from_secs(60)).await
    }

    /// The same, for commands that must succeed; returns what it prints.
    pub async fn say(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "larder {arguments:?}: {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same as [`Agent::command`], for one that may take long. It is killed when this is dropped.
    pub async fn command_for(&self, arguments: &[&str], limit: Duration) -> Result<Output> {
        let words = self.words(arguments)?;
        let mut command = tokio::process::Command::new(&words[0]);
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        output_within(limit, command.args(&words[1..]).envs(environment)).await
    }

    /// Starts `larder` with these arguments and this agent's configuration; what it writes is appended to the file `log`.
    pub fn start_command(&self, arguments: &[&str], log: PathBuf) -> Result<Process> {
        let words = self.words(arguments)?;
        Process::start_in(self.namespace.as_ref(), Path::new(&words[0]), &words[1..], &self.environment, log)
    }

    /// What runs the program, its path, these arguments and its configuration.
    fn words(&self, arguments: &[&str]) -> Result<Vec<OsString>> {
        let before = self.wrapper.iter().map(OsString::from).chain([program()?.into_os_string()]);
        let after = arguments.iter().map(OsString::from).chain(["--config".into(), self.config().into_os_string()]);
        Ok(before.chain(after).collect())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.serving()?.cast_signed()), signal)?)
    }

    /// Its process, to measure it.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the agent isn't running")
    }
}

/// The agent's binary, which was built beside this one: `target/<profile>/larder` for `target/<profile>/deps/scenarios-…`.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join("larder")).find(|path| path.is_file());
    found.with_context(|| format!("no larder beside {}: run cargo build -p larder", own.display()))
}
