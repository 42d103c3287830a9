//! The program as an agent: one handle, from the first line of `main` to its end.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use agent_core::{Agent, AgentConfig, Gate, Inherited, Kinds, Remark, Stop};

use crate::error::{Code, ErrorOut, Fault, coded, entry};
use crate::intake::Listening;
use crate::kinds::{Own, Run};
use crate::operations::{Table, User};
use crate::text::text;

/// `agent_core` of the header.
#[derive(Debug)]
pub(crate) struct Handle {
    inherited: Inherited,
    stage: Mutex<Stage>,
    started: OnceLock<Started>,
}

#[derive(Debug)]
enum Stage {
    /// What it will be is being said.
    Before(Box<AgentConfig>, Kinds),
    Running(Agent),
    /// Somebody waits for its end, or it did not start.
    Over,
}

#[derive(Debug)]
struct Started {
    version: CString,
    remark: Remark,
}

impl Handle {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what it will be, which can be said until it is started.
    fn configure(&self, change: impl FnOnce(AgentConfig, Kinds) -> (AgentConfig, Kinds)) -> Result<(), Fault> {
        let mut stage = self.stage();
        match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Before(config, kinds) => {
                let (config, kinds) = change(*config, kinds);
                *stage = Stage::Before(Box::new(config), kinds);
                Ok(())
            }
            other => {
                *stage = other;
                Err(Fault::new(Code::WrongTime, "say this before agent_core_start"))
            }
        }
    }

    fn started(&self) -> Result<&Started, Fault> {
        self.started.get().ok_or_else(|| Fault::new(Code::WrongTime, "the agent was not started"))
    }
}

fn there(agent: Option<&Handle>) -> Result<&Handle, Fault> {
    agent.ok_or_else(|| Fault::null("the agent"))
}

/// `agent_core_open` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_open(error: ErrorOut<'_>) -> Option<Box<Handle>> {
    entry(error, None, || {
        let config = AgentConfig::from_env()?;
        let inherited = config.inherited().clone();
        let stage = Mutex::new(Stage::Before(Box::new(config), Kinds::new()));
        Ok(Some(Box::new(Handle { inherited, stage, started: OnceLock::new() })))
    })
}

/// `agent_core_take` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_take(agent: Option<&Handle>, name: *const c_char) -> i32 {
    entry(None, -1, || {
        // SAFETY: as the caller says.
        let taken = there(agent)?.inherited.take(unsafe { text(name, "the name") }?);
        Ok(taken.map_or(-1, IntoRawFd::into_raw_fd))
    })
}

/// `agent_core_keep` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_keep(
    agent: Option<&Handle>,
    name: *const c_char,
    descriptor: RawFd,
    error: ErrorOut<'_>,
) -> i32 {
    coded(error, || {
        let agent = there(agent)?;
        if descriptor < 0 {
            return Err(Fault::new(Code::Argument, format_args!("{descriptor} is no descriptor")));
        }
        // SAFETY: the caller's, who keeps it open during the call; one that is not open cannot be duplicated.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        // SAFETY: as the caller says.
        Ok(agent.inherited.keep(unsafe { text(name, "the name") }?, descriptor)?)
    })
}

/// `agent_core_forget` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_forget(agent: Option<&Handle>, name: *const c_char) {
    entry(None, (), || {
        // SAFETY: as the caller says.
        there(agent)?.inherited.forget(unsafe { text(name, "the name") }?);
        Ok(())
    });
}

/// `agent_core_listen_tcp` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_listen_tcp(
    agent: Option<&Handle>,
    name: *const c_char,
    address: *const c_char,
    error: ErrorOut<'_>,
) -> i32 {
    entry(error, -1, || {
        let agent = there(agent)?;
        // SAFETY: as the caller says.
        let (name, address) = unsafe { (text(name, "the name")?, text(address, "the address")?) };
        Ok(agent.inherited.tcp_listener(name, address)?.into_raw_fd())
    })
}

/// `agent_core_gate_new` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_gate_new(agent: Option<&Handle>, error: ErrorOut<'_>) -> Option<Box<Gate>> {
    entry(error, None, || {
        let gate = Gate::new()?;
        there(agent)?.configure(|config, kinds| (config.gate(gate.clone()), kinds))?;
        Ok(Some(Box::new(gate)))
    })
}

/// `agent_core_intake_new` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_intake_new(
    agent: Option<&Handle>,
    listener: RawFd,
    error: ErrorOut<'_>,
) -> Option<Box<Listening>> {
    entry(error, None, || {
        let agent = there(agent)?;
        // SAFETY: the caller gives it away.
        let listening = unsafe { Listening::new(listener) }?;
        agent.configure(|config, kinds| (config.gate(listening.gate()), kinds))?;
        Ok(Some(Box::new(listening)))
    })
}

/// `agent_core_on` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_on(
    agent: Option<&Handle>,
    kind: *const c_char,
    arguments: *const *const c_char,
    run: Option<Run>,
    user: User,
    error: ErrorOut<'_>,
) -> i32 {
    coded(error, || {
        let agent = there(agent)?;
        let run = run.ok_or_else(|| Fault::null("the function"))?;
        // SAFETY: as the caller says.
        let (kind, arguments) = unsafe { (text(kind, "the kind")?.to_owned(), names(arguments)?) };
        agent.configure(|config, kinds| (config, Own { kind, arguments, run, user }.add_to(kinds)))
    })
}

/// # Safety
/// `list` is NULL, or names, the last of which is NULL.
unsafe fn names(mut list: *const *const c_char) -> Result<Vec<String>, Fault> {
    let mut found = Vec::new();
    // SAFETY: as the caller says, here and below.
    while !list.is_null() && !unsafe { *list }.is_null() {
        // SAFETY: not the last one yet.
        unsafe {
            found.push(text(*list, "an argument's name")?.to_owned());
            list = list.add(1);
        }
    }
    Ok(found)
}

/// `agent_core_start` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_start(
    agent: Option<&Handle>,
    operations: *const Table,
    error: ErrorOut<'_>,
) -> i32 {
    coded(error, || {
        let handle = there(agent)?;
        // SAFETY: as the caller says.
        let table = unsafe { Table::read(operations) }?;
        let (config, kinds) = {
            let mut stage = handle.stage();
            match std::mem::replace(&mut *stage, Stage::Over) {
                Stage::Before(config, kinds) => (config, kinds),
                other => {
                    *stage = other;
                    return Err(Fault::new(Code::WrongTime, "the agent was started before"));
                }
            }
        };
        // Nothing is locked meanwhile: callbacks are called already.
        let agent = Agent::start(config.kinds(kinds), table)?;
        let version = CString::new(agent.status().version.as_str()).unwrap_or_default();
        // The first to be set, as there is one way out of `Stage::Before`.
        let _ = handle.started.set(Started { version, remark: agent.remark() });
        *handle.stage() = Stage::Running(agent);
        Ok(())
    })
}

/// `agent_core_version` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_version(agent: Option<&Handle>) -> *const c_char {
    entry(None, std::ptr::null(), || Ok(there(agent)?.started()?.version.as_ptr()))
}

/// `agent_core_remark` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_remark(agent: Option<&Handle>, line: *const c_char) -> i32 {
    coded(None, || {
        // SAFETY: as the caller says.
        there(agent)?.started()?.remark.set(unsafe { text(line, "the line") }?);
        Ok(())
    })
}

/// `agent_core_wait` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_wait(
    agent: Option<&Handle>,
    why: Option<&mut MaybeUninit<i32>>,
    error: ErrorOut<'_>,
) -> i32 {
    coded(error, || {
        let handle = there(agent)?;
        let mut stage = handle.stage();
        let agent = match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Running(agent) => agent,
            other => {
                *stage = other;
                return Err(Fault::new(Code::WrongTime, "no agent runs, or somebody waits for it already"));
            }
        };
        drop(stage);
        let ended = match agent.wait() {
            Stop::Terminated => 1,
            Stop::StubGone => 2,
        };
        if let Some(why) = why {
            why.write(ended);
        }
        Ok(())
    })
}

/// `agent_core_close` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_close(agent: Option<Box<Handle>>) {
    entry(None, (), || {
        drop(agent);
        Ok(())
    });
}
