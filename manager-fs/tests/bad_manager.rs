//! A manager that means harm: it has the authority's key, so every host believes that it is the manager, and answers and
//! asks as it likes. Whatever it does, a host serves what it has, executes and serves nothing that is not signed, ends
//! every command, and holds no more than 64 MiB more.

// Panicking is how a test reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use manager_fs::manager::identity::{HOST_CERTIFICATE_LIFETIME, ManagerIdentity};
use manager_fs::net::{self, Answer, BoxFuture, Handler, Link, LinkLimits};
use proto::agent::{ChangeId, JobId, JobOrigin, Operation, Repository};
use proto::bulk::{ChunkHead, Encoding};
use proto::bundle::{Header, Origin, encode_index};
use proto::codec;
use proto::limits::{EXPORTS_MAX, MESSAGE_BYTES_MAX};
use proto::message::{ChangeOver, Fault, HostReply, HostRequest, ManagerReply, ManagerRequest};
use proto::relative::Part;
use proto::{HostName, SignedRecord, TreeId, width};
use tests::{Host, Manager, TreeFixture, noise};
use tokio::io::AsyncWriteExt;

/// What any one peer may cost, bytes.
const MORE_BYTES_MAX: u64 = 64 << 20;
/// How long a command of the host may take that needs the manager: its read deadline of 2 s, on a busy machine.
const COMMAND_MAX: Duration = Duration::from_secs(40);
/// What is promised of `status` is one second; the machine that runs the tests may be busy.
const PROMPT: Duration = Duration::from_secs(3);

/// What it does to whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Bulk frames without an end.
    Endless,
    /// A manifest of 1 GiB in some kilobytes.
    Bomb,
    /// The right manifest, and chunks of the right size with other bytes.
    WrongBytes,
    /// The right manifest, and chunks that nobody asked for, twice, and of other sizes.
    WrongChunks,
    /// A manifest that is none.
    WrongManifest,
    /// No answer at all.
    Silent,
    /// A byte now and then.
    Slow,
    /// An answer to another question.
    WrongKind,
    /// An answer that no version of this program knows.
    Unknown,
    /// A list with more entries than there may be.
    LongList,
    /// Records that nobody has signed.
    Unsigned,
    /// An older list than the host has had, with nothing in it.
    OldList,
    /// Text that takes over a terminal.
    Escapes,
    /// A list of exports that always has more records, of nobody, than it has sent.
    EndlessList,
    /// A start-up bundle whose manifest unpacks to 250 MiB of nothing.
    BundleBomb,
    /// A start-up bundle that goes on behind its end.
    BundleBehind,
    /// No frame of its ever ends: a byte now and then.
    Trickle,
    /// Orders for products that are not here, with records of nobody, into places of the system; and very many.
    Orders,
}

const ATTACKS: [Attack; 18] = [
    // While the host has no manifest of the second tree: it asks for one with the bundle.
    Attack::BundleBomb,
    Attack::BundleBehind,
    Attack::Endless,
    Attack::Bomb,
    Attack::WrongBytes,
    Attack::WrongChunks,
    Attack::WrongManifest,
    Attack::Silent,
    Attack::Slow,
    Attack::WrongKind,
    Attack::Unknown,
    Attack::LongList,
    Attack::Unsigned,
    Attack::OldList,
    Attack::Escapes,
    Attack::EndlessList,
    Attack::Trickle,
    Attack::Orders,
];

const ESCAPES: &str = "\x1b]0;owned\x07\x1b[2J\nforged: all is well";

struct Evil {
    attack: Mutex<Attack>,
    store: PathBuf,
    host: HostName,
    /// The tree that the host knows of and does not have.
    second: TreeId,
    /// A megabyte that says nothing.
    noise: Vec<u8>,
    links: Mutex<Vec<Link>>,
    asked: AtomicU64,
}

impl Evil {
    /// Every connection begins anew under this attack.
    fn begin(&self, attack: Attack) {
        *self.attack.lock().unwrap() = attack;
        self.links.lock().unwrap().drain(..).for_each(|link| link.close("again"));
    }

    /// As the store has it.
    fn plain_manifest(&self, tree: &TreeId) -> Vec<u8> {
        let hex = tree.to_string();
        fs::read(self.store.join("manifests").join(&hex[..2]).join(&hex[2..])).unwrap()
    }

    /// As it is sent.
    fn manifest(&self, tree: &TreeId) -> Vec<u8> {
        zstd::encode_all(self.plain_manifest(tree).as_slice(), 1).unwrap()
    }

    fn welcome(&self) -> ManagerReply {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        ManagerReply::Welcome { host: self.host.clone(), now: width::millis(now) }
    }

    async fn answer(self: Arc<Self>, request: HostRequest, answer: Answer) {
        let attack = *self.attack.lock().unwrap();
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let HostRequest::Hello { .. } | HostRequest::HelloFrom { .. } = request {
            return drop(answer.finish(&self.welcome()).await);
        }
        match (attack, request) {
            (Attack::Silent, _) => answer.cancelled().await,
            (Attack::Endless, _) => while answer.bulk(&[0; 8], vec![7; 1 << 20]).await.is_ok() {},
            (Attack::Slow, _) => {
                while answer.bulk(&[], vec![7]).await.is_ok() && !answer.is_cancelled() {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
            (Attack::WrongKind, _) => drop(answer.finish(&ManagerReply::Bundle(Default::default())).await),
            (Attack::Unknown, _) => drop(answer.finish(&250_u8).await),
            (Attack::Escapes, _) => {
                drop(answer.finish(&ManagerReply::Fault(Fault::Failed(ESCAPES.repeat(40)))).await);
            }
            (Attack::EndlessList, HostRequest::ExportList { .. }) => {
                let asked = self.asked.load(Ordering::SeqCst).to_le_bytes();
                let record = |n: u8| [asked.as_slice(), &[n], &self.noise].concat();
                let records: Vec<_> = (0..14).map(record).collect();
                let ids = records.iter().map(|record| SignedRecord::id_of(record)).chain([[7; 32]]).collect();
                drop(answer.finish(&ManagerReply::ExportList { number: 10_000, ids, records }).await);
            }
            (attack, HostRequest::ExportList { .. }) => drop(answer.finish(&list(attack)).await),
            (
                Attack::BundleBomb | Attack::BundleBehind,
                HostRequest::Start { manifest: true, .. } | HostRequest::StartOf { manifest: true, .. },
            ) => {
                self.bundle(attack == Attack::BundleBomb, answer).await;
            }
            (Attack::Bomb, HostRequest::Manifest { .. }) => {
                let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 30), 1).unwrap();
                let (mut sent, mut all) = (0, bomb.chunks(1 << 20));
                while let Some(part) = all.next().filter(|_| !answer.is_cancelled()) {
                    drop(answer.bulk(&[], part.to_vec()).await);
                    sent += 1;
                }
                drop(answer.finish(&ManagerReply::Sent(sent)).await);
            }
            (Attack::WrongManifest, HostRequest::Manifest { .. }) => {
                let other = zstd::encode_all(noise(1, 100_000).as_slice(), 1).unwrap();
                drop(answer.bulk(&[], other).await);
                drop(answer.finish(&ManagerReply::Sent(1)).await);
            }
            (_, HostRequest::Manifest { tree }) => {
                drop(answer.bulk(&[], self.manifest(&tree)).await);
                drop(answer.finish(&ManagerReply::Sent(1)).await);
            }
            (attack, HostRequest::Chunks { wants, .. }) => {
                let mut sent = 0;
                for want in wants {
                    let odd = attack == Attack::WrongChunks;
                    let bytes = if odd { vec![3; 77_777] } else { vec![9; 256 << 10] };
                    let sequence = if odd { 4_000_000 + sent } else { sent };
                    let head =
                        ChunkHead { sequence, encoding: Encoding::Raw, plain_bytes: width::count(bytes.len()) };
                    for _ in 0..want.count.min(8) {
                        drop(answer.bulk(&head.encode(), bytes.clone()).await);
                        sent += 1;
                    }
                }
                drop(answer.finish(&ManagerReply::Sent(sent)).await);
            }
            (_, HostRequest::Report { .. }) => drop(answer.finish(&ManagerReply::Done).await),
            _ => drop(answer.finish(&ManagerReply::Fault(Fault::NotFound(String::from("nothing")))).await),
        }
    }

    /// A bundle of the second tree that brings its manifest, or says so, and no pages.
    async fn bundle(&self, is_bomb: bool, answer: Answer) {
        let plain = if is_bomb { vec![0; 250 << 20] } else { self.plain_manifest(&self.second) };
        let stored = zstd::encode_all(plain.as_slice(), 1).unwrap();
        let index = encode_index(&[]).unwrap();
        let stored_index = zstd::encode_all(index.as_slice(), 1).unwrap();
        let part = |stored: &[u8], plain: &[u8]| Part {
            stored_bytes: width::count(stored.len()),
            plain_bytes: width::count(plain.len()),
        };
        let header = Header {
            tree: self.second,
            from: None,
            origin: Origin::Recorded,
            fast: true,
            manifest: part(&stored, &plain),
            index: part(&stored_index, &index),
            proofs_bytes: 0,
            frames_bytes: 0,
        };
        drop(plain);
        for bytes in [header.encode().to_vec(), stored, stored_index] {
            for part in bytes.chunks(1 << 20) {
                drop(answer.bulk(&[], part.to_vec()).await);
            }
        }
        while !is_bomb && !answer.is_cancelled() && answer.bulk(&[], vec![7; 1 << 20]).await.is_ok() {}
        drop(answer.finish(&ManagerReply::Sent(3)).await);
    }

    /// What it asks by itself.
    async fn order(self: Arc<Self>, link: Link) {
        if *self.attack.lock().unwrap() != Attack::Orders {
            return;
        }
        let (repository, product) =
            (Repository { path: "/etc".to_owned(), password_file: None }, "sample".parse().unwrap());
        let orders = [
            ManagerRequest::ChangeOver(ChangeOver {
                change: ChangeId(1),
                product,
                record: noise(2, 3_000),
                attach: TreeId::of(b"nobody's"),
                lazy: true,
                drain_deadline_ms: 0,
                retry_bad: true,
            }),
            ManagerRequest::Run {
                product: "foreign".parse().unwrap(),
                job: JobId(1),
                origin: JobOrigin::new(self.host.clone(), "foreign".parse().unwrap()),
                operation: Operation::Backup { repository, sources: vec!["/etc".to_owned()] },
            },
            ManagerRequest::ExportsChanged,
            ManagerRequest::Agents,
        ];
        for at in 0..2_000 {
            let reply =
                link.request::<_, HostReply>(&orders[at % orders.len()], |_| {}, Duration::from_secs(5)).await;
            assert!(!matches!(reply, Ok(HostReply::Outcome(_))), "{reply:?}");
            let accepted = matches!(reply, Ok(HostReply::Done)) && at % orders.len() < 2;
            assert!(!accepted, "an order of nobody was accepted");
            if reply.is_err() {
                return;
            }
        }
    }
}

/// What the host is told to be exported to it.
fn list(attack: Attack) -> ManagerReply {
    match attack {
        Attack::LongList => {
            ManagerReply::ExportList { number: 9_000, ids: vec![[1; 32]; EXPORTS_MAX + 1], records: vec![] }
        }
        Attack::Unsigned => {
            let records = (0..200).map(|seed| noise(seed, 20_000)).collect();
            ManagerReply::ExportList { number: 9_001, ids: vec![[1; 32]; 200], records }
        }
        Attack::OldList => ManagerReply::ExportList { number: 0, ids: vec![], records: vec![] },
        // The host keeps what it has.
        _ => ManagerReply::Fault(Fault::Unavailable(String::from("later"))),
    }
}

struct Answers(Arc<Evil>);

impl Handler for Answers {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let evil = Arc::clone(&self.0);
        Box::pin(async move {
            if let Ok(request) = codec::decode::<_, MESSAGE_BYTES_MAX>(&body) {
                evil.answer(request, answer).await;
            }
        })
    }
}

/// Takes the place of a manager that has ended, with its keys.
fn stand_in(store: &Path, address: &str, host: &str, second: TreeId) -> (tokio::runtime::Runtime, Arc<Evil>) {
    let identity = ManagerIdentity::open(store, HOST_CERTIFICATE_LIFETIME).unwrap();
    let config = net::server_config(identity.server()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let evil = Arc::new(Evil {
        attack: Mutex::new(ATTACKS[0]),
        store: store.to_owned(),
        host: host.parse().unwrap(),
        second,
        noise: noise(3, 1 << 20),
        links: Mutex::default(),
        asked: AtomicU64::new(0),
    });
    let (shared, address) = (Arc::clone(&evil), address.to_owned());
    let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (evil, config) = (Arc::clone(&shared), Arc::clone(&config));
            tokio::spawn(async move {
                let Ok((mut stream, _)) = net::accept(stream, config).await else { return };
                if *evil.attack.lock().unwrap() == Attack::Trickle {
                    evil.asked.fetch_add(1, Ordering::SeqCst);
                    // The head of a frame of 16 MiB, which nobody lives to see.
                    let head = [b"MFS\x01\x02\0\0\0".as_slice(), &1_u64.to_le_bytes(), &(16_u32 << 20).to_le_bytes()];
                    for byte in head.concat() {
                        if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    return std::future::pending().await;
                }
                let handler = Arc::new(Answers(Arc::clone(&evil)));
                let link = net::start_with(stream, LinkLimits::default(), |_| handler);
                evil.links.lock().unwrap().push(link.clone());
                tokio::spawn(evil.order(link));
            });
        }
    });
    (runtime, evil)
}

/// Bytes in memory of the mount daemon's processes.
fn resident(holder: u32) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let own = entry.file_name().to_string_lossy().parse::<u32>().ok();
        if parent == Some(holder) || own == Some(holder) {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let anonymous = status.lines().find(|line| line.starts_with("RssAnon:"));
            let kib = anonymous.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            bytes += kib.unwrap_or_default() << 10;
        }
    }
    bytes
}

/// Runs a command of the host; it ends. Returns its exit code and what it printed.
#[track_caller]
fn ends(host: &Host, args: &[&str]) -> (Option<i32>, String) {
    let mut command = host.command(args);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > COMMAND_MAX {
            drop(child.kill());
            panic!("{args:?} does not end:\n{}", host.log());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn whatever_a_manager_does_a_host_serves_what_it_has_and_nothing_else() {
    tests::needs::demand(tests::needs::mounts());
    let mut manager = Manager::start();
    let tree = |seed| {
        let tree = TreeFixture::new();
        tree.file("bin/tool", 0o755, format!("#!/bin/sh\necho works {seed}\n")).file(
            "data",
            0o644,
            noise(seed, 3 << 20),
        );
        tree
    };
    let publish = |version: u64| manager.publish("sample", &version.to_string(), tree(version).path());
    let second = [1, 2].map(publish)[1].parse().unwrap();
    let mut host = Host::new("host-1");
    host.enroll(&manager, &manager.address());
    host.mount(&["--read-deadline", "2s"]);
    for version in 1..=2 {
        manager.export(&format!("sample@{version}"), "host-1");
    }
    let root = host.attach("sample@1");
    host.wait_until_local();
    tests::command::until("the second is known", || host.status().to_string().contains("sample@2").then_some(()));
    let (address, store) = (manager.address(), manager.store());
    manager.stop();
    let (runtime, evil) = stand_in(&store, &address, "host-1", second);

    let holder = host.holder_pid();
    let before = resident(holder);
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                most.fetch_max(resident(holder), Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let attacked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for attack in ATTACKS {
                suffer(&host, &evil, attack, &root);
                let more = most.load(Ordering::SeqCst).saturating_sub(before);
                println!("{attack:?}: at most {} MiB more so far", more >> 20);
                assert!(more <= MORE_BYTES_MAX, "{attack:?}: {} MiB more", more >> 20);
            }
        }));
        over.store(true, Ordering::SeqCst);
        if let Err(panic) = attacked {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(!host.log().contains('\x1b'), "text of the manager reached the log as it was");
    runtime.shutdown_background();
    drop(evil);

    // And with its own manager everything is as before.
    manager.serve();
    let second = host.attach("sample@2");
    assert!(fs::read(second.join("data")).unwrap() == noise(2, 3 << 20));
    assert_eq!(host.run(&["exec", "sample@2", "--", "bin/tool"]).text(), "works 2");
}

/// Under one attack: what the host has works at once, what it does not have ends with words.
fn suffer(host: &Host, evil: &Evil, attack: Attack, root: &Path) {
    let asked = evil.asked.load(Ordering::SeqCst);
    evil.begin(attack);
    tests::command::until(&format!("{attack:?}: the host has asked"), || {
        (evil.asked.load(Ordering::SeqCst) > asked).then_some(())
    });
    std::thread::scope(|scope| {
        // Under way while the rest is asked.
        let attach = scope.spawn(|| ends(host, &["attach", "sample@2"]));
        for _ in 0..3 {
            let since = Instant::now();
            assert_eq!(ends(host, &["status"]).0, Some(0), "{attack:?}");
            assert!(since.elapsed() < PROMPT, "{attack:?}: status took {:?}", since.elapsed());
            assert!(fs::read(root.join("data")).unwrap() == noise(1, 3 << 20), "{attack:?}: other bytes");
        }
        assert_eq!(ends(host, &["exec", "sample@1", "--", "bin/tool"]).1.trim(), "works 1", "{attack:?}");
        let (code, text) = attach.join().unwrap();
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{attack:?}: {text:?}");
        assert!(code == Some(0) || !text.trim().is_empty(), "{attack:?}: it failed without a word");
        if code == Some(0) {
            // Attached with its true manifest: then reading says that the bytes cannot be had.
            let path = host.seen(PathBuf::from(text.lines().next().unwrap_or_default().trim()));
            let read = fs::read(path.join("data"));
            assert!(read.is_err() || read.unwrap() == noise(2, 3 << 20), "{attack:?}: other bytes were served");
            let ran = ends(host, &["exec", "sample@2", "--", "bin/tool"]);
            assert!(ran.0 != Some(0) || ran.1.trim() == "works 2", "{attack:?}: {ran:?}");
            ends(host, &["release", "sample@2"]);
        }
    });
}
