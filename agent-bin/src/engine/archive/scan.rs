//! A look ahead: how many bytes a first backup will read, so that its progress has an end.

use std::path::Path;

use rustix::fs::OFlags;

use super::super::beneath::names_in;
use super::super::facts::Facts;
use super::super::format::tree::NodeKind;
use super::super::source::Source;
use super::Archive;

impl Archive<'_> {
    /// Adds up what lies in the sources. What cannot be read counts nothing; the walk tells it.
    pub(super) fn scan(&self, sources: &[Source]) {
        let mut total = 0;
        for source in sources {
            match source.look() {
                Ok((_, facts)) if facts.kind == NodeKind::File => total += facts.size,
                Ok((_, facts)) if facts.kind == NodeKind::Dir => {
                    self.scan_directory(source, source.path(), &mut total)
                }
                Ok(_) | Err(_) => {}
            }
        }
        if !self.is_over() {
            self.meter.expect(total);
        }
    }

    fn scan_directory(&self, source: &Source, path: &Path, total: &mut u64) {
        if self.is_over() {
            return;
        }
        let mut below = Vec::new();
        {
            let Ok(directory) = source.read(path, OFlags::DIRECTORY) else { return };
            let Ok(names) = names_in(&directory) else { return };
            for name in self.selection.unmarked(&directory, names) {
                let Ok(facts) = Facts::of_entry(&directory, &name) else { continue };
                let path = path.join(name);
                if self.selection.leaves_out(&path, &facts, source.device()) {
                    continue;
                }
                match facts.kind {
                    NodeKind::File => *total += facts.size,
                    NodeKind::Dir if !self.selection.is_beyond(&facts, source.device()) => below.push(path),
                    _ => {}
                }
            }
        }
        below.iter().for_each(|path| self.scan_directory(source, path, total));
    }
}
