//! Large files that a backup does not get to the end of: the next one goes on inside of them.

use std::os::unix::fs::FileExt;

use super::*;

const LARGE: usize = 80 << 20;
/// Bytes a second of a backup that is to be cut: slow enough for whoever watches it on a busy machine.
const RATE: Option<u64> = Some(16 << 20);

impl Bench {
    /// A source with one large file that looks as if nobody had touched it for a while.
    fn large(&self) -> PathBuf {
        let source = self.path("large-source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("image"), noise(5, LARGE)).unwrap();
        source
    }

    /// Waits until a change would be seen.
    fn settled(&self, file: &Path) -> fs::Metadata {
        loop {
            let metadata = fs::metadata(file).unwrap();
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            if metadata.ctime() as f64 + 3.1 < now {
                return metadata;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A backup that ends early, when `end` says so.
    fn cut(&self, source: &Path, end: impl Fn(&SharedMeter) -> bool + Send) -> EngineError {
        let meter = SharedMeter::default();
        let mut mark = mark(false);
        mark.pace.read = RATE;
        std::thread::scope(|scope| {
            let watched = meter.clone();
            scope.spawn(move || {
                while !end(&watched) && !watched.is_stopped() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let ended = self.engine.backup(&self.at(), &[source], &BackupOptions::default(), &mark, &meter);
            meter.stop();
            ended.unwrap_err()
        })
    }

    fn checkpoint(&self) -> PathBuf {
        fs::read_dir(self.path("state/checkpoints")).unwrap().next().unwrap().unwrap().path()
    }

    /// Bytes of the record behind its first line.
    fn noted(&self) -> usize {
        let record = fs::read(self.checkpoint()).unwrap();
        record.len() - record.iter().position(|byte| *byte == b'\n').unwrap() - 1
    }

    /// Changes the first byte of a file, and the record as if it were of the file as it is now. What is read there then
    /// tells whether it was read.
    fn change_behind_its_back(&self, file: &Path) {
        let before = self.settled(file);
        File::options().write(true).open(file).unwrap().write_all_at(b"#", 0).unwrap();
        let after = self.settled(file);
        let times = |of: &fs::Metadata| {
            format!("\"mtime\":[{},{}],\"ctime\":[{},{}]", of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec())
        };
        let record = fs::read(self.checkpoint()).unwrap();
        let end = record.iter().position(|byte| *byte == b'\n').unwrap();
        let header = String::from_utf8(record[..end].to_vec()).unwrap();
        assert!(header.contains(&times(&before)), "{header}");
        let header = header.replace(&times(&before), &times(&after));
        fs::write(self.checkpoint(), [header.as_bytes(), &record[end..]].concat()).unwrap();
    }

    /// What a backup brings back of the file.
    fn there_and_back(&self, source: &Path, target: &str) -> Vec<u8> {
        let (_, problems) = self.backup(source);
        assert_eq!(problems, Vec::<String>::new());
        let target = self.path(target);
        let (restored, problems) = self.restore(&target);
        assert!(restored.is_ok() && problems.is_empty(), "{restored:?} {problems:?}");
        assert_eq!(fs::read_dir(self.path("state/checkpoints")).unwrap().count(), 0);
        fs::read(target.join("image")).unwrap()
    }
}

#[test]
fn a_large_file_is_not_begun_again_and_one_that_changed_is() {
    let bench = Bench::new();
    let source = bench.large();
    let image = source.join("image");
    bench.settled(&image);
    let half = |meter: &SharedMeter| {
        let (done, _, activity) = meter.read();
        let over = activity.starts_with("reading") && done > (LARGE / 2) as u64;
        if over {
            meter.stop();
        }
        over
    };
    assert!(matches!(bench.cut(&source, half), EngineError::Stopped));
    assert!(bench.noted() > 8 * 32, "{} bytes", bench.noted());
    bench.change_behind_its_back(&image);
    let back = bench.there_and_back(&source, "back");
    assert!(back == noise(5, LARGE), "what was noted is not read again, and the rest follows it");
    assert_eq!(fs::read(&image).unwrap()[0], b'#');
    restic(&bench, &["check", "--read-data"]);

    fs::write(&image, noise(6, LARGE)).unwrap();
    bench.settled(&image);
    assert!(matches!(bench.cut(&source, half), EngineError::Stopped));
    assert!(bench.noted() > 8 * 32);
    File::options().write(true).open(&image).unwrap().write_all_at(b"#", 0).unwrap();
    bench.settled(&image);
    assert!(bench.there_and_back(&source, "again") == fs::read(&image).unwrap(), "it is another file now");
    restic(&bench, &["check", "--read-data"]);
}

#[test]
fn a_large_file_goes_on_after_its_repository_was_away() {
    let bench = Bench::new();
    let source = bench.large();
    let image = source.join("image");
    bench.settled(&image);
    let (data, away) = (bench.path("repo/data"), bench.path("repo/away"));
    // As soon as the first index file is there.
    let lose = |_: &SharedMeter| {
        let indexed = fs::read_dir(bench.path("repo/index")).is_ok_and(|mut files| files.next().is_some());
        let noted = indexed && fs::read_dir(bench.path("state/checkpoints")).is_ok() && bench.noted() > 0;
        if noted {
            fs::rename(&data, &away).unwrap();
            fs::write(&data, "no directory").unwrap();
        }
        noted
    };
    let lost = bench.cut(&source, lose);
    assert!(matches!(lost, EngineError::Store { .. }), "{lost}");
    fs::remove_file(&data).unwrap();
    fs::rename(&away, &data).unwrap();
    assert!(bench.noted() > 8 * 32, "{} bytes", bench.noted());
    bench.change_behind_its_back(&image);
    assert!(bench.there_and_back(&source, "back") == noise(5, LARGE));
    restic(&bench, &["check", "--read-data"]);
}
