//! The fields of hosts and groups.

/// Path and meaning of each field of `hosts`.
pub(super) const HOSTS: &[(&str, &str)] = &[
    ("hosts[].name", "the name in its certificate"),
    ("hosts[].connected", "whether it is connected now"),
    ("hosts[].connected_since_unix_ms?", "since when"),
    ("hosts[].last_seen_unix_ms", "when it was last heard of, 0: never"),
    ("hosts[].enrolled_unix_ms", "when it enrolled"),
    ("hosts[].certificate_expires_unix_ms?", "when its newest certificate ends"),
    ("hosts[].revoked_unix_ms?", "when it was revoked"),
    ("hosts[].groups[]?", "its groups"),
    ("hosts[].labels[]?", "its labels, as `key=value`"),
    ("hosts[].software", "version of its manager-fs"),
    ("hosts[].attached[]?", "trees attached there"),
    ("hosts[].wrong_hashes[].at_unix_ms?", "when it found wrong bytes"),
    ("hosts[].wrong_hashes[].what?", "which"),
];

/// Of what changes a group.
pub(super) const GROUP: &[(&str, &str)] = &[
    ("group", "its name"),
    ("hosts[]?", "its hosts, as they are now"),
    ("not_enrolled[]?", "those of them that were typed and are not enrolled yet"),
];
