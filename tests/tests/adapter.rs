//! `docs/adapters.md`: programs that know nothing of this project are agents by the adapter in their record. They change
//! their version under load, and every way of failing has the outcome that the document states.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::net::TcpListener;

use rustix::process::{Pid, Signal};
use tests::command::{program, until};
use tests::load::{Seen, under_load};
use tests::{Site, TreeFixture};

const CLIENTS: usize = 4;

/// The product whose program is the plain server.
struct Lab {
    site: Site,
}

impl Lab {
    fn new() -> Self {
        Self { site: Site::new("plain") }
    }

    /// With version 1 running and asked.
    fn running(adapter: &str) -> Self {
        let mut lab = Self::new();
        lab.publish("1", "exec \"$T\"/bin/plain one", adapter);
        lab.site.launch("1");
        lab.serves("one");
        lab
    }

    /// A version whose program is this shell script; `$T` is its tree, and `bin/plain` in it the server.
    fn publish(&self, version: &str, script: &str, adapter: &str) {
        let tree = TreeFixture::new();
        tree.file("bin/plain", 0o755, fs::read(program("examples/plain_server")).unwrap());
        tree.file("bin/run", 0o755, format!("#!/bin/sh\nT=$MANAGER_FS_TREE\n{script}\n"));
        let address = self.site.address;
        let adapter = if adapter.is_empty() {
            format!("handover = 'sockets'\nlisten = [{{ name = 'http', tcp = '{address}' }}]\n")
        } else {
            adapter.replace("ADDRESS", &address.to_string())
        };
        let health = format!("[health]\nhttp = 'http://{address}/'\ninterval = '100ms'\n");
        let head = "entrypoint = 'bin/run'\nprobation = '6s'\n";
        tree.file("manager-fs.toml", 0o644, format!("{head}{health}[adapter]\n{adapter}"));
        self.site.publish(version, tree.path());
    }

    #[track_caller]
    fn serves(&self, text: &str) {
        until(&format!("'{text}' is served"), || {
            self.site.ask().is_ok_and(|answer| answer == format!("200 {text}")).then_some(())
        });
    }

    /// The change-over with clients that ask meanwhile; what they saw, and the exit code of `upgrade`.
    fn upgrade(&self, version: &str) -> (Seen, Option<i32>) {
        let (seen, output) = self.site.upgrade_under(CLIENTS, version);
        (seen, output.code)
    }

    /// The process of the program, as the agent itself says it.
    #[track_caller]
    fn program(&self) -> i32 {
        until("the agent names its program", || {
            let agent = self.site.agent_on_host();
            let reason = agent["reason"].as_str()?;
            let number = reason.split("its program is process ").nth(1)?.split(',').next()?;
            number.parse().ok()
        })
    }
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.split_whitespace().next().is_some_and(|state| state != "Z"))
}

#[track_caller]
fn ends(pid: i32) {
    until(&format!("process {pid} has ended"), || (!is_alive(pid)).then_some(()));
}

fn kill(pid: i32) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[track_caller]
fn nobody_is_lost(seen: &Seen) {
    assert_eq!(seen.lost(), 0, "{seen}");
}

#[test]
fn versions_that_failed_leave_nothing_mounted() {
    let lab = Lab::running("");
    for version in ["2", "3", "4"] {
        lab.publish(version, "exit 7", "");
        assert_eq!(lab.site.upgrade(version).code, Some(1));
    }
    until("the version that serves is all that is mounted", || {
        let status = lab.site.host.status();
        let generations = status["generations"].as_array().unwrap();
        let mounted: Vec<&str> =
            generations.iter().filter(|one| one["mounted"] == true).filter_map(|one| one["name"].as_str()).collect();
        (mounted == ["plain@1"]).then_some(())
    });
}

/// Whether the socket that the program was started with makes nobody wait.
#[track_caller]
fn started_without_blocking(lab: &Lab) -> bool {
    let found = lab.site.host.path("state/agents/plain/data/found");
    let found =
        until("the program has said it", || fs::read_to_string(&found).ok().filter(|text| text.contains("mnt_id")));
    let flags = found.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_NONBLOCK != 0
}

#[test]
fn sockets_block_but_for_programs_that_take_them_as_nginx_does() {
    for (environment, without_blocking) in [("OTHER = '3;'", false), ("NGINX = '3;'", true)] {
        let mut lab = Lab::new();
        let adapter = format!(
            "handover = 'sockets'\nlisten = [{{ name = 'http', tcp = 'ADDRESS' }}]\nenvironment = {{ {environment} }}\n"
        );
        lab.publish("1", "cat /proc/$$/fdinfo/3 > found; exec \"$T\"/bin/plain one", &adapter);
        lab.site.start();
        assert_eq!(started_without_blocking(&lab), without_blocking, "{environment}");
    }
}

#[test]
fn a_program_changes_its_version_under_load_both_ways_and_nobody_is_lost() {
    let lab = Lab::running("");
    lab.publish("2", "exec \"$T\"/bin/plain two", "");
    let (agent, first) = (lab.site.agent()["pid"].clone(), lab.program());
    let (seen, code) = lab.upgrade("2");
    assert_eq!(code, Some(0));
    nobody_is_lost(&seen);
    assert!(seen.of("200 one") > 0 && seen.of("200 two") > 0, "{seen:?}");
    lab.serves("two");
    ends(first);
    assert_eq!(lab.site.agent()["pid"], agent, "the adapter is the same process");
    let second = lab.program();
    let (seen, code) = lab.upgrade("1");
    assert_eq!(code, Some(0));
    nobody_is_lost(&seen);
    ends(second);
    lab.serves("one");
    // Storage operations are not for it.
    let job = ["job", "verify", "--host", "host-1", "--product", lab.site.product, "--repository", "/nowhere"];
    let refused = lab.site.manager.run(&job);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(refused.code != Some(0) && said.contains("unchanged program: it performs no verify"), "{refused:?}");
}

#[test]
fn a_version_that_fails_stops_nothing_of_the_one_that_works() {
    let lab = Lab::running("");
    let first = lab.program();
    for (version, script, why) in [
        ("exits", "echo no configuration >&2; exit 7", "before that: plain@exits ended with exit status 7"),
        ("sick", "exec \"$T\"/bin/plain sick --status 503", "before that: plain@sick is not healthy: http://"),
        ("background", "sleep 1000 & exit 0", "before that: plain@background ended with exit status 0"),
    ] {
        lab.publish(version, script, "");
        let (seen, code) = lab.upgrade(version);
        assert_ne!(code, Some(0), "{version}");
        nobody_is_lost(&seen);
        lab.site.serves("1");
        assert_eq!(lab.program(), first, "{version}: its program has never stopped");
        let evidence = lab.site.host.run(&["status"]).text();
        assert!(evidence.contains(version), "{evidence}");
        // The reason is the program's, and not only that its adapter ended.
        let steps = lab.site.agent()["last_change"]["steps"].clone();
        let failed = steps.as_array().unwrap().iter().find(|step| step["step"] == "probation_failed").unwrap();
        let told = failed["detail"].as_str().unwrap();
        assert!(told.lines().next().is_some_and(|line| line.contains(why)), "{version}: {told}");
    }
    let mut lab = lab;
    lab.site.log_says(&["no configuration", "ended with exit status 7", "stay in the foreground"]);
    lab.serves("one");
}

#[test]
fn a_version_that_embeds_the_library_takes_the_sockets_over_and_the_old_program_ends() {
    let mut lab = Lab::running("");
    let first = lab.program();
    let embedded = |version: &str, more: &str| {
        let tree = TreeFixture::new();
        tree.file("bin/hello", 0o755, fs::read(program("examples/hello_service")).unwrap());
        tree.file("VERSION", 0o644, version);
        let head = format!("entrypoint = 'bin/hello'\narguments = ['{}']\nprobation = '4s'\n", lab.site.address);
        tree.file("manager-fs.toml", 0o644, head + more);
        lab.site.publish(version, tree.path());
    };
    // One that fails takes nothing with it.
    embedded("sick", "[health]\ncommand = ['/bin/false']\n");
    assert_ne!(lab.upgrade("sick").1, Some(0));
    lab.site.serves("1");
    assert_eq!(lab.program(), first, "the program of the adapter has gone on");
    lab.serves("one");
    // A version that has yet to prove itself takes no order.
    until("the version before is believed again", || (lab.site.agent()["state"] == "serving").then_some(()));

    embedded("2", "");
    let (seen, code) = lab.upgrade("2");
    assert_eq!(code, Some(0));
    nobody_is_lost(&seen);
    ends(first);
    let hello = "200 hello from version 2";
    until("the new program alone", || lab.site.ask().is_ok_and(|text| text.trim() == hello).then_some(()));
    // And back: the adapter starts its program anew.
    assert_eq!(lab.upgrade("1").1, Some(0));
    lab.serves("one");
    assert_ne!(lab.program(), first);
    lab.site.log_says(&["changing over from 2 to 1"]);
}

#[test]
fn a_health_command_that_hangs_or_floods_is_a_version_that_is_not_well() {
    let lab = Lab::running("");
    let first = lab.program();
    for (version, command) in [("hangs", "sleep 1000"), ("floods", "yes")] {
        let tree = TreeFixture::new();
        tree.file("bin/plain", 0o755, fs::read(program("examples/plain_server")).unwrap());
        let text = format!(
            "arguments = ['two']\nentrypoint = 'bin/plain'\nprobation = '3s'\n\
             [health]\ncommand = ['/bin/sh', '-c', '{command}']\ntimeout = '200ms'\n\
             [adapter]\nhandover = 'sockets'\nlisten = [{{ name = 'http', tcp = '{}' }}]\n",
            lab.site.address
        );
        tree.file("manager-fs.toml", 0o644, text);
        lab.site.publish(version, tree.path());
        let (seen, code) = lab.upgrade(version);
        assert_ne!(code, Some(0), "{version}");
        nobody_is_lost(&seen);
        assert_eq!(lab.program(), first, "{version}");
    }
}

#[test]
fn what_does_not_end_when_it_is_told_to_is_killed_at_its_deadline_with_all_that_it_started() {
    let stubborn =
        "handover = 'sockets'\nlisten = [{ name = 'http', tcp = 'ADDRESS' }]\ndrain = { deadline = '1s' }\n";
    let mut lab = Lab::new();
    lab.publish("1", "sleep 1000 & exec \"$T\"/bin/plain one --stubborn", stubborn);
    lab.site.launch("1");
    let first = lab.program();
    let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
    let sleep: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    lab.publish("2", "exec \"$T\"/bin/plain two", "");
    assert_eq!(lab.upgrade("2").1, Some(0));
    ends(first);
    ends(sleep);
    lab.site.log_says(&["plain@1 has not ended within 1000 ms of SIGTERM; killing it"]);
    lab.serves("two");
}

#[test]
fn a_program_that_dies_is_started_again_and_the_death_of_its_adapter_is_none_of_its_business() {
    let mut lab = Lab::running("");
    let first = lab.program();
    kill(first);
    let second = until("another process", || Some(lab.program()).filter(|pid| *pid != first));
    lab.serves("one");
    lab.site.log_says(&["plain@1 was ended by signal 9; starting it again in 200 ms"]);

    let adapter = i32::try_from(lab.site.agent()["pid"].as_i64().unwrap()).unwrap();
    let (seen, ()) = under_load(
        CLIENTS,
        || lab.site.ask(),
        || {
            kill(adapter);
            until("another adapter", || {
                let agent = lab.site.agent();
                (agent["pid"] != adapter && agent["state"] == "serving").then_some(())
            });
        },
    );
    nobody_is_lost(&seen);
    assert_eq!(lab.program(), second, "taken over, and not started again");
    // Nothing of it is left after the end of the stub, nor after its death.
    assert_eq!(lab.site.stop(), Some(0));
    assert!(!is_alive(second));
    lab.site.start();
    lab.serves("one");
    let third = lab.program();
    lab.site.stub().kill();
    ends(third);
    lab.site.start();
    lab.serves("one");
}

#[test]
fn an_address_in_use_is_named_with_whoever_has_it_and_taken_when_it_is_free() {
    let mut lab = Lab::new();
    let other = TcpListener::bind(lab.site.address).unwrap();
    lab.publish("1", "exec \"$T\"/bin/plain one", "");
    lab.site.start();
    let us = format!("process {}", std::process::id());
    lab.site.log_says(&["cannot listen on 'http'", &us]);
    drop(other);
    lab.serves("one");
}

#[test]
fn a_program_that_binds_for_itself_is_handed_over_by_overlap() {
    let overlap = "handover = 'overlap'\n";
    let mut lab = Lab::new();
    let script = |lab: &Lab, text: &str| format!("exec \"$T\"/bin/plain {text} --bind {}", lab.site.address);
    lab.publish("1", &script(&lab, "one"), overlap);
    lab.site.launch("1");
    let first = lab.program();
    lab.publish("2", &script(&lab, "two"), overlap);
    // What waits in the backlog of a socket that is closed is cut by the kernel: the document has the figures.
    let (seen, code) = lab.upgrade("2");
    assert_eq!((code, seen.refused), (Some(0), 0), "{seen}");
    ends(first);
    lab.serves("two");
    let second = lab.program();
    lab.publish("sick", &(script(&lab, "sick") + " --status 503"), overlap);
    let (seen, code) = lab.upgrade("sick");
    assert!(code != Some(0) && seen.refused == 0, "{seen}");
    assert_eq!(lab.program(), second);
}

#[test]
fn a_program_that_cannot_be_there_twice_is_handed_over_by_a_restart() {
    let restart = "handover = 'restart'\nlisten = [{ name = 'http', tcp = 'ADDRESS' }]\n";
    let mut lab = Lab::new();
    lab.publish("1", "exec \"$T\"/bin/plain one --lock lock", restart);
    lab.site.launch("1");
    let first = lab.program();
    lab.publish("2", "exec \"$T\"/bin/plain two --lock lock", restart);
    let (seen, code) = lab.upgrade("2");
    assert_eq!(code, Some(0));
    nobody_is_lost(&seen);
    assert!(!is_alive(first));
    lab.serves("two");
    // The one before has to be started again, and is.
    lab.publish("exits", "exit 7", restart);
    let (seen, code) = lab.upgrade("exits");
    assert_ne!(code, Some(0));
    nobody_is_lost(&seen);
    lab.serves("two");
}
