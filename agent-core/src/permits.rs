//! What the host's administrator allows to be ordered here: `STATE/permits.toml`, see `docs/permits.md`.
//!
//! An agent does what its manager orders, often as root. So the last word is the host's: the file says which products
//! stay, what may be backed up, where repositories and restores may lie, and what prune must leave. Without the file a
//! default holds that takes nothing from anybody who restores beside, and nothing over, what is there. A file that
//! cannot be believed or understood permits nothing: it was written to forbid something.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use proto::{CommandName, OperationKind, Product, RepositoryName};
use rustix::fs::OFlags;

use crate::paths::AgentPaths;
use crate::permit_rules::{List, Rules};
use crate::places::{resolved, system_place};

/// The file's name in STATE.
pub const FILE: &str = "permits.toml";
/// A file that somebody writes by hand is never longer.
const BYTES_MAX: u64 = 64 << 10;

/// The file is there and cannot be used: nothing is permitted until it can.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PermitsFault {
    /// The file system's.
    #[error("{path}: {source}; nothing is permitted here until it can be read", path = path.display())]
    Io {
        /// Path of the permits file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A link, a directory, or too long.
    #[error(
        "{path} is no plain file of at most 64 KiB; nothing is permitted here until it is one",
        path = path.display()
    )]
    NoFile {
        /// Path of what should be the permits file.
        path: PathBuf,
    },
    /// Others could have written it.
    #[error(
        "{path} can be written by others than root and this user (owner {owner}, mode {mode:04o}); nothing is permitted \
         here until that is mended: chown root, chmod 0644",
        path = path.display()
    )]
    NotTrusted {
        /// Path of the permits file.
        path: PathBuf,
        /// Number of its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// It says what nobody understands.
    #[error(
        "{path}, line {line}: {what}; nothing is permitted here until that is mended (`manager-fs permits check`)",
        path = path.display()
    )]
    Unclear {
        /// Path of the permits file.
        path: PathBuf,
        /// Line of the file, counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// A product stays what it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stays {
    #[error(transparent)]
    Fault(#[from] PermitsFault),
    #[error(transparent)]
    Pinned(#[from] NotPermitted),
}

/// Whether this product may become another version without its host's administrator. Asked before anything is saved or
/// fetched for it, by whoever takes an order.
///
/// # Errors
/// It is pinned, or nobody can say.
pub(crate) fn may_change_over(paths: &AgentPaths) -> Result<(), Stays> {
    Ok(Permits::read(paths.state(), paths.run())?.change_over(paths.product())?)
}

/// The host does not permit what was ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPermitted {
    /// A line of the file says so.
    #[error("this host does not permit {what}: {why} ({file}, line {line}: {key})", file = file.display())]
    Line {
        /// What was ordered.
        what: String,
        /// The rule that forbids it, for people.
        why: &'static str,
        /// Path of the permits file.
        file: PathBuf,
        /// Line of the file, counted from 1.
        line: usize,
        /// The key of the file that decides.
        key: &'static str,
    },
    /// No line of the file allows it, and the default does not.
    #[error(
        "this host does not permit {what}: {why}; a line of {file} can allow it ({key})",
        file = file.display()
    )]
    Default {
        /// What was ordered.
        what: String,
        /// The rule that forbids it, for people.
        why: &'static str,
        /// Path of the permits file.
        file: PathBuf,
        /// The key of the file that can allow it.
        key: &'static str,
    },
    /// Nothing can allow it.
    #[error("this host never permits {what}: {own} holds its identity and its agents", own = own.display())]
    Own {
        /// What was ordered.
        what: String,
        /// STATE or RUN.
        own: PathBuf,
    },
}

/// What is permitted on this host.
#[derive(Debug, Clone)]
pub struct Permits {
    file: PathBuf,
    /// STATE and RUN.
    own: Vec<PathBuf>,
    /// Where each line of the file begins.
    lines: Vec<usize>,
    rules: Rules,
    there: bool,
}

impl Permits {
    /// Reads the file of the host with these directories, or takes the default where there is none. Read it anew for
    /// every order: what the administrator has written holds from then on.
    ///
    /// # Errors
    /// The file is there and cannot be read, believed or understood.
    pub fn read(state: &Path, run: &Path) -> Result<Self, PermitsFault> {
        let path = state.join(FILE);
        let own = [state, run].map(resolved).into();
        match open(&path)? {
            None => Ok(Self { file: path, own, lines: Vec::new(), rules: Rules::default(), there: false }),
            Some(text) => {
                let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
                let permits = Self { file: path, own, lines, rules: Rules::default(), there: true };
                let rules = Rules::parse(&text).map_err(|unclear| permits.unclear(unclear.at, unclear.what))?;
                permits.must_be_clear(&rules)?;
                Ok(Self { rules, ..permits })
            }
        }
    }

    /// The file that decides.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether there is a file; otherwise the default holds.
    pub fn is_there(&self) -> bool {
        self.there
    }

    /// Whether the manager may order this product to change over.
    ///
    /// # Errors
    /// It is pinned.
    pub fn change_over(&self, product: &Product) -> Result<(), NotPermitted> {
        let what = || format!("a change-over of {product}");
        match self.rules.pinned.iter().flat_map(|all| all.get_ref()).find(|pinned| pinned.get_ref() == product) {
            Some(pinned) => Err(self.line(pinned.span(), what(), "it is pinned", "change-over.pinned")),
            None => Ok(()),
        }
    }

    /// Whether this may be backed up.
    ///
    /// # Errors
    /// It does not lie in what the file names.
    pub fn backup(&self, source: &Path) -> Result<(), NotPermitted> {
        let Some(sources) = &self.rules.sources else { return Ok(()) };
        // Where a link leads counts as well as where it lies.
        for path in [source.to_owned(), resolved(source)] {
            if !sources.get_ref().iter().any(|place| path.starts_with(place.get_ref())) {
                let what = format!("backing up {}", path.display());
                return Err(self.line(sources.span(), what, "it lies in none of these", "backup.sources"));
            }
        }
        Ok(())
    }

    /// Whether something may be restored to this directory.
    ///
    /// # Errors
    /// It does not lie in what the file names, is a place of the system that no entry of the file lies in, or the
    /// host's own.
    pub fn restore(&self, target: &Path) -> Result<(), NotPermitted> {
        let what = format!("restoring to {}", target.display());
        for path in [target.to_owned(), resolved(target)] {
            self.place(&path, &what, self.rules.targets.as_ref(), "restore.targets")?;
        }
        Ok(())
    }

    /// Whether something may be restored over what is in this directory, and what a snapshot does not have be removed.
    ///
    /// # Errors
    /// No line of the file says that it may, or it is the host's own.
    pub fn restore_over(&self, target: &Path) -> Result<(), NotPermitted> {
        let (what, key) = (format!("restoring over what is in {}", target.display()), "restore.over");
        let Some(over) = &self.rules.over else {
            let why = "what is there is only written over where its administrator says so";
            return Err(NotPermitted::Default { what, why, file: self.file.clone(), key });
        };
        for path in [target.to_owned(), resolved(target)] {
            self.place(&path, &what, Some(over), key)?;
        }
        Ok(())
    }

    /// Whether samples of this host's backups may be restored into its agent's own directory, to test them.
    ///
    /// # Errors
    /// It is forbidden.
    pub fn restore_test(&self) -> Result<(), NotPermitted> {
        match self.rules.tests.as_ref().filter(|tests| !*tests.get_ref()) {
            Some(tests) => {
                Err(self.line(tests.span(), "restore tests".to_owned(), "they are forbidden", "restore.tests"))
            }
            None => Ok(()),
        }
    }

    /// Whether a repository may lie in this directory. One that `is_there` is refused by a line of the file only: it
    /// is used, and nothing new comes to be.
    ///
    /// # Errors
    /// As [`Permits::restore`].
    pub fn repository(&self, directory: &Path, is_there: bool) -> Result<(), NotPermitted> {
        if is_there && self.rules.places.is_none() {
            return Ok(());
        }
        let what = format!("a repository in {}", directory.display());
        for path in [directory.to_owned(), resolved(directory)] {
            self.place(&path, &what, self.rules.places.as_ref(), "repository.places")?;
        }
        Ok(())
    }

    /// Whether agents here may use the repository of this name, which another host serves.
    ///
    /// # Errors
    /// The file names repositories, and this is none of them; or it names only places of this host.
    pub fn served(&self, name: &RepositoryName) -> Result<(), NotPermitted> {
        let (rules, what) = (&self.rules, format!("the repository {name} of another host"));
        match (&rules.names, &rules.places) {
            (Some(names), _) if is_one(names, name) => Ok(()),
            (Some(names), _) => Err(self.line(names.span(), what, "it is none of these", "repository.names")),
            (None, Some(places)) => {
                Err(self.line(places.span(), what, "it lies in none of these", "repository.places"))
            }
            (None, None) => Ok(()),
        }
    }

    /// Whether repositories of this host may be served to others.
    ///
    /// # Errors
    /// It is forbidden.
    pub fn serve(&self) -> Result<(), NotPermitted> {
        match self.rules.serve.as_ref().filter(|serve| !*serve.get_ref()) {
            Some(serve) => {
                let what = "serving repositories to other hosts".to_owned();
                Err(self.line(serve.span(), what, "it is forbidden", "repository.serve"))
            }
            None => Ok(()),
        }
    }

    /// Whether repositories may be pruned here down to this many snapshots.
    ///
    /// # Errors
    /// Not at all, or not so far.
    pub fn prune(&self, keep_last: u32) -> Result<(), NotPermitted> {
        let rules = &self.rules;
        if let Some(prune) = rules.prune.as_ref().filter(|prune| !*prune.get_ref()) {
            return Err(self.line(prune.span(), "prune".to_owned(), "it is forbidden", "repository.prune"));
        }
        match rules.keep_last.as_ref().filter(|least| *least.get_ref() > keep_last) {
            Some(least) => {
                let what = format!("prune to {keep_last} snapshots of each source");
                Err(self.line(least.span(), what, "more must stay", "repository.keep-last"))
            }
            None => Ok(()),
        }
    }

    /// Whether the content of a file that was backed up from this path may be shown to the manager.
    ///
    /// # Errors
    /// No line of the file says that it may.
    pub fn show(&self, path: &Path) -> Result<(), NotPermitted> {
        let (what, key) = (format!("showing what is in {}", path.display()), "repository.show");
        match &self.rules.show {
            None => {
                let why = "contents of files are for whoever restores them here";
                Err(NotPermitted::Default { what, why, file: self.file.clone(), key })
            }
            Some(places) if places.get_ref().iter().any(|place| path.starts_with(place.get_ref())) => Ok(()),
            Some(places) => Err(self.line(places.span(), what, "it lies in none of these", key)),
        }
    }

    /// The program, by its absolute path, and the arguments of a command that may be run for a backup here. Whoever
    /// orders it says its name and nothing else.
    ///
    /// # Errors
    /// No line of the file names it.
    pub fn command(&self, name: &CommandName) -> Result<&[String], NotPermitted> {
        let named = self.rules.commands.iter().find(|(named, _)| named == name);
        let no_such = || NotPermitted::Default {
            what: format!("the command {name}"),
            why: "only commands that its administrator names are run for a backup",
            file: self.file.clone(),
            key: "commands",
        };
        named.map(|(_, words)| words.as_slice()).ok_or_else(no_such)
    }

    /// Whether operations of this kind of a program's own may be ordered here.
    ///
    /// # Errors
    /// The file names kinds, and this is none of them.
    pub fn own(&self, kind: &OperationKind) -> Result<(), NotPermitted> {
        match self.rules.kinds.as_ref().filter(|kinds| !is_one(kinds, kind)) {
            Some(kinds) => {
                let what = format!("operations of the kind {kind}");
                Err(self.line(kinds.span(), what, "it is none of these", "operations.kinds"))
            }
            None => Ok(()),
        }
    }

    fn place(
        &self,
        path: &Path,
        what: &str,
        allowed: Option<&List<PathBuf>>,
        key: &'static str,
    ) -> Result<(), NotPermitted> {
        if let Some(own) = self.own.iter().find(|own| path.starts_with(own)) {
            return Err(NotPermitted::Own { what: what.to_owned(), own: own.clone() });
        }
        let Some(allowed) = allowed else {
            return match system_place(path) {
                Some(why) => {
                    let file = self.file.clone();
                    Err(NotPermitted::Default { what: what.to_owned(), why, file, key })
                }
                None => Ok(()),
            };
        };
        let around: Vec<_> = allowed.get_ref().iter().filter(|place| path.starts_with(place.get_ref())).collect();
        let Some(nearest) = around.iter().max_by_key(|place| place.get_ref().components().count()) else {
            return Err(self.line(allowed.span(), what.to_owned(), "it lies in none of these", key));
        };
        match system_place(path) {
            // "/" or "/var" was hardly meant for this.
            Some(why) if system_place(nearest.get_ref()).is_none() => {
                Err(self.line(nearest.span(), what.to_owned(), why, key))
            }
            _ => Ok(()),
        }
    }

    /// Places are absolute, so that they mean the same wherever the agent stands.
    fn must_be_clear(&self, rules: &Rules) -> Result<(), PermitsFault> {
        let all = [&rules.sources, &rules.targets, &rules.over, &rules.places, &rules.show];
        for place in all.into_iter().flatten().flat_map(|places| places.get_ref()) {
            let path = place.get_ref();
            if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                let what = format!("{} is no absolute path without `..`", path.display());
                return Err(self.unclear(place.span(), what));
            }
        }
        Ok(())
    }

    fn unclear(&self, span: Range<usize>, what: String) -> PermitsFault {
        let line = self.line_of(span);
        PermitsFault::Unclear { path: self.file.clone(), line, what }
    }

    fn line(&self, span: Range<usize>, what: String, why: &'static str, key: &'static str) -> NotPermitted {
        NotPermitted::Line { what, why, file: self.file.clone(), line: self.line_of(span), key }
    }

    fn line_of(&self, span: Range<usize>) -> usize {
        self.lines.partition_point(|begin| *begin <= span.start)
    }
}

fn is_one<T: PartialEq>(list: &List<T>, wanted: &T) -> bool {
    list.get_ref().iter().any(|item| item.get_ref() == wanted)
}

/// The text of a file that others than root and this user cannot have written; `None`: there is none.
fn open(path: &Path) -> Result<Option<String>, PermitsFault> {
    let fault = |source| PermitsFault::Io { path: path.to_owned(), source };
    // Neither a link is followed nor a FIFO waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(PermitsFault::NoFile { path: path.to_owned() });
        }
        Err(error) => return Err(fault(error)),
    };
    let metadata = file.metadata().map_err(fault)?;
    if !metadata.is_file() || metadata.len() > BYTES_MAX {
        return Err(PermitsFault::NoFile { path: path.to_owned() });
    }
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if !is_trusted(owner, mode, rustix::process::geteuid().as_raw()) {
        return Err(PermitsFault::NotTrusted { path: path.to_owned(), owner, mode });
    }
    read(file).map(Some).map_err(fault)
}

/// Whether nobody but root and this user can have written a file of this owner and mode.
fn is_trusted(owner: u32, mode: u32, us: u32) -> bool {
    (owner == 0 || owner == us) && mode & 0o022 == 0
}

fn read(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Bench(tempfile::TempDir);

    impl Bench {
        fn new(text: &str) -> Self {
            let bench = Self(tempfile::tempdir().unwrap());
            fs::write(bench.file(), text).unwrap();
            bench
        }

        fn file(&self) -> PathBuf {
            self.0.path().join(FILE)
        }

        fn read(&self) -> Result<Permits, PermitsFault> {
            Permits::read(self.0.path(), &self.0.path().join("run"))
        }
    }

    fn none() -> (tempfile::TempDir, Permits) {
        let dir = tempfile::tempdir().unwrap();
        let permits = Permits::read(&dir.path().join("state"), &dir.path().join("run")).unwrap();
        assert!(!permits.is_there());
        (dir, permits)
    }

    #[test]
    fn without_a_file_nothing_is_restored_to_where_the_system_or_a_person_looks() {
        let (dir, permits) = none();
        for bad in [
            "etc/cron.d",
            "usr/lib/systemd/system/x.service.d",
            "boot",
            "root/.ssh",
            "root",
            "home/ann",
            "home/ann/.config/systemd/user",
            "var/spool/cron",
            "run/systemd/system",
            "lib/x",
        ] {
            let bad = &format!("/{bad}");
            let refused = permits.restore(Path::new(bad)).expect_err(bad).to_string();
            assert!(refused.contains(bad) && refused.contains("restore.targets"), "{refused}");
            permits.repository(Path::new(bad), false).expect_err(bad);
            permits.repository(Path::new(bad), true).expect(bad);
        }
        for good in ["srv/back", "home/ann/restored", "root/restored/.ssh", "tmp/.x", "etcetera", "data"] {
            let good = &format!("/{good}");
            permits.restore(Path::new(good)).expect(good);
            permits.repository(Path::new(good), false).expect(good);
        }
        permits.backup(Path::new("/etc")).unwrap();
        permits.prune(1).unwrap();
        permits.change_over(&"data-agent".parse().unwrap()).unwrap();
        let own = permits.restore(&dir.path().join("state/agents/other")).unwrap_err();
        assert!(matches!(own, NotPermitted::Own { .. }), "{own}");
    }

    #[test]
    fn repositories_of_other_hosts_are_permitted_by_their_names_and_by_no_place() {
        let (main, other): (RepositoryName, RepositoryName) = ("main".parse().unwrap(), "other".parse().unwrap());
        let permits = |text: &str| Bench::new(text).read().unwrap();
        let (_dir, default) = none();
        default.served(&main).unwrap();
        default.serve().unwrap();
        let named = permits("[repository]\nnames = [\"main\"]\nplaces = [\"/mnt\"]\n");
        named.served(&main).unwrap();
        let refused = named.served(&other).unwrap_err().to_string();
        assert!(refused.contains("repository other") && refused.contains("line 2: repository.names"), "{refused}");
        let refused = permits("[repository]\nplaces = [\"/mnt\"]\n").served(&main).unwrap_err().to_string();
        assert!(
            refused.contains("repository.places"),
            "whoever said where they lie did not mean anywhere: {refused}"
        );
        let refused = permits("[repository]\nserve = false\n").serve().unwrap_err().to_string();
        assert!(refused.contains("line 2: repository.serve"), "{refused}");
        permits("[repository]\nserve = true\n").serve().unwrap();
        assert!(Bench::new("[repository]\nnames = [\"/mnt\"]\n").read().is_err());
    }

    #[test]
    fn a_refusal_names_the_line_that_decides() {
        let text = "# ours\n[change-over]\npinned = [\n  \"index\",\n  \"data-agent\",\n]\n\n[backup]\nsources = \
                    [\"/srv\"]\n[restore]\ntargets = [\"/srv/back\", \"/var\"]\n[repository]\nplaces = \
                    [\"/etc/vault\"]\nkeep-last = 7\n";
        let bench = Bench::new(text);
        let permits = bench.read().unwrap();
        let line = |refused: Result<(), NotPermitted>, line: usize| {
            let refused = refused.unwrap_err().to_string();
            let place = format!("({}, line {line}: ", bench.file().display());
            assert!(refused.contains(&place), "{refused}");
        };
        line(permits.change_over(&"data-agent".parse().unwrap()), 5);
        permits.change_over(&"media-agent".parse().unwrap()).unwrap();
        line(permits.backup(Path::new("/etc")), 9);
        permits.backup(Path::new("/srv/ann")).unwrap();
        line(permits.restore(Path::new("/srv/backup")), 11);
        line(permits.restore(Path::new("/var/lib/x")), 11);
        permits.restore(Path::new("/srv/back/1")).unwrap();
        permits.restore(Path::new("/var/restored")).unwrap();
        // A place of the system that is named itself.
        permits.repository(Path::new("/etc/vault/1"), false).unwrap();
        line(permits.repository(Path::new("/mnt"), true), 13);
        line(permits.prune(6), 14);
        permits.prune(7).unwrap();
        let kinds = Bench::new("[operations]\nkinds = [\"rotate\"]\n").read().unwrap();
        kinds.own(&"rotate".parse().unwrap()).unwrap();
        let refused = kinds.own(&"wipe".parse().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("operations of the kind wipe") && refused.contains("line 2: operations.kinds"));
        let none = Bench::new("[repository]\nprune = false\n").read().unwrap();
        none.own(&"wipe".parse().unwrap()).unwrap();
        assert!(none.prune(100).unwrap_err().to_string().contains("line 2: repository.prune"));
    }

    #[test]
    fn a_command_is_what_a_line_says_of_its_name() {
        let dump = "dump".parse().unwrap();
        let refused = none().1.command(&dump).unwrap_err().to_string();
        assert!(refused.contains("the command dump") && refused.contains("(commands)"), "{refused}");
        let some = Bench::new("[commands]\ndump = [\"/usr/bin/pg_dump\", \"--all\"]\nthaw = [\"/bin/thaw\"]\n");
        let permits = some.read().unwrap();
        assert_eq!(permits.command(&dump).unwrap(), ["/usr/bin/pg_dump", "--all"]);
        assert_eq!(permits.command(&"thaw".parse().unwrap()).unwrap(), ["/bin/thaw"]);
        assert!(permits.command(&"freeze".parse().unwrap()).is_err());
        let named: [&str; 5] =
            ["dump = []", "dump = [\"pg_dump\"]", "dump = \"/bin/a\"", "\"a/b\" = [\"/b\"]", "a = [1]"];
        for line in named {
            let fault = Bench::new(&format!("[commands]\n{line}\n")).read().unwrap_err();
            assert!(matches!(fault, PermitsFault::Unclear { line: 2, .. }), "{line}: {fault}");
        }
    }

    #[test]
    fn contents_are_shown_only_where_a_line_says_so() {
        let file = Path::new("/srv/web/index.html");
        let none = Bench::new("").read().unwrap();
        assert!(none.show(file).unwrap_err().to_string().contains("repository.show"));
        let some = Bench::new("[repository]\nshow = [\"/srv/web\"]\n").read().unwrap();
        some.show(file).unwrap();
        let refused = some.show(Path::new("/srv/webmail/x")).unwrap_err().to_string();
        assert!(refused.contains("line 2: repository.show"), "{refused}");
        let relative = Bench::new("[repository]\nshow = [\"srv\"]\n").read();
        assert!(matches!(relative, Err(PermitsFault::Unclear { line: 2, .. })));
    }

    #[test]
    fn nothing_is_written_over_where_no_line_says_so() {
        let (dir, none) = none();
        let refused = none.restore_over(Path::new("/srv/data")).unwrap_err().to_string();
        assert!(
            refused.contains("restoring over what is in /srv/data") && refused.contains("restore.over"),
            "{refused}"
        );
        none.restore_test().unwrap();
        let some = Bench::new("[restore]\nover = [\"/srv/data\", \"/etc/nginx\", \"/var\"]\ntests = false\n");
        let permits = some.read().unwrap();
        permits.restore_over(Path::new("/srv/data/deep")).unwrap();
        permits.restore_over(Path::new("/etc/nginx")).unwrap();
        for bad in ["/srv", "/etc", "/var/lib/x"] {
            let refused = permits.restore_over(Path::new(bad)).expect_err(bad).to_string();
            assert!(refused.contains("line 2: restore.over"), "{refused}");
        }
        assert!(permits.restore_test().unwrap_err().to_string().contains("line 3: restore.tests"));
        let own = Bench::new("[restore]\nover = [\"/\"]\n").0;
        let permits = Permits::read(own.path(), &dir.path().join("run")).unwrap();
        assert!(matches!(permits.restore_over(own.path()), Err(NotPermitted::Own { .. })));
    }

    #[test]
    fn a_link_out_of_what_may_be_backed_up_is_no_way_out() {
        let bench = Bench::new("");
        let (inside, outside) = (bench.0.path().join("inside"), bench.0.path().join("outside"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(outside.join("secret")).unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        fs::write(bench.file(), format!("[backup]\nsources = [{:?}]\n", inside.canonicalize().unwrap())).unwrap();
        let permits = bench.read().unwrap();
        permits.backup(&inside).unwrap();
        let refused = permits.backup(&inside.join("link/secret")).unwrap_err().to_string();
        assert!(refused.contains("outside/secret") && refused.contains("line 2"), "{refused}");
    }

    #[test]
    fn a_file_that_is_not_understood_permits_nothing_and_says_where() {
        for (text, line) in [
            ("[restore]\ntarget = [\"/srv\"]\n", 2),
            ("\n\n[hooks]\n", 3),
            ("[backup]\nsources = [\"/a\", \"b\"]\n", 2),
            ("[backup]\nsources = [\n\"/a/../b\"]\n", 3),
            ("[repository]\nkeep-last = -1\n", 2),
            ("[change-over]\npinned = [\"a/b\"]\n", 2),
            ("[backup]\nsources =\n", 2),
            ("x", 1),
        ] {
            let fault = Bench::new(text).read().unwrap_err();
            assert!(matches!(&fault, PermitsFault::Unclear { line: found, .. } if *found == line), "{text}: {fault}");
        }
        let bench = Bench::new("");
        assert!(bench.read().unwrap().is_there());
        fs::set_permissions(bench.file(), fs::Permissions::from_mode(0o666)).unwrap();
        let fault = bench.read().unwrap_err().to_string();
        assert!(fault.contains("0666") && fault.contains("chmod"), "{fault}");
        fs::remove_file(bench.file()).unwrap();
        symlink("/dev/null", bench.file()).unwrap();
        assert!(matches!(bench.read(), Err(PermitsFault::NoFile { .. })));
        fs::remove_file(bench.file()).unwrap();
        fs::create_dir(bench.file()).unwrap();
        assert!(matches!(bench.read(), Err(PermitsFault::NoFile { .. })));
    }

    #[test]
    fn a_file_is_trusted_that_nobody_but_root_and_this_user_can_have_written() {
        for (owner, mode, us, is) in [
            (0, 0o644, 0, true),
            (0, 0o644, 7, true),
            (7, 0o600, 7, true),
            (8, 0o600, 7, false),
            (7, 0o600, 0, false),
            (7, 0o620, 7, false),
            (0, 0o602, 7, false),
        ] {
            assert_eq!(is_trusted(owner, mode, us), is, "{mode:o} of {owner}, for {us}");
        }
    }

    #[test]
    fn a_file_has_a_bound_and_is_neither_a_link_nor_waited_for() {
        let bytes = usize::try_from(BYTES_MAX).unwrap();
        assert!(Bench::new(&"#".repeat(bytes)).read().unwrap().is_there());
        let larger = Bench::new(&"#".repeat(bytes + 1));
        assert!(matches!(larger.read(), Err(PermitsFault::NoFile { .. })));
        let link = Bench::new("");
        fs::rename(link.file(), link.0.path().join("elsewhere")).unwrap();
        symlink("elsewhere", link.file()).unwrap();
        assert!(matches!(link.read(), Err(PermitsFault::NoFile { .. })));
        fs::remove_file(link.file()).unwrap();
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, link.file(), kind, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(matches!(link.read(), Err(PermitsFault::NoFile { .. })));
        // That it cannot be opened is not that it is no file.
        let fault = Permits::read(&link.0.path().join("elsewhere"), Path::new("/run")).unwrap_err();
        assert!(matches!(fault, PermitsFault::Io { .. }), "{fault}");
    }

    #[test]
    fn a_pinned_product_stays_what_it_is() {
        let bench = Bench::new("[change-over]\npinned = [\"index\"]\n");
        let of = |product: &str| AgentPaths::new(bench.0.path(), "", product.parse().unwrap());
        may_change_over(&of("other")).unwrap();
        let stays = may_change_over(&of("index")).unwrap_err();
        assert!(matches!(stays, Stays::Pinned(_)), "{stays}");
    }
}
