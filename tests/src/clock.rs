//! A machine's clock that is wrong: for the programs that are started with it, and nobody else.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// The C library's `clock_gettime`, as far as it says what time it is, with so many seconds added as stand in a file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long long *ahead;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) ahead = at;
    if (file >= 0) close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && ahead) now->tv_sec += *ahead;
    return failed;
}
"#;

/// A clock that can be set while programs run by it.
#[derive(Debug)]
pub struct Clock {
    dir: TempDir,
    file: File,
}

impl Clock {
    /// One that is right.
    ///
    /// # Panics
    /// There is no C compiler.
    #[track_caller]
    pub fn right() -> Self {
        let dir = tempfile::Builder::new().prefix("clock").tempdir().expect("a temporary directory");
        let source = dir.path().join("clock.c");
        fs::write(&source, SHIM).expect("the shim's source");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(dir.path().join("clock.so")).arg(source);
        assert!(compile.status().expect("cc").success(), "the shim does not compile");
        let mut file = File::create(dir.path().join("ahead")).expect("the clock's file");
        file.write_all(&0_i64.to_ne_bytes()).expect("the clock's file");
        Self { dir, file }
    }

    /// Sets it so many days ahead, or back.
    pub fn set_days(&self, days: i64) {
        let seconds = days * 24 * 3600;
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the clock's file");
    }

    /// The environment of programs that go by it.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.dir.path().join("clock.so")), ("TEST_CLOCK", self.dir.path().join("ahead"))]
    }
}
