//! Blocks ` ```hex NAME ` of a document, to read and to write anew in place.

use std::fs;
use std::path::PathBuf;

pub(crate) struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    pub(crate) fn read(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    /// What stands in a block, without its fences.
    pub(crate) fn block(&self, name: &str) -> Option<&str> {
        let (start, end) = self.place(name)?;
        Some(&self.text[start..end])
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let lines = self.text.lines();
        lines.filter_map(|line| line.strip_prefix("```hex ")).map(|name| name.trim().to_owned()).collect()
    }

    /// Puts other content into a block, which is made at the end if it is missing.
    pub(crate) fn write(&mut self, name: &str, content: &str) {
        match self.place(name) {
            Some((start, end)) => self.text.replace_range(start..end, content),
            None => self.text.push_str(&format!("\n```hex {name}\n{content}```\n")),
        }
    }

    pub(crate) fn save(&self) {
        fs::write(&self.path, &self.text).unwrap();
    }

    fn place(&self, name: &str) -> Option<(usize, usize)> {
        let fence = format!("```hex {name}\n");
        let start = self.text.find(&fence)? + fence.len();
        let end = start + self.text[start..].find("```")?;
        Some((start, end))
    }
}
