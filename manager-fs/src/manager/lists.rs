//! The list of what is exported to a host, as the host is told it: the ids of the records, a number that grows, and only those
//! records that the host does not have yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::ManagerReply;
use proto::{HostName, SignedRecord};

use crate::sync::lock;

/// Bytes of records in one answer; a host asks again for the others.
const RECORDS_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// The numbers of the lists.
#[derive(Debug)]
pub(crate) struct Lists(Mutex<Numbers>);

#[derive(Debug)]
struct Numbers {
    last: u64,
    /// What each host was told last.
    of: BTreeMap<HostName, (u64, blake3::Hash)>,
}

impl Lists {
    /// Numbers begin after this one, which no earlier run of the manager has given.
    pub(crate) fn after(first: u64) -> Self {
        Self(Mutex::new(Numbers { last: first, of: BTreeMap::new() }))
    }

    /// The answer to a host that has these records, out of the signed records of all that is exported to it.
    pub(crate) fn answer(&self, host: &HostName, records: Vec<Vec<u8>>, have: &[[u8; 32]]) -> ManagerReply {
        let named: Vec<_> = records.into_iter().map(|bytes| (SignedRecord::id_of(&bytes), bytes)).collect();
        let ids: Vec<[u8; 32]> = named.iter().map(|(id, _)| *id).collect();
        let have: BTreeSet<&[u8; 32]> = have.iter().collect();
        let mut left = RECORDS_BYTES_MAX;
        let mut records = Vec::new();
        for (_, bytes) in named.into_iter().filter(|(id, _)| !have.contains(id)) {
            // The first one always fits: a record has a bound of its own.
            if bytes.len() > left && !records.is_empty() {
                break;
            }
            left = left.saturating_sub(bytes.len());
            records.push(bytes);
        }
        ManagerReply::ExportList { number: self.number(host, &ids), ids, records }
    }

    /// Grows whenever the list has changed since it was said last.
    fn number(&self, host: &HostName, ids: &[[u8; 32]]) -> u64 {
        let hash = blake3::hash(ids.as_flattened());
        let mut numbers = lock(&self.0);
        match numbers.of.get(host) {
            Some((number, said)) if *said == hash => *number,
            _ => {
                numbers.last += 1;
                let number = numbers.last;
                numbers.of.insert(host.clone(), (number, hash));
                number
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_is_sent_once_and_the_number_grows_with_the_list() {
        let lists = Lists::after(7);
        let host: HostName = "h".parse().unwrap();
        let ask = |records: &[&[u8]], have: &[&[u8]]| {
            let have: Vec<_> = have.iter().map(|bytes| SignedRecord::id_of(bytes)).collect();
            let records = records.iter().map(|bytes| bytes.to_vec()).collect();
            let ManagerReply::ExportList { number, ids, records } = lists.answer(&host, records, &have) else {
                panic!()
            };
            (number, ids.len(), records)
        };
        let (first, count, records) = ask(&[b"1", b"2"], &[]);
        assert_eq!((count, records), (2, vec![b"1".to_vec(), b"2".to_vec()]));
        assert_eq!(ask(&[b"1", b"2"], &[b"1", b"2"]), (first, 2, vec![]));
        let (second, count, records) = ask(&[b"1", b"2", b"3"], &[b"1", b"2"]);
        assert_eq!((count, records), (3, vec![b"3".to_vec()]));
        let (third, _, records) = ask(&[b"2"], &[b"1", b"2", b"3"]);
        assert!(first < second && second < third && records.is_empty());
        let big = vec![vec![1; RECORDS_BYTES_MAX / 2 + 1], vec![2; RECORDS_BYTES_MAX / 2 + 1]];
        let ManagerReply::ExportList { ids, records, .. } = lists.answer(&host, big, &[]) else { panic!() };
        assert_eq!((ids.len(), records.len()), (2, 1), "the host asks again for the other");
    }
}
