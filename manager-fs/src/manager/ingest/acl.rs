//! POSIX access control lists: as tar has them (text), and as the kernel has them (`system.posix_acl_*`,
//! linux/posix_acl_xattr.h).

use proto::manifest::Xattr;

/// The attribute that holds the access control list of a file or directory.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what new entries of a directory get.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";
const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// The tags of entries, in the order in which the kernel wants them.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Why an access control list is none that the kernel would take, by the rules of `posix_acl_valid` (fs/posix_acl.c).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AclFault {
    /// Another version of the attribute, or half an entry.
    #[error("it is no access control list that Linux has")]
    NotAList,
    /// A tag that Linux has not.
    #[error("its access control list has an entry of an unknown kind")]
    Kind,
    /// Not sorted by tag.
    #[error("the entries of its access control list are not in the kernel's order")]
    Order,
    /// One of these is missing, or there twice.
    #[error("its access control list needs one entry each for owner, group and others")]
    Base,
    /// Nothing bounds what those that are named may.
    #[error("its access control list names users or groups, and so needs a mask")]
    NoMask,
    /// More than read, write and execute, or nobody's.
    #[error("its access control list has an entry with unknown permissions or without a user or group")]
    Entry,
    /// Not in UTF-8.
    #[error("its access control list is not text")]
    NotText,
    /// No `user:1000:rwx`.
    #[error("the entry '{0}' of its access control list does not parse")]
    Syntax(String),
    /// A name instead of a number.
    #[error("its access control list names '{0}', whom other machines do not know; use tar --numeric-owner")]
    Stranger(String),
}

/// A list that the kernel would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

impl Acl {
    /// From an attribute's value; `None` for one of no entries, which the kernel takes for no list.
    ///
    /// # Errors
    /// See [`AclFault`].
    pub(super) fn parse(value: &[u8]) -> Result<Option<Self>, AclFault> {
        let (version, rest) = value.split_first_chunk::<4>().ok_or(AclFault::NotAList)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return Err(AclFault::NotAList);
        }
        let entries = rest.chunks_exact(8).map(|entry| Entry {
            tag: u16::from_le_bytes([entry[0], entry[1]]),
            permissions: u16::from_le_bytes([entry[2], entry[3]]),
            id: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        });
        Self::checked(entries.collect())
    }

    fn checked(entries: Vec<Entry>) -> Result<Option<Self>, AclFault> {
        if entries.is_empty() {
            return Ok(None);
        }
        let once = |tag: u16| entries.iter().filter(|entry| entry.tag == tag).count() == 1;
        let named = |entry: &&Entry| [USER, GROUP].contains(&entry.tag);
        let masks = entries.iter().filter(|entry| entry.tag == MASK).count();
        if !entries.iter().all(|entry| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&entry.tag)) {
            return Err(AclFault::Kind);
        }
        if !entries.is_sorted_by_key(|entry| entry.tag) {
            return Err(AclFault::Order);
        }
        if !(once(USER_OBJ) && once(GROUP_OBJ) && once(OTHER)) || masks > 1 {
            return Err(AclFault::Base);
        }
        if masks == 0 && entries.iter().any(|entry| named(&entry)) {
            return Err(AclFault::NoMask);
        }
        if entries.iter().any(|entry| entry.permissions > 7 || (named(&entry) && entry.id == NO_ID)) {
            return Err(AclFault::Entry);
        }
        Ok(Some(Self(entries)))
    }

    /// The nine permission bits that go with it; those of the group are the mask's, if there is one.
    pub(super) fn permission_bits(&self) -> u32 {
        let of = |tag: u16| self.0.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.permissions));
        let group = of(MASK).or(of(GROUP_OBJ)).unwrap_or(0);
        of(USER_OBJ).unwrap_or(0) << 6 | group << 3 | of(OTHER).unwrap_or(0)
    }

    /// Whether the permission bits say all of it. The kernel stores no such list.
    pub(super) fn is_minimal(&self) -> bool {
        self.0.iter().all(|entry| [USER_OBJ, GROUP_OBJ, OTHER].contains(&entry.tag))
    }

    fn to_value(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for Entry { tag, id, permissions } in &self.0 {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }
}

/// The attribute for a `SCHILY.acl.access` or `SCHILY.acl.default` record; `None` for kinds that Linux has not.
///
/// # Errors
/// The text does not parse, or names users that only their machine knows.
pub(super) fn from_text(key: &[u8], text: &[u8]) -> Result<Option<Xattr>, AclFault> {
    let name = match key {
        b"SCHILY.acl.access" => ACCESS,
        b"SCHILY.acl.default" => DEFAULT,
        _ => return Ok(None),
    };
    let text = std::str::from_utf8(text).map_err(|_| AclFault::NotText)?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()) {
        entries.push(parse(entry)?);
    }
    entries.sort();
    let acl = Acl::checked(entries)?;
    Ok(acl.map(|acl| Xattr { name: name.to_vec(), value: acl.to_value() }))
}

/// `user:1000:rwx`, or with the number last, as star writes it: `user:joe:rwx:1000`.
fn parse(entry: &str) -> Result<Entry, AclFault> {
    let fault = || AclFault::Syntax(entry.to_owned());
    let mut fields = entry.split('#').next().unwrap_or_default().trim().split(':');
    let (kind, who) = (fields.next().ok_or_else(fault)?, fields.next().ok_or_else(fault)?);
    let (permissions, number) = (fields.next().ok_or_else(fault)?, fields.next());
    let tag = match (kind, who.is_empty()) {
        ("user" | "u", true) => USER_OBJ,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OBJ,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return Err(fault()),
    };
    let id = match who {
        "" => NO_ID,
        who => number.unwrap_or(who).parse().map_err(|_| AclFault::Stranger(who.to_owned()))?,
    };
    let mut bits = 0;
    for permission in permissions.chars() {
        bits |= match permission {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return Err(fault()),
        };
    }
    Ok(Entry { tag, id, permissions: bits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries =
            entries.iter().map(|(tag, permissions, id)| Entry { tag: *tag, permissions: *permissions, id: *id });
        Acl(entries.collect()).to_value()
    }

    #[test]
    fn only_lists_that_the_kernel_takes_are_lists() {
        let base = [(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)];
        let minimal = Acl::parse(&value(&base)).unwrap().unwrap();
        assert!(minimal.is_minimal());
        assert_eq!(minimal.permission_bits(), 0o750);
        let named = [base[0], (USER, 5, 1000), (GROUP_OBJ, 0, NO_ID), (MASK, 5, NO_ID), base[2]];
        let acl = Acl::parse(&value(&named)).unwrap().unwrap();
        assert!(!acl.is_minimal());
        assert_eq!(acl.permission_bits(), 0o750, "the group's bits are the mask's");
        assert_eq!(Acl::parse(&acl.to_value()).unwrap().unwrap(), acl);

        assert_eq!(Acl::parse(&VERSION.to_le_bytes()), Ok(None));
        let without = |at: usize| named.iter().enumerate().filter(move |(n, _)| *n != at).map(|(_, entry)| *entry);
        for (bad, why) in [
            (vec![2, 0, 0], "three bytes"),
            (vec![1, 0, 0, 0], "another version"),
            ([value(&base), vec![0]].concat(), "half an entry"),
            (value(&[base[1], base[0], base[2]]), "out of order"),
            (value(&base[..2]), "nothing for others"),
            (value(&without(3).collect::<Vec<_>>()), "names without a mask"),
            (value(&[base[0], (USER, 5, NO_ID), base[1], (MASK, 5, NO_ID), base[2]]), "nobody named"),
            (value(&[(USER_OBJ, 8, NO_ID), base[1], base[2]]), "a permission that there is not"),
            (value(&[base[0], base[1], base[2], (0x40, 0, NO_ID)]), "an unknown tag"),
        ] {
            assert!(Acl::parse(&bad).is_err(), "{why}");
        }
    }
}
