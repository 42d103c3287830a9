//! What the manager finds out about a tree: enough to start the version later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::manifest::{Node, NodeKind, Object, Unresolved};
use proto::path::PathError;
use proto::record::{ElfFile, HealthContract, Metadata, Script};
use proto::width;
use proto::{ChunkId, Manifest, ObjectId, TreeId, TreePath};

use super::content::{ObjectReader, ReadChunk};
use super::elf;
use super::ingest::Start;
use super::libraries;
use super::monitor::{Monitor, Quiet, Task};
use super::product_file::{ProductFile, ProductFileFault};
use super::skew::Standing;
use super::store::{Store, StoreError};

/// The descriptor, in the root of a tree.
pub const DESCRIPTOR: &str = "manager-fs.toml";
/// Bytes of a descriptor; a real one has some hundred.
const DESCRIPTOR_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a `#!` line: what Linux reads of it (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE_BYTES_MAX: usize = 256;

/// Missing libraries that are told one by one.
const MISSING_SHOWN: usize = 8;

/// Why a tree has no usable metadata.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The entry point is missing or cannot be executed.
    #[error("entry point '{path}' ({named_by}) {fault}; {}", candidates_text(.candidates))]
    EntryPoint {
        /// As it was given.
        path: String,
        /// Who gave it.
        named_by: &'static str,
        /// What is wrong with it.
        fault: EntryPointFault,
        /// Executables of the tree.
        candidates: Vec<TreePath>,
    },
    /// The descriptor does not say what a descriptor says.
    #[error("{DESCRIPTOR} in the root of the tree: {0}")]
    Descriptor(DescriptorFault),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller gave up.
    #[error("cancelled; nothing was published")]
    Cancelled,
}

/// Why a path is no entry point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryPointFault {
    /// It is no path of a tree.
    #[error("{}", .0.fault)]
    Path(#[from] PathError),
    /// It leads to nothing in the tree.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// Nobody may execute it.
    #[error("is not executable (mode {mode:04o})")]
    NotExecutable {
        /// Its permission bits.
        mode: u32,
    },
    /// It has no content.
    #[error("is an empty file")]
    Empty,
    /// It is no file.
    #[error("is a directory")]
    Directory,
    /// It is a link to a link.
    #[error("is a symlink that leads nowhere")]
    Symlink,
    /// It is a name, and no directory of the image's `PATH` has it.
    #[error("is in none of {0}")]
    NotFound(String),
}

/// What is wrong with a tree's descriptor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorFault {
    /// The manifest does not have its object.
    #[error("its content is missing")]
    NoContent,
    /// It has more than a product can have to say.
    #[error("it is larger than 64 KiB")]
    TooLarge,
    /// It is a directory or a symlink.
    #[error("it is not a regular file")]
    NotAFile,
    /// It is no UTF-8.
    #[error(transparent)]
    NotText(#[from] std::string::FromUtf8Error),
    /// It says what a product file does not say.
    #[error(transparent)]
    Content(#[from] ProductFileFault),
    /// It adapts a program that there is not.
    #[error("[adapter] without an entry point to run; {}", candidates_text(.candidates))]
    NoProgram {
        /// Executables of the tree.
        candidates: Vec<TreePath>,
    },
}

fn candidates_text(candidates: &[TreePath]) -> String {
    match candidates {
        [] => "the tree has no executable file".to_owned(),
        some => {
            let shown: Vec<String> = some.iter().take(10).map(|path| format!("'{path}'")).collect();
            let more = if some.len() > 10 { format!(" and {} more", some.len() - 10) } else { String::new() };
            format!("executables of the tree: {}{more}", shown.join(", "))
        }
    }
}

/// A tree, and the means to look into its files.
pub(crate) struct Inspection<'a> {
    pub(crate) manifest: &'a Manifest,
    /// The first bytes of objects, where they are known already.
    pub(crate) heads: &'a HashMap<ObjectId, [u8; 4]>,
    pub(crate) chunk: &'a ReadChunk<'a>,
    pub(crate) monitor: &'a dyn Monitor,
    pub(crate) cancelled: &'a AtomicBool,
}

impl Inspection<'_> {
    /// Extracts the metadata. `entry_point` is what the operator named, `start` what an image says.
    ///
    /// # Errors
    /// See [`MetadataError`].
    pub(crate) fn run(&self, entry_point: Option<&str>, start: Option<&Start>) -> Result<Metadata, MetadataError> {
        let said = self.product_file()?;
        let (elf_files, scripts) = self.programs()?;
        let candidates = self.candidates(&elf_files, &scripts);
        let started = start.and_then(|start| self.started(start));
        let named = match (entry_point, &said.entrypoint) {
            (Some(path), _) => Some((path, "named by --entrypoint")),
            (None, Some(path)) => Some((path.as_str(), "named by manager-fs.toml")),
            (None, None) => None,
        };
        let entry_point = match named {
            Some((path, named_by)) => Some(self.checked_entry_point(path).map_err(|fault| {
                let (path, candidates) = (path.to_owned(), candidates.clone());
                MetadataError::EntryPoint { path, named_by, fault, candidates }
            })?),
            None => started.clone().or_else(|| obvious(&candidates)),
        };
        // What an image's program is started with says nothing to another program.
        let arguments = match start {
            Some(start) if said.arguments.is_empty() && named.is_none() && started.is_some() => {
                start.arguments.clone()
            }
            _ => said.arguments.clone(),
        };
        if said.adapter.is_some() && entry_point.is_none() {
            return Err(MetadataError::Descriptor(DescriptorFault::NoProgram { candidates }));
        }
        if let Some(entry) = &entry_point {
            self.tell_missing_libraries(&elf_files, entry, &said.host_libraries);
        }
        let architecture = entry_point.as_ref().and_then(|path| self.architecture(path, &elf_files, &scripts));
        let bytes_of = |node: &Node| match &node.kind {
            NodeKind::File(id) => self.manifest.object(id).map_or(0, |object| object.bytes),
            _ => 0,
        };
        let nodes = || self.manifest.entries.iter().map(|entry| self.manifest.node(entry));
        Ok(Metadata {
            entry_point,
            arguments,
            architecture,
            elf_files,
            scripts,
            entry_count: self.manifest.entries.len() as u64,
            file_count: nodes().filter(|n| matches!(n.kind, NodeKind::File(_) | NodeKind::EmptyFile)).count() as u64,
            content_bytes: nodes().map(bytes_of).sum(),
            object_bytes: self.manifest.object_bytes(),
            state_schemas: said.state_schemas,
            drain_deadline_ms: said.drain_deadline_ms,
            health: HealthContract { probation_ms: said.probation_ms, check: said.health },
            adapter: said.adapter,
        })
    }

    /// Tells what no host's loader will find, before any host tries.
    fn tell_missing_libraries(&self, files: &[ElfFile], entry: &TreePath, of_the_host: &[String]) {
        let missing = libraries::missing(self.manifest, files, entry, of_the_host);
        for library in missing.iter().take(MISSING_SHOWN) {
            self.monitor.problem(&format!("{library}: only hosts that have it can start this version"));
        }
        if missing.len() > MISSING_SHOWN {
            let more = missing.len() - MISSING_SHOWN;
            self.monitor.problem(&format!("{more} more libraries are missing in the same way"));
        }
    }

    fn product_file(&self) -> Result<ProductFile, MetadataError> {
        let path = TreePath::parse(DESCRIPTOR.as_bytes()).ok();
        let entry = path.and_then(|path| self.manifest.entry(&path));
        let refused = |fault| Err(MetadataError::Descriptor(fault));
        let bytes = match entry.map(|entry| &self.manifest.node(entry).kind) {
            None | Some(NodeKind::EmptyFile) => Vec::new(),
            Some(NodeKind::File(id)) => {
                let Some(object) = self.manifest.object(id) else { return refused(DescriptorFault::NoContent) };
                if object.bytes > DESCRIPTOR_BYTES_MAX {
                    return refused(DescriptorFault::TooLarge);
                }
                self.start_of(object, width::index(DESCRIPTOR_BYTES_MAX))?
            }
            Some(_) => return refused(DescriptorFault::NotAFile),
        };
        let text = String::from_utf8(bytes).map_err(|fault| MetadataError::Descriptor(fault.into()))?;
        ProductFile::parse(&text).map_err(|fault| MetadataError::Descriptor(fault.into()))
    }

    /// Every ELF file, and every executable script, in the order of the tree.
    fn programs(&self) -> Result<(Vec<ElfFile>, Vec<Script>), MetadataError> {
        let (mut elf_files, mut scripts) = (Vec::new(), Vec::new());
        let total = self.manifest.entries.len() as u64;
        for (done, entry) in self.manifest.entries.iter().enumerate() {
            if done % 256 == 0 {
                self.monitor.progress(Task::Inspect, done as u64, total);
                if self.cancelled.load(Ordering::Relaxed) {
                    return Err(MetadataError::Cancelled);
                }
            }
            let node = self.manifest.node(entry);
            let NodeKind::File(id) = &node.kind else { continue };
            let Some(object) = self.manifest.object(id) else { continue };
            let head = match self.heads.get(id) {
                Some(head) => head.to_vec(),
                None => self.start_of(object, 4)?,
            };
            if head.starts_with(&elf::MAGIC) {
                let content = ObjectReader::new(object, self.manifest.chunk_bytes, self.chunk);
                elf_files.extend(elf::describe(&entry.path, object.bytes, content));
            } else if head.starts_with(b"#!") && node.mode & 0o111 != 0 {
                let start = self.start_of(object, SCRIPT_LINE_BYTES_MAX)?;
                let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let interpreter = proto::path::printable(line.get(2..).unwrap_or_default()).trim().to_owned();
                scripts.push(Script { path: entry.path.clone(), interpreter });
            }
        }
        self.monitor.progress(Task::Inspect, total, total);
        Ok((elf_files, scripts))
    }

    fn start_of(&self, object: &Object, bytes_max: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        for chunk in &object.chunks {
            if bytes.len() >= bytes_max {
                break;
            }
            bytes.extend_from_slice(&(self.chunk)(chunk)?);
        }
        bytes.truncate(bytes_max);
        Ok(bytes)
    }

    /// Files that can be started: executable by mode, and a program or a script by content.
    fn candidates(&self, elf_files: &[ElfFile], scripts: &[Script]) -> Vec<TreePath> {
        let programs = elf_files.iter().filter(|file| file.kind == "executable").map(|file| &file.path);
        let mut paths: Vec<&TreePath> = programs.chain(scripts.iter().map(|script| &script.path)).collect();
        paths.sort();
        let mut seen = std::collections::HashSet::new();
        let executable = |path: &&TreePath| {
            let Some(entry) = self.manifest.entry(path) else { return false };
            // Of a file with several names the first stands for all.
            self.manifest.node(entry).mode & 0o111 != 0 && seen.insert(entry.node)
        };
        paths.into_iter().filter(executable).cloned().collect()
    }

    /// The entry point as it was named, if it leads to an executable file without leaving the tree.
    fn checked_entry_point(&self, text: &str) -> Result<TreePath, EntryPointFault> {
        let path = TreePath::parse(text.trim_start_matches("./").as_bytes())?;
        let at = self.manifest.resolve(&path)?;
        let node = self.manifest.node(&self.manifest.entries[at]);
        match node.kind {
            NodeKind::File(_) | NodeKind::EmptyFile if node.mode & 0o111 == 0 => {
                Err(EntryPointFault::NotExecutable { mode: node.mode })
            }
            NodeKind::File(_) => Ok(path),
            NodeKind::EmptyFile => Err(EntryPointFault::Empty),
            NodeKind::Directory => Err(EntryPointFault::Directory),
            NodeKind::Symlink(_) => Err(EntryPointFault::Symlink),
        }
    }

    /// The program that an image starts; told, where the tree has it not.
    fn started(&self, start: &Start) -> Option<TreePath> {
        let inside = |path: &str| self.checked_entry_point(path.trim_start_matches('/'));
        let found = if start.program.contains('/') {
            inside(&start.program)
        } else {
            let mut places = start.path.iter().map(|directory| inside(&format!("{directory}/{}", start.program)));
            places.find_map(Result::ok).ok_or_else(|| EntryPointFault::NotFound(start.path.join(":")))
        };
        let told = |fault| {
            self.monitor.problem(&format!("the image starts '{}', which {fault}", start.program));
        };
        found.map_err(told).ok()
    }

    /// The machine of a program; of a script, that of its interpreter if that is in the tree.
    fn architecture(&self, path: &TreePath, elf_files: &[ElfFile], scripts: &[Script]) -> Option<String> {
        let mut path = self.manifest.entries.get(self.manifest.resolve(path).ok()?)?.path.clone();
        // An interpreter may be a script itself; the kernel follows at most five.
        for _ in 0..5 {
            if let Some(file) = elf_files.iter().find(|file| file.path == path) {
                return Some(file.architecture.clone());
            }
            let script = scripts.iter().find(|script| script.path == path)?;
            let interpreter = script.interpreter.split_whitespace().next()?;
            let inside = TreePath::parse(interpreter.trim_start_matches('/').as_bytes()).ok()?;
            path = self.manifest.entries.get(self.manifest.resolve(&inside).ok()?)?.path.clone();
        }
        None
    }
}

/// The only executable of `bin`, else of `usr/bin`, else of the tree.
fn obvious(candidates: &[TreePath]) -> Option<TreePath> {
    for folder in [b"bin".as_slice(), b"usr/bin", b""] {
        let inside =
            |path: &&TreePath| folder.is_empty() || path.parent().is_some_and(|parent| parent.as_bytes() == folder);
        let mut found = candidates.iter().filter(inside);
        match (found.next(), found.next()) {
            (Some(only), None) => return Some(only.clone()),
            (Some(_), Some(_)) => return None,
            (None, _) => {}
        }
    }
    None
}

/// What the product file of a stored tree says of its part among agents; `None`: nothing.
///
/// # Errors
/// The store does not have the tree, or not whole.
pub(crate) fn standing(store: &Store, tree: &TreeId) -> Result<Option<Standing>, MetadataError> {
    let manifest = store.tree(tree)?;
    let (heads, chunk) = (HashMap::new(), |id: &ChunkId| store.plain_chunk(id));
    let (monitor, cancelled) = (&Quiet, &AtomicBool::new(false));
    let inspection = Inspection { manifest: &manifest, heads: &heads, chunk: &chunk, monitor, cancelled };
    Ok(inspection.product_file()?.company)
}

/// For `tests/fuzz`: a `manager-fs.toml`.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any_descriptor(text: &str) -> bool {
    ProductFile::parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::publish::PublishOptions;
    use crate::manager::testing::{Fixture, Item, Kind, Model, tree_path};
    use proto::record::SchemaRange;

    fn script() -> Item {
        Item::file("#!/bin/sh\nexit 0\n")
    }

    fn directory() -> Item {
        Item::new(Kind::Directory)
    }

    fn link(target: &str) -> Item {
        Item::new(Kind::Symlink(target.into()))
    }

    fn descriptor(text: &str) -> (&'static str, Item) {
        let mut item = Item::file(text);
        item.mode = 0o644;
        (DESCRIPTOR, item)
    }

    fn inspect(items: Vec<(&'static str, Item)>, entry_point: Option<&str>) -> Result<Metadata, String> {
        let fixture = Fixture::new();
        let source = fixture.dir.path().join("source");
        Model::new(items).write(&source);
        let options = PublishOptions { entry_point: entry_point.map(str::to_owned), ..PublishOptions::default() };
        let published = fixture.publish_with(&source, &options, &Quiet);
        published.map(|published| published.metadata).map_err(|error| error.to_string())
    }

    fn entry_point(items: Vec<(&'static str, Item)>, named: Option<&str>) -> Result<Option<String>, String> {
        inspect(items, named).map(|metadata| metadata.entry_point.map(|path| path.to_string()))
    }

    #[test]
    fn the_only_executable_is_the_entry_point() {
        let found = |items| entry_point(items, None).unwrap();
        assert_eq!(found(vec![]), None);
        assert_eq!(found(vec![("run", script())]).as_deref(), Some("run"));
        assert_eq!(found(vec![("a", script()), ("b", script())]), None);
        let with_bin = |more: Vec<(&'static str, Item)>| {
            let mut items = vec![("bin", directory()), ("bin/agent", script()), ("lib", directory())];
            items.extend(more);
            found(items)
        };
        assert_eq!(with_bin(vec![("lib/helper", script())]).as_deref(), Some("bin/agent"));
        assert_eq!(with_bin(vec![("bin/alias", link("agent"))]).as_deref(), Some("bin/agent"));
        assert_eq!(
            with_bin(vec![("bin/same", Item::new(Kind::Link("bin/agent".into())))]).as_deref(),
            Some("bin/agent")
        );
        assert_eq!(with_bin(vec![("bin/other", script())]), None);
        let mut data = script();
        data.mode = 0o644;
        assert_eq!(
            with_bin(vec![("bin/data", data), ("bin/text", Item::file("text"))]).as_deref(),
            Some("bin/agent")
        );
        let usr = vec![("usr", directory()), ("usr/bin", directory()), ("usr/bin/agent", script()), ("x", script())];
        assert_eq!(found(usr).as_deref(), Some("usr/bin/agent"));
    }

    #[test]
    fn a_named_entry_point_must_lead_to_an_executable_in_the_tree() {
        let items = || {
            let mut plain = script();
            plain.mode = 0o644;
            vec![
                ("bin", directory()),
                ("bin/agent", script()),
                ("bin/other", script()),
                ("bin/alias", link("../opt/current/run")),
                ("bin/away", link("/bin/sh")),
                ("bin/up", link("../../run")),
                ("bin/loop", link("loop")),
                ("bin/dangling", link("nothing")),
                ("opt", directory()),
                ("opt/current", link("v2")),
                ("opt/v2", directory()),
                ("opt/v2/run", script()),
                ("plain", plain),
            ]
        };
        for good in ["bin/agent", "./bin/other", "bin/alias", "opt/current/run"] {
            assert_eq!(entry_point(items(), Some(good)).unwrap().unwrap(), good.trim_start_matches("./"));
        }
        for (bad, fault) in [
            ("bin/missing", "is not in the tree"),
            ("bin/away", "leads out of the tree, to '/bin/sh'"),
            ("bin/up", "leads out of the tree"),
            ("bin/loop", "40 symlinks"),
            ("bin/dangling", "leads to 'bin/nothing'"),
            ("bin", "is a directory"),
            ("plain", "is not executable (mode 0644)"),
            ("/bin/agent", "is absolute"),
            ("bin/../bin/agent", ".."),
        ] {
            let error = entry_point(items(), Some(bad)).unwrap_err();
            assert!(error.contains(fault) && error.contains(bad), "{bad}: {error}");
            assert!(error.contains("'bin/agent', 'bin/other', 'opt/v2/run'"), "candidates are listed: {error}");
        }
    }

    #[test]
    fn the_descriptor_says_what_the_files_cannot() {
        let items = |text: &str| vec![("a", script()), ("b", script()), descriptor(text)];
        let all = "entrypoint = 'b'\narguments = ['--serve', 'x y']\nstate_schemas = [2, 5]\n\
                   drain_deadline = '2m'\nprobation = '1500ms'\n";
        let metadata = inspect(items(all), None).unwrap();
        assert_eq!(metadata.entry_point, Some(tree_path("b")));
        assert_eq!(metadata.arguments, ["--serve", "x y"]);
        assert_eq!(metadata.state_schemas, SchemaRange { min: 2, max: 5 });
        assert_eq!((metadata.drain_deadline_ms, metadata.health.probation_ms), (120_000, 1500));
        let named = inspect(items(all), Some("a")).unwrap();
        assert_eq!(named.entry_point, Some(tree_path("a")), "the operator has the last word");

        let metadata = inspect(items(""), None).unwrap();
        assert_eq!((metadata.entry_point, metadata.state_schemas), (None, SchemaRange { min: 1, max: 1 }));
        assert_eq!((metadata.drain_deadline_ms, metadata.health.probation_ms), (60_000, 10_000));
        for (bad, fault) in [
            ("entrypoint = 'c'", "'c' (named by manager-fs.toml) is not in the tree"),
            ("entry_point = 'a'", "unknown field"),
            ("state_schemas = [5, 2]", "oldest and the newest"),
            ("probation = 'soon'", "probation = \"soon\""),
            ("arguments = 'x'", "sequence"),
            ("= =", "manager-fs.toml"),
            (&format!("# {}", "x".repeat(70_000)), "larger than 64 KiB"),
        ] {
            let error = inspect(items(bad), None).unwrap_err();
            assert!(error.contains(fault) && error.contains(DESCRIPTOR), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_found_is_counted_and_told() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let bytes = program.len() as u64;
        let mut library = Item::file(&program);
        library.mode = 0o644;
        let mut interpreted = Item::file("#! /opt/lib/program -x\n");
        interpreted.mode = 0o755;
        let items = vec![
            ("bin", directory()),
            ("bin/run", interpreted),
            ("opt", directory()),
            ("opt/lib", link("../lib")),
            ("lib", directory()),
            ("lib/program", Item::file(&program)),
            ("lib/same", library),
            ("lib/empty", Item::file("")),
        ];
        let metadata = inspect(items, None).unwrap();
        let paths: Vec<String> = metadata.elf_files.iter().map(|file| file.path.to_string()).collect();
        assert_eq!(paths, ["lib/program", "lib/same"]);
        assert_eq!(
            metadata.scripts,
            [Script { path: tree_path("bin/run"), interpreter: "/opt/lib/program -x".into() }]
        );
        assert_eq!(metadata.entry_point, Some(tree_path("bin/run")));
        assert_eq!(metadata.architecture.as_deref(), Some(std::env::consts::ARCH));
        assert_eq!((metadata.entry_count, metadata.file_count), (9, 4));
        assert_eq!((metadata.content_bytes, metadata.object_bytes), (2 * bytes + 23, bytes + 23));
    }
}
