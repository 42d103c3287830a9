//! What to measure, from the environment.

use anyhow::{Context, Result, bail};

use crate::profile::Profile;
use crate::trees::Tree;

/// What is measured; without variables, everything.
#[derive(Debug, Clone)]
pub struct Choice {
    /// `BENCH_ROUNDS`: how often each contender starts each program on each network.
    pub rounds: usize,
    /// `BENCH_PROFILES`: networks.
    pub profiles: Vec<Profile>,
    /// `BENCH_RECORD`: whether starts are recorded before they are measured.
    pub records: bool,
    trees: Option<Vec<String>>,
    rivals: Option<Vec<String>>,
    parts: Option<Vec<String>>,
}

/// Enough for a median; a noisy machine wants more.
const ROUNDS: usize = 5;

impl Choice {
    /// Reads the variables; `usual` are the networks without `BENCH_PROFILES`.
    ///
    /// # Errors
    /// One of them makes no sense.
    pub fn read(usual: &[Profile]) -> Result<Self> {
        let rounds = match std::env::var("BENCH_ROUNDS") {
            Ok(text) => {
                text.parse().ok().filter(|rounds| *rounds > 0).context("BENCH_ROUNDS is no number above 0")?
            }
            Err(_) => ROUNDS,
        };
        let profiles = match list("BENCH_PROFILES") {
            Some(names) => names.iter().map(|name| Profile::named(name)).collect::<Result<_>>()?,
            None => usual.to_vec(),
        };
        let records = match std::env::var("BENCH_RECORD").as_deref() {
            Err(_) | Ok("1") => true,
            Ok("0") => false,
            Ok(_) => bail!("BENCH_RECORD is neither 0 nor 1"),
        };
        let (trees, rivals, parts) = (list("BENCH_TREES"), list("BENCH_RIVALS"), list("BENCH_PARTS"));
        Ok(Self { rounds, profiles, records, trees, rivals, parts })
    }

    /// Whether `BENCH_TREES` allows this one.
    pub fn has_tree(&self, tree: &Tree) -> bool {
        allows(self.trees.as_ref(), &tree.name)
    }

    /// Whether `BENCH_RIVALS` allows this one.
    pub fn has_rival(&self, name: &str) -> bool {
        allows(self.rivals.as_ref(), name)
    }

    /// Whether `BENCH_PARTS` allows this one: `cold`, `upgrade`, `patches`.
    pub fn has_part(&self, name: &str) -> bool {
        allows(self.parts.as_ref(), name)
    }
}

fn list(variable: &str) -> Option<Vec<String>> {
    let text = std::env::var(variable).ok()?;
    Some(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

fn allows(list: Option<&Vec<String>>, name: &str) -> bool {
    list.is_none_or(|list| list.iter().any(|one| one == name))
}
