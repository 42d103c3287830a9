//! A panic that nobody has foreseen ends its process: half a daemon, without the task that panicked, would look alive. Whoever
//! started the process starts it again.

use std::cell::Cell;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic ends this process with exit code 101, after its message, unless it is contained.
pub(crate) fn end_the_process() {
    let message = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        message(panic);
        if !CONTAINED.with(Cell::get) {
            eprintln!("manager-fs: this process ends because of the panic above; it is started again");
            std::process::exit(101);
        }
    }));
}

/// Runs work whose panic concerns nobody but the one who asked for it: he gets no answer.
pub(crate) fn contain(work: impl FnOnce()) {
    CONTAINED.with(|contained| contained.set(true));
    // What the work shares with others is whole after every statement, or it would not survive a killed process either.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    CONTAINED.with(|contained| contained.set(false));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names the test that plays the process.
    const PLAYED: &str = "MANAGER_FS_TEST_PANICS";

    /// A process with the hook: a thread of it panics, contained or not, and it would go on for ever.
    #[test]
    fn played() {
        let Ok(how) = std::env::var(PLAYED) else { return };
        end_the_process();
        let (how_to, heard) = (how.clone(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            let panics = || panic!("a fault that nobody has foreseen");
            if how_to == "contained" { contain(panics) } else { panics() }
        });
        assert!(thread.join().is_ok(), "the hook came first");
        if how == "contained" {
            std::process::exit(7);
        }
        let _ = heard.1.recv();
    }

    #[test]
    fn a_panic_of_any_thread_ends_its_process_loudly_unless_it_is_contained() {
        for (how, code) in [("alone", 101), ("contained", 7)] {
            let mut process = std::process::Command::new(std::env::current_exe().unwrap());
            process.args(["--exact", "host::panics::tests::played", "--nocapture", "--test-threads", "1"]);
            let output = process.env(PLAYED, how).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{how}: {said}");
            assert!(said.contains("a fault that nobody has foreseen"), "{how}: {said}");
            assert_eq!(said.contains("ends because of the panic above"), how == "alone", "{how}: {said}");
        }
    }
}
