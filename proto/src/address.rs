//! The address of a socket, which is a value as any other: nothing here opens one.

pub(crate) use core::net::SocketAddr;
