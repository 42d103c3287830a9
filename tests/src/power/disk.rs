//! A disk that knows what of it is synced.
//!
//! Its promises are the fewest that a file system of today makes: what a file held when its `fsync` began is there, a name
//! is there when its directory was synced, a rename happens or does not, a sector is written or is not. Whatever else was
//! done may be there in any choice and any order.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a disk writes whole or not at all, bytes.
const SECTOR_BYTES: usize = 512;

/// What becomes of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// Nothing of it is left.
    Dropped,
    /// All of it is there.
    Kept,
    /// Any part of it is there, without regard to the order in which it was written.
    Some(u64),
}

/// Something that was done to a file or a name, without what failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    Open {
        path: PathBuf,
        create: Option<u32>,
        truncate: bool,
        append: bool,
    },
    /// At an offset, or where the file stands.
    Write {
        path: PathBuf,
        at: Option<usize>,
        bytes: Vec<u8>,
    },
    Seek {
        path: PathBuf,
        to: usize,
    },
    Length {
        path: PathBuf,
        bytes: usize,
    },
    /// A sync begins.
    Syncs,
    /// One returns that began so many operations ago.
    Synced {
        path: PathBuf,
        since: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Symlink {
        path: PathBuf,
        target: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    Mkdir {
        path: PathBuf,
        mode: u32,
    },
}

impl Operation {
    /// What it concerns.
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Operation::Syncs => Vec::new(),
            Operation::Rename { from, to } | Operation::Link { from, to } => vec![from, to],
            Operation::Open { path, .. }
            | Operation::Write { path, .. }
            | Operation::Seek { path, .. }
            | Operation::Length { path, .. }
            | Operation::Synced { path, .. }
            | Operation::Symlink { path, .. }
            | Operation::Remove { path }
            | Operation::Mkdir { path, .. } => vec![path],
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// Counts changes: of two for one name the later stands.
    clock: u64,
    files: Vec<File>,
    names: BTreeMap<PathBuf, Node>,
    /// With the clock of the change; `None`: removed.
    synced: BTreeMap<PathBuf, (u64, Option<Node>)>,
    renames: Vec<Naming>,
}

#[derive(Debug, Clone)]
struct File {
    mode: u32,
    synced: Arc<Vec<u8>>,
    now: Arc<Vec<u8>>,
    writes: Vec<(u64, Write)>,
    cursor: usize,
    appends: bool,
}

#[derive(Debug, Clone)]
enum Write {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug, Clone)]
enum Node {
    Dir(u32),
    File(usize),
    Link(PathBuf),
}

/// A change of names that happens or does not.
#[derive(Debug, Clone)]
struct Naming {
    clock: u64,
    sets: Vec<(PathBuf, Option<Node>)>,
}

impl Disk {
    /// What is below these directories now, all of it synced.
    pub(super) fn of(roots: &[PathBuf]) -> Self {
        let mut disk = Self::default();
        roots.iter().for_each(|root| disk.read(root));
        disk.synced = disk.names.iter().map(|(path, node)| (path.clone(), (0, Some(node.clone())))).collect();
        disk
    }

    fn read(&mut self, path: &Path) {
        let Ok(about) = fs::symlink_metadata(path) else { return };
        let mode = about.permissions().mode() & 0o7777;
        let node = if about.is_dir() {
            for entry in fs::read_dir(path).expect("a directory of the programs").flatten() {
                self.read(&entry.path());
            }
            Node::Dir(mode)
        } else if about.is_symlink() {
            Node::Link(fs::read_link(path).expect("a link"))
        } else if about.is_file() {
            let bytes = Arc::new(fs::read(path).expect("a file of the programs"));
            self.new_file(mode, bytes)
        } else {
            return;
        };
        self.names.insert(path.to_owned(), node);
    }

    fn new_file(&mut self, mode: u32, bytes: Arc<Vec<u8>>) -> Node {
        let (synced, now) = (Arc::clone(&bytes), bytes);
        self.files.push(File { mode, synced, now, writes: Vec::new(), cursor: 0, appends: false });
        Node::File(self.files.len() - 1)
    }

    /// The files by name, as a program sees them.
    pub(super) fn now(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = self.names.iter().filter_map(|(path, node)| match node {
            Node::File(file) => Some((path.clone(), self.files[*file].now.to_vec())),
            Node::Dir(_) | Node::Link(_) => None,
        });
        files.collect()
    }

    /// Does what a program did.
    pub(super) fn run(&mut self, operation: &Operation) {
        self.clock += 1;
        match operation {
            Operation::Open { path, create, truncate, append } => self.open(path, *create, *truncate, *append),
            Operation::Write { path, at, bytes } => self.write(path, *at, bytes),
            Operation::Seek { path, to } => {
                if let Some(file) = self.file(path) {
                    file.cursor = *to;
                }
            }
            Operation::Length { path, bytes } => self.change(path, Write::Length(*bytes)),
            // When a sync begins matters, and its end refers to it.
            Operation::Syncs => {}
            Operation::Synced { path, since } => self.sync(path, self.clock - 1 - *since),
            Operation::Rename { from, to } => self.rename(from, to),
            Operation::Link { from, to } => {
                let node = self.names.get(from).cloned();
                self.name(vec![(to.clone(), node)]);
            }
            Operation::Symlink { path, target } => self.name(vec![(path.clone(), Some(Node::Link(target.clone())))]),
            Operation::Remove { path } => self.name(vec![(path.clone(), None)]),
            Operation::Mkdir { path, mode } => self.name(vec![(path.clone(), Some(Node::Dir(*mode)))]),
        }
    }

    fn open(&mut self, path: &Path, create: Option<u32>, truncate: bool, append: bool) {
        if let (Some(mode), None) = (create, self.names.get(path)) {
            let node = self.new_file(mode, Arc::default());
            self.name(vec![(path.to_owned(), Some(node))]);
        } else if truncate {
            self.change(path, Write::Length(0));
        }
        if let Some(file) = self.file(path) {
            (file.cursor, file.appends) = (0, append);
        }
    }

    fn file(&mut self, path: &Path) -> Option<&mut File> {
        match self.names.get(path) {
            Some(Node::File(file)) => Some(&mut self.files[*file]),
            _ => None,
        }
    }

    fn write(&mut self, path: &Path, at: Option<usize>, bytes: &[u8]) {
        let Some(file) = self.file(path) else { return };
        let end = file.now.len();
        let from = at.unwrap_or(if file.appends { end } else { file.cursor });
        if at.is_none() {
            file.cursor = from + bytes.len();
        }
        self.change(path, Write::Bytes(from, bytes.to_vec()));
    }

    fn change(&mut self, path: &Path, write: Write) {
        let clock = self.clock;
        let Some(file) = self.file(path) else { return };
        write.apply(Arc::make_mut(&mut file.now), || true);
        file.writes.push((clock, write));
    }

    fn name(&mut self, sets: Vec<(PathBuf, Option<Node>)>) {
        for (path, node) in &sets {
            match node {
                Some(node) => drop(self.names.insert(path.clone(), node.clone())),
                None => drop(self.names.remove(path)),
            }
        }
        self.renames.push(Naming { clock: self.clock, sets });
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let below: Vec<_> = self.names.iter().filter(|(path, _)| path.starts_with(from)).collect();
        let sets = below.into_iter().flat_map(|(path, node)| {
            let rest = path.strip_prefix(from).expect("a path below it");
            // Joining nothing would add a slash.
            let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            [(path.clone(), None), (new, Some(node.clone()))]
        });
        let sets = sets.collect();
        self.name(sets);
    }

    /// Everything of this file, or every name in this directory, that was changed up to then is there to stay.
    fn sync(&mut self, path: &Path, until: u64) {
        if let Some(file) = self.file(path) {
            let (synced, left): (Vec<_>, Vec<_>) = file.writes.drain(..).partition(|(clock, _)| *clock <= until);
            file.writes = left;
            for (_, write) in synced {
                write.apply(Arc::make_mut(&mut file.synced), || true);
            }
        } else {
            let concerns = |naming: &Naming| {
                naming.clock <= until && naming.sets.iter().any(|(name, _)| name.parent() == Some(path))
            };
            let (synced, left) = self.renames.drain(..).partition::<Vec<_>, _>(concerns);
            self.renames = left;
            synced.iter().for_each(|naming| naming.apply(&mut self.synced));
        }
    }

    /// Writes what is left of a directory after a power cut into its place.
    pub(super) fn leave(&self, root: &Path, unsynced: Unsynced) {
        drop(fs::remove_dir_all(root));
        let mut luck = Luck::new(unsynced);
        let mut names = self.synced.clone();
        self.renames.iter().filter(|_| luck.has()).for_each(|naming| naming.apply(&mut names));
        // A directory comes before what is in it; what is in one that is lost is lost.
        for (path, (_, node)) in names.range(root.to_owned()..).take_while(|(path, _)| path.starts_with(root)) {
            let Some(node) = node else { continue };
            if !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match node {
                Node::Dir(mode) => fs::DirBuilder::new().mode(*mode).create(path).expect("a directory"),
                Node::Link(target) => symlink(target, path).expect("a link"),
                Node::File(file) => {
                    let file = &self.files[*file];
                    let mut bytes = file.synced.to_vec();
                    file.writes.iter().for_each(|(_, write)| write.apply(&mut bytes, || luck.has()));
                    fs::write(path, bytes).expect("a file");
                    fs::set_permissions(path, fs::Permissions::from_mode(file.mode)).expect("its mode");
                }
            }
        }
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, (u64, Option<Node>)>) {
        for (path, node) in &self.sets {
            let before = names.get(path).map_or(0, |(clock, _)| *clock);
            if self.clock > before {
                names.insert(path.clone(), (self.clock, node.clone()));
            }
        }
    }
}

impl Write {
    /// Writes those sectors that `happens` says.
    fn apply(&self, bytes: &mut Vec<u8>, mut happens: impl FnMut() -> bool) {
        match self {
            Write::Length(length) if happens() => bytes.resize(*length, 0),
            Write::Length(_) => {}
            Write::Bytes(from, new) => {
                let mut at = 0;
                while at < new.len() {
                    let end = (at + SECTOR_BYTES - (from + at) % SECTOR_BYTES).min(new.len());
                    if happens() {
                        bytes.resize(bytes.len().max(from + end), 0);
                        bytes[from + at..from + end].copy_from_slice(&new[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

/// Whether the next thing that was not synced is there all the same.
struct Luck {
    unsynced: Unsynced,
    state: u64,
}

impl Luck {
    fn new(unsynced: Unsynced) -> Self {
        let state = if let Unsynced::Some(seed) = unsynced { seed } else { 0 };
        Self { unsynced, state }
    }

    fn has(&mut self) -> bool {
        match self.unsynced {
            Unsynced::Dropped => false,
            Unsynced::Kept => true,
            Unsynced::Some(_) => {
                self.state =
                    self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                self.state >> 63 == 1
            }
        }
    }
}
