//! Programs with work of their own: a web service over change-overs that succeed, that fail in every way, and crashes.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Host, Order, PATIENCE, Spec, example, script, tree};
use proto::agent::Step;
use rustix::process::{Pid, Signal};

/// A host whose product is the web service, and where it listens.
struct Service {
    host: Host,
    address: SocketAddr,
    arguments: [String; 2],
    /// Which of the examples it is.
    example: &'static str,
}

/// What one client saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    answered: u64,
    refused: u64,
    cut: u64,
    empty: u64,
    longest: Duration,
}

impl Service {
    fn new() -> Self {
        // Free a moment ago, and nobody else asks for ports by number here.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let arguments = ["--listen".to_owned(), address.to_string()];
        Self { host: Host::new(), address, arguments, example: "http_service" }
    }

    fn launched() -> Self {
        Self::launched_as("http_service")
    }

    fn launched_as(example: &'static str) -> Self {
        let mut service = Self { example, ..Self::new() };
        let first = service.publish("1.0");
        service.host.set_newest(&first);
        service.host.launch().wait_for("stub: ready");
        service
    }

    /// A version of the service.
    fn publish(&self, version: &str) -> Vec<u8> {
        let root = self.host.paths.generation(&tree(version)).join("bin");
        std::fs::create_dir_all(&root).unwrap();
        if !root.join("agent").exists() {
            self.host.place(&example(self.example), &root.join("agent"));
        }
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.host.publish(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, &arguments) })
    }

    /// A version that is something else: the tiny agent, which knows of no web.
    fn publish_other(&self, version: &str, arguments: &[&str]) -> Vec<u8> {
        self.host.publish(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new(version, arguments) })
    }

    /// One request on a connection of its own.
    fn get(address: SocketAddr, path: &str, seen: &mut Seen) -> String {
        let begun = Instant::now();
        let mut text = String::new();
        let result = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")?;
            stream.read_to_string(&mut text)
        });
        match result {
            Ok(_) if text.ends_with(" before\n") => seen.answered += 1,
            Ok(_) => seen.empty += 1,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => seen.refused += 1,
            Err(_) => seen.cut += 1,
        }
        seen.longest = seen.longest.max(begun.elapsed());
        text
    }

    /// While `work` goes on, so many clients ask; what all of them saw.
    fn under_load(&mut self, clients: usize, path: &str, work: impl FnOnce(&mut Self)) -> Seen {
        let (address, stop) = (self.address, AtomicBool::new(false));
        std::thread::scope(|scope| {
            let asking = || {
                let mut seen = Seen::default();
                while !stop.load(Ordering::Relaxed) {
                    Self::get(address, path, &mut seen);
                }
                seen
            };
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(asking)).collect();
            work(self);
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().map(|client| client.join().unwrap()).fold(Seen::default(), |all, one| Seen {
                answered: all.answered + one.answered,
                refused: all.refused + one.refused,
                cut: all.cut + one.cut,
                empty: all.empty + one.empty,
                longest: all.longest.max(one.longest),
            })
        })
    }
}

impl Seen {
    #[track_caller]
    fn nobody_was_let_down(&self) {
        assert!(self.answered > 10, "hardly anybody asked: {self:?}");
        assert_eq!((self.refused, self.cut, self.empty), (0, 0, 0), "{self:?}");
    }
}

/// `TRIALS=50` for the figures.
fn trials() -> usize {
    std::env::var("TRIALS").map_or(3, |text| text.parse().unwrap())
}

#[test]
fn a_service_changes_its_version_and_nobody_is_refused_cut_or_left_without_an_answer() {
    changes_its_version("http_service");
}

#[test]
fn a_service_on_tokio_does_so_too() {
    changes_its_version("tokio_service");
    finishes_what_is_long("tokio_service");
}

fn changes_its_version(example: &'static str) {
    let mut service = Service::launched_as(example);
    let (one, two) = (service.publish("1.0"), service.publish("2.0"));
    let pid = service.host.wait_serving("1.0").pid;
    let seen = service.under_load(8, "/", |service| {
        for _ in 0..trials() {
            service.host.upgrade(&two);
            service.host.upgrade(&one);
        }
    });
    println!("{} change-overs: {seen:?}", 2 * trials());
    seen.nobody_was_let_down();
    assert_eq!(service.host.wait_serving("1.0").pid, pid);
    let mut all = Seen::default();
    let text = Service::get(service.address, "/", &mut all);
    assert!(text.contains(&format!("process {pid} answered {} before", seen.answered)), "the count crosses: {text}");
}

#[test]
fn a_change_over_that_fails_lets_nobody_down_either() {
    let mut service = Service::launched();
    // One whose `execve` fails, and one that ends as soon as it begins.
    let no_program = service.publish_other("3.0", &[]);
    script(&service.host.program("3.0"), "#!/no/such/interpreter\n");
    let crashes = service.publish_other("4.0", &["--exit-at-once", "3"]);
    service.host.wait_serving("1.0");
    let seen = service.under_load(8, "/", |service| {
        for _ in 0..trials() {
            for (record, step) in [(&no_program, Step::ExecFailed), (&crashes, Step::Returned)] {
                let (change, told) = service.host.tell(record, &Order { retry_bad: true, ..Order::default() });
                told.unwrap();
                service.host.wait_step(change, step);
                service.host.wait_serving("1.0");
            }
        }
    });
    println!("{} failed change-overs: {seen:?}", 2 * trials());
    seen.nobody_was_let_down();
}

#[test]
fn long_requests_are_finished_and_streams_end_in_good_order() {
    finishes_what_is_long("http_service");
}

fn finishes_what_is_long(example: &'static str) {
    let mut service = Service::launched_as(example);
    let two = service.publish("2.0");
    service.host.wait_serving("1.0");
    for path in ["/slow", "/stream"] {
        let (address, stop) = (service.address, AtomicBool::new(false));
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let mut seen = Seen::default();
                while !stop.load(Ordering::Relaxed) {
                    Service::get(address, path, &mut seen);
                }
                seen
            });
            let back = service.publish("1.0");
            service.host.upgrade(&two);
            service.host.upgrade(&back);
            stop.store(true, Ordering::Relaxed);
            // A stream goes on until a change-over ends it.
            service.host.upgrade(&two);
            service.host.upgrade(&back);
            let seen = client.join().unwrap();
            assert!(seen.answered >= 1, "{path}: {seen:?}");
            assert_eq!((seen.refused, seen.cut, seen.empty), (0, 0, 0), "{path}: {seen:?}");
        });
    }
}

#[test]
fn a_crash_refuses_nobody_and_a_name_that_a_version_does_not_know_is_kept_for_the_way_back() {
    let mut service = Service::launched();
    let one = service.publish("1.0");
    let status = service.host.wait_serving("1.0");
    let seen = service.under_load(2, "/", |service| {
        rustix::process::kill_process(Pid::from_raw(status.pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        service.host.wait_status("started again", |s| s.pid != status.pid);
        service.host.wait_serving("1.0");
    });
    // What it had accepted when it was killed is lost; nobody else is.
    assert!(seen.refused == 0 && seen.cut + seen.empty <= 2 && seen.answered > 0, "{seen:?}");
    // A version that knows nothing of the web: whoever asks waits.
    let other = service.publish_other("5.0", &[]);
    service.host.upgrade(&other);
    let address = service.address;
    let waiting = std::thread::spawn(move || {
        let mut seen = Seen::default();
        Service::get(address, "/", &mut seen);
        seen
    });
    service.host.upgrade(&one);
    assert_eq!(waiting.join().unwrap().answered, 1);
}

#[test]
fn what_a_version_forgets_before_it_has_proved_itself_is_there_for_the_one_before() {
    let mut service = Service::launched();
    let forgets = service.publish_other("6.0", &["--forget", "http", "--sick"]);
    let pid = service.host.wait_serving("1.0").pid;
    let seen = service.under_load(2, "/", |service| {
        let (change, told) = service.host.tell(&forgets, &Order::default());
        told.unwrap();
        service.host.wait_step(change, Step::Returned);
        service.host.wait_status("another process", |s| s.pid != pid && s.version.as_str() == "1.0");
    });
    seen.nobody_was_let_down();
    // One that proves itself gives it up for good: the next one binds it anew.
    let gives_up = service.publish_other("7.0", &["--forget", "http"]);
    service.host.wait_serving("1.0");
    service.host.upgrade(&gives_up);
    // The stub hears of the confirmation a moment after the manager does.
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(service.address).is_ok() {
        assert!(Instant::now() < until, "still open");
        std::thread::sleep(Duration::from_millis(5));
    }
    let one = service.publish("1.0");
    service.host.upgrade(&one);
    let mut seen = Seen::default();
    Service::get(service.address, "/", &mut seen);
    assert_eq!(seen.answered, 1);
}

#[test]
fn a_state_that_is_never_saved_ends_the_change_over_and_the_service_goes_on() {
    let mut host =
        Host::with_first(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new("1.0", &["--saves-for-ever"]) });
    let two = host.publish(&Spec { probation_ms: common::PROBATION_MS, ..Spec::new("2.0", &[]) });
    let pid = host.wait_serving("1.0").pid;
    let (change, told) = host.tell(&two, &Order::default());
    told.unwrap();
    let failed = host.wait_step(change, Step::ExecFailed);
    assert!(failed.detail.contains("save_state has not come back within 5s"), "{}", failed.detail);
    assert_eq!(host.wait_serving("1.0").pid, pid);
    let (change, told) = host.tell(&two, &Order { retry_bad: true, ..Order::default() });
    told.unwrap();
    let again = host.wait_step(change, Step::ExecFailed);
    assert!(again.detail.contains("has not come back since"), "{}", again.detail);
    assert!(host.finish(&Host::backup(1, 2)).1.iter().any(|progress| progress.units_done > 0), "it works on");
}

#[test]
fn sockets_of_the_service_manager_reach_the_program_by_their_names() {
    let mut service = Service::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Where the program would listen by itself nobody does.
    let own = std::mem::replace(&mut service.address, listener.local_addr().unwrap());
    let first = service.publish("1.0");
    service.host.set_newest(&first);
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let stub = service.host.stub_command();
    // dash knows descriptors of one digit only.
    let mut command = Command::new("/bin/bash");
    let activate = format!("exec 3<&{}; LISTEN_PID=$$ exec \"$0\" \"$@\"", listener.as_raw_fd());
    command.arg("-c").arg(activate).arg(stub.get_program()).args(stub.get_args());
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "http");
    service.host.launch_as(command).wait_for("stub: ready");
    drop(listener);
    let two = service.publish("2.0");
    let seen = service.under_load(2, "/", |service| {
        service.host.upgrade(&two);
    });
    seen.nobody_was_let_down();
    assert_eq!(TcpStream::connect(own).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
