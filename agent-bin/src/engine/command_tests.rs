use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use agent_core::Permits;
use proto::agent::JobOrigin;
use proto::means::Pace;

use super::*;

struct Bench(tempfile::TempDir);

impl Bench {
    /// A host that names these scripts of the shell.
    fn new(scripts: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let line = |(name, script): &(&str, &str)| format!("{name} = [\"/bin/sh\", \"-c\", {script:?}]\n");
        let lines: String = scripts.iter().map(line).collect();
        fs::write(dir.path().join("permits.toml"), format!("[commands]\n{lines}")).unwrap();
        Self(dir)
    }

    fn mark(&self) -> Mark {
        let origin = JobOrigin::new("host-1".parse().unwrap(), "data-agent".parse().unwrap());
        let permits = Arc::new(Permits::read(self.0.path(), Path::new("/nowhere")).unwrap());
        Mark { job: 7, origin, since_unix_ms: 0, look: false, permits, pace: Pace::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn around(
        &self,
        commands: &Commands,
        back_up: impl FnOnce() -> Result<Work, EngineError>,
    ) -> (Result<Work, EngineError>, Vec<String>) {
        let meter = SharedMeter::default();
        let ended = around(commands, &[Path::new("/srv/a"), Path::new("/srv/b")], &self.mark(), &meter, back_up);
        (ended, meter.take_problems().into_lines())
    }

    fn output(&self, name: &str, seconds: u32, meter: &SharedMeter) -> (Result<(usize, Ran), EngineError>, usize) {
        let (name, mut all) = (name.parse().unwrap(), Vec::new());
        let commands = Commands { output_of: None, before: None, after: None, seconds };
        let ended = output_of(&commands, &name, Path::new("/out"), &self.mark(), meter, |mut stdout| {
            stdout.read_to_end(&mut all).unwrap();
            Ok(all.len())
        });
        (ended, all.len())
    }
}

fn name(text: &str) -> Option<CommandName> {
    Some(text.parse().unwrap())
}

fn commands(before: &str, after: &str) -> Commands {
    Commands { output_of: None, before: name(before), after: name(after), seconds: 30 }
}

#[test]
fn what_runs_before_and_after_is_told_what_for_and_its_last_lines_are_kept() {
    let bench = Bench::new(&[
        ("before", "echo to $MANAGER_FS_JOB; echo $MANAGER_FS_SOURCES >&2; echo $MANAGER_FS_MOMENT"),
        ("after", "seq 1 100; echo \"$CARGO_MANIFEST_DIR.\"; ls -l /proc/self/fd | grep -c open-here; true"),
    ]);
    let open = fs::File::create(bench.path("open-here")).unwrap();
    let (ended, problems) = bench.around(&commands("before", "after"), || Ok(Work { files: 3, ..Work::default() }));
    let work = ended.unwrap();
    assert_eq!((work.files, problems), (3, vec![]));
    let [before, after] = &work.ran[..] else { panic!("{:?}", work.ran) };
    assert_eq!((before.moment.as_str(), before.ended.as_str()), ("before", "exit status: 0"));
    assert_eq!(before.output, ["to 7", "/srv/a /srv/b", "before"]);
    // Neither a variable of the agent's nor a descriptor is inherited.
    let last = (95..=100).map(|number| number.to_string()).chain([".".to_owned(), "0".to_owned()]);
    assert_eq!(after.output, last.collect::<Vec<_>>());
    drop(open);
}

#[test]
fn what_fails_before_lets_nothing_be_backed_up_and_what_runs_after_does_so_however_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let note = format!("echo $MANAGER_FS_ENDED >> {}/ended", dir.path().display());
    let bench = Bench::new(&[("bad", "echo the database is away; exit 3"), ("after", &note), ("good", "true")]);
    let (ended, _) = bench.around(&commands("bad", "after"), || panic!("it must not begin"));
    let why = ended.unwrap_err().to_string();
    assert!(why.contains("command bad (before)") && why.contains("exit status: 3"), "{why}");
    assert!(why.contains("the database is away"), "{why}");
    let (ended, _) = bench.around(&commands("good", "after"), || Err(EngineError::Stopped));
    assert!(matches!(ended, Err(EngineError::Stopped)));
    let panics = catch_unwind(AssertUnwindSafe(|| bench.around(&commands("good", "after"), || panic!("as told"))));
    assert!(panics.is_err());
    bench.around(&commands("good", "after"), || Ok(Work::default())).0.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("ended")).unwrap(), "failed\nstopped\nfailed\ndone\n");
    // The snapshot is made; that what runs after it fails is a problem.
    let (ended, problems) = bench.around(&commands("good", "bad"), || Ok(Work::default()));
    assert_eq!(ended.unwrap().ran.len(), 1);
    assert!(problems[0].contains("command bad (after)"), "{problems:?}");
}

#[test]
fn what_does_not_end_is_killed_with_what_it_began_and_nothing_is_run_that_others_can_write() {
    let bench = Bench::new(&[("hangs", "echo begun; sleep 1000 & sleep 1000"), ("floods", "yes")]);
    for (command, said) in [("hangs", "begun"), ("floods", "y / y")] {
        let late = Commands { seconds: 1, ..commands(command, command) };
        let why = bench.around(&late, || Ok(Work::default())).0.unwrap_err().to_string();
        assert!(why.contains("has not ended within 1 s") && why.contains(said), "{why}");
    }
    let program = bench.path("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::write(bench.path("permits.toml"), format!("[commands]\nmine = [{program:?}]\n")).unwrap();
    let mine = Commands { after: None, ..commands("mine", "mine") };
    fs::set_permissions(&program, fs::Permissions::from_mode(0o775)).unwrap();
    let why = bench.around(&mine, || Ok(Work::default())).0.unwrap_err().to_string();
    assert!(why.contains("others than root") && why.contains("0775"), "{why}");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    bench.around(&mine, || Ok(Work::default())).0.unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(bench.around(&mine, || Ok(Work::default())).0.unwrap_err().to_string().contains("cannot be run"));
}

#[test]
fn an_output_counts_only_if_its_command_ends_well_and_in_time() {
    let bench = Bench::new(&[
        ("good", "echo a note >&2; seq 1 200000"),
        ("bad", "seq 1 1000; echo no space >&2; exit 1"),
        ("killed", "seq 1 1000; kill -9 $$"),
        ("silent", "sleep 1000"),
        // The command ends well and at once; what it left behind has not written all.
        ("left", "(sleep 1000; echo more) & echo some"),
    ]);
    let meter = SharedMeter::default();
    let (ended, read) = bench.output("good", 60, &meter);
    let (length, ran) = ended.unwrap();
    assert_eq!((length, read, ran.output), (1_288_895, 1_288_895, vec!["a note".to_owned()]));
    let (ended, read) = bench.output("bad", 60, &meter);
    let why = ended.unwrap_err().to_string();
    assert!(read > 0 && why.contains("exit status: 1: no space"), "{why}");
    assert!(bench.output("killed", 60, &meter).0.unwrap_err().to_string().contains("signal: 9"));
    for command in ["silent", "left"] {
        let why = bench.output(command, 1, &meter).0.unwrap_err().to_string();
        assert!(why.contains("has not ended within 1 s"), "{command}: {why}");
    }
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| bench.output("silent", 1000, &meter).0);
        meter.stop();
        assert!(matches!(waits.join().unwrap(), Err(EngineError::Stopped)));
    });
    let none = Bench::new(&[]).output("good", 60, &SharedMeter::default()).0.unwrap_err().to_string();
    assert!(none.contains("does not permit the command good"), "{none}");
}
