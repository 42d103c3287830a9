//! Which generations this host knows: the signed records of what is exported to it, kept in the cache so that
//! everything starts without the manager.
//!
//! A record is believed when a pinned publisher signed it, whether it comes from the manager or from this host's disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use proto::PublisherKey;
use proto::limits::RECORD_BYTES_MAX;
use proto::message::Fault;
use proto::record::RecordFault;
use proto::{GenerationRecord, GenerationRef, Product, SignedRecord, TreeId};

use super::floors::Floors;
use crate::host::enroll::NoPublishers;
use crate::host::files;
use crate::moments::{self, Moment};
use crate::sync::{self, lock};

/// A record that a pinned publisher signed, with the bytes that prove it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KnownRecord {
    pub(crate) record: GenerationRecord,
    /// The record with its signature, as it lies on disk ([`SignedRecord::to_bytes`]).
    pub(crate) signed: Vec<u8>,
    /// The BLAKE3 of these bytes ([`SignedRecord::id_of`]).
    pub(crate) id: RecordId,
}

/// What a record is called where its bytes need not be said again.
pub(crate) type RecordId = [u8; 32];

/// The records in the cache directory.
#[derive(Debug)]
pub(crate) struct Records {
    records_dir: PathBuf,
    /// Or why it cannot be said any more whom this host believes: then nothing is believed, and nothing is given up.
    publishers: Result<Vec<PublisherKey>, NoPublishers>,
    floors: Floors,
    /// Records that came and were not believed: they need not come again.
    unbelieved: Mutex<BTreeSet<RecordId>>,
    records: RwLock<BTreeMap<Key, Arc<KnownRecord>>>,
}

/// Why a record is not believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotBelieved {
    #[error(transparent)]
    NobodyIs(#[from] NoPublishers),
    #[error(transparent)]
    Record(#[from] RecordFault),
}

/// One record a name; the tree is in it because a republished name may lead to another tree.
type Key = (Product, String, TreeId);

/// What a new list of exports changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: Vec<Arc<KnownRecord>>,
    pub(crate) removed: Vec<Arc<KnownRecord>>,
}

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) tree: TreeId,
    /// `None` when the tree stands under several versions, or under none any more.
    pub(crate) record: Option<Arc<KnownRecord>>,
    /// Every name under which the tree is exported to this host.
    pub(crate) names: Vec<String>,
}

impl Records {
    /// Reads what the last run knew. Records that were changed are removed with a warning, not an error: the manager sends
    /// them again. Those of publishers that are not believed stay where they are: it may be the list of publishers that
    /// was changed.
    pub(crate) fn open(cache: &Path, state: &Path, publishers: Result<Vec<PublisherKey>, NoPublishers>) -> Self {
        let records_dir = cache.join("records");
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&records_dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let read = files::read_bounded(&path, RECORD_BYTES_MAX as u64 + 1024).ok().flatten();
            let Ok(publishers) = &publishers else { continue };
            match read.map(|bytes| believe(bytes, publishers)) {
                Some(Ok(known)) => drop(records.insert(key(&known.record), Arc::new(known))),
                Some(Err(fault @ RecordFault::UnknownPublisher(_))) => {
                    tracing::warn!(path = %path.display(), %fault, "a cached record is not believed");
                }
                Some(Err(fault)) => {
                    tracing::warn!(path = %path.display(), %fault, "a cached record is not believed and is removed");
                    let _ = fs::remove_file(&path);
                }
                None => tracing::warn!(path = %path.display(), "a cached record cannot be read"),
            }
        }
        let floors = Floors::open(state);
        floors.raise(records.values().map(|known: &Arc<KnownRecord>| &known.record));
        let unbelieved = Mutex::default();
        Self { records_dir, publishers, floors, unbelieved, records: RwLock::new(records) }
    }

    /// Reads a record that came from elsewhere.
    pub(crate) fn believe(&self, signed: Vec<u8>) -> Result<KnownRecord, NotBelieved> {
        let publishers = self.publishers.as_ref().map_err(Clone::clone)?;
        Ok(believe(signed, publishers)?)
    }

    /// Why nothing is found here: it is not exported, or nothing can be believed.
    fn nothing(&self, why: String) -> Fault {
        match &self.publishers {
            Ok(_) => Fault::NotFound(why),
            Err(blind) => Fault::Failed(format!("{blind}; and so {why}")),
        }
    }

    /// The records that the manager need not send.
    pub(crate) fn have(&self) -> Vec<RecordId> {
        let known: Vec<_> = self.read().values().map(|known| known.id).collect();
        known.into_iter().chain(lock(&self.unbelieved).iter().copied()).collect()
    }

    /// Those of the manager's records that a publisher of this host has signed. That of the others nothing is kept but that
    /// they came: they need not be sent again.
    pub(crate) fn believe_all(&self, sent: Vec<Vec<u8>>) -> Vec<KnownRecord> {
        let one = |signed: Vec<u8>| {
            let id = SignedRecord::id_of(&signed);
            let believed = self.believe(signed).inspect_err(|fault| {
                tracing::error!(%fault, "the manager sent a record that is not believed");
                lock(&self.unbelieved).insert(id);
            });
            believed.ok()
        };
        sent.into_iter().filter_map(one).collect()
    }

    /// Replaces what is exported to this host by the manager's list, of which it sent what was not here.
    pub(crate) fn set_list(&self, ids: &[RecordId], sent: Vec<KnownRecord>) -> Changes {
        let known: BTreeMap<RecordId, Arc<KnownRecord>> =
            self.read().values().map(|known| (known.id, Arc::clone(known))).collect();
        let kept = ids.iter().filter_map(|id| known.get(id).cloned());
        let listed: BTreeSet<&RecordId> = ids.iter().collect();
        let fresh = sent.into_iter().filter(|known| listed.contains(&known.id)).map(Arc::new);
        let all: Vec<_> = kept.chain(fresh).collect();
        lock(&self.unbelieved).retain(|id| listed.contains(id));
        self.replace(all.into_iter().map(|known| (key(&known.record), known)).collect())
    }

    fn replace(&self, fresh: BTreeMap<Key, Arc<KnownRecord>>) -> Changes {
        self.floors.raise(fresh.values().map(|known: &Arc<KnownRecord>| &known.record));
        let mut records = sync::write(&self.records);
        let changes = Changes {
            added: fresh
                .iter()
                .filter(|(key, known)| records.get(*key) != Some(known))
                .map(|(_, k)| k.clone())
                .collect(),
            removed: records.iter().filter(|(key, _)| !fresh.contains_key(*key)).map(|(_, k)| k.clone()).collect(),
        };
        *records = fresh;
        drop(records);
        for known in &changes.added {
            if let Err(error) = files::replace(Moment::RecordKeep, &self.record_path(&known.record), &known.signed) {
                tracing::warn!(%error, name = known.record.name(), "a record could not be cached");
            }
        }
        for known in &changes.removed {
            let path = self.record_path(&known.record);
            // One that stays is compared with the list at the next start.
            let _ = moments::reach(Moment::RecordDrop, &path).and_then(|()| fs::remove_file(&path));
        }
        changes
    }

    /// Every record exported to this host, by product and version.
    pub(crate) fn all(&self) -> Vec<Arc<KnownRecord>> {
        self.read().values().cloned().collect()
    }

    /// Every tree exported to this host.
    pub(crate) fn trees(&self) -> BTreeSet<TreeId> {
        self.read().values().map(|known| known.record.tree).collect()
    }

    /// The names of a tree.
    pub(crate) fn names(&self, tree: &TreeId) -> Vec<String> {
        self.read().values().filter(|known| known.record.tree == *tree).map(|known| known.record.name()).collect()
    }

    /// The record with the highest sequence number of a product.
    ///
    /// # Errors
    /// None is exported here, or this host has known a newer one, which it does not go back behind by itself.
    pub(crate) fn newest(&self, product: &Product) -> Result<Arc<KnownRecord>, Fault> {
        let newest = {
            let records = self.read();
            let of_product = records.values().filter(|known| known.record.product == *product);
            of_product.max_by_key(|known| known.record.sequence).cloned()
        };
        let newest =
            newest.ok_or_else(|| self.nothing(format!("no generation of {product} is exported to this host")))?;
        if newest.record.sequence < self.floors.get(product) {
            let name = newest.record.name();
            return Err(Fault::Refused(format!(
                "the newest generation of {product} that is exported to this host is {name}, and it has known a newer one: if \
                 going back is meant, say so with `manager-fs attach {name}` on this host"
            )));
        }
        Ok(newest)
    }

    /// Somebody has chosen this generation by its name: from now on it is no step back.
    pub(crate) fn chosen(&self, record: &GenerationRecord) {
        self.floors.lower_to(record);
    }

    /// What a reference means here: among what is exported, and among the trees that this host keeps anyway.
    ///
    /// # Errors
    /// Nothing, or more than one tree, matches.
    pub(crate) fn resolve(&self, reference: &GenerationRef, kept: &BTreeSet<TreeId>) -> Result<Resolved, Fault> {
        let records = self.read();
        let matching: Vec<_> = records
            .values()
            .filter(|known| reference.matches(&known.record.product, &known.record.version, &known.record.tree))
            .collect();
        let mut trees: BTreeSet<TreeId> = matching.iter().map(|known| known.record.tree).collect();
        if let GenerationRef::TreePrefix(prefix) = reference {
            trees.extend(kept.iter().filter(|tree| tree.to_hex().starts_with(prefix.as_str())));
        }
        let mut found = trees.iter();
        match (found.next(), found.next()) {
            (None, _) => Err(self.nothing(format!(
                "no generation {reference} is exported to this host; the operator can export it with: \
                 manager-fs export {reference} --to THIS-HOST"
            ))),
            (Some(_), Some(_)) => {
                let list: Vec<_> =
                    trees.iter().map(|tree| format!("{tree} ({})", self.describe(&records, tree))).collect();
                Err(Fault::BadRequest(format!("{reference} is the start of several trees: {}", list.join(", "))))
            }
            (Some(tree), None) => {
                let names = matching.iter().map(|known| known.record.name()).collect();
                let record = if let [one] = matching.as_slice() { Some(Arc::clone(one)) } else { None };
                Ok(Resolved { tree: *tree, record, names })
            }
        }
    }

    fn record_path(&self, record: &GenerationRecord) -> PathBuf {
        // Versions may have 128 characters and products 64: with the tree's 64 digits still below NAME_MAX, but only
        // just, so the tree is shortened.
        let tree = &record.tree.to_hex()[..32];
        self.records_dir.join(format!("{tree}.{}.{}.record", record.product, record.version))
    }

    fn describe(&self, records: &BTreeMap<Key, Arc<KnownRecord>>, tree: &TreeId) -> String {
        let names: Vec<_> =
            records.values().filter(|known| known.record.tree == *tree).map(|known| known.record.name()).collect();
        if names.is_empty() { "no longer exported".to_owned() } else { names.join(", ") }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Arc<KnownRecord>>> {
        sync::read(&self.records)
    }
}

fn key(record: &GenerationRecord) -> Key {
    (record.product.clone(), record.version.to_string(), record.tree)
}

fn believe(signed: Vec<u8>, publishers: &[PublisherKey]) -> Result<KnownRecord, RecordFault> {
    let record = SignedRecord::from_bytes(&signed).and_then(|record| record.verify(publishers));
    let id = SignedRecord::id_of(&signed);
    record.map(|record| KnownRecord { record, signed, id })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::enroll::EnrollError;
    use ed25519_dalek::SigningKey;
    use proto::Metadata;

    /// A key, and a signed record of a made-up tree.
    pub(crate) fn key_of(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    pub(crate) fn signed(product: &str, version: &str, tree: TreeId, sequence: u64, key: &SigningKey) -> Vec<u8> {
        let record = GenerationRecord {
            product: product.parse().unwrap(),
            version: version.parse().unwrap(),
            sequence,
            tree,
            manifest_bytes: 1,
            published_unix_ms: 1,
            metadata: Metadata::default(),
        };
        SignedRecord::sign(&record, key).unwrap().to_bytes().unwrap()
    }

    fn tree(name: u8) -> TreeId {
        TreeId::of(&[name])
    }

    impl Records {
        /// As a manager that sends all its records.
        pub(crate) fn set_exports(&self, records: Vec<Vec<u8>>) -> Changes {
            let ids: Vec<_> = records.iter().map(|bytes| SignedRecord::id_of(bytes)).collect();
            self.set_list(&ids, self.believe_all(records))
        }
    }

    #[test]
    fn a_record_comes_once_believed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let key = key_of(1);
        let known = Records::open(dir.path(), dir.path(), Ok(vec![key.verifying_key().into()]));
        let (one, two) = (signed("p", "1", tree(1), 1, &key), signed("p", "2", tree(2), 2, &key));
        let foreign = signed("p", "3", tree(3), 3, &key_of(2));
        let ids = [&one, &two, &foreign].map(|bytes| SignedRecord::id_of(bytes));
        assert_eq!(known.set_list(&ids[..1], known.believe_all(vec![one])).added.len(), 1);
        assert_eq!(
            known.set_list(&ids, known.believe_all(vec![two, foreign])).added.len(),
            1,
            "the other is here, the third not believed"
        );
        assert_eq!(known.have().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(ids));
        assert_eq!(known.set_list(&ids, vec![]), Changes::default());
        assert_eq!(known.set_list(&ids[1..2], vec![]).removed[0].record.version.as_str(), "1");
        assert_eq!(known.have(), [ids[1]]);
    }

    #[test]
    fn exports_survive_a_restart_and_go_when_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let (key, publishers) = (key_of(1), vec![key_of(1).verifying_key().into()]);
        let (one, two) = (signed("p", "1", tree(1), 1, &key), signed("p", "2", tree(2), 2, &key));
        let known = Records::open(dir.path(), dir.path(), Ok(publishers.clone()));
        let changes = known.set_exports(vec![one.clone(), two.clone()]);
        assert_eq!((changes.added.len(), changes.removed.len()), (2, 0));
        assert_eq!(known.set_exports(vec![one.clone(), two.clone()]), Changes::default());

        let known = Records::open(dir.path(), dir.path(), Ok(publishers.clone()));
        assert_eq!(known.newest(&"p".parse().unwrap()).unwrap().record.version.as_str(), "2");
        assert_eq!(known.set_exports(vec![one.clone()]).removed[0].record.version.as_str(), "2");
        assert_eq!(Records::open(dir.path(), dir.path(), Ok(publishers)).all().len(), 1);
    }

    #[test]
    fn nothing_is_believed_that_a_pinned_publisher_did_not_sign() {
        let dir = tempfile::tempdir().unwrap();
        let known = Records::open(dir.path(), dir.path(), Ok(vec![key_of(1).verifying_key().into()]));
        let mut changed = signed("p", "1", tree(1), 1, &key_of(1));
        let last = changed.len() - 100;
        changed[last] ^= 1;
        let foreign = signed("p", "2", tree(2), 2, &key_of(2));
        assert_eq!(known.set_exports(vec![changed.clone(), foreign, b"x".to_vec()]), Changes::default());

        fs::create_dir_all(dir.path().join("records")).unwrap();
        fs::write(dir.path().join("records/a.record"), changed).unwrap();
        assert!(Records::open(dir.path(), dir.path(), Ok(vec![key_of(1).verifying_key().into()])).all().is_empty());
        assert!(!dir.path().join("records/a.record").exists());
    }

    #[test]
    fn a_host_that_has_forgotten_whom_it_believes_believes_nothing_and_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let key = key_of(1);
        let publishers = || Ok(vec![key.verifying_key().into()]);
        let one = signed("p", "1", tree(1), 1, &key);
        Records::open(dir.path(), dir.path(), publishers()).set_exports(vec![one.clone()]);
        let why = NoPublishers::from(EnrollError::Answer("publishers: damaged".to_owned()));
        for lost in [Err(why), Ok(vec![key_of(2).verifying_key().into()])] {
            let known = Records::open(dir.path(), dir.path(), lost.clone());
            assert!(known.all().is_empty() && known.set_exports(vec![one.clone()]) == Changes::default());
            let kept = BTreeSet::from([tree(1)]);
            let by_tree = GenerationRef::TreePrefix(tree(1).to_hex());
            assert_eq!(known.resolve(&by_tree, &kept).unwrap().tree, tree(1), "what runs here goes on");
            let fault = known.resolve(&"p@1".parse().unwrap(), &kept).unwrap_err().to_string();
            assert_eq!(fault.contains("publishers: damaged"), lost.is_err(), "{fault}");
        }
        assert_eq!(Records::open(dir.path(), dir.path(), publishers()).all().len(), 1, "it is mended");
    }

    #[test]
    fn references_lead_to_one_tree_or_say_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let key = key_of(1);
        let known = Records::open(dir.path(), dir.path(), Ok(vec![key.verifying_key().into()]));
        known.set_exports(vec![
            signed("p", "1", tree(1), 1, &key),
            signed("p", "2", tree(2), 2, &key),
            signed("p", "2-again", tree(2), 3, &key),
        ]);
        let none = BTreeSet::new();
        let named = known.resolve(&"p@1".parse().unwrap(), &none).unwrap();
        assert_eq!((named.tree, named.record.is_some()), (tree(1), true));
        let twice = known.resolve(&GenerationRef::TreePrefix(tree(2).to_hex()), &none).unwrap();
        assert_eq!((twice.record, twice.names), (None, vec!["p@2".to_owned(), "p@2-again".to_owned()]));
        assert!(matches!(known.resolve(&"p@3".parse().unwrap(), &none), Err(Fault::NotFound(_))));
        assert!(matches!(known.resolve(&GenerationRef::TreePrefix(String::new()), &none), Err(Fault::BadRequest(_))));

        let gone = GenerationRef::TreePrefix(tree(9).to_hex());
        assert!(known.resolve(&gone, &none).is_err());
        assert_eq!(known.resolve(&gone, &BTreeSet::from([tree(9)])).unwrap().tree, tree(9));
    }

    #[test]
    fn an_older_generation_is_the_newest_only_where_somebody_chose_it() {
        let (cache, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (key, product) = (key_of(1), "p".parse().unwrap());
        let (one, two) = (signed("p", "1", tree(1), 1, &key), signed("p", "2", tree(2), 2, &key));
        let open = || Records::open(cache.path(), state.path(), Ok(vec![key.verifying_key().into()]));
        let known = open();
        known.set_exports(vec![one.clone(), two]);
        known.set_exports(vec![one.clone()]);
        drop(known);
        fs::remove_dir_all(cache.path().join("records")).unwrap();
        let known = open();
        assert!(matches!(known.newest(&product), Err(Fault::NotFound(_))));
        known.set_exports(vec![one]);
        let Err(Fault::Refused(text)) = known.newest(&product) else { panic!("a list that hides the newest passes") };
        assert!(text.contains("manager-fs attach p@1"), "{text}");
        let chosen = known.resolve(&"p@1".parse().unwrap(), &BTreeSet::new()).unwrap();
        known.chosen(&chosen.record.unwrap().record);
        assert_eq!(known.newest(&product).unwrap().record.version.as_str(), "1");
        assert_eq!(open().newest(&product).unwrap().record.version.as_str(), "1");
    }
}
