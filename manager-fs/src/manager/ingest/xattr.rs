//! Extended attributes: which are kept, and which no host could attach. What one kind of host takes and another does not
//! is refused here, by name, so that a generation attaches everywhere or is never published.

use proto::manifest::{NodeKind, Xattr, xattr_fault};
use proto::path::printable;

use super::acl::{ACCESS, Acl, AclFault, DEFAULT};
use super::attributes::Attributes;

/// Bytes that the attributes of one file may take where an ext4 keeps them: one block of 4 KiB less its header
/// (`struct ext4_xattr_header`, 32 bytes) and the end mark, rounded down. A host without an overlay keeps its trees on
/// whatever file system its cache is on.
const ROOM_BYTES: usize = 4_000;

const CAPABILITY: &[u8] = b"security.capability";

/// Why an extended attribute enters no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrFault {
    /// What its name or value says, no host takes.
    #[error("extended attribute '{name}': {fault}")]
    Unfit {
        /// Its name, made printable.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// It should be an access control list.
    #[error("extended attribute '{name}': {fault}")]
    Acl {
        /// Its name.
        name: String,
        /// What is wrong with it.
        fault: AclFault,
    },
    /// A symlink has it.
    #[error("extended attribute '{0}' on a symlink, where Linux has none")]
    OnSymlink(String),
    /// What new entries get, where there can be none.
    #[error("a default access control list on a file; only directories have them")]
    DefaultOnFile,
}

/// Whether an attribute of this name is kept, if nothing is wrong with it.
pub(super) fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.") || [ACCESS, DEFAULT, CAPABILITY].contains(&name)
}

/// The attributes of one entry as they come.
#[derive(Debug, Default)]
pub(super) struct Xattrs {
    kept: Vec<Xattr>,
    room_taken: usize,
}

impl Xattrs {
    /// Keeps an attribute, drops it, or refuses the source.
    ///
    /// # Errors
    /// The attribute must not enter any tree.
    pub(super) fn take(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), XattrFault> {
        let fault = |fault: &'static str| Err(XattrFault::Unfit { name: printable(name), fault });
        match xattr_fault(name, value.len()) {
            Some(what) if is_overlay(name) || is_kept(name) => return fault(what),
            // Other namespaces (labels of security modules, trusted.*) mean nothing on another machine.
            Some(_) => return Ok(()),
            None if name == b"user." => return fault("it has no name after 'user.'"),
            None if name == CAPABILITY && !is_capability(&value) => {
                return fault("it is no capability that Linux has (want struct vfs_cap_data of revision 1 to 3)");
            }
            None => {}
        }
        self.room_taken += room(name, &value);
        if self.room_taken > ROOM_BYTES {
            return fault("with it the file's attributes take more than the 4,000 bytes that an ext4 has room for");
        }
        self.kept.push(Xattr { name: name.to_vec(), value });
        Ok(())
    }

    /// Refuses the source for an attribute whose name alone must not enter any tree; keeps nothing.
    ///
    /// # Errors
    /// It has one.
    pub(super) fn refuse_overlay(name: &[u8]) -> Result<(), XattrFault> {
        if is_overlay(name) { Self::default().take(name, Vec::new()) } else { Ok(()) }
    }

    pub(super) fn into_inner(self) -> Vec<Xattr> {
        self.kept
    }
}

/// Whether an attribute speaks to overlayfs: `*.overlay.*`.
fn is_overlay(name: &[u8]) -> bool {
    let mut parts = name.splitn(3, |byte| *byte == b'.');
    parts.nth(1) == Some(b"overlay") && parts.next().is_some()
}

/// What an ext4 needs for one attribute (`struct ext4_xattr_entry` of 16 bytes, the name, the value, both padded).
fn room(name: &[u8], value: &[u8]) -> usize {
    16 + name.len().next_multiple_of(4) + value.len().next_multiple_of(4)
}

/// `struct vfs_cap_data` and `vfs_ns_cap_data` of linux/capability.h.
fn is_capability(value: &[u8]) -> bool {
    const EFFECTIVE: u32 = 1;
    let Some(magic) = value.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)) else { return false };
    let bytes = match magic >> 24 {
        1 => 12,
        2 => 20,
        3 => 24,
        _ => return false,
    };
    value.len() == bytes && magic & 0x00ff_ffff & !EFFECTIVE == 0
}

/// Attributes as the kernel would have them on a node of this kind: its access list decides the permission bits, as in
/// `posix_acl_update_mode` (fs/posix_acl.c), and lists that say no more than those are none.
///
/// # Errors
/// No Linux file system would take them.
pub(super) fn fitted(kind: &NodeKind, mut attributes: Attributes) -> Result<Attributes, XattrFault> {
    if attributes.xattrs.is_empty() {
        return Ok(attributes);
    }
    if let NodeKind::Symlink(_) = kind {
        let name = attributes.xattrs.first().map(|xattr| printable(&xattr.name)).unwrap_or_default();
        return Err(XattrFault::OnSymlink(name));
    }
    let mut fitted = Vec::with_capacity(attributes.xattrs.len());
    for xattr in attributes.xattrs {
        let list = |xattr: &Xattr| {
            let named = |fault| XattrFault::Acl { name: printable(&xattr.name), fault };
            Acl::parse(&xattr.value).map_err(named)
        };
        match xattr.name.as_slice() {
            DEFAULT if *kind != NodeKind::Directory => {
                return Err(XattrFault::DefaultOnFile);
            }
            DEFAULT if list(&xattr)?.is_none() => continue,
            ACCESS => match list(&xattr)? {
                None => continue,
                Some(acl) => {
                    attributes.mode = attributes.mode & !0o777 | acl.permission_bits();
                    if acl.is_minimal() {
                        continue;
                    }
                }
            },
            _ => {}
        }
        fitted.push(xattr);
    }
    attributes.xattrs = fitted;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernel_s_form() {
        let revision = |revision: u8, bytes: usize, flags: u8| {
            let mut value = vec![0; bytes];
            (value[3], value[0]) = (revision, flags);
            value
        };
        for (good, bytes) in [(1, 12), (2, 20), (3, 24)] {
            assert!(is_capability(&revision(good, bytes, 0)) && is_capability(&revision(good, bytes, 1)));
            assert!(!is_capability(&revision(good, bytes - 1, 0)) && !is_capability(&revision(good, bytes + 1, 0)));
            assert!(!is_capability(&revision(good, bytes, 2)), "an unknown flag");
        }
        assert!(!is_capability(&revision(4, 24, 0)) && !is_capability(b"") && !is_capability(b"abc"));
    }

    #[test]
    fn attributes_are_bounded_by_what_every_host_can_hold() {
        let mut xattrs = Xattrs::default();
        xattrs.take(b"user.large", vec![1; 3_900]).unwrap();
        assert!(xattrs.take(b"user.more", vec![1; 200]).unwrap_err().to_string().contains("ext4"));
        let mut xattrs = Xattrs::default();
        let long = |n: usize| format!("user.{n:0>250}").into_bytes();
        let taken = (0..256).take_while(|n| xattrs.take(&long(*n), Vec::new()).is_ok()).count();
        assert_eq!(taken, ROOM_BYTES / (16 + 256));
        assert!(Xattrs::default().take(b"user.", Vec::new()).unwrap_err().to_string().contains("no name"));
    }
}
