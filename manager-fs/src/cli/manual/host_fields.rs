//! The fields of hosts and groups.

use super::fields::{Document, ONE};

/// The JSON documents of these commands.
pub(super) const DOCUMENTS: &[Document] = &[
    Document { command: "hosts", what: ONE, fields: HOSTS },
    Document {
        command: "api-token add",
        what: ONE,
        fields: &[
            ("name", "what it is called"),
            ("role", "viewer, operator, publisher or admin"),
            ("ttl_ms?", "how long it is good; null: until it is taken back"),
            ("token?", "the token; null: a certificate"),
        ],
    },
    Document {
        command: "api-token list",
        what: ONE,
        fields: &[
            ("tokens[].name?", "what it is called"),
            ("tokens[].role?", "viewer, operator, publisher or admin"),
            ("tokens[].certificate?", "whether it is a certificate"),
            ("tokens[].created_unix_ms?", "since when"),
            ("tokens[].until_unix_ms?", "until when; null: until it is taken back"),
        ],
    },
    Document { command: "api-token revoke", what: ONE, fields: &[("name", "which"), ("revoked", "true")] },
    Document { command: "host revoke", what: ONE, fields: &[("host", "which"), ("revoked", "true")] },
    Document { command: "host forget", what: ONE, fields: &[("host", "which"), ("forgotten", "true")] },
    Document {
        command: "host label",
        what: ONE,
        fields: &[
            ("of", "the host or group that was given labels"),
            ("hosts[].name?", "an enrolled host among them"),
            ("hosts[].labels[]?", "its labels then, as `key=value`"),
        ],
    },
    Document { command: "host group rule", what: ONE, fields: GROUP },
    Document { command: "host group add", what: ONE, fields: GROUP },
    Document { command: "host group remove", what: ONE, fields: GROUP },
    Document {
        command: "host group list",
        what: ONE,
        fields: &[
            ("groups[].name", "a group"),
            ("groups[].hosts[]?", "its hosts"),
            ("groups[].rule[]?", "the selectors by which hosts are in it"),
        ],
    },
    Document { command: "host group delete", what: ONE, fields: &[("group", "which"), ("deleted", "true")] },
];

/// Path and meaning of each field of `hosts`.
const HOSTS: &[(&str, &str)] = &[
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
    ("hosts[].machine?", "what its machine calls itself, such as x86_64, once it has said so"),
    ("hosts[].attached[]?", "trees attached there"),
    ("hosts[].wrong_hashes[].at_unix_ms?", "when it found wrong bytes"),
    ("hosts[].wrong_hashes[].what?", "which"),
];

/// Of what changes a group.
const GROUP: &[(&str, &str)] = &[
    ("group", "its name"),
    ("hosts[]?", "its hosts, as they are now"),
    ("not_enrolled[]?", "those of them that were typed and are not enrolled yet"),
];
