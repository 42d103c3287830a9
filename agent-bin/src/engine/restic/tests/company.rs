//! Several hosts, and a person's restic, on one repository.

use std::io::Write;
use std::process::Stdio;

use super::*;

/// A second host on the same repository: its own state, the same password, another spelling of the path.
struct Other {
    engine: Restic,
    at: Location,
    mark: Mark,
}

impl Other {
    fn new(bench: &Bench) -> Self {
        let (repo, link) = (bench.path("repo"), bench.path("by-another-name"));
        symlink(&repo, &link).unwrap();
        let at = Location {
            path: format!("{}/../by-another-name/", link.display()),
            password_file: Some(bench.path("state/repository.password").display().to_string()),
        };
        let origin = JobOrigin::new("host-2".parse().unwrap(), "media-agent".parse().unwrap());
        let mark = Mark { job: 2, origin, ..mark(false) };
        Self { engine: Restic::new(&bench.path("state-2")), at, mark }
    }
}

fn count(bench: &Bench) -> usize {
    fs::read_dir(bench.path("repo/snapshots")).unwrap().count()
}

#[test]
fn neither_host_sees_or_forgets_the_others_backup() {
    let bench = Bench::new();
    let source = bench.source();
    let (own, _) = bench.backup(&source);
    let other = Other::new(&bench);
    let meter = SharedMeter::default();
    // A clone: the same machine name, the same source.
    fs::write(source.join("of-host-2"), "newer").unwrap();
    let theirs = other.engine.backup(&other.at, &[&source], &BackupOptions::default(), &other.mark, &meter).unwrap();
    assert_ne!(own.snapshots, theirs.snapshots);
    fs::remove_file(source.join("of-host-2")).unwrap();
    File::open(&source)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789))
        .unwrap();

    let target = bench.path("target");
    let restored = bench
        .engine
        .restore(&bench.at(), &reference("latest"), &target, &RestoreOptions::default(), &mark(false), &meter)
        .unwrap();
    assert_eq!(restored.snapshots, own.snapshots, "latest is the own host's");
    assert!(!target.join("of-host-2").exists());
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    let refused = bench
        .engine
        .restore(
            &bench.at(),
            &reference(&theirs.snapshots[0]),
            &bench.path("t2"),
            &RestoreOptions::default(),
            &mark(false),
            &meter,
        )
        .unwrap_err();
    assert!(refused.to_string().contains("host host-2"), "{refused}");
    let any = SnapshotRef { of: HostScope::Any, ..reference(&theirs.snapshots[0]) };
    bench
        .engine
        .restore(&bench.at(), &any, &bench.path("t3"), &RestoreOptions::default(), &mark(false), &meter)
        .unwrap();
    assert!(bench.path("t3/of-host-2").exists());

    let forgotten = other.engine.forget(&other.at, 1, &other.mark, &meter).unwrap();
    assert_eq!((forgotten.snapshots.len(), count(&bench)), (0, 2), "each is the only one of its host");
    other.engine.reclaim(&other.at, &other.mark, &meter).unwrap();
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
    let tags = restic(&bench, &["snapshots", "--json", "--host", "host-2", "--tag", "job-2,product:media-agent"]);
    assert_eq!(tags.matches("short_id").count(), 1, "{tags}");
}

#[test]
fn prune_under_another_name_of_the_path_waits_for_a_backup() {
    let bench = Bench::new();
    let source = bench.source();
    bench.backup(&source);
    let other = Other::new(&bench);
    File::create(source.join("large")).unwrap().set_len(30 << 30).unwrap();
    let (writing, pruning) = (SharedMeter::default(), SharedMeter::default());
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| {
            bench.engine.backup(&bench.at(), &[&source], &BackupOptions::default(), &mark(false), &writing)
        });
        while writing.read().0 == 0 {
            std::thread::yield_now();
        }
        let prune = scope.spawn(|| other.engine.reclaim(&other.at, &other.mark, &pruning));
        while !pruning.read().2.starts_with("waits for") {
            std::thread::yield_now();
        }
        assert!(!prune.is_finished());
        writing.stop();
        assert!(matches!(backup.join().unwrap(), Err(EngineError::Stopped)));
        prune.join().unwrap().unwrap();
    });
    assert_eq!(fs::read_dir(bench.path("repo/locks")).unwrap().count(), 0);
}

#[test]
fn agents_and_a_persons_restic_honour_each_others_locks() {
    let bench = Bench::new();
    bench.backup(&bench.source());
    // restic keeps its lock for as long as its input is open.
    let mut person = Command::new("restic")
        .args(["--no-cache", "--quiet", "--repo"])
        .arg(bench.path("repo"))
        .arg("--password-file")
        .arg(bench.path("state/repository.password"))
        .args(["backup", "--stdin"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    while fs::read_dir(bench.path("repo/locks")).unwrap().count() == 0 {
        std::thread::yield_now();
    }
    let meter = SharedMeter::default();
    bench.engine.check(&bench.at(), false, &mark(false), &meter).unwrap();
    std::thread::scope(|scope| {
        let prune = scope.spawn(|| bench.engine.reclaim(&bench.at(), &mark(false), &meter));
        while !meter.read().2.contains(&format!("process {}", person.id())) {
            assert!(!prune.is_finished());
            std::thread::yield_now();
        }
        let mut input = person.stdin.take().unwrap();
        input.write_all(b"what a person backs up").unwrap();
        drop(input);
        assert!(person.wait().unwrap().success());
        prune.join().unwrap().unwrap();
    });

    // And the other way round.
    let session =
        Session::open(&bench.path("state"), &bench.at(), Access::Shared, false, &mark(false), &meter).unwrap();
    let refused = restic_output(&bench, &["prune"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("locked") && text.contains("host-1"), "{text}");
    drop(session);
    restic(&bench, &["prune"]);
    assert_eq!(bench.verify("latest"), Vec::<String>::new());
}

#[test]
fn a_repository_has_one_id_by_whatever_name_it_is_reached() {
    let bench = Bench::new();
    let asked = |path: &Path| {
        let at = Location { path: path.display().to_string(), password_file: None };
        bench.engine.identify(&at, &SharedMeter::default())
    };
    assert!(asked(&bench.path("repo")).unwrap_err().to_string().contains("there is no repository here"));
    bench.backup(&small(&bench, &["file"]));
    symlink(bench.path("repo"), bench.path("other-name")).unwrap();
    let ids = [bench.path("repo"), bench.path("other-name")].map(|path| asked(&path).unwrap().snapshots);
    assert_eq!(ids[0], ids[1]);
    let config: serde_json::Value = serde_json::from_str(&restic(&bench, &["cat", "config"])).unwrap();
    assert_eq!(config["id"].as_str(), Some(ids[0][0].as_str()), "it is restic's own");
    assert_eq!(fs::read_dir(bench.path("repo/locks")).unwrap().count(), 0, "no lock is left");
}

/// Snapshots as agents wrote them before: the machine's name, and nothing but the job's number.
#[test]
fn snapshots_of_earlier_agents_are_adopted_by_their_jobs() {
    let bench = Bench::new();
    let source = small(&bench, &["file"]);
    // Makes the repository and the password.
    bench.backup(&source);
    let old = |job: &str| {
        let source = source.to_str().unwrap();
        restic(&bench, &["backup", "--host", "clone", "--tag", job, source]);
    };
    // Three of one host, two of its clone, one of which nobody remembers.
    ["job-11", "job-12", "job-13", "job-21", "job-22", "job-99"].into_iter().for_each(old);
    let own: proto::HostName = "host-1".parse().unwrap();
    let other: proto::HostName = "host-2".parse().unwrap();
    let earlier = [(11, &own), (12, &own), (13, &own), (21, &other), (22, &other)]
        .map(|(job, host)| (proto::agent::JobId(job), host.clone()));
    let origin = |host: &proto::HostName| {
        let origin = JobOrigin::new(host.clone(), "data-agent".parse().unwrap());
        Mark { origin: JobOrigin { earlier: earlier.to_vec(), ..origin }, ..mark(false) }
    };
    let count_of = |tag: &str| {
        let listed: serde_json::Value =
            serde_json::from_str(&restic(&bench, &["snapshots", "--json", "--tag", tag])).unwrap();
        listed.as_array().unwrap().len()
    };
    // `latest` of the other host is its own newest, though a later one bears the same machine's name.
    let meter = SharedMeter::default();
    let found = bench.engine.verify(&bench.at(), &reference("latest"), &origin(&other), &meter).unwrap();
    let newest: serde_json::Value =
        serde_json::from_str(&restic(&bench, &["snapshots", "--json", "--tag", "job-22"])).unwrap();
    assert_eq!(newest[0]["id"].as_str(), Some(found.snapshots[0].as_str()));
    assert_eq!(found.snapshots.len(), 1);
    // Prune keeps the newest of each host, and what is of nobody known.
    let meter = SharedMeter::default();
    bench.engine.forget(&bench.at(), 1, &origin(&own), &meter).unwrap();
    let left: Vec<usize> = ["job-11", "job-12", "job-13", "job-21", "job-22", "job-99"].map(count_of).into();
    assert_eq!((left.as_slice(), count_of("manager-fs")), (&[0, 0, 1, 0, 1, 1][..], 0));
}
