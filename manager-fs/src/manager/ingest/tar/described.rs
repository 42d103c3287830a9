//! An entry as its header and the extended headers before it together describe it.

use super::super::acl;
use super::super::attributes::Attributes;
use super::super::fault::EntryFault;
use super::super::xattr::Xattrs;
use super::header::{Header, number};
use super::pax::{Layered, decimal, decimal_time, unescaped};
use super::sparse;

/// See the module.
pub(super) struct Described {
    pub(super) name: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub(super) link: Vec<u8>,
    /// Bytes that the archive has for it.
    pub(super) size: u64,
    pub(super) attributes: Attributes,
    pub(super) sparse: Option<sparse::PaxMap>,
}

/// What cannot be taken in, by name, and why.
type Fault = (Vec<u8>, EntryFault);

impl Described {
    pub(super) fn new(
        header: &Header,
        records: Layered<'_>,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Self, Fault> {
        let named = records.get(b"GNU.sparse.name").or_else(|| records.get(b"path")).map(<[u8]>::to_vec);
        let name = named.or(long_name).unwrap_or_else(|| header.name());
        let fault = |what: &'static str| (name.clone(), what.into());
        let link = match header.kind() {
            b'1' | b'2' => {
                records.get(b"linkpath").map(<[u8]>::to_vec).or(long_link).unwrap_or_else(|| header.link())
            }
            _ => Vec::new(),
        };
        let field = |key: &[u8], range: std::ops::Range<usize>| match records.get(key) {
            Some(text) => decimal(text),
            None => number(&header.block[range]),
        };
        let id = |key: &[u8], range| field(key, range).and_then(|id| u32::try_from(id).ok());
        let mtime = match records.get(b"mtime") {
            Some(text) => decimal_time(text),
            None => number(&header.block[136..148]).map(|seconds| (seconds, 0)),
        };
        let xattrs = xattrs(records).map_err(|fault| (name.clone(), fault))?;
        let mode = number(&header.block[100..108]).and_then(|mode| u32::try_from(mode & 0o7777).ok());
        let attributes = Attributes {
            mode: mode.ok_or_else(|| fault("its mode is no number"))?,
            uid: id(b"uid", 108..116).ok_or_else(|| fault("its owner is no number of 32 bits"))?,
            gid: id(b"gid", 116..124).ok_or_else(|| fault("its group is no number of 32 bits"))?,
            mtime: mtime.ok_or_else(|| fault("its modification time is no number"))?,
            xattrs: xattrs.into_inner(),
        };
        let size = field(b"size", 124..136).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| fault("its size is no number"))?;
        let sparse = sparse::PaxMap::new(|key| records.get(key)).map_err(fault)?;
        Ok(Self { name, link, size, attributes, sparse })
    }
}

fn xattrs(records: Layered<'_>) -> Result<Xattrs, EntryFault> {
    let mut xattrs = Xattrs::default();
    for (key, value) in records.with_prefix(b"SCHILY.xattr.") {
        xattrs.take(&unescaped(&key[b"SCHILY.xattr.".len()..]), value.to_vec())?;
    }
    for (key, value) in records.with_prefix(b"SCHILY.acl.") {
        if !records.has(acl_attribute(key))
            && let Some(attribute) = acl::from_text(key, value)?
        {
            xattrs.take(&attribute.name, attribute.value)?;
        }
    }
    Ok(xattrs)
}

/// Under which record the same list stands as an attribute, which is exact and so preferred.
fn acl_attribute(key: &[u8]) -> &'static [u8] {
    if key == b"SCHILY.acl.default" {
        b"SCHILY.xattr.system.posix_acl_default"
    } else {
        b"SCHILY.xattr.system.posix_acl_access"
    }
}
