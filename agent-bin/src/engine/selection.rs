//! What of a source is left out: by patterns, marks, size, and where another file system begins.
//!
//! The patterns are those of a `.gitignore`, matched by the crate that `rustic_core` itself uses for it. A snapshot keeps
//! the rules by which it was made, so that a comparison with its source does not miss what was never to be in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use proto::CommandName;
use proto::backup::BackupOptions;
use proto::limits::PATTERNS_MAX;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::beneath::READ;
use super::facts::Facts;
use super::format::tree::NodeKind;

/// The cache directory tagging specification: name and beginning of the file.
const CACHE_TAG: (&str, &str) = ("CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55");
/// Patterns of one snapshot, from the order and from files.
const ALL_PATTERNS_MAX: usize = 4 * PATTERNS_MAX;

/// A rule of what is left out is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectionFault {
    #[error("pattern {0:?} is none: {1}")]
    Pattern(String, String),
    #[error("they cannot be matched together: {0}")]
    Together(String),
    #[error("file of patterns {path}: {why}", path = path.display())]
    File { path: PathBuf, why: String },
    #[error("mark {0:?} is no name of a file, or that and `:TEXT`")]
    Mark(String),
    #[error("there are {0} patterns; {ALL_PATTERNS_MAX} is the most")]
    TooMany(usize),
}

/// Rules as a snapshot keeps them. Files of patterns are what was in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rules {
    pub(super) exclude: Vec<String>,
    if_present: Vec<String>,
    caches: bool,
    larger_than: Option<u64>,
    one_file_system: bool,
    /// The command whose output it is; then nothing was left out, and nothing lies at its path.
    pub(super) output_of: Option<String>,
}

impl Rules {
    /// Of what a command prints.
    pub(super) fn of_output(command: &CommandName) -> Self {
        Self { output_of: Some(command.to_string()), ..Self::default() }
    }

    /// Of an order, and what its files of patterns say.
    pub(super) fn new(exclude: Vec<String>, options: &BackupOptions) -> Self {
        Self {
            exclude,
            if_present: options.exclude_if_present.clone(),
            caches: options.exclude_caches,
            larger_than: options.exclude_larger_than,
            one_file_system: options.one_file_system,
            output_of: None,
        }
    }

    /// Whether there is nothing to be kept of them.
    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The rules, ready to be asked of every entry.
#[derive(Debug)]
pub(super) struct Selection {
    patterns: Gitignore,
    marks: Vec<Mark>,
    larger_than: Option<u64>,
    one_file_system: bool,
}

/// A file by which a directory says that it is not wanted.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    name: OsString,
    /// What it begins with.
    header: String,
}

impl Mark {
    fn parse(text: &str) -> Result<Self, SelectionFault> {
        let (name, header) = text.split_once(':').unwrap_or((text, ""));
        if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
            return Err(SelectionFault::Mark(text.to_owned()));
        }
        Ok(Self { name: name.into(), header: header.to_owned() })
    }

    /// Whether this very file lies in a directory.
    fn is_in(&self, directory: BorrowedFd<'_>) -> bool {
        if self.header.is_empty() {
            return true;
        }
        let flags = READ | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(directory, &self.name, flags, Mode::empty()) else { return false };
        if !Facts::of(&file).is_ok_and(|facts| facts.kind == NodeKind::File) {
            return false;
        }
        let mut begin = Vec::new();
        let read = File::from(file).take(self.header.len() as u64).read_to_end(&mut begin);
        read.is_ok() && begin == self.header.as_bytes()
    }
}

impl Selection {
    /// # Errors
    /// A pattern or a mark is none, or there are too many.
    pub(super) fn new(rules: &Rules) -> Result<Self, SelectionFault> {
        if rules.exclude.len() > ALL_PATTERNS_MAX {
            return Err(SelectionFault::TooMany(rules.exclude.len()));
        }
        let mut marks = rules.if_present.iter().map(|text| Mark::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if rules.caches {
            let (name, header) = CACHE_TAG;
            marks.push(Mark { name: name.into(), header: header.to_owned() });
        }
        Ok(Self {
            patterns: matcher(&rules.exclude)?,
            marks,
            larger_than: rules.larger_than,
            one_file_system: rules.one_file_system,
        })
    }

    /// Of the names in a directory those that count: only its mark, if it has one.
    pub(super) fn unmarked(&self, directory: impl AsFd, names: Vec<OsString>) -> Vec<OsString> {
        let has = |mark: &&Mark| names.contains(&mark.name) && mark.is_in(directory.as_fd());
        match self.marks.iter().find(has) {
            Some(mark) => vec![mark.name.clone()],
            None => names,
        }
    }

    /// Whether an entry is left out, which lies on this device and not on its source's.
    pub(super) fn leaves_out(&self, path: &Path, facts: &Facts, device: u64) -> bool {
        let is_dir = facts.kind == NodeKind::Dir;
        self.patterns.matched(path, is_dir).is_ignore()
            || (facts.kind == NodeKind::File && self.larger_than.is_some_and(|most| facts.size > most))
            || (!is_dir && self.is_beyond(facts, device))
    }

    /// Whether an entry lies on another file system that is not entered.
    pub(super) fn is_beyond(&self, facts: &Facts, device: u64) -> bool {
        self.one_file_system && facts.identity.0 != device
    }
}

/// Patterns, each of which matches whole paths from the root on if it begins with `/`, otherwise at any depth.
pub(super) fn matcher(patterns: &[String]) -> Result<Gitignore, SelectionFault> {
    let mut builder = GitignoreBuilder::new("/");
    builder.allow_unclosed_class(false);
    for pattern in patterns {
        builder
            .add_line(None, &at_any_depth(pattern))
            .map_err(|error| SelectionFault::Pattern(pattern.clone(), error.to_string()))?;
    }
    builder.build().map_err(|error| SelectionFault::Together(error.to_string()))
}

/// Git takes a pattern with a slash inside for a path from its file's directory on. There is no such directory here.
fn at_any_depth(pattern: &str) -> String {
    let (not, rest) = pattern.strip_prefix('!').map_or(("", pattern), |rest| ("!", rest));
    let inside = rest.trim_end_matches('/').contains('/');
    if inside && !rest.starts_with('/') && !rest.starts_with("**/") {
        format!("{not}**/{rest}")
    } else {
        pattern.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn excluded(patterns: &[&str], path: &str, is_dir: bool) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        matcher(&patterns).unwrap().matched(path, is_dir).is_ignore()
    }

    #[test]
    fn patterns_mean_what_they_mean_in_a_gitignore() {
        for (patterns, path, is_dir, expected) in [
            (&["*.o"][..], "/srv/data/a.o", false, true),
            (&["*.o"], "/srv/data/a.o.c", false, false),
            (&["*.o", "!keep.o"], "/srv/keep.o", false, false),
            (&["!keep.o", "*.o"], "/srv/keep.o", false, true),
            (&["cache/"], "/srv/cache", true, true),
            (&["cache/"], "/srv/cache", false, false),
            (&["/srv/tmp"], "/srv/tmp", true, true),
            (&["/srv/tmp"], "/other/srv/tmp", true, false),
            (&["a/b"], "/srv/a/b", false, true),
            (&["!a/b", "x"], "/srv/a/b", false, false),
            (&["a/**/c"], "/srv/a/b/b/c", false, true),
            (&["fil[ae]"], "/file", false, true),
            (&["# no comment"], "/# no comment", false, false),
            (&["\\#one"], "/srv/#one", false, true),
        ] {
            assert_eq!(excluded(patterns, path, is_dir), expected, "{patterns:?} {path}");
        }
    }

    #[test]
    fn what_is_no_rule_is_named() {
        let fault = |rules: Rules| Selection::new(&rules).unwrap_err().to_string();
        assert!(fault(Rules { exclude: vec!["a[".into()], ..Rules::default() }).contains("a["));
        for mark in ["", "a/b", "..", ":x"] {
            assert!(
                fault(Rules { if_present: vec![mark.into()], ..Rules::default() }).contains("is no name"),
                "{mark}"
            );
        }
        let many = Rules { exclude: vec!["a".into(); ALL_PATTERNS_MAX + 1], ..Rules::default() };
        assert!(fault(many).contains("4097 patterns"));
    }

    #[test]
    fn a_marked_directory_has_its_mark_alone() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::open(dir.path()).unwrap();
        let names = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
        let all = names(&["CACHEDIR.TAG", "a", "stop"]);
        let caches = Selection::new(&Rules { caches: true, ..Rules::default() }).unwrap();
        fs::write(dir.path().join("CACHEDIR.TAG"), "Signature: something else").unwrap();
        assert_eq!(caches.unmarked(open(), all.clone()), all);
        fs::write(dir.path().join("CACHEDIR.TAG"), format!("{}\n# a comment", CACHE_TAG.1)).unwrap();
        assert_eq!(caches.unmarked(open(), all.clone()), names(&["CACHEDIR.TAG"]));
        let by_name = Selection::new(&Rules { if_present: vec!["stop".into()], ..Rules::default() }).unwrap();
        assert_eq!(by_name.unmarked(open(), all), names(&["stop"]));
        let none = names(&["a"]);
        assert_eq!(by_name.unmarked(open(), none.clone()), none);
    }
}
