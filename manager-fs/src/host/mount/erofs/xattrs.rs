//! Extended attributes: behind their inode, or once for many inodes in the shared area.

use std::collections::BTreeMap;

use proto::ObjectId;
use proto::manifest::{Manifest, Node, NodeKind, Xattr};
use proto::path::printable;
use proto::width;

use super::format::{BLOCK, XATTR_HEADER_BYTES, align};
use super::{ImageError, does_not_fit, malformed};

/// Longer ones are shared even if only one inode has them: the place behind an inode ends at 256 KiB.
const INLINE_BYTES_MAX: usize = 1024;
/// An inode counts its shared attributes in a byte.
const SHARED_PER_INODE_MAX: usize = 255;

const INDEX_TRUSTED: u8 = 4;
const METACOPY: Name<'static> = Name { index: INDEX_TRUSTED, rest: b"overlay.metacopy" };
const REDIRECT: Name<'static> = Name { index: INDEX_TRUSTED, rest: b"overlay.redirect" };

/// A name as the format has it: the number of its namespace and the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name<'n> {
    index: u8,
    rest: &'n [u8],
}

/// The shared area of one image, and which attributes are in it.
pub(super) struct Shared<'m> {
    area: Vec<u8>,
    /// Where `metacopy` stands, which every file with contents has.
    metacopy: Option<u32>,
    others: BTreeMap<&'m Xattr, u32>,
}

impl<'m> Shared<'m> {
    pub(super) fn of(manifest: &'m Manifest) -> Result<Self, ImageError> {
        let mut shared = Shared { area: Vec::new(), metacopy: None, others: BTreeMap::new() };
        if manifest.nodes.iter().any(|node| matches!(node.kind, NodeKind::File(_))) {
            shared.metacopy = Some(shared.add(METACOPY, b"")?);
        }
        let mut uses: BTreeMap<&Xattr, u32> = BTreeMap::new();
        for xattr in manifest.nodes.iter().flat_map(own) {
            *uses.entry(xattr).or_default() += 1;
        }
        for xattr in manifest.nodes.iter().flat_map(own) {
            let long = xattr.name.len() + xattr.value.len() > INLINE_BYTES_MAX;
            if (long || uses[xattr] > 1) && !shared.others.contains_key(xattr) {
                let at = shared.add(name(xattr)?, &xattr.value)?;
                shared.others.insert(xattr, at);
            }
        }
        Ok(shared)
    }

    /// The bytes of the area.
    pub(super) fn area(&self) -> &[u8] {
        &self.area
    }

    /// Writes what stands between an inode and its body; nothing for an inode without attributes. `start` is the byte of
    /// the image at which the area begins.
    pub(super) fn encode_of(&self, node: &'m Node, start: u64, into: &mut Vec<u8>) -> Result<(), ImageError> {
        into.clear();
        let object = if let NodeKind::File(id) = &node.kind { Some(id) } else { None };
        if object.is_none() && own(node).next().is_none() {
            return Ok(());
        }
        into.resize(XATTR_HEADER_BYTES, 0);
        let mut count = 0;
        let places = self.metacopy.filter(|_| object.is_some()).into_iter();
        for place in places.chain(own(node).filter_map(|xattr| self.others.get(xattr).copied())) {
            if count < SHARED_PER_INODE_MAX {
                into.extend_from_slice(&self.number(place, start)?.to_le_bytes());
            }
            count += 1;
        }
        into[4] = u8::try_from(count.min(SHARED_PER_INODE_MAX)).unwrap_or(u8::MAX);
        let mut left = SHARED_PER_INODE_MAX - usize::from(object.is_some());
        for xattr in own(node) {
            match self.others.get(xattr) {
                Some(_) if left > 0 => left -= 1,
                _ => push(into, name(xattr)?, &xattr.value)?,
            }
        }
        if let Some(id) = object {
            push(into, REDIRECT, &redirect(id))?;
        }
        Ok(())
    }

    fn add(&mut self, name: Name<'_>, value: &[u8]) -> Result<u32, ImageError> {
        let at = self.area.len();
        push(&mut self.area, name, value)?;
        u32::try_from(at).map_err(|_| does_not_fit("shared attributes", "more than 4 GiB"))
    }

    /// How inodes name a place of the area: in words from the start of the block in which the area begins.
    fn number(&self, place: u32, start: u64) -> Result<u32, ImageError> {
        let words = (start % BLOCK + u64::from(place)) / 4;
        u32::try_from(words).map_err(|_| does_not_fit("shared attributes", "more than the format can count"))
    }
}

/// Header of an inode's attributes: how many words they are, in the format's count (12 bytes of header are 1).
pub(super) fn words(bytes: usize) -> Option<u16> {
    match bytes.checked_sub(XATTR_HEADER_BYTES) {
        None => Some(0),
        Some(rest) => u16::try_from(rest / 4 + 1).ok(),
    }
}

/// The attributes that are shown. Linux has none of these namespaces on symlinks.
fn own(node: &Node) -> impl Iterator<Item = &Xattr> {
    let none = matches!(node.kind, NodeKind::Symlink(_));
    node.xattrs.iter().filter(move |_| !none)
}

fn name(xattr: &Xattr) -> Result<Name<'_>, ImageError> {
    let name = xattr.name.as_slice();
    let found = match name {
        b"system.posix_acl_access" => Some(Name { index: 2, rest: b"" }),
        b"system.posix_acl_default" => Some(Name { index: 3, rest: b"" }),
        _ => [(&b"user."[..], 1), (b"security.", 6)]
            .iter()
            .find_map(|(prefix, index)| name.strip_prefix(*prefix).map(|rest| Name { index: *index, rest })),
    };
    // An overlay attribute in a tree could name any object.
    found
        .filter(|found| !found.rest.starts_with(b"overlay."))
        .ok_or_else(|| malformed(printable(name), "only user.*, security.* and POSIX ACLs are kept"))
}

fn push(into: &mut Vec<u8>, name: Name<'_>, value: &[u8]) -> Result<(), ImageError> {
    let place = || printable(name.rest);
    let name_bytes = u8::try_from(name.rest.len()).map_err(|_| malformed(place(), "its name is too long"))?;
    let value_bytes =
        u16::try_from(value.len()).map_err(|_| does_not_fit(place(), "an attribute of more than 65,535 bytes"))?;
    into.extend_from_slice(&[name_bytes, name.index]);
    into.extend_from_slice(&value_bytes.to_le_bytes());
    into.extend_from_slice(name.rest);
    into.extend_from_slice(value);
    into.resize(width::index(align(into.len() as u64, 4)), 0);
    Ok(())
}

/// `/<2 hex>/<62 hex>`, without an allocation for each of many files.
fn redirect(id: &ObjectId) -> [u8; 66] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut path = [b'/'; 66];
    for (at, byte) in id.as_bytes().iter().enumerate() {
        let to = if at == 0 { 1 } else { 2 * at + 2 };
        path[to] = DIGITS[usize::from(byte >> 4)];
        path[to + 1] = DIGITS[usize::from(byte & 15)];
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_where_the_cache_keeps_the_object() {
        let id = ObjectId::of(b"content");
        let (shard, rest) = id.to_shard();
        assert_eq!(redirect(&id), format!("/{shard}/{rest}").as_bytes());
    }

    #[test]
    fn names_outside_the_kept_namespaces_are_refused() {
        for bad in ["trusted.overlay.redirect", "user.overlay.redirect", "system.other", "user", "trusted.x"] {
            let xattr = Xattr { name: bad.as_bytes().to_vec(), value: Vec::new() };
            assert!(name(&xattr).is_err(), "{bad}");
        }
    }
}
