//! A network namespace that is gone with whoever holds it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace without a name: an open file is all that keeps it, so that nothing of it is left when this
/// process ends, however it ends.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// A new, empty one, its loopback up. Needs root.
    pub fn new() -> Result<Self> {
        // A thread may live in another namespace than its process; the thread ends, the file stays.
        let made = in_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let namespace = Self { file: Arc::new(made.context("making a network namespace")?) };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Does something quick inside, such as making a socket, which stays there. Blocks meanwhile.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_a_thread(|| {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Runs `ip` inside on these lines, a command each without its first word.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.batch("ip", lines)
    }

    /// Sets a variable of the kernel's that each network namespace has for itself, such as `net/ipv6/bindv6only`.
    pub fn set(&self, variable: &str, value: &str) -> Result<()> {
        let path = std::path::Path::new("/proc/sys").join(variable);
        Ok(self.inside(|| std::fs::write(path, value))?)
    }

    /// What runs the arguments that follow inside.
    pub(crate) fn wrapper(&self) -> [String; 3] {
        ["nsenter".to_owned(), format!("--net={}", self.path().display()), "--".to_owned()]
    }

    /// Where others find it, for as long as this process has it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `ip` or `tc` inside on these lines.
    pub(super) fn batch(&self, program: &str, lines: &str) -> Result<()> {
        let [wrapper, arguments @ ..] = self.wrapper();
        let mut command = Command::new(wrapper);
        command.args(arguments).args([program, "-batch", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        io::Write::write_all(&mut child.stdin.take().context("a child without input")?, lines.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {lines:?}: {}", said.trim());
        Ok(())
    }
}

fn in_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("a panic inside a namespace")))
    })
}
