//! Where things are, and how long to wait for others: what the global flags and variables mean, validated once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

/// The heading of the flags that every command has.
const HEADING: &str = "Global options";

/// The global flags as they were typed.
#[derive(Debug, Clone, Args)]
pub struct GlobalFlags {
    /// The manager's store: packs, manifests, control state, keys
    #[arg(long, global = true, env = "MANAGER_FS_STORE", value_name = "DIR", help_heading = HEADING)]
    pub store: Option<PathBuf>,
    /// A host's identity, journals and saved metadata
    #[arg(long, global = true, env = "MANAGER_FS_STATE", value_name = "DIR", help_heading = HEADING)]
    pub state: Option<PathBuf>,
    /// A host's cache of objects
    #[arg(long, global = true, env = "MANAGER_FS_CACHE", value_name = "DIR", help_heading = HEADING)]
    pub cache: Option<PathBuf>,
    /// Sockets and mounts
    #[arg(long, global = true, env = "MANAGER_FS_RUN", value_name = "DIR", help_heading = HEADING)]
    pub run: Option<PathBuf>,
    /// How long the manager or the mount daemon may give no sign of life before a command gives up
    #[arg(
        long,
        global = true,
        env = "MANAGER_FS_SILENCE",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = silence,
        help_heading = HEADING
    )]
    pub silence: Duration,
}

/// Why a text says no silence that anybody could be given up after.
#[derive(Debug, PartialEq, thiserror::Error)]
enum SilenceFault {
    #[error(transparent)]
    Form(#[from] humantime::DurationError),
    #[error("it is less than 100ms")]
    TooShort,
}

/// A duration in which something can happen at all.
fn silence(text: &str) -> Result<Duration, SilenceFault> {
    let silence = humantime::parse_duration(text)?;
    if silence < Duration::from_millis(100) { Err(SilenceFault::TooShort) } else { Ok(silence) }
}

/// What the global flags cannot mean.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing says where a directory should be.
    #[error("neither {variable} nor HOME is set: name the directory with --{flag}")]
    NoDefault {
        /// The variable of the XDG base directories.
        variable: &'static str,
        /// The flag that names the directory.
        flag: &'static str,
    },
    /// A relative path cannot be made absolute.
    #[error("--{flag} {path} is relative, and the current directory cannot be told: {cause}", path = path.display())]
    Relative {
        /// The global flag, such as `--store`.
        flag: &'static str,
        /// The directory that it names.
        path: PathBuf,
        /// What the system said of it.
        cause: std::io::Error,
    },
}

/// Where a directory is unless it is named.
struct Default {
    flag: &'static str,
    system: &'static str,
    /// Variable of the XDG base directory specification, and what it stands for below HOME.
    xdg: &'static str,
    below_home: &'static str,
}

const STORE: Default =
    Default { flag: "store", system: "/var/lib/manager-fs/store", xdg: "XDG_DATA_HOME", below_home: ".local/share" };
const STATE: Default =
    Default { flag: "state", system: "/var/lib/manager-fs/state", xdg: "XDG_STATE_HOME", below_home: ".local/state" };
const CACHE: Default =
    Default { flag: "cache", system: "/var/lib/manager-fs/cache", xdg: "XDG_CACHE_HOME", below_home: ".cache" };
const RUN: Default =
    Default { flag: "run", system: "/run/manager-fs", xdg: "XDG_RUNTIME_DIR", below_home: ".local/state/run" };

impl Default {
    fn of_a_user(&self) -> Result<PathBuf, ConfigError> {
        // A relative base directory is to be ignored, says the specification.
        let base = std::env::var_os(self.xdg).map(PathBuf::from).filter(|base| base.is_absolute());
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(self.below_home));
        match base.or_else(home) {
            Some(base) => Ok(base.join("manager-fs").join(self.flag)),
            None => Err(ConfigError::NoDefault { variable: self.xdg, flag: self.flag }),
        }
    }
}

/// Absolute directories. None of them needs to exist yet.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// What the manager keeps: packs, manifests, records, keys and its control state.
    pub store: PathBuf,
    /// Whether the store was named, so that the manager is found through it and not through [`Dirs::run`].
    pub store_was_named: bool,
    /// A host's durable state.
    pub state: PathBuf,
    /// What a host has fetched. It may be removed: all of it comes again.
    pub cache: PathBuf,
    /// Sockets and mounts, of the manager and of a host: gone with the next boot.
    pub run: PathBuf,
}

impl Dirs {
    /// As root under `/var/lib/manager-fs` and `/run/manager-fs`; otherwise the XDG base directories.
    ///
    /// # Errors
    /// A directory is relative and the current directory is gone, or there is no home directory to default to.
    pub fn resolve(flags: &GlobalFlags) -> Result<Self, ConfigError> {
        let root = rustix::process::geteuid().is_root();
        let pick = |typed: &Option<PathBuf>, default: &Default| match typed {
            Some(path) => std::path::absolute(path).map_err(|cause| ConfigError::Relative {
                flag: default.flag,
                path: path.clone(),
                cause,
            }),
            None if root => Ok(PathBuf::from(default.system)),
            None => default.of_a_user(),
        };
        Ok(Self {
            store: pick(&flags.store, &STORE)?,
            store_was_named: flags.store.is_some(),
            state: pick(&flags.state, &STATE)?,
            cache: pick(&flags.cache, &CACHE)?,
            run: pick(&flags.run, &RUN)?,
        })
    }

    /// The manager's socket inside its store; commands that name the store use it.
    pub fn manager_socket_in_store(&self) -> PathBuf {
        self.store.join("manager.sock")
    }

    /// The manager's socket for commands that name no store.
    pub fn manager_socket_in_run(&self) -> PathBuf {
        self.run.join("manager.sock")
    }

    /// The mount daemon's socket.
    pub fn daemon_socket(&self) -> PathBuf {
        self.run.join("mount.sock")
    }

    /// Where the mount daemon mounts unless told otherwise.
    pub fn default_mountpoint(&self) -> PathBuf {
        self.run.join("mnt")
    }

    /// The overlays, one for each attached tree.
    pub fn generations(&self) -> PathBuf {
        self.run.join("gens")
    }

    /// The agents' operations sockets and `current` links.
    pub fn agents(&self) -> PathBuf {
        self.run.join("agents")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(dir: &str) -> GlobalFlags {
        let path = Some(PathBuf::from(dir));
        let silence = Duration::from_secs(10);
        GlobalFlags { store: path.clone(), state: path.clone(), cache: path.clone(), run: path, silence }
    }

    #[test]
    fn what_is_typed_becomes_absolute_and_needs_not_exist() {
        let here = std::env::current_dir().unwrap();
        let dirs = Dirs::resolve(&flags("some/where")).unwrap();
        assert_eq!(dirs.store, here.join("some/where"));
        assert!(dirs.store_was_named);
        let dirs = Dirs::resolve(&flags("/no/such")).unwrap();
        assert_eq!(dirs.manager_socket_in_store(), Path::new("/no/such/manager.sock"));
        assert_eq!(dirs.daemon_socket(), Path::new("/no/such/mount.sock"));
        assert_eq!(dirs.generations(), Path::new("/no/such/gens"));
        assert_eq!(dirs.agents(), Path::new("/no/such/agents"));
        let unnamed = Dirs::resolve(&GlobalFlags { store: None, ..flags("/no/such") }).unwrap();
        assert!(!unnamed.store_was_named && unnamed.store.is_absolute());
    }

    #[test]
    fn no_two_things_have_one_place() {
        let none = GlobalFlags { store: None, state: None, cache: None, run: None, silence: Duration::from_secs(1) };
        let dirs = Dirs::resolve(&none).unwrap();
        let all = [&dirs.store, &dirs.state, &dirs.cache, &dirs.run];
        for (at, one) in all.iter().enumerate() {
            assert!(one.is_absolute() && one.display().to_string().contains("manager-fs"), "{}", one.display());
            for other in &all[at + 1..] {
                assert!(!one.starts_with(other) && !other.starts_with(one), "{} {}", one.display(), other.display());
            }
        }
    }

    #[test]
    fn a_silence_in_which_nothing_can_happen_is_refused() {
        assert_eq!(silence("2min"), Ok(Duration::from_secs(120)));
        assert_eq!(silence("100ms"), Ok(Duration::from_millis(100)));
        for text in ["99ms", "0s", "", "fast", "-1s"] {
            assert!(silence(text).is_err(), "{text}");
        }
    }
}
