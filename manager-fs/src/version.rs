//! Which build this is, as it says on its local sockets.

use proto::local_greeting::Greeting;

/// The version of this program, such as `0.1.0`, which the whole workspace has.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Hash of the sources of its messages, hex (`build.rs`).
const MESSAGES: &str = env!("MANAGER_FS_MESSAGES");

/// What this build says first on a local socket, and answers to a greeting.
pub fn greeting() -> Greeting {
    Greeting::new(VERSION, u128::from_str_radix(MESSAGES, 16).unwrap_or_default().to_be_bytes())
}
