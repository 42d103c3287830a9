//! Operations of the program's own kinds.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};

use agent_core::{Demand, Halt, Kinds, OperationContext, Results};

use crate::error::{Code, ErrorOut, Fault, coded, entry};
use crate::operations::User;
use crate::text::{Answer, bytes, text};

/// `agent_core_run` of the header.
pub(crate) type Run = unsafe extern "C" fn(*mut c_void, &mut Context<'_>, &mut Answer) -> i32;

/// What `agent_core_run` comes back with when it stopped because it was asked to: `AGENT_CORE_STOPPED`.
const STOPPED: i32 = -1;

/// `agent_core_context`: one operation that runs.
pub(crate) struct Context<'a> {
    context: &'a OperationContext,
    arguments: BTreeMap<String, CString>,
    results: Results,
}

/// One kind, as a program registers it.
pub(crate) struct Own {
    pub(crate) kind: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) run: Run,
    pub(crate) user: User,
}

impl Own {
    pub(crate) fn add_to(self, kinds: Kinds) -> Kinds {
        let kind = self.kind.clone();
        kinds.on(&kind, move |arguments: BTreeMap<String, String>, context| self.perform(arguments, context))
    }

    fn perform(&self, arguments: BTreeMap<String, String>, context: &OperationContext) -> Result<Results, Halt> {
        // What was misspelt was meant to say something.
        if let Some(name) = arguments.keys().find(|name| !self.arguments.contains(name)) {
            let takes = if self.arguments.is_empty() { "none".to_owned() } else { self.arguments.join(", ") };
            return Err(Halt::failed(format_args!("the operation takes no argument '{name}'; it takes {takes}")));
        }
        let arguments = arguments.into_iter().map(|(name, value)| Ok((name, CString::new(value)?)));
        let arguments = arguments.collect::<Result<_, std::ffi::NulError>>()?;
        let mut given = Context { context, arguments, results: Results::new() };
        let mut why = Answer::default();
        // SAFETY: a function such as the header says.
        match unsafe { (self.run)(self.user.0, &mut given, &mut why) } {
            0 => Ok(given.results),
            STOPPED => {
                context.go_on()?;
                Err(Halt::failed("it stopped, and nobody had asked it to"))
            }
            _ => Err(Halt::failed(why.reason())),
        }
    }
}

/// `agent_core_argument` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_argument(
    context: Option<&Context<'_>>,
    name: *const c_char,
) -> *const c_char {
    entry(None, std::ptr::null(), || {
        let context = context.ok_or_else(|| Fault::null("the context"))?;
        // SAFETY: as the caller says.
        let name = unsafe { text(name, "the argument's name") }?;
        Ok(context.arguments.get(name).map_or(std::ptr::null(), |value| value.as_ptr()))
    })
}

/// `agent_core_demand` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_demand(context: Option<&Context<'_>>) -> i32 {
    entry(None, 0, || {
        Ok(context.map_or(0, |given| match given.context.demand() {
            Demand::None => 0,
            Demand::Finish => 1,
            Demand::Checkpoint => 2,
            Demand::Cancel => 3,
        }))
    })
}

/// `agent_core_job` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_job(context: Option<&Context<'_>>) -> u64 {
    entry(None, 0, || Ok(context.map_or(0, |given| given.context.job().0)))
}

/// `agent_core_checkpoint` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_checkpoint(
    context: Option<&Context<'_>>,
    state: *const u8,
    length: usize,
    error: ErrorOut<'_>,
) -> i32 {
    coded(error, || {
        let context = context.ok_or_else(|| Fault::null("the context"))?;
        // SAFETY: as the caller says.
        let state = unsafe { bytes(state, length, "the checkpoint") }?;
        context.context.checkpoint(state).map_err(|fault| Fault::new(Code::Host, fault))
    })
}

/// `agent_core_resume` of the header.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn agent_core_resume(context: Option<&Context<'_>>, length: Option<&mut usize>) -> *const u8 {
    entry(None, std::ptr::null(), || {
        let state = context.and_then(|given| given.context.resume());
        if let Some(length) = length {
            *length = state.map_or(0, <[u8]>::len);
        }
        Ok(state.map_or(std::ptr::null(), <[u8]>::as_ptr))
    })
}

/// `agent_core_units` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_units(
    context: Option<&Context<'_>>,
    done: u32,
    all: u32,
    now: *const c_char,
) {
    entry(None, (), || {
        let context = context.ok_or_else(|| Fault::null("the context"))?;
        // SAFETY: as the caller says.
        let now = if now.is_null() { "" } else { unsafe { text(now, "what is being done") }? };
        context.context.units(done, all, now);
        Ok(())
    });
}

/// `agent_core_result` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_result(
    context: Option<&mut Context<'_>>,
    name: *const c_char,
    value: *const c_char,
) -> i32 {
    coded(None, || {
        let context = context.ok_or_else(|| Fault::null("the context"))?;
        // SAFETY: as the caller says.
        let (name, value) = unsafe { (text(name, "the result's name")?, text(value, "the result")?) };
        context.results = std::mem::take(&mut context.results).with(name, value);
        Ok(())
    })
}

/// `agent_core_problem` of the header.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn agent_core_problem(context: Option<&mut Context<'_>>, problem: *const c_char) -> i32 {
    coded(None, || {
        let context = context.ok_or_else(|| Fault::null("the context"))?;
        // SAFETY: as the caller says.
        context.results = std::mem::take(&mut context.results).problem(unsafe { text(problem, "the problem") }?);
        Ok(())
    })
}
