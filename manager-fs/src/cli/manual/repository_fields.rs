//! The fields of repositories that are served.

pub(super) const REPOSITORY: &[(&str, &str)] = &[
    ("repository", "its name"),
    ("host", "whose media agent serves it"),
    ("product", "which agent of that host"),
    ("path", "its directory there"),
    ("address", "where others reach it"),
    ("created_unix_ms", "since when"),
];

pub(super) const CERTIFICATE: &[(&str, &str)] = &[("repository", "of which"), ("certificate", "PEM")];

pub(super) const LIST: &[(&str, &str)] = &[("repositories[].*", "as `repository show`")];

pub(super) const TOKEN: &[(&str, &str)] = &[
    ("repository", "of which"),
    ("id", "its number"),
    ("token", "the token"),
    ("ttl_ms", "how long it is good for"),
];

pub(super) const TOKENS: &[(&str, &str)] = &[
    ("repository", "of which"),
    ("tokens[].id", "the number by which it is taken back"),
    ("tokens[].access", "read or append"),
    ("tokens[].created_unix_ms", "when it was given"),
    ("tokens[].until_unix_ms", "when it ends by itself"),
    ("tokens[].revoked_unix_ms?", "when it was taken back"),
];

pub(super) const KEY_NEW: &[(&str, &str)] =
    &[("secret_file", "where the secret is"), ("key", "the public half, to which others seal")];

pub(super) const SEALED: &[(&str, &str)] = &[
    ("repository", "of which"),
    ("key", "which of its keys the password is of"),
    ("sealed", "the password, which `repository key recover` opens"),
];

pub(super) const RECOVERED: &[(&str, &str)] = &[
    ("repository", "what it was called"),
    ("id", "the repository's own id"),
    ("key", "which of its keys the password is of"),
    ("password", "what opens it"),
];

pub(super) const KEYS: &[(&str, &str)] = &[
    ("repository", "of which"),
    ("keys[].key", "the key's id"),
    ("keys[].own", "whether the agent that serves the repository opens it by this one"),
    ("keys[].by", "user and host that made it, as it says itself"),
    ("keys[].created", "when, as it says itself"),
    ("left_out", "how many more there are"),
];
