//! Cold, warm and half-warm starts of real programs, against the same tree on the local disk and against downloading and
//! unpacking its archive; and the `execve` among it alone, until the first instruction and until the first output byte. Run as root: `cargo bench --locked -p benches --bench start`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use benches::exec::{self, Exec};
use benches::ours::recording;
use benches::pair::{Pairs, interleave};
use benches::report::Report;
use benches::start::{self, drop_caches, to_first_byte};
use benches::trees::{self, Tree};
use tests::command::{program, until};
use tests::{Host, Manager, Output};

const ROUNDS_WARM: usize = 20;
const ROUNDS_DROPPED: usize = 7;
const ROUNDS_COLD: usize = 5;

fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let manager = Manager::start();
    let mut report = Report::default();
    for tree in trees::find(scratch.path())? {
        let source = tree.versions.last().context("a version")?;
        manager.publish(&tree.name, "1", source);
        warm(&manager, &tree, source, &mut report)?;
        cold(&manager, &tree, source, scratch.path(), &mut report)?;
        cold_execve(&manager, &tree, source, "cold, no recording", &mut report)?;
        record(&manager, &tree)?;
        cold_execve(&manager, &tree, source, "cold, recorded", &mut report)?;
    }
    attach_large(&manager, scratch.path(), &mut report)?;
    report.finish("start", Path::new("target/bench"))
}

/// Starts with every object local, against the tree on the disk that holds the cache.
fn warm(manager: &Manager, tree: &Tree, source: &Path, report: &mut Report) -> Result<()> {
    let name = format!("{}@1", tree.name);
    let host = Host::mounted(&format!("warm-{}", tree.name), manager);
    manager.export(&name, &host.name);
    host.attach(&name);
    wait_until_local(&host, &tree.name);
    // Attached afresh, so that the overlay leads to the local objects.
    host.run(&["release", &name]).expect(0);
    let mounted = host.attach(&name);
    let local = host.path("on-disk");
    copy(source, &local)?;

    let before = host.fuse_requests();
    let ours = || to_first_byte(&mut tree.command(&mounted));
    let disk = || to_first_byte(&mut tree.command(&local));
    let pairs = interleave(ROUNDS_WARM, ours, disk)?;
    report.pairs(format!("{}: warm start", tree.name), &pairs, "local disk", "<= 1.05");
    report.figure(
        format!("{}: FUSE requests of those starts", tree.name),
        &[(host.fuse_requests() - before) as f64],
        "",
        "0",
    );

    let execve = |root: &Path| exec::timed(tree.command(root));
    let pairs = interleave(ROUNDS_WARM, || execve(&mounted), || execve(&local))?;
    execve_rows(report, &tree.name, "warm", &pairs);

    let dropped = |root: &Path| {
        drop_caches()?;
        to_first_byte(&mut tree.command(root))
    };
    let pairs = interleave(ROUNDS_DROPPED, || dropped(&mounted), || dropped(&local))?;
    report.pairs(format!("{}: start, page cache dropped", tree.name), &pairs, "local disk", "<= 1.10");
    let dropped = |root: &Path| {
        drop_caches()?;
        exec::timed(tree.command(root))
    };
    let pairs = interleave(ROUNDS_DROPPED, || dropped(&mounted), || dropped(&local))?;
    execve_rows(report, &tree.name, "page cache dropped", &pairs);
    let worker = host.status()["daemon"]["pid"].as_u64().context("the worker's process id")?;
    let statm = std::fs::read_to_string(format!("/proc/{worker}/statm"))?;
    let resident_pages: f64 = statm.split_whitespace().nth(1).context("resident pages")?.parse()?;
    report.figure(format!("{}: memory of the worker", tree.name), &[resident_pages * 4096.0 / 1e6], "MB", "<= 30");
    Ok(())
}

/// From `manager-fs mount` on an enrolled host without cache to the program's first byte, against download, unpack, run.
fn cold(manager: &Manager, tree: &Tree, source: &Path, scratch: &Path, report: &mut Report) -> Result<()> {
    let archive = scratch.join(format!("{}.tar.zst", tree.name));
    let packed = Command::new("tar").args(["--zstd", "-cf"]).arg(&archive).arg("-C").arg(source).arg(".").status()?;
    ensure!(packed.success(), "tar --zstd failed: install zstd");
    let address = serve_file(archive)?;

    let (mut round, mut fetched) = (0, Vec::new());
    let ours = || {
        round += 1;
        let mut host = Host::new(&format!("cold-{}-{round}", tree.name));
        host.enroll(manager, &manager.address());
        manager.export(&format!("{}@1", tree.name), &host.name);
        let since = Instant::now();
        host.mount(&[]);
        let root = host.attach(&format!("{}@1", tree.name));
        to_first_byte(&mut tree.command(&root))?;
        let seconds = since.elapsed().as_secs_f64();
        fetched.push(host.status()["fetched_bytes"].as_u64().unwrap_or(0) as f64 / 1e6);
        Ok(seconds)
    };
    let rival = || {
        let dir = tempfile::tempdir_in(scratch)?;
        let since = Instant::now();
        unpack(&address, dir.path())?;
        to_first_byte(&mut tree.command(dir.path()))?;
        Ok(since.elapsed().as_secs_f64())
    };
    let pairs: Pairs = interleave(ROUNDS_COLD, ours, rival)?;
    report.pairs(format!("{}: cold start", tree.name), &pairs, "tar.zst", "< 1");
    report.figure(format!("{}: fetched for it", tree.name), &fetched, "MB", "");
    Ok(())
}

/// The `execve` alone on a host without cache, as soon as the generation is attached, against the same tree on the local
/// disk. Before each, the machine's page cache is dropped; what the manager serves is then read again.
fn cold_execve(manager: &Manager, tree: &Tree, source: &Path, when: &str, report: &mut Report) -> Result<()> {
    let store = manager.store();
    let warm = [program("manager-fs"), store.join("packs"), store.join("manifests"), store.join("bundles")];
    let mut hosts = 0;
    let ours = || {
        hosts += 1;
        let mut host = Host::new(&format!("execve-{}-{hosts}", tree.name));
        host.enroll(manager, &manager.address());
        manager.export(&format!("{}@1", tree.name), &host.name);
        drop_caches()?;
        start::warm(&warm)?;
        host.mount(&[]);
        let root = host.attach(&format!("{}@1", tree.name));
        exec::timed(tree.command(&root))
    };
    let rival = || {
        drop_caches()?;
        exec::timed(tree.command(source))
    };
    let pairs = interleave(ROUNDS_COLD, ours, rival)?;
    execve_rows(report, &tree.name, when, &pairs);
    Ok(())
}

/// Records what a start touches, as an operator does after publishing.
fn record(manager: &Manager, tree: &Tree) -> Result<()> {
    let name = format!("{}@1", tree.name);
    let host = Host::mounted(&format!("recorder-{}", tree.name), manager);
    manager.export(&name, &host.name);
    manager.run(&["host", "group", "add", "recorders", &host.name]).expect(0);
    host.attach(&name);
    let recorded = Output::of(&mut recording(&host, tree, &name));
    ensure!(recorded.code == Some(0), "profile of {name} failed: {}", recorded.stderr.trim());
    manager.wait_until_bundled();
    Ok(())
}

fn execve_rows(report: &mut Report, tree: &str, when: &str, pairs: &Pairs<Exec>) {
    let mut row = |until: &str, pairs: Option<Pairs>| {
        if let Some(pairs) = pairs {
            report.pairs(format!("{tree}: {when}, execve to {until}"), &pairs, "local disk", "");
        }
    };
    row("first instruction", pairs.of(|exec| Some(exec.first_instruction)));
    row("program's entry", pairs.of(|exec| exec.entry));
    row("first byte", pairs.of(|exec| Some(exec.first_byte)));
}

/// Attaching an exported generation of 3,000 entries whose manifest is new to the host.
fn attach_large(manager: &Manager, scratch: &Path, report: &mut Report) -> Result<()> {
    let mut seconds = Vec::new();
    let host = Host::mounted("attach", manager);
    for version in 0..5 {
        let root = scratch.join(format!("large-{version}"));
        for at in 0..3000 {
            let file = root.join(format!("dir{}/file{at}", at % 100));
            std::fs::create_dir_all(file.parent().context("a parent")?)?;
            std::fs::write(file, format!("{version} {at}"))?;
        }
        manager.publish("large", &version.to_string(), &root);
        let name = format!("large@{version}");
        manager.export(&name, &host.name);
        until("the export is seen", || {
            host.mountpoint().join("large").join(version.to_string()).exists().then_some(())
        });
        let since = Instant::now();
        host.run(&["attach", &name]).expect(0);
        seconds.push(since.elapsed().as_secs_f64() * 1e3);
    }
    report.figure("attach 3,000 entries, new manifest", &seconds, "ms", "<= 100");
    Ok(())
}

fn wait_until_local(host: &Host, product: &str) {
    until("every object is local", || {
        let status = host.status();
        let generation = status["generations"].as_array()?.iter().find(|g| g["product"] == product)?.clone();
        (generation["local_bytes"] == generation["object_bytes"]).then_some(())
    });
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    ensure!(Command::new("cp").arg("-a").arg(from).arg(to).status()?.success(), "cp -a failed");
    Ok(())
}

/// Sends the file to whoever connects; returns where.
fn serve_file(file: PathBuf) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Ok(bytes) = std::fs::read(&file) else { return };
            let _ = stream.write_all(&bytes);
        }
    });
    Ok(address)
}

fn unpack(address: &str, dir: &Path) -> Result<()> {
    let mut tar = Command::new("tar").args(["--zstd", "-xf", "-", "-C"]).arg(dir).stdin(Stdio::piped()).spawn()?;
    let mut stdin = tar.stdin.take().context("a piped stdin")?;
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => stdin.write_all(&buffer[..length])?,
        }
    }
    drop(stdin);
    ensure!(tar.wait()?.success(), "tar failed");
    Ok(())
}
