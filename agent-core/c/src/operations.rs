//! The program's callbacks: a table of functions with its own size, of which all may be missing.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{IntoRawFd, RawFd};
use std::panic::resume_unwind;
use std::time::Instant;

use agent_core::{NotHealthy, Operations, StateRefused};
use proto::record::SchemaRange;

use crate::error::{Code, Fault};
use crate::text::Answer;

/// What a program's functions get back: itself.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct User(pub(crate) *mut c_void);

// SAFETY: it is only passed on; the header says that callbacks come from any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

type Quiesce = unsafe extern "C" fn(*mut c_void, u64, &mut Answer) -> i32;
type Resume = unsafe extern "C" fn(*mut c_void, &mut Answer) -> i32;
type SaveState = unsafe extern "C" fn(*mut c_void, u32, &mut Answer) -> i32;
type RestoreState = unsafe extern "C" fn(*mut c_void, u32, *const u8, usize, &mut Answer) -> i32;
type Healthy = unsafe extern "C" fn(*mut c_void, &mut Answer) -> i32;
type Confirmed = unsafe extern "C" fn(*mut c_void);
/// Of a state in a memory file, both ways.
type OfFile = unsafe extern "C" fn(*mut c_void, u32, RawFd, &mut Answer) -> i32;

/// `agent_core_operations` of the header. What a later version of it has more comes behind what is here.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Table {
    size: usize,
    user: User,
    writes_min: u32,
    writes_max: u32,
    quiesce: Option<Quiesce>,
    resume: Option<Resume>,
    save_state: Option<SaveState>,
    restore_state: Option<RestoreState>,
    healthy: Option<Healthy>,
    confirmed: Option<Confirmed>,
    save_state_to: Option<OfFile>,
    restore_state_from: Option<OfFile>,
}

impl Table {
    const EMPTY: Self = Self {
        size: size_of::<Self>(),
        user: User(std::ptr::null_mut()),
        writes_min: 0,
        writes_max: 0,
        quiesce: None,
        resume: None,
        save_state: None,
        restore_state: None,
        healthy: None,
        confirmed: None,
        save_state_to: None,
        restore_state_from: None,
    };

    /// The table of a program that was built with this header, an earlier or a later one.
    ///
    /// # Safety
    /// `table` is NULL, or begins with a size and has so many bytes, in which functions are such as the header says.
    pub(crate) unsafe fn read(table: *const Self) -> Result<Self, Fault> {
        if table.is_null() {
            return Ok(Self::EMPTY);
        }
        let ours = size_of::<Self>();
        // SAFETY: it begins with its size.
        let size = unsafe { table.cast::<usize>().read() };
        let known = size.min(ours);
        let wrong = |why: &str| {
            let text = format_args!("the table of operations says that it has {size} bytes: {why}");
            Fault::new(Code::Argument, text)
        };
        if size < std::mem::offset_of!(Self, writes_min) || size > 64 << 10 {
            return Err(wrong("set its size to sizeof(agent_core_operations)"));
        }
        let mut read = Self::EMPTY;
        // SAFETY: so many bytes are there and here, and every field may be anything that a program has there, or zero.
        unsafe { std::ptr::copy_nonoverlapping(table.cast::<u8>(), (&raw mut read).cast::<u8>(), known) };
        // SAFETY: the rest of the bytes that are there.
        let more = unsafe { std::slice::from_raw_parts(table.cast::<u8>().add(known), size - known) };
        if more.iter().any(|byte| *byte != 0) {
            return Err(wrong("the program wants something of it that this older library does not know"));
        }
        if read.writes_min > read.writes_max {
            return Err(Fault::new(Code::Argument, "writes_min is more than writes_max"));
        }
        read.size = ours;
        Ok(read)
    }
}

/// The words of a callback that came back with something else than 0.
struct Declined(String);

/// The answer of a callback that came back with 0.
fn answer(call: impl FnOnce(&mut Answer) -> i32) -> Result<Answer, Declined> {
    let mut answer = Answer::default();
    match call(&mut answer) {
        0 => Ok(answer),
        _ => Err(Declined(answer.reason())),
    }
}

/// For callbacks whose failing is to the library what a panic is: the reason is told, and no panic hook is called.
fn demanded(call: impl FnOnce(&mut Answer) -> i32) -> Answer {
    answer(call).unwrap_or_else(|Declined(why)| resume_unwind(Box::new(why)))
}

/// All of it.
fn read(mut file: &File) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    file.read_to_end(&mut state)?;
    Ok(state)
}

impl Operations for Table {
    fn quiesce(&self, until: Instant) {
        let Some(quiesce) = self.quiesce else { return };
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        // SAFETY: here and below, a function such as the header says.
        demanded(|why| unsafe { quiesce(self.user.0, u64::try_from(left).unwrap_or(u64::MAX), why) });
    }

    fn resume(&self) {
        let Some(resume) = self.resume else { return };
        // SAFETY: see `quiesce`.
        demanded(|why| unsafe { resume(self.user.0, why) });
    }

    fn writes_schemas(&self, own: SchemaRange) -> RangeInclusive<u32> {
        match self.writes_max {
            0 => own.max..=own.max,
            _ => self.writes_min..=self.writes_max,
        }
    }

    fn save_state(&self, schema: u32) -> Vec<u8> {
        let Some(save_state) = self.save_state else { return Vec::new() };
        // SAFETY: see `quiesce`.
        demanded(|state| unsafe { save_state(self.user.0, schema, state) }).0
    }

    fn save_state_to(&self, schema: u32, file: &mut File) -> io::Result<()> {
        let Some(save_state_to) = self.save_state_to else { return file.write_all(&self.save_state(schema)) };
        let own = file.try_clone()?.into_raw_fd();
        // SAFETY: see `quiesce`.
        let saved = answer(|why| unsafe { save_state_to(self.user.0, schema, own, why) });
        saved.map(drop).map_err(|Declined(why)| io::Error::other(why))
    }

    fn restore_state(&self, schema: u32, state: &[u8]) -> Result<(), StateRefused> {
        let Some(restore_state) = self.restore_state else { return Ok(()) };
        // SAFETY: see `quiesce`.
        let restored =
            |why: &mut Answer| unsafe { restore_state(self.user.0, schema, state.as_ptr(), state.len(), why) };
        answer(restored).map(drop).map_err(|Declined(why)| StateRefused(why))
    }

    fn restore_state_from(&self, schema: u32, file: &File) -> Result<(), StateRefused> {
        let unreadable = |e: io::Error| StateRefused(format!("the state cannot be read: {e}"));
        let Some(restore_state_from) = self.restore_state_from else {
            return self.restore_state(schema, &read(file).map_err(unreadable)?);
        };
        let own = file.try_clone().map_err(unreadable)?.into_raw_fd();
        // SAFETY: see `quiesce`.
        let restored = answer(|why| unsafe { restore_state_from(self.user.0, schema, own, why) });
        restored.map(drop).map_err(|Declined(why)| StateRefused(why))
    }

    fn confirmed(&self) {
        if let Some(confirmed) = self.confirmed {
            // SAFETY: see `quiesce`.
            unsafe { confirmed(self.user.0) };
        }
    }

    fn healthy(&self) -> Result<(), NotHealthy> {
        let Some(healthy) = self.healthy else { return Ok(()) };
        // SAFETY: see `quiesce`.
        answer(|why| unsafe { healthy(self.user.0, why) }).map(drop).map_err(|Declined(why)| NotHealthy(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    unsafe extern "C" fn says(user: *mut c_void, why: &mut Answer) -> i32 {
        // SAFETY: the tests give a number.
        let code = unsafe { *user.cast::<i32>() };
        why.0.extend_from_slice(b"as told");
        code
    }

    unsafe extern "C" fn saves(_user: *mut c_void, schema: u32, state: &mut Answer) -> i32 {
        state.0.extend_from_slice(&schema.to_le_bytes());
        i32::from(schema > 7)
    }

    unsafe extern "C" fn restores(
        _user: *mut c_void,
        _: u32,
        state: *const u8,
        length: usize,
        _: &mut Answer,
    ) -> i32 {
        // SAFETY: the library gives so many.
        i32::from(unsafe { std::slice::from_raw_parts(state, length) } != b"good")
    }

    fn with(code: &mut i32) -> Table {
        let user = User(std::ptr::from_mut(code).cast());
        let state = Table { save_state: Some(saves), restore_state: Some(restores), ..Table::EMPTY };
        Table { user, resume: Some(says), healthy: Some(says), ..state }
    }

    fn read_table(table: &Table) -> Result<Table, Fault> {
        // SAFETY: it is as large as it says in every test.
        unsafe { Table::read(table) }
    }

    /// Writes the schema into the file, or finds it there; `user` is what it comes back with.
    unsafe extern "C" fn through(user: *mut c_void, schema: u32, file: RawFd, why: &mut Answer) -> i32 {
        // SAFETY: it is this function's own.
        let mut file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(file) };
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        if found.is_empty() {
            file.write_all(&schema.to_le_bytes()).unwrap();
        } else if found != schema.to_le_bytes() {
            why.0.extend_from_slice(b"another schema");
            return 1;
        }
        // SAFETY: the tests give a number.
        unsafe { *user.cast::<i32>() }
    }

    #[test]
    fn a_state_in_a_file_goes_before_one_in_bytes_and_either_reads_what_the_other_wrote() {
        let file = |from: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(from).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            file
        };
        let mut code = 0;
        let bytes = with(&mut code);
        let table = Table { save_state_to: Some(through), restore_state_from: Some(through), ..bytes };
        for saving in [&table, &bytes] {
            let mut saved = file(b"");
            saving.save_state_to(7, &mut saved).unwrap();
            std::io::Seek::rewind(&mut saved).unwrap();
            assert!(table.restore_state_from(7, &saved).is_ok());
            std::io::Seek::rewind(&mut saved).unwrap();
            assert_eq!(table.restore_state_from(8, &saved).unwrap_err().to_string(), "another schema");
        }
        assert!(bytes.restore_state_from(1, &file(b"good")).is_ok());
        assert_eq!(bytes.restore_state_from(1, &file(b"bad")).unwrap_err().to_string(), "it gave no reason");
        let mut code = 3;
        let table = Table { save_state_to: Some(through), ..with(&mut code) };
        assert_eq!(table.save_state_to(7, &mut file(b"")).unwrap_err().to_string(), "it gave no reason");
    }

    #[test]
    fn what_is_missing_in_the_table_does_what_the_library_does_without() {
        // SAFETY: NULL is allowed.
        let none = unsafe { Table::read(std::ptr::null()) }.unwrap();
        none.quiesce(Instant::now());
        none.resume();
        none.confirmed();
        assert!(none.healthy().is_ok() && none.restore_state(1, b"x").is_ok() && none.save_state(1).is_empty());
        let own = SchemaRange { min: 2, max: 5 };
        assert_eq!(none.writes_schemas(own), 5..=5);
        assert_eq!(Table { writes_min: 1, writes_max: 3, ..none }.writes_schemas(own), 1..=3);
    }

    #[test]
    fn a_callback_that_does_not_come_back_with_0_has_failed_with_its_words() {
        let mut code = 0;
        let table = with(&mut code);
        table.resume();
        assert!(table.healthy().is_ok());
        let mut code = 3;
        let table = with(&mut code);
        assert_eq!(table.healthy().unwrap_err().to_string(), "as told");
        let panic = catch_unwind(AssertUnwindSafe(|| table.resume())).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().unwrap(), "as told");
        assert_eq!(table.save_state(7), 7_u32.to_le_bytes());
        assert!(catch_unwind(AssertUnwindSafe(|| table.save_state(8))).is_err());
        assert!(table.restore_state(1, b"good").is_ok());
        assert_eq!(table.restore_state(1, b"bad").unwrap_err().to_string(), "it gave no reason");
    }

    #[test]
    fn tables_of_other_versions_of_the_header_are_read_or_refused_by_their_size() {
        #[repr(C)]
        struct Later {
            table: Table,
            more: usize,
        }
        let mut code = 0;
        let mut later = Later { table: with(&mut code), more: 0 };
        later.table.size = size_of::<Later>();
        // SAFETY: it is as large as it says.
        let read_later = |later: &Later| unsafe { Table::read((&raw const *later).cast()) };
        assert!(read_later(&later).unwrap().resume.is_some());
        later.more = 1;
        assert!(read_later(&later).unwrap_err().text.contains("older library"));
        let mut earlier = with(&mut code);
        earlier.size = std::mem::offset_of!(Table, resume);
        assert!(
            read_table(&earlier).unwrap().resume.is_none(),
            "what an earlier header did not have is not looked at"
        );
        for size in [0, 8, usize::MAX] {
            earlier.size = size;
            assert!(read_table(&earlier).unwrap_err().text.contains("sizeof"));
        }
        let wrong = Table { writes_min: 2, writes_max: 1, ..Table::EMPTY };
        assert_eq!(read_table(&wrong).unwrap_err().code, Code::Argument);
    }
}
