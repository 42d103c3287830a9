//! Every command against a manager and a mount daemon that are gone, stopped, busy, slow, or of another version: it ends
//! in time, with an exit code of the documented ones and a reason on standard error.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::pseudo::{ALL, Behaviour, Pseudo, REFUSAL};
use crate::rows::{Asks, every_asking_command};

/// `--silence` of these tests.
const SILENCE: &str = "1s";
/// A slow machine included; without an end of its own a command would run for ever.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// What came of one command.
pub(crate) struct Ended {
    pub(crate) line: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

/// Runs many commands at once, in a directory with the sockets; all of them must end.
pub(crate) fn run_all(commands: &[(Vec<&'static str>, Asks)], dir: &Path) -> Vec<Ended> {
    let ended = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (arguments, _) in commands {
            let ended = &ended;
            scope.spawn(move || {
                let one = run(arguments, dir);
                ended.lock().unwrap().push(one);
            });
        }
    });
    ended.into_inner().unwrap()
}

fn run(arguments: &[&str], dir: &Path) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manager-fs"));
    command.args(["--silence", SILENCE]).args(arguments);
    for name in ["store", "state", "cache", "run"] {
        command.env(format!("MANAGER_FS_{}", name.to_uppercase()), dir.join(name));
    }
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > ENDS_WITHIN {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = began.elapsed();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended {
        line: arguments.join(" "),
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        took,
    }
}

fn commands_end(behaviour: Behaviour) -> Vec<Ended> {
    let pseudo = Pseudo::new(behaviour);
    let ended = run_all(&every_asking_command(), pseudo.dir.path());
    for Ended { line, code, stdout, stderr, took } in &ended {
        let said = format!("{behaviour:?}: '{line}' took {took:?}, ended with {code:?}: {stderr}");
        assert!(*took < ENDS_WITHIN, "{said}");
        // `status` tells what is on the disk all the same; that there is no daemon is the problem of code 3.
        let expected = if line == "status" && behaviour != Behaviour::Slow { 3 } else { 1 };
        if line == "status" && behaviour == Behaviour::Slow {
            assert_eq!(*code, Some(0), "{said}");
            continue;
        }
        assert_eq!(*code, Some(expected), "{said}");
        assert!(stderr.starts_with("manager-fs: "), "{said}");
        assert!(stdout.is_empty() || line == "status", "{said}\n{stdout}");
    }
    ended
}

#[test]
fn every_command_ends_with_a_reason_whatever_the_other_side_does() {
    for behaviour in ALL {
        let ended = commands_end(behaviour);
        let wanted: &[&str] = match behaviour {
            Behaviour::Gone => &["no manager answers", "no mount daemon runs"],
            Behaviour::QueueIsFull => &["takes no connections", "no sign of life"],
            Behaviour::NeverAccepts | Behaviour::NeverAnswers => &["no sign of life"],
            Behaviour::HangsUp => &["ended the connection"],
            Behaviour::OtherVersion => &["runs version 0.0.7, this program is "],
            Behaviour::Babbles => &["use the same", "ended the connection"],
            Behaviour::Slow => &[REFUSAL, "does not say which host"],
        };
        for Ended { line, stderr, .. } in ended.iter().filter(|ended| ended.code != Some(0)) {
            let named = wanted.iter().any(|wanted| stderr.contains(wanted));
            assert!(named, "{behaviour:?}: '{line}' does not say {wanted:?}: {stderr}");
        }
    }
}

#[test]
fn status_answers_in_time_whatever_the_daemon_does() {
    for behaviour in [Behaviour::NeverAccepts, Behaviour::NeverAnswers, Behaviour::QueueIsFull, Behaviour::HangsUp] {
        let pseudo = Pseudo::new(behaviour);
        let ended = run(&["status", "--json"], pseudo.dir.path());
        // Five seconds for a daemon that lives and does not answer; the program takes its time on a busy machine, too.
        assert!(ended.took < Duration::from_secs(9), "{behaviour:?}: {:?}", ended.took);
        let document: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(document["daemon"]["running"], false, "{behaviour:?}");
    }
}
