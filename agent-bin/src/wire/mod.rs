//! What data agents and media agents say to each other: restic's REST protocol, by HTTP/1.1, over TLS 1.3 with the
//! certificates that their manager gave their hosts. And how servers are asked that are none of ours (`web.rs`).

mod chunks;
pub(crate) mod client;
pub(crate) mod front;
pub(crate) mod http;
pub(crate) mod timed;
pub(crate) mod tls;
pub(crate) mod web;
