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

pub(super) const TOKEN: &[(&str, &str)] =
    &[("repository", "of which"), ("token", "the token"), ("ttl_ms", "how long it is good for")];
