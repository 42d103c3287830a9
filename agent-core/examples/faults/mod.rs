//! What a test makes of a moment: `TINY_FAULTS` names a file with lines `MOMENT ACTION`, read at every moment, so that a
//! test can change it meanwhile. `kill` and `stop` happen once, `enospc` and `eio` for as long as the line is there,
//! or once (`enospc-once`).
//! Which moments were reached is noted in `TINY_FAULTS.reached`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use agent_core::moments::{self, Moment};
use rustix::process::{Signal, getpid, kill_process};

pub(crate) fn install() {
    let Some(file) = std::env::var_os("TINY_FAULTS").map(PathBuf::from) else { return };
    moments::watch(move |moment, _| at(&file, moment));
}

fn at(file: &Path, moment: Moment) -> io::Result<()> {
    let reached = file.with_extension("reached");
    writeln!(OpenOptions::new().create(true).append(true).open(reached)?, "{}", moment.name())?;
    let text = fs::read_to_string(file).unwrap_or_default();
    let find = |line: &&str| line.split_once(' ').is_some_and(|(name, _)| name == moment.name() || name == "all");
    let Some(line) = text.lines().find(find) else { return Ok(()) };
    let once = || {
        let rest: String = text.lines().filter(|other| *other != line).map(|line| format!("{line}\n")).collect();
        fs::write(file, rest)
    };
    match line.split_once(' ').map(|(_, action)| action) {
        Some("kill") => once().and_then(|()| Ok(kill_process(getpid(), Signal::KILL)?)),
        Some("stop") => once().and_then(|()| Ok(kill_process(getpid(), Signal::STOP)?)),
        Some("enospc-once") => once().and(Err(io::Error::from_raw_os_error(libc::ENOSPC))),
        Some("eio-once") => once().and(Err(io::Error::from_raw_os_error(libc::EIO))),
        Some("enospc") => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        Some("eio") => Err(io::Error::from_raw_os_error(libc::EIO)),
        other => Err(io::Error::other(format!("no such action: {other:?}"))),
    }
}
