//! Trees of very many entries, and a manager that publishes much: what they cost, and that an agent changes over to one and
//! back. `WHOLE=1` takes a million entries, which is the most that a tree may have; the short form a twentieth.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use tests::{Host, Manager, TreeFixture, noise};

const PRODUCT: &str = "data-agent";
const DESCRIPTOR: &str = "drain_deadline = \"60s\"\nprobation = \"10s\"\n";
/// What `status`, `hosts` and `agents` are promised to take, on a machine that has other work.
const PROMPT: Duration = Duration::from_secs(3);

fn is_whole() -> bool {
    std::env::var_os("WHOLE").is_some()
}

/// One entry of a tar archive.
fn entry(archive: &mut impl Write, name: &str, kind: u8, mode: u32, content: &[u8]) {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    header[108..124].copy_from_slice(b"0000000\x000000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.write_all(&header).unwrap();
    archive.write_all(content).unwrap();
    archive.write_all(&[0; 512][..(512 - content.len() % 512) % 512]).unwrap();
}

/// The reference agent with as many entries beside it; every tenth file has a content of its own.
fn large(version: &str, entries: usize, path: &Path) {
    let agent = TreeFixture::agent(version, "data", DESCRIPTOR);
    let mut archive = BufWriter::new(File::create(path).unwrap());
    let bytes = |path: &str| fs::read(agent.path().join(path)).unwrap();
    entry(&mut archive, "bin/agent", b'0', 0o755, &bytes("bin/agent"));
    entry(&mut archive, "manager-fs.toml", b'0', 0o644, &bytes("manager-fs.toml"));
    // The root, `bin`, what is in it, the file beside it, and the directories count as well.
    let mut left = entries - 5;
    for directory in 0.. {
        if left < 2 {
            break;
        }
        left -= 1;
        entry(&mut archive, &format!("many/{directory:04}"), b'5', 0o755, b"");
        for file in 0..left.min(1_000) {
            let content = if file % 10 == 0 { format!("{version} {directory} {file}") } else { String::new() };
            entry(&mut archive, &format!("many/{directory:04}/{file:04}"), b'0', 0o644, content.as_bytes());
        }
        left -= left.min(1_000);
    }
    archive.write_all(&[0; 1024]).unwrap();
    archive.into_inner().unwrap().sync_all().unwrap();
}

/// A line of `/proc/PID/status`, KiB.
fn memory(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap_or_default();
    found.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// The most that any process of the mount daemon has ever held, KiB.
fn most_of_the_host(host: &Host) -> u64 {
    let holder = host.holder_pid();
    let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: u32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        (parent == holder).then_some(pid)
    });
    children.map(|pid| memory(pid, "VmHWM")).max().unwrap_or(0)
}

#[test]
fn an_agent_changes_over_to_a_tree_of_very_many_entries_and_back() {
    let entries = if is_whole() { 1_000_000 } else { 50_000 };
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    manager.publish(PRODUCT, "1.0", TreeFixture::agent("1.0", "data", DESCRIPTOR).path());
    manager.export("data-agent@1.0", "host-1");
    host.launch(PRODUCT);
    let pid = manager.wait_for_version("host-1", PRODUCT, "1.0")["pid"].clone();

    let source = manager.path("large.tar");
    large("2.0", entries, &source);
    let begun = Instant::now();
    manager.publish(PRODUCT, "2.0", &source);
    let published = begun.elapsed();
    fs::remove_file(&source).unwrap();
    let shown = manager.run(&["show", "data-agent@2.0", "--json"]).expect(0).json();
    let counted = shown["entries"].as_u64().or(shown["tree"]["entries"].as_u64());
    assert!(counted.is_none_or(|counted| counted.abs_diff(entries as u64) < 10), "{shown}");

    // While one host is told, everybody else is answered.
    let begun = Instant::now();
    let order = ["upgrade", PRODUCT, "data-agent@2.0", "--to", "host-1", "--export"];
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| manager.run(&order).expect(0));
        let mut slowest = Duration::ZERO;
        while !upgrade.is_finished() {
            for ask in
                [&|| manager.run(&["hosts"]).code, &|| host.run(&["status"]).code] as [&dyn Fn() -> Option<i32>; 2]
            {
                let since = Instant::now();
                assert_eq!(ask(), Some(0));
                slowest = slowest.max(since.elapsed());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        upgrade.join().unwrap();
        println!("the slowest of hosts and status meanwhile: {slowest:?}");
        assert!(slowest < PROMPT, "{slowest:?}");
    });
    let changed = begun.elapsed();
    let agent = manager.wait_for_version("host-1", PRODUCT, "2.0");
    assert_eq!(agent["pid"], pid, "the same process");
    let tree = host.attach("data-agent@2.0");
    assert_eq!(fs::read_to_string(tree.join("many/0007/0010")).unwrap(), "2.0 7 10");
    assert_eq!(fs::read_dir(tree.join("many/0003")).unwrap().count(), 1_000);
    let begun = Instant::now();
    manager.run(&["upgrade", PRODUCT, "data-agent@1.0", "--to", "host-1"]).expect(0);
    let back = begun.elapsed();
    host.run(&["release", "data-agent@2.0"]);
    let (of_the_manager, of_the_host) = (memory(manager.pid(), "VmHWM") >> 10, most_of_the_host(&host) >> 10);
    println!(
        "{entries} entries: published in {published:?}, changed over in {changed:?}, back in {back:?}; the manager held at \
         most {of_the_manager} MiB, a process of the mount daemon {of_the_host} MiB"
    );
    let (times, memory_max) =
        if is_whole() { (Duration::from_secs(300), 3_000) } else { (Duration::from_secs(60), 400) };
    assert!(published < times && changed < times && back < times);
    assert!(of_the_manager < memory_max && of_the_host < memory_max);
}

#[test]
fn a_manager_that_has_published_much_is_small_again() {
    // Three at a time, as an operator's script may.
    const ROUNDS: u64 = 6;
    let size = if is_whole() { 96 << 20 } else { 8 << 20 };
    let manager = Manager::start();
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            for product in ["one", "two", "three"] {
                let manager = &manager;
                scope.spawn(move || {
                    let tree = TreeFixture::new();
                    let mut bytes = noise(round, size / 2);
                    // Half of it is of this version alone, half is text that compresses.
                    bytes.extend(format!("{product} {round} ").repeat(size / 20).into_bytes());
                    tree.file("bin/program", 0o755, bytes);
                    manager.publish(product, &round.to_string(), tree.path());
                });
            }
        });
    }
    let records = fs::read_dir(manager.store().join("records")).unwrap().count() as u64;
    assert_eq!(records, ROUNDS * 3, "each has its record as a file, too:\n{}", manager.log());
    // It compresses when nobody else wants the machine, so there is no telling how long it takes: the short form does not
    // wait for that, and is small meanwhile.
    let patience = Duration::from_secs(if is_whole() { 7_200 } else { 300 });
    let best = |pack: &std::path::PathBuf| fs::read(pack).is_ok_and(|bytes| bytes[10] & 1 == 1);
    let is_at_rest = || !is_whole() || tests::files_below(&manager.store().join("packs")).iter().all(best);
    let begun = Instant::now();
    let least = loop {
        let now = memory(manager.pid(), "VmRSS") >> 10;
        if now < 100 && is_at_rest() {
            break now;
        }
        assert!(begun.elapsed() < patience, "it holds {now} MiB");
        std::thread::sleep(Duration::from_millis(200));
    };
    println!("after {} publications {least} MiB, at most {} MiB", ROUNDS * 3, memory(manager.pid(), "VmHWM") >> 10);
}
