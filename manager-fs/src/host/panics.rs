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
