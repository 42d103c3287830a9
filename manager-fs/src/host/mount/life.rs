//! Signs of life: the holder asks its children for one, and replaces a child that gives none though its process is there: it was
//! stopped, or hangs.
//!
//! ```text
//! holder ──1 byte──> child          child ──1 byte (helper), Said::Alive (worker)──> holder
//! ```

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How often a child is asked.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(1);
/// Questions that a child may leave unanswered. Questions and not seconds: a machine that was asleep asks none.
const UNANSWERED_MAX: u32 = 5;
/// What is asked, and what a helper answers.
const SIGN: u8 = b'?';

/// What is known of one child.
#[derive(Debug, Default)]
pub(super) struct Life {
    unanswered: u32,
}

impl Life {
    /// The child has said something.
    pub(super) fn heard(&mut self) {
        self.unanswered = 0;
    }

    /// It is asked again; `false` when it has left too many questions unanswered.
    pub(super) fn asked(&mut self) -> bool {
        self.unanswered += 1;
        self.unanswered <= UNANSWERED_MAX
    }
}

/// Asks a child, without waiting: a full pipe is as good as no answer.
pub(super) fn ask(control: &tokio::net::UnixStream) {
    let _ = control.try_write(&[SIGN]);
}

/// In the child: answers every question with `answer`, and returns when the holder has gone.
pub(super) fn answer_until_end(
    control: &mut UnixStream,
    mut answer: impl FnMut(&mut UnixStream) -> std::io::Result<()>,
) {
    let mut asked = [0; 64];
    loop {
        match control.read(&mut asked) {
            Ok(0) => return,
            Ok(_) if answer(control).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A helper's answer.
pub(super) fn sign(control: &mut UnixStream) -> std::io::Result<()> {
    control.write_all(&[SIGN])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_answers_now_and_then_lives() {
        let mut life = Life::default();
        for _ in 0..10 {
            assert!((0..UNANSWERED_MAX).all(|_| life.asked()));
            life.heard();
        }
        assert!((0..UNANSWERED_MAX).all(|_| life.asked()) && !life.asked());
    }

    #[test]
    fn a_child_answers_until_its_holder_is_gone() {
        let (mut holder, mut child) = UnixStream::pair().unwrap();
        let child = std::thread::spawn(move || answer_until_end(&mut child, sign));
        for _ in 0..3 {
            holder.write_all(&[SIGN]).unwrap();
            holder.read_exact(&mut [0]).unwrap();
        }
        drop(holder);
        child.join().unwrap();
    }
}
