//! The only file that knows TLS and TCP: multiplexed requests over one connection.
