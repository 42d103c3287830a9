//! A manager and a mount daemon that are really stopped (SIGSTOP), and a manager whose disk is full.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Host, Manager, TreeFixture};

use crate::rows::{Asks, every_asking_command};

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Stops a process, and waits until each of its threads stands: the first that gets to run stops the others, which go on
/// until then (signal(7), group stop).
fn stop(pid: u32) {
    send(pid, Signal::STOP);
    let stands = |stat: String| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'));
    let since = Instant::now();
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        if stats.all(stands) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Children of a process, from proc_pid_stat(5).
fn children(of: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    pids.filter(|pid| parent(pid) == Some(of)).collect()
}

#[test]
fn a_stopped_manager_is_named_by_every_command_and_continued() {
    let manager = Manager::start();
    let pid = manager.pid();
    stop(pid);
    std::thread::scope(|scope| {
        for (arguments, _) in every_asking_command().into_iter().filter(|(_, asks)| *asks == Asks::Manager) {
            let manager = &manager;
            scope.spawn(move || {
                let arguments = [&["--silence", "1s"][..], &arguments].concat();
                let output = manager.run(&arguments).expect(1);
                let named = output.stderr.contains(&format!("kill -CONT {pid}"));
                assert!(named, "{arguments:?}: {}", output.stderr);
            });
        }
    });
    send(pid, Signal::CONT);
    manager.run(&["hosts"]).expect(0);
}

#[test]
fn a_stopped_daemon_is_named_by_every_command_and_continued() {
    let manager = Manager::start();
    let host = Host::mounted("host-1", &manager);
    let holder = host.holder_pid();
    let stopped: Vec<u32> = std::iter::once(holder).chain(children(holder)).collect();
    stopped.iter().for_each(|pid| stop(*pid));
    let since = Instant::now();
    let status = host.run(&["status", "--json"]).expect(3);
    // A second; the program itself takes its time to start on a busy machine.
    assert!(since.elapsed() < Duration::from_secs(3), "status took {:?}", since.elapsed());
    assert_eq!(status.json()["daemon"]["running"], false);
    std::thread::scope(|scope| {
        // What `unmount` asks for would be done as soon as the daemon goes on: it comes last, alone.
        let asking = every_asking_command().into_iter();
        for (arguments, _) in asking.filter(|(line, asks)| *asks == Asks::Daemon && line != &["unmount"]) {
            let host = &host;
            scope.spawn(move || {
                let arguments = [&["--silence", "1s"][..], &arguments].concat();
                let output = host.run(&arguments);
                assert!(matches!(output.code, Some(1 | 3)), "{arguments:?}: {output:?}");
                assert!(output.stderr.contains("kill -CONT"), "{arguments:?}: {}", output.stderr);
            });
        }
    });
    stopped.iter().for_each(|pid| send(*pid, Signal::CONT));
    host.run(&["status"]).expect(0);
    stopped.iter().for_each(|pid| stop(*pid));
    let output = host.run(&["--silence", "1s", "unmount"]).expect(1);
    assert!(output.stderr.contains("kill -CONT"), "{}", output.stderr);
    stopped.iter().for_each(|pid| send(*pid, Signal::CONT));
}

#[test]
fn a_full_disk_ends_every_command_with_a_reason() {
    let manager = Manager::on_a_small_disk(8 << 20);
    let tree = TreeFixture::script("exit 0", "");
    manager.publish("p", "1", tree.path());
    // What is left is taken by a file of somebody else's.
    let full = std::fs::write(manager.store().join("full"), vec![1; 16 << 20]);
    assert!(full.is_err(), "the disk is larger than it should be");
    std::thread::scope(|scope| {
        for (arguments, _) in every_asking_command().into_iter().filter(|(_, asks)| *asks == Asks::Manager) {
            let manager = &manager;
            scope.spawn(move || {
                let output = manager.run(&arguments);
                assert!(matches!(output.code, Some(0 | 1 | 3)), "{arguments:?}: {output:?}");
                let said = output.code == Some(0) || output.stderr.starts_with("manager-fs: ");
                assert!(said, "{arguments:?}: {output:?}");
            });
        }
    });
    std::fs::remove_file(manager.store().join("full")).unwrap();
    // The manager has not been harmed by it.
    let after = tests::command::until("a token is printed again", || {
        let output = manager.run(&["token", "host-1"]);
        (output.code == Some(0)).then_some(output.stdout)
    });
    assert!(!after.trim().is_empty());
}
