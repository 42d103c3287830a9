//! What data agents and media agents say to each other: restic's REST protocol, by HTTP/1.1, over TLS 1.3 with the
//! certificates that their manager gave their hosts.

pub(crate) mod front;
pub(crate) mod http;
pub(crate) mod timed;
pub(crate) mod tls;
