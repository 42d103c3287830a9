//! What one side has, as text that is carried to the other: a line a tree, so that it can also be read out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use proto::TreeId;

use crate::manager::control::generations::Generation;
use crate::manager::store::{Store, StoreError};

const HEAD: &str = "manager-fs have 1";
/// Bytes of a list: ten thousand trees with long names.
pub(super) const BYTES_MAX: u64 = 4 << 20;

/// The trees that the other side has whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// Each with what it is called there, for people.
    pub trees: BTreeMap<TreeId, String>,
}

/// Why a text is no list of what a side has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HaveFault {
    /// It is something else.
    #[error("it does not begin with '{HEAD}': it is what `manager-fs load --have` prints")]
    Other,
    /// A line is none.
    #[error("line {0} is no tree: want 'tree', 64 hex digits, and a name")]
    Line(usize),
    /// Its end is missing, or counts other lines.
    #[error("its last line must be 'end' and the number of trees: copy it again, whole")]
    CutOff,
}

impl Have {
    /// Reads the text.
    ///
    /// # Errors
    /// See [`HaveFault`].
    pub fn parse(text: &str) -> Result<Self, HaveFault> {
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, line)| line != HEAD) {
            return Err(HaveFault::Other);
        }
        let mut have = Self::default();
        for (at, line) in lines.by_ref() {
            if let Some(count) = line.strip_prefix("end ") {
                let whole = count.parse() == Ok(have.trees.len()) && lines.next().is_none();
                return if whole { Ok(have) } else { Err(HaveFault::CutOff) };
            }
            let tree = line.strip_prefix("tree ").and_then(|rest| rest.split_once(' '));
            let tree = tree.and_then(|(id, name)| Some((id.parse::<TreeId>().ok()?, name.to_owned())));
            let (id, name) = tree.ok_or(HaveFault::Line(at + 1))?;
            have.trees.insert(id, name);
        }
        Err(HaveFault::CutOff)
    }

    /// As [`Have::parse`] reads it.
    pub fn text(&self) -> String {
        let mut text = format!("{HEAD}\n");
        for (tree, name) in &self.trees {
            // Writing to a text does not fail.
            let _ = writeln!(text, "tree {tree} {name}");
        }
        let _ = writeln!(text, "end {}", self.trees.len());
        text
    }
}

/// What this store has whole of these generations.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn list(store: &Store, generations: &[Arc<Generation>]) -> Result<Have, StoreError> {
    let mut have = Have::default();
    for generation in generations {
        let tree = generation.record.tree;
        if !have.trees.contains_key(&tree) && store.lost(&BTreeSet::from([tree]))?.is_empty() {
            have.trees.insert(tree, generation.full_name());
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_and_half_of_one_is_none() {
        let id = TreeId::from_bytes([0x5a; 32]);
        let have = Have { trees: BTreeMap::from([(id, String::from("p@1 by name"))]) };
        let text = have.text();
        assert_eq!(text, format!("manager-fs have 1\ntree {} p@1 by name\nend 1\n", "5a".repeat(32)));
        assert_eq!(Have::parse(&text), Ok(have));
        assert_eq!(Have::parse(""), Err(HaveFault::Other));
        assert_eq!(Have::parse("manager-fs have 1\ntree 5a p\nend 1\n"), Err(HaveFault::Line(2)));
        // The last line break may get lost.
        for length in 0..text.len() - 1 {
            assert!(Have::parse(&text[..length]).is_err(), "{length}");
        }
        assert_eq!(Have::parse(&format!("{text}more")), Err(HaveFault::CutOff));
        assert_eq!(Have::parse(&text.replace("end 1", "end 2")), Err(HaveFault::CutOff));
    }
}
