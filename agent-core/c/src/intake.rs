//! What is under way, for a change-over to wait for: connections that are accepted, and work behind gates.

use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::RwLockReadGuard;

use agent_core::{Gate, Intake, Pass};

use crate::error::{Code, ErrorOut, Fault, entry};

/// `agent_core_intake`: a listener of either family.
#[derive(Debug)]
pub(crate) enum Listening {
    /// Over a network.
    Tcp(Intake<TcpListener>),
    /// On this machine.
    Unix(Intake<UnixListener>),
}

impl Listening {
    /// # Safety
    /// `listener` is a descriptor of the caller's, which gives it away.
    pub(crate) unsafe fn new(listener: RawFd) -> Result<Self, Fault> {
        if listener < 0 {
            return Err(Fault::new(Code::Argument, format_args!("{listener} is no descriptor")));
        }
        // SAFETY: as the caller says.
        let socket = TcpListener::from(unsafe { OwnedFd::from_raw_fd(listener) });
        match socket.local_addr() {
            Ok(_) => Ok(Self::Tcp(Intake::new(socket)?)),
            // A socket with an address of another family.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => {
                Ok(Self::Unix(Intake::new(UnixListener::from(OwnedFd::from(socket)))?))
            }
            Err(e) => Err(Fault::new(Code::Argument, format_args!("descriptor {listener}: {e}"))),
        }
    }

    pub(crate) fn gate(&self) -> Gate {
        match self {
            Self::Tcp(intake) => intake.gate(),
            Self::Unix(intake) => intake.gate(),
        }
    }

    fn accept(&self) -> std::io::Result<(OwnedFd, Pass)> {
        match self {
            Self::Tcp(intake) => intake.accept().map(|(stream, pass)| (stream.into(), pass)),
            Self::Unix(intake) => intake.accept().map(|(stream, pass)| (stream.into(), pass)),
        }
    }
}

/// `agent_core_accept` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_accept(
    intake: Option<&Listening>,
    pass: Option<&mut MaybeUninit<Option<Box<Pass>>>>,
    error: ErrorOut<'_>,
) -> i32 {
    entry(error, -1, || {
        let intake = intake.ok_or_else(|| Fault::null("the intake"))?;
        let to = pass.ok_or_else(|| Fault::null("the place for the pass"))?;
        to.write(None);
        let (stream, pass) = intake.accept()?;
        to.write(Some(Box::new(pass)));
        Ok(stream.into_raw_fd())
    })
}

/// `agent_core_enter` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_enter(gate: Option<&Gate>) -> Option<Box<Pass>> {
    entry(None, None, || Ok(gate.map(|gate| Box::new(gate.enter()))))
}

/// `agent_core_try_enter` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_try_enter(gate: Option<&Gate>) -> Option<Box<Pass>> {
    entry(None, None, || Ok(gate.and_then(Gate::try_enter).map(Box::new)))
}

/// `agent_core_is_wanted_back` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_is_wanted_back(pass: Option<&Pass>) -> bool {
    entry(None, false, || Ok(pass.is_some_and(Pass::is_wanted_back)))
}

/// `agent_core_leave` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_leave(pass: Option<Box<Pass>>) {
    entry(None, (), || {
        drop(pass);
        Ok(())
    });
}

/// `agent_core_child_permit`: no change-over begins while one is held.
#[derive(Debug)]
pub(crate) struct ChildPermit {
    _held: RwLockReadGuard<'static, ()>,
}

/// `agent_core_before_child` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_before_child() -> Option<Box<ChildPermit>> {
    entry(None, None, || Ok(Some(Box::new(ChildPermit { _held: agent_core::exec::child_permit() }))))
}

/// `agent_core_after_child` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_after_child(permit: Option<Box<ChildPermit>>) {
    entry(None, (), || {
        drop(permit);
        Ok(())
    });
}
