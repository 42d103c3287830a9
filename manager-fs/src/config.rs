//! Where things are: what the global flags and variables mean, validated once.

use std::path::{Path, PathBuf};

use clap::Args;

/// The four directories as they were typed.
#[derive(Debug, Clone, Default, Args)]
pub struct DirFlags {
    /// The manager's store: packs, manifests, control state, keys
    #[arg(long, global = true, env = "MANAGER_FS_STORE", value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// A host's identity, journals and saved metadata
    #[arg(long, global = true, env = "MANAGER_FS_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// A host's cache of objects
    #[arg(long, global = true, env = "MANAGER_FS_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Sockets and mounts
    #[arg(long, global = true, env = "MANAGER_FS_RUN", value_name = "DIR")]
    pub run: Option<PathBuf>,
}

/// Absolute directories. None of them needs to exist yet.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// The manager's store.
    pub store: PathBuf,
    /// Whether the store was named, so that the manager is found through it and not through [`Dirs::run`].
    pub store_was_named: bool,
    /// A host's durable state.
    pub state: PathBuf,
    /// A host's cache.
    pub cache: PathBuf,
    /// Sockets and mounts.
    pub run: PathBuf,
}

impl Dirs {
    /// As root under `/var/lib`, `/var/cache` and `/run`; otherwise the XDG base directories.
    ///
    /// # Errors
    /// A directory is relative and the current directory is gone, or there is no home directory to default to.
    pub fn resolve(flags: &DirFlags) -> anyhow::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let pick = |flag: &Option<PathBuf>, system: &str, xdg: &str, below_home: &str, name: &str| match flag {
            Some(dir) => Ok(std::path::absolute(dir)?),
            None if root => Ok(PathBuf::from(system)),
            None => match (std::env::var_os(xdg), std::env::var_os("HOME")) {
                (Some(base), _) if Path::new(&base).is_absolute() => {
                    Ok(PathBuf::from(base).join("manager-fs").join(name))
                }
                (_, Some(home)) => Ok(PathBuf::from(home).join(below_home).join("manager-fs").join(name)),
                _ => anyhow::bail!("neither {xdg} nor HOME is set: name the directory with --{name}"),
            },
        };
        Ok(Self {
            store: pick(&flags.store, "/var/lib/manager-fs/store", "XDG_DATA_HOME", ".local/share", "store")?,
            store_was_named: flags.store.is_some(),
            state: pick(&flags.state, "/var/lib/manager-fs/state", "XDG_STATE_HOME", ".local/state", "state")?,
            cache: pick(&flags.cache, "/var/lib/manager-fs/cache", "XDG_CACHE_HOME", ".cache", "cache")?,
            run: pick(&flags.run, "/run/manager-fs", "XDG_RUNTIME_DIR", ".local/state/run", "run")?,
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
