//! Asking again what may succeed later, with longer and longer pauses, until the patience is over.

use std::io;
use std::time::{Duration, Instant};

use super::SharedMeter;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How often a pause looks whether the operation was stopped.
const BEAT: Duration = Duration::from_millis(100);

/// An attempt that came to nothing.
#[derive(Debug)]
pub(super) enum Tried {
    /// The same may succeed later.
    Passing(io::Error),
    /// It stays so.
    Final(io::Error),
}

impl Tried {
    /// Of a connection's error.
    pub(super) fn of(error: io::Error) -> Self {
        if crate::wire::client::may_pass(error.kind()) { Tried::Passing(error) } else { Tried::Final(error) }
    }
}

/// For whom somebody waits, and how long.
#[derive(Debug)]
pub(super) struct Again {
    /// How people call who is asked.
    pub(super) whom: String,
    pub(super) meter: SharedMeter,
    /// How long the other side may be away, or have no room.
    pub(super) outage_max: Duration,
}

impl Again {
    /// What comes of it in the end.
    pub(super) fn ask<T>(&self, mut try_once: impl FnMut() -> Result<T, Tried>) -> io::Result<T> {
        let until = Instant::now() + self.outage_max;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match try_once() {
                Ok(answer) => return Ok(answer),
                Err(Tried::Final(error)) => return Err(error),
                Err(Tried::Passing(error)) => error,
            };
            if self.meter.is_stopped() || Instant::now() + pause > until {
                return Err(error);
            }
            tracing::debug!("{}: {error}; asked again", self.whom);
            if pause > FIRST_PAUSE * 8 {
                self.meter.say(&format!("waits for {} ({error})", self.whom));
            }
            self.rest(somewhat_less(pause));
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.meter.is_stopped() {
            std::thread::sleep(BEAT.min(until.saturating_duration_since(Instant::now())));
        }
    }
}

/// By up to a half, at random: those who were cut together do not come back together.
fn somewhat_less(pause: Duration) -> Duration {
    let mut random = [0u8; 1];
    // Without, all of it.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
    pause - pause * u32::from(random[0]) / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(outage_max: Duration) -> Again {
        Again { whom: "somebody".into(), meter: SharedMeter::default(), outage_max }
    }

    #[test]
    fn what_passes_is_asked_again_and_what_stays_is_not() {
        let mut asked = 0;
        let answer = again(Duration::from_secs(60)).ask(|| {
            asked += 1;
            if asked < 3 { Err(Tried::of(io::ErrorKind::ConnectionReset.into())) } else { Ok(asked) }
        });
        assert_eq!(answer.unwrap(), 3);
        let mut asked = 0;
        let refused: io::Result<()> = again(Duration::from_secs(60)).ask(|| {
            asked += 1;
            Err(Tried::of(io::ErrorKind::PermissionDenied.into()))
        });
        assert_eq!((refused.unwrap_err().kind(), asked), (io::ErrorKind::PermissionDenied, 1));
        let over: io::Result<()> =
            again(Duration::from_millis(250)).ask(|| Err(Tried::Passing(io::ErrorKind::TimedOut.into())));
        assert_eq!(over.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_pause_is_never_longer_and_at_least_half() {
        for _ in 0..200 {
            let pause = somewhat_less(LAST_PAUSE);
            assert!(pause <= LAST_PAUSE && pause >= LAST_PAUSE / 2, "{pause:?}");
        }
    }
}
