//! Takes away what a benchmark leaves on the machine, however it ends: namespaces, the processes in them, mounts and
//! files. It is a process of its own that waits until its standard input is closed, which the kernel does also for a
//! benchmark that was interrupted or killed.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Arguments: the directory, then the namespaces.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat > /dev/null
scratch=$1; shift
inside() { for name in "$@"; do ip netns pids "$name" 2>/dev/null; done; }
for signal in TERM KILL; do
    pids=$(inside "$@")
    [ -n "$pids" ] || break
    kill -$signal $pids 2>/dev/null
    tries=50
    while [ $tries -gt 0 ] && [ -n "$(inside "$@")" ]; do sleep 0.1; tries=$((tries - 1)); done
done
awk -v at="$scratch/" 'index($2, at) == 1 { print $2 }' /proc/self/mounts | sort -r |
    while read -r mount; do umount -l "$mount"; done
for name in "$@"; do ip netns del "$name" 2>/dev/null; done
rm -rf --one-file-system "$scratch"
"#;

/// The waiting process. Dropping it starts the clearing up and waits for its end.
#[derive(Debug)]
pub struct Warden {
    child: Child,
}

impl Warden {
    /// Watches over a directory and namespaces, which need not exist yet.
    ///
    /// # Errors
    /// There is no shell.
    pub fn start(scratch: &Path, namespaces: &[&str]) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "warden"]).arg(scratch).args(namespaces);
        // A group of its own: an interrupt from the terminal is for the benchmark.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        Ok(Self { child: command.spawn().context("starting sh")? })
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("what clears up after this benchmark cannot be waited for: {error}");
        }
    }
}
