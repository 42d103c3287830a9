//! What this host does not go back behind by itself: for each product the newest generation that it has known. A list of
//! exports in which that is missing hides it, whether the operator took it back or somebody plays an old list; so an older one
//! is used where a person names it, and not because it is what is left.
//!
//! ```text
//! STATE/floors = line*      line = PRODUCT SEQUENCE
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proto::{GenerationRecord, Product};

use crate::host::files;
use crate::moments::Moment;
use crate::sync::lock;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// The highest sequence number of each product.
#[derive(Debug)]
pub(super) struct Floors {
    path: PathBuf,
    of: Mutex<BTreeMap<Product, u64>>,
}

impl Floors {
    /// What an earlier run noted below STATE. A line that cannot be read is left out, with a warning.
    pub(super) fn open(state: &Path) -> Self {
        let path = state.join("floors");
        let bytes = files::read_bounded(&path, FILE_BYTES_MAX).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "how far this host has been cannot be read");
            None
        });
        let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
        let parse = |line: &str| {
            let (product, sequence) = line.split_once(' ')?;
            Some((product.parse().ok()?, sequence.parse().ok()?))
        };
        let of = text.lines().filter_map(|line| {
            parse(line).or_else(|| {
                tracing::warn!(line, path = %path.display(), "a damaged line is left out");
                None
            })
        });
        let of = Mutex::new(of.collect());
        Self { path, of }
    }

    pub(super) fn get(&self, product: &Product) -> u64 {
        lock(&self.of).get(product).copied().unwrap_or(0)
    }

    /// These are known now.
    pub(super) fn raise<'r>(&self, records: impl Iterator<Item = &'r GenerationRecord>) {
        self.change(|of| {
            for record in records {
                let floor = of.entry(record.product.clone()).or_default();
                *floor = record.sequence.max(*floor);
            }
        });
    }

    /// Somebody has chosen this generation by name, whatever came after it.
    pub(super) fn lower_to(&self, record: &GenerationRecord) {
        self.change(|of| {
            if let Some(floor) = of.get_mut(&record.product) {
                *floor = record.sequence.min(*floor);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Product, u64>)) {
        let mut of = lock(&self.of);
        let before = of.clone();
        change(&mut of);
        if *of == before {
            return;
        }
        let text: String = of.iter().map(|(product, sequence)| format!("{product} {sequence}\n")).collect();
        drop(of);
        if let Err(error) = files::replace(Moment::FloorRaise, &self.path, text.as_bytes()) {
            tracing::warn!(%error, path = %self.path.display(), "how far this host has been is not noted");
        }
    }
}
