//! The rules of an order: its patterns, and those in files of the host.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use agent_core::Permits;
use proto::backup::BackupOptions;
use proto::limits::PATTERNS_BYTES_MAX;
use rustix::fs::OFlags;

use super::fault::EngineError;
use super::format::tree::NodeKind;
use super::selection::{Rules, SelectionFault};
use super::source::Source;

/// A file of patterns is no longer.
const FILE_BYTES_MAX: u64 = PATTERNS_BYTES_MAX as u64;

/// Reads the files of patterns as sources are read: no link is followed, and only what the host permits to be backed up.
///
/// # Errors
/// A file of patterns is missing, not permitted, too long, or no text.
pub(super) fn rules_of(options: &BackupOptions, permits: &Permits) -> Result<Rules, EngineError> {
    let mut exclude = options.exclude.clone();
    for path in &options.exclude_files {
        let text = read_patterns(Path::new(path), permits)?;
        let patterns = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        exclude.extend(patterns.map(str::to_owned));
    }
    Ok(Rules::new(exclude, options))
}

fn read_patterns(path: &Path, permits: &Permits) -> Result<String, EngineError> {
    // What stands in it is never told: the file may hold anything.
    let fault = |why: String| EngineError::Selection(SelectionFault::File { path: path.to_owned(), why });
    let source = Source::open(path, permits).map_err(|error| match error {
        EngineError::NotPermitted(error) => EngineError::NotPermitted(error),
        error => fault(error.to_string()),
    })?;
    let facts = source.look().map_err(|error| fault(error.to_string()))?.1;
    if facts.kind != NodeKind::File {
        return Err(fault(format!("is a {}, not a file", facts.kind.word())));
    }
    let read = || -> io::Result<String> {
        let mut text = String::new();
        File::from(source.read(path, OFlags::empty())?).take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| fault(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(fault(format!("has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_of_patterns_is_read_without_comments_and_never_told() {
        let dir = tempfile::tempdir().unwrap();
        let permits = Permits::read(&dir.path().join("state"), Path::new("/nowhere")).unwrap();
        let file = dir.path().join("patterns");
        let options = BackupOptions {
            exclude: vec!["*.a".into()],
            exclude_files: vec![file.display().to_string()],
            ..BackupOptions::default()
        };
        assert!(rules_of(&options, &permits).unwrap_err().to_string().contains("patterns"));
        fs::write(&file, "# comment\n*.b\n\n!c.b\n").unwrap();
        assert_eq!(rules_of(&options, &permits).unwrap().exclude, ["*.a", "*.b", "!c.b"]);
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(rules_of(&options, &permits).is_err());
        fs::write(&file, "x\n".repeat(PATTERNS_BYTES_MAX)).unwrap();
        assert!(rules_of(&options, &permits).unwrap_err().to_string().contains("more than"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let through = BackupOptions { exclude_files: vec![link.display().to_string()], ..options.clone() };
        assert!(rules_of(&through, &permits).unwrap_err().to_string().contains("symbolic link"));
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::write(dir.path().join("state/permits.toml"), "[backup]\nsources = [\"/srv\"]\n").unwrap();
        let permits = Permits::read(&dir.path().join("state"), Path::new("/nowhere")).unwrap();
        assert!(rules_of(&options, &permits).unwrap_err().to_string().contains("does not permit"));
    }
}
