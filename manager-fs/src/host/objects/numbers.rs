//! Node numbers: what they mean, and the few that must be remembered as long as the mount lives.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use proto::width;
use proto::{Product, TreeId, codec};
use serde::{Deserialize, Serialize};

use super::ViewEntry;
use crate::moments::{self, Moment};

/// A node number, taken apart.
///
/// ```text
/// 1 root · 2 .objects · 0x100 + shard · 0x1000 + product · generation << 20 | node · 1 << 63 | 63 bits of an object id
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ino {
    /// `/`
    Root,
    /// `/.objects`
    ObjectsDir,
    /// `/.objects/<2 hex>`
    Shard(u8),
    /// `/PRODUCT`
    Product(u32),
    /// A node of the manifest of a generation: hard links are one node and so one inode.
    Node {
        /// The generation's number.
        generation: u32,
        /// Index into the manifest's nodes.
        node: u32,
    },
    /// 63 bits of an object's id.
    Object(u64),
}

const SHARDS: u64 = 0x100;
const PRODUCTS: u64 = 0x1000;
/// A tree has at most a million nodes (`proto::limits::ENTRIES_MAX`), which is below 2^20.
const NODE_BITS: u32 = 20;
const OBJECT: u64 = 1 << 63;

impl Ino {
    /// The inode number that the kernel is given for it.
    pub fn number(self) -> u64 {
        match self {
            Ino::Root => 1,
            Ino::ObjectsDir => 2,
            Ino::Shard(shard) => SHARDS + u64::from(shard),
            Ino::Product(product) => PRODUCTS + u64::from(product),
            Ino::Node { generation, node } => u64::from(generation) << NODE_BITS | u64::from(node),
            Ino::Object(prefix) => OBJECT | prefix,
        }
    }

    /// What a number means; `None` for one that was never given out.
    pub fn parse(number: u64) -> Option<Self> {
        Some(match number {
            1 => Ino::Root,
            2 => Ino::ObjectsDir,
            _ if number & OBJECT != 0 => Ino::Object(number & !OBJECT),
            _ if number >= 1 << NODE_BITS => Ino::Node {
                generation: u32::try_from(number >> NODE_BITS).ok()?,
                node: (number & ((1 << NODE_BITS) - 1)) as u32,
            },
            _ if number >= PRODUCTS => Ino::Product(width::count(number - PRODUCTS)),
            _ if (SHARDS..SHARDS + 256).contains(&number) => Ino::Shard((number - SHARDS).to_le_bytes()[0]),
            _ => return None,
        })
    }
}

/// Numbers given to products and generations, and the registered trees. A number is never given twice.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    saved: Saved,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    products: Vec<Product>,
    /// Number n stands at index n - 1.
    generations: Vec<(Product, proto::Version, TreeId)>,
    visible: BTreeSet<u32>,
    registered: Vec<TreeId>,
}

/// For `tests/fuzz`.
#[cfg(any(test, fuzzing))]
pub(in crate::host) fn read_any(bytes: &[u8]) -> bool {
    if let Some((number, _)) = bytes.split_first_chunk::<8>() {
        let number = u64::from_le_bytes(*number);
        assert!(Ino::parse(number).is_none_or(|ino| ino.number() == number));
    }
    codec::decode::<Saved, FILE_BYTES_MAX>(bytes).is_ok()
}

const FILE_BYTES_MAX: usize = 16 << 20;
const MAGIC: &[u8; 8] = b"MFSNUM\0\x01";

impl Numbers {
    /// What an earlier worker of this mount saved; nothing if there was none.
    pub(super) fn load(path: &Path) -> Self {
        let saved = std::fs::read(path).ok().and_then(|bytes| {
            let body = bytes.strip_prefix(MAGIC.as_slice())?;
            codec::decode::<Saved, FILE_BYTES_MAX>(body).ok()
        });
        Self { saved: saved.unwrap_or_default() }
    }

    /// Replaces the file in one step. No fsync: the numbers die with the mount, at the latest with the machine.
    pub(super) fn save(&self, path: &Path) -> std::io::Result<()> {
        let body = codec::encode(&self.saved).map_err(std::io::Error::other)?;
        let temporary = path.with_extension("new");
        moments::reach(Moment::NumbersPut, path)?;
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&body)?;
        std::fs::rename(&temporary, path)
    }

    /// The number of a generation; a new one if it has none.
    pub(super) fn number(&mut self, entry: &ViewEntry) -> u32 {
        if !self.saved.products.contains(&entry.product) {
            self.saved.products.push(entry.product.clone());
        }
        let wanted = (entry.product.clone(), entry.version.clone(), entry.tree);
        let at = self.saved.generations.iter().position(|known| *known == wanted).unwrap_or_else(|| {
            self.saved.generations.push(wanted);
            self.saved.generations.len() - 1
        });
        width::count(at) + 1
    }

    pub(super) fn entry(&self, number: u32) -> Option<ViewEntry> {
        let (product, version, tree) = self.saved.generations.get((number as usize).checked_sub(1)?)?.clone();
        Some(ViewEntry { product, version, tree })
    }

    pub(super) fn product(&self, product: &Product) -> Option<u32> {
        self.saved.products.iter().position(|known| known == product).map(width::count)
    }

    pub(super) fn product_name(&self, number: u32) -> Option<&Product> {
        self.saved.products.get(number as usize)
    }

    pub(super) fn visible(&self) -> impl Iterator<Item = (u32, ViewEntry)> {
        self.saved.visible.iter().filter_map(|number| Some((*number, self.entry(*number)?)))
    }

    pub(super) fn set_visible(&mut self, numbers: BTreeSet<u32>) {
        self.saved.visible = numbers;
    }

    pub(super) fn registered(&self) -> &[TreeId] {
        &self.saved.registered
    }

    /// Whether it was new.
    pub(super) fn register(&mut self, tree: &TreeId) -> bool {
        let new = !self.saved.registered.contains(tree);
        if new {
            self.saved.registered.push(*tree);
        }
        new
    }

    /// Whether it was there.
    pub(super) fn unregister(&mut self, tree: &TreeId) -> bool {
        let before = self.saved.registered.len();
        self.saved.registered.retain(|known| known != tree);
        before != self.saved.registered.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_means_one_thing() {
        let all = [
            Ino::Root,
            Ino::ObjectsDir,
            Ino::Shard(0),
            Ino::Shard(255),
            Ino::Product(0),
            Ino::Product(1_000_000),
            Ino::Node { generation: 1, node: 0 },
            Ino::Node { generation: u32::MAX, node: 999_999 },
            Ino::Object(0),
            Ino::Object(u64::MAX >> 1),
        ];
        let numbers: BTreeSet<u64> = all.iter().map(|ino| ino.number()).collect();
        assert_eq!(numbers.len(), all.len());
        for ino in all {
            assert_eq!(Ino::parse(ino.number()), Some(ino));
        }
        assert_eq!(Ino::parse(0), None);
        assert_eq!(Ino::parse(3), None);
    }

    #[test]
    fn numbers_survive_the_worker_and_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        let entry = |version: &str, content: &[u8]| ViewEntry {
            product: "p".parse().unwrap(),
            version: version.parse().unwrap(),
            tree: TreeId::of(content),
        };
        let mut first = Numbers::load(&path);
        assert_eq!(first.number(&entry("1", b"a")), 1);
        assert_eq!(first.number(&entry("2", b"b")), 2);
        first.register(&TreeId::of(b"a"));
        first.save(&path).unwrap();
        let mut second = Numbers::load(&path);
        assert_eq!(second.number(&entry("1", b"changed")), 3, "the name now means another tree");
        assert_eq!(second.number(&entry("2", b"b")), 2);
        assert_eq!(second.registered(), [TreeId::of(b"a")]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_as_if_there_were_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        let entry =
            ViewEntry { product: "p".parse().unwrap(), version: "1".parse().unwrap(), tree: TreeId::of(b"a") };
        let mut numbers = Numbers::load(&path);
        numbers.number(&entry);
        numbers.save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(Numbers::load(&path).entry(1), None, "cut at {cut}");
        }
        std::fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
        assert_eq!(Numbers::load(&path).entry(1), None, "more than was saved");
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(Numbers::load(&path).entry(1), Some(entry));
        assert_eq!(Numbers::load(&path).entry(0), None);
        assert!(numbers.save(&dir.path().join("no/such/directory")).is_err());
    }

    proptest::proptest! {
        /// The kernel hands back numbers of its own making too.
        #[test]
        fn a_number_that_means_something_is_the_number_of_that(number: u64) {
            if let Some(ino) = Ino::parse(number) {
                proptest::prop_assert_eq!(ino.number(), number);
            }
        }
    }
}
