//! How far the greeting of one connection is. A host need not wait for the answer to `Hello`: what comes right behind it
//! waits here until that is answered.

use std::sync::atomic::{AtomicBool, Ordering};

use proto::codec::CodecError;
use proto::message::Fault;
use tokio::sync::watch;

/// What a connection may not do before or after its greeting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GreetingError {
    /// It came without a certificate.
    #[error("a connection without a certificate can only enrol")]
    Stranger,
    /// It asked for something else first.
    #[error("a host says Hello first")]
    NoHello,
    /// It greeted before.
    #[error("a second Hello")]
    Twice,
    /// A request that this version does not know, or that is beyond its bounds.
    #[error("this manager cannot read the request: {0}")]
    Unreadable(#[from] CodecError),
    /// It has a certificate.
    #[error("this connection is enrolled already")]
    Enrolled,
    /// Its `Hello`, right before, was refused.
    #[error(transparent)]
    Refused(Fault),
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hello {
    NotYet,
    BeingAnswered,
    Answered(Result<(), Fault>),
}

/// The greeting of one connection.
pub(crate) struct Greeting {
    hello: watch::Sender<Hello>,
    claimed: AtomicBool,
}

impl Default for Greeting {
    fn default() -> Self {
        Self { hello: watch::Sender::new(Hello::NotYet), claimed: AtomicBool::new(false) }
    }
}

impl Greeting {
    /// A `Hello` has come; noted before the next request is read.
    pub(crate) fn begins(&self) {
        self.hello.send_if_modified(|hello| {
            let first = *hello == Hello::NotYet;
            if first {
                *hello = Hello::BeingAnswered;
            }
            first
        });
    }

    /// The connection is of use from now on: its host is admitted, or enrols.
    ///
    /// # Errors
    /// [`GreetingError::Twice`].
    pub(crate) fn claim(&self) -> Result<(), GreetingError> {
        if self.claimed.swap(true, Ordering::AcqRel) { Err(GreetingError::Twice) } else { Ok(()) }
    }

    /// Whether the connection has been of use.
    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// The answer to the `Hello` is known. That of a second one changes nothing: the first has let the connection in.
    pub(crate) fn answered(&self, answer: Result<(), Fault>) {
        self.hello.send_if_modified(|hello| {
            let open = !matches!(hello, Hello::Answered(Ok(())));
            if open {
                *hello = Hello::Answered(answer);
            }
            open
        });
    }

    /// Whether the connection has been let in, as soon as that is known. What came behind a `Hello` that is refused is
    /// refused for the same reason: its answer may arrive first.
    pub(crate) async fn wait(&self) -> Result<(), GreetingError> {
        let mut hello = self.hello.subscribe();
        // The sender is in `self`, so this does not fail.
        let hello = hello.wait_for(|hello| *hello != Hello::BeingAnswered).await.map(|hello| hello.clone());
        match hello {
            Ok(Hello::Answered(answer)) => answer.map_err(GreetingError::Refused),
            _ => Err(GreetingError::NoHello),
        }
    }
}
