//! POSIX access control lists as tar has them (text) into what the kernel has (`system.posix_acl_*`).

use proto::manifest::Xattr;

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// The attribute for a `SCHILY.acl.access` or `SCHILY.acl.default` record; `None` for kinds that Linux has not.
///
/// # Errors
/// The text does not parse, or names users that only their machine knows.
pub(super) fn from_text(key: &[u8], text: &[u8]) -> Result<Option<Xattr>, String> {
    let name: &[u8] = match key {
        b"SCHILY.acl.access" => b"system.posix_acl_access",
        b"SCHILY.acl.default" => b"system.posix_acl_default",
        _ => return Ok(None),
    };
    let text = std::str::from_utf8(text).map_err(|_| "its access control list is not text".to_owned())?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty()) {
        entries.push(parse(entry)?);
    }
    // What the mode says already is no list: the kernel does not store one either.
    let same_as_mode = entries.iter().all(|(tag, ..)| [0x01, 0x04, 0x20].contains(tag));
    if entries.is_empty() || (same_as_mode && name == b"system.posix_acl_access") {
        return Ok(None);
    }
    // The kernel wants them in this order.
    entries.sort();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(Some(Xattr { name: name.to_vec(), value }))
}

/// `user:1000:rwx`, or with the number last, as star writes it: `user:joe:rwx:1000`.
fn parse(entry: &str) -> Result<(u16, u32, u16), String> {
    let fault = || format!("the entry '{entry}' of its access control list does not parse");
    let mut fields = entry.split('#').next().unwrap_or_default().trim().split(':');
    let (kind, who) = (fields.next().ok_or_else(fault)?, fields.next().ok_or_else(fault)?);
    let (permissions, number) = (fields.next().ok_or_else(fault)?, fields.next());
    let tag = match (kind, who.is_empty()) {
        ("user" | "u", true) => 0x01,
        ("user" | "u", false) => 0x02,
        ("group" | "g", true) => 0x04,
        ("group" | "g", false) => 0x08,
        ("mask" | "m", true) => 0x10,
        ("other" | "o", true) => 0x20,
        _ => return Err(fault()),
    };
    let id = match who {
        "" => NO_ID,
        who => number.unwrap_or(who).parse().map_err(|_| {
            format!("its access control list names '{who}', whom other machines do not know; use tar --numeric-owner")
        })?,
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
    Ok((tag, id, bits))
}
