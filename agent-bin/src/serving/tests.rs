//! What hostile clients get: no more than a refusal, no longer than their deadline, and nothing under a name.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::door::{Access, Bearer, DoorKey, Grant};
use tempfile::TempDir;

use super::*;
use crate::engine::format::id::Id;
use crate::wire::http::{self, Head};
use crate::wire::tls::tests::{Authority, LONG, PATIENT, SHORT, dial_unknown};
use crate::wire::tls::{self, Dialled};

type Client = BufReader<Dialled>;

/// A media agent that serves `vault` and `other`, and hosts that dial it.
struct World {
    dir: TempDir,
    authority: Authority,
    serving: Arc<Serving>,
    address: String,
    goes_on: Arc<AtomicBool>,
}

impl World {
    fn new(patience: Patience) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, authority) = (dir.path().join("state"), Authority::new());
        authority.enroll(&state, "media-1");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelves = [("vault", 7), ("other", 8)].map(|(name, key)| {
            let path = dir.path().join(name);
            let host = "media-1".parse().unwrap();
            let kept = Kept::new(name.parse().unwrap(), host, path, address.clone(), DoorKey([key; 32]));
            (kept.name.clone(), Arc::new(Shelf::new(&state, kept).unwrap()))
        });
        let serving = Arc::new(Serving {
            run: dir.path().join("run"),
            state,
            inherited: Inherited::default(),
            gate: Gate::new().unwrap(),
            shelves: Mutex::new(shelves.into()),
            listeners: Mutex::default(),
            connections: AtomicUsize::new(0),
            newcomers: Arc::default(),
            patience,
        });
        let goes_on = Arc::new(AtomicBool::new(true));
        let (accepts, wanted) = (serving.clone(), goes_on.clone());
        std::thread::spawn(move || accepts.accept(&listener, &wanted));
        Self { dir, authority, serving, address, goes_on }
    }

    fn try_dial(&self, host: &str) -> io::Result<Client> {
        let state = self.dir.path().join(host);
        if !state.exists() {
            self.authority.enroll(&state, host);
        }
        tls::dial(&state, &"media-1".parse().unwrap(), &self.address, PATIENT).map(patient)
    }

    fn dial(&self, host: &str) -> Client {
        self.try_dial(host).unwrap()
    }

    fn vault(&self, below: &str) -> PathBuf {
        self.dir.path().join("vault").join(below)
    }

    /// Waits until only so many connections are left.
    fn await_connections(&self, count: usize) {
        let until = Instant::now() + LONG;
        while self.serving.connections.load(Ordering::Relaxed) > count {
            assert!(Instant::now() < until, "a connection stays");
            std::thread::yield_now();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
    }
}

fn patient(mut stream: Dialled) -> Client {
    stream.sock.within(LONG);
    BufReader::new(stream)
}

fn good() -> Grant {
    Grant {
        repository: "vault".parse().unwrap(),
        bearer: Bearer::Host("web-1".parse().unwrap()),
        access: Access::Add,
        until_unix_ms: u64::MAX,
        what: "job 7".into(),
    }
}

fn sealed(grant: &Grant, key: u8) -> String {
    basic(&format!("grant:{}", grant.seal(&DoorKey([key; 32])).unwrap()))
}

fn basic(pair: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair))
}

fn own() -> String {
    sealed(&good(), 7)
}

fn begin(client: &mut Client, request: &str, fields: &str, body: &[u8]) {
    let head = format!("{request} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    client.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
    client.get_mut().flush().unwrap();
}

fn answered(client: &mut Client) -> (u16, String) {
    let head = Head::read(client).unwrap().unwrap();
    let body = http::read_body(client, head.body_bytes().unwrap()).unwrap();
    (head.status().unwrap(), String::from_utf8(body).unwrap())
}

/// One request with a body; `fields` end their lines.
fn ask(client: &mut Client, request: &str, fields: &str, body: &[u8]) -> (u16, String) {
    begin(client, request, &format!("{fields}Content-Length: {}\r\n", body.len()), body);
    answered(client)
}

/// One request without a body, whatever the answer; an error once the other side has had enough.
fn try_ask(client: &mut Client, request: &str) -> io::Result<()> {
    client.get_mut().write_all(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())?;
    client.get_mut().flush()?;
    let head = Head::read(client).map_err(io::Error::other)?.ok_or(ErrorKind::UnexpectedEof)?;
    let bytes = head.body_bytes().map_err(io::Error::other)?;
    http::read_body(client, bytes).map(drop).map_err(io::Error::other)
}

/// Whether the other side ends the connection, be it with a word or without.
fn is_ended(client: &mut Client) -> bool {
    match io::copy(client, &mut io::sink()) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock),
    }
}

/// Sends a byte again and again until the other side has had enough, and says how often.
fn drip(client: &mut Client) -> u32 {
    let until = Instant::now() + LONG;
    for count in 0.. {
        assert!(Instant::now() < until, "whoever drips is served for ever");
        client.get_mut().sock.within(LONG);
        if client.get_mut().write_all(b"a").and_then(|()| client.get_mut().flush()).is_err() {
            return count;
        }
        client.get_mut().sock.within(SHORT / 20);
        match client.read(&mut [0; 512]) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            Ok(0) | Err(_) => return count,
            Ok(_) => {}
        }
    }
    0
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn at(kind: &str, content: &[u8]) -> String {
    format!("/vault/{kind}/{}", Id::of(content))
}

#[test]
fn who_says_nothing_or_drips_its_head_is_gone_in_time() {
    let world = World::new(Patience { head: SHORT, ..PATIENT });
    let mut client = world.dial("web-1");
    let since = Instant::now();
    client.get_mut().write_all(b"GET /vault/config HTTP/1.1\r\nA: ").unwrap();
    assert!(drip(&mut client) > 1);
    assert!(since.elapsed() >= SHORT);
    world.await_connections(0);
    let world = World::new(Patience { handshake: SHORT, ..PATIENT });
    let mut silent = TcpStream::connect(&world.address).unwrap();
    silent.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_or(0), 0);
    world.await_connections(0);
    assert_eq!(ask(&mut world.dial("web-1"), "GET /vault/data/", &own(), b"").0, 200);
}

#[test]
fn who_says_nothing_keeps_no_place_from_those_that_are_let_in() {
    let world = World::new(PATIENT);
    let mut known = world.dial("web-1");
    assert_eq!(ask(&mut known, "GET /vault/data/", &own(), b"").0, 200);
    let ended = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(SHORT)).unwrap();
        matches!(stream.read(&mut [0; 1]), Ok(0))
    };
    // From one address; the first of them stay, and those beyond are closed at once.
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(&world.address).unwrap()).collect();
    let closed = silent.into_iter().rev().filter_map(|stream| ended(stream).then_some(())).count();
    assert!(closed >= 20, "{closed}");
    assert!(world.serving.connections.load(Ordering::Relaxed) <= 20);
    assert_eq!(ask(&mut known, "GET /vault/data/", &own(), b"").0, 200);
    world.await_connections(1);
    assert_eq!(ask(&mut world.dial("web-2"), "GET /vault/data/", "", b"").0, 401);
    assert_eq!(ask(&mut world.dial("web-1"), "GET /vault/data/", &own(), b"").0, 200);
}

#[test]
fn who_asks_in_time_again_and_again_and_is_never_let_in_is_gone_as_soon_as_who_says_nothing() {
    let world = World::new(PATIENT);
    let (begun, mut asked) = (Instant::now(), 0);
    let mut stranger = world.dial("web-2");
    // Each request is a whole one, comes at once, and is answered.
    while try_ask(&mut stranger, "GET /vault/data/").is_ok() {
        asked += 1;
        assert!(begun.elapsed() < Duration::from_secs(20), "it keeps its place after {asked} requests");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(asked > 5, "{asked}");
    world.await_connections(0);
}

#[test]
fn who_is_refused_from_now_on_is_not_let_in_by_what_it_has() {
    let world = World::new(PATIENT);
    let kept = world.serving.shelf("vault").unwrap().kept.clone();
    kept.write(&world.serving.state).unwrap();
    let mut client = world.dial("web-1");
    let of = |what: &str, until_unix_ms| {
        let grant = Grant { what: what.into(), until_unix_ms, ..good() };
        sealed(&grant, 7)
    };
    let far = now() + 1_000_000;
    let status = |client: &mut Client, grant: &str| ask(client, "GET /vault/data/", grant, b"").0;
    assert_eq!(status(&mut client, &of("token 7", far)), 200);
    let token = Refused::Grant { what: "token 7".into(), until_unix_ms: far };
    Serving::refuse(&world.serving, &kept.name, &[token]).unwrap();
    // On the connection that is there, too.
    assert_eq!((status(&mut client, &of("token 7", far)), status(&mut client, &of("token 8", far))), (401, 200));
    let host = Refused::Host { host: "web-1".parse().unwrap(), until_unix_ms: far };
    Serving::refuse(&world.serving, &kept.name, &[host]).unwrap();
    assert_eq!((status(&mut client, &of("job 1", far)), status(&mut client, &of("token 8", far - 1))), (401, 401));
    assert_eq!(status(&mut client, &of("job 2", far + 1)), 200, "it was let in again");
    assert_eq!(Kept::read(&world.serving.state, &kept.name).unwrap().unwrap().refused.len(), 2, "and stays so");
    assert!(Serving::refuse(&world.serving, &"nothing".parse().unwrap(), &[]).is_err());
}

#[test]
fn who_drips_a_body_is_gone_in_time_and_leaves_nothing() {
    let world = World::new(Patience { body: SHORT, head: SHORT, ..PATIENT });
    let mut client = world.dial("web-1");
    begin(&mut client, &format!("POST {}", at("data", b"a")), &format!("{}Content-Length: 9999\r\n", own()), b"a");
    assert!(drip(&mut client) > 1);
    world.await_connections(0);
    assert_eq!(files(&world.vault("")), Vec::<PathBuf>::new());
}

#[test]
fn a_connection_too_many_is_closed_and_the_others_go_on() {
    let world = World::new(PATIENT);
    world.serving.connections.store(CONNECTIONS_MAX - 2, Ordering::Relaxed);
    let mut held = [world.dial("web-1"), world.dial("web-1")];
    assert!(world.try_dial("web-1").is_err());
    for client in &mut held {
        assert_eq!(ask(client, "GET /vault/data/", &own(), b""), (200, "[]".to_owned()));
    }
    drop(held);
    world.await_connections(CONNECTIONS_MAX - 2);
    assert_eq!(ask(&mut world.dial("web-1"), "GET /vault/data/", &own(), b"").0, 200);
}

#[test]
fn an_upload_that_is_not_what_it_said_leaves_nothing_behind() {
    let world = World::new(Patience { head: SHORT, ..PATIENT });
    for kind in ["data", "index", "snapshots", "locks"] {
        let request = format!("POST {}", at(kind, b"content"));
        let of_length = |length: &str| format!("{}Content-Length: {length}\r\n", own());
        // Another content, and as much of the right one as was said.
        for (length, body) in [("7", &b"CONTENT"[..]), ("6", b"content"), ("0", b"")] {
            let mut client = world.dial("web-1");
            begin(&mut client, &request, &of_length(length), body);
            assert_eq!(answered(&mut client).0, 400, "{kind}, {length}");
            assert!(length == "0" || is_ended(&mut client));
        }
        // Less than was said.
        let mut client = world.dial("web-1");
        begin(&mut client, &request, &of_length("8"), b"content");
        client.get_mut().conn.send_close_notify();
        client.get_mut().flush().unwrap();
        assert_eq!(answered(&mut client).0, 400);
        let mut client = world.dial("web-1");
        begin(&mut client, &request, &of_length("8"), b"content");
        drop(client);
        for length in
            ["-7", "+7", "18446744073709551616", "7\r\nContent-Length: 7", "7\r\nTransfer-Encoding: chunked"]
        {
            let mut client = world.dial("web-1");
            begin(&mut client, &request, &of_length(length), b"content");
            assert!(Head::read(&mut client).map_or(true, |head| head.is_none()), "{length}");
        }
        world.await_connections(0);
        assert_eq!(files(&world.vault("")), Vec::<PathBuf>::new(), "{kind}");
    }
}

#[test]
fn what_follows_a_body_is_no_part_of_it() {
    let world = World::new(PATIENT);
    let mut client = world.dial("web-1");
    let fields = format!("{}Content-Length: 7\r\n", own());
    begin(&mut client, &format!("POST {}", at("index", b"content")), &fields, b"contentand more\r\n\r\n");
    assert_eq!(answered(&mut client).0, 200);
    assert!(is_ended(&mut client));
    assert_eq!(fs::read(world.vault(&format!("index/{}", Id::of(b"content")))).unwrap(), b"content");
}

#[test]
fn no_more_is_taken_than_is_allowed() {
    let world = World::new(Patience { head: SHORT, ..PATIENT });
    for (kind, most) in [("locks", 64_u64 << 10), ("snapshots", 64 << 20), ("index", 1 << 30), ("data", 1 << 30)] {
        let mut client = world.dial("web-1");
        let fields = format!("{}Content-Length: {}\r\n", own(), most + 1);
        begin(&mut client, &format!("POST {}", at(kind, b"")), &fields, b"");
        let (status, text) = answered(&mut client);
        assert!(status == 413 && text.contains(&most.to_string()), "{kind}: {status} {text}");
    }
    assert_eq!(files(&world.vault("")), Vec::<PathBuf>::new());
}

#[test]
fn no_form_of_a_path_leaves_the_repository() {
    let world = World::new(PATIENT);
    fs::create_dir_all(world.vault("data/..")).unwrap();
    let secret = world.dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let id = Id::of(b"content").to_string();
    for target in [
        "/vault/../secret",
        "/vault/data/../../../secret",
        "/vault/%2e%2e/secret",
        "/vault/data/%2e%2e%2fsecret",
        "/vault/..%2fsecret",
        "/vault//secret",
        "//vault/config",
        "/vault/data//",
        "/vault/./config",
        "/./vault/config",
        "/../vault/config",
        "/vault\\..\\secret",
        "/vault/data/\0",
        "/vault/config\0",
        "/vault/config%00",
        "/vault/locks/.",
        "/vault/keys/..",
        "/vault/tmp/x",
        "/vault.locks/x",
        "http://a/vault/config",
        "*",
        "",
        "vault/config",
        &secret.display().to_string(),
        &format!("/vault/{}", secret.display()),
        &format!("/vault/data/{}/{id}", &id[..2]),
        &format!("/vault/data/{id}/"),
        &format!("/vault/data/{id}/.."),
        &format!("/vault/data/{id}?x=y"),
        &format!("/vault/data/{}", &id[1..]),
        &format!("/vault/data/{id}0"),
        &format!("/vault/data/{id}%00"),
        &format!("/vault/data/{}", "é".repeat(32)),
        &format!("/vault/{}", "../".repeat(2000)),
    ] {
        for method in ["GET", "HEAD", "POST", "DELETE"] {
            let mut client = world.dial("web-1");
            begin(&mut client, &format!("{method} {target}"), &format!("{}Connection: close\r\n", own()), b"");
            let status = Head::read(&mut client).unwrap().map(|head| head.status().unwrap());
            assert!(matches!(status, None | Some(404)), "{method} {target:?}: {status:?}");
        }
    }
    assert_eq!(fs::read(secret).unwrap(), b"secret");
    assert_eq!(files(&world.vault("")), Vec::<PathBuf>::new());
}

#[test]
fn nothing_is_removed_or_replaced_but_ones_own_locks() {
    let world = World::new(Patience { head: SHORT, ..PATIENT });
    let mut client = world.dial("web-1");
    for kind in ["data", "index", "snapshots", "locks"] {
        assert_eq!(ask(&mut client, &format!("POST {}", at(kind, b"content")), &own(), b"content").0, 200);
    }
    fs::create_dir_all(world.vault("keys")).unwrap();
    fs::write(world.vault(&format!("keys/{}", Id::of(b"content"))), "content").unwrap();
    fs::write(world.vault("config"), "content").unwrap();
    let before = files(&world.vault("")).len();
    let other = sealed(&Grant { bearer: Bearer::Host("web-2".parse().unwrap()), ..good() }, 7);
    let anyone = sealed(&Grant { bearer: Bearer::Anyone, ..good() }, 7);
    for (host, grant) in [("web-1", &own()), ("web-2", &other), ("web-2", &anyone)] {
        let mut all = ["data", "index", "snapshots", "keys"].map(|kind| at(kind, b"content")).to_vec();
        all.extend(["/vault/config", "/vault/", "/vault/data/", "/vault/password"].map(str::to_owned));
        all.extend((host != "web-1").then(|| at("locks", b"content")));
        for target in &all {
            let (status, _) = ask(&mut world.dial(host), &format!("DELETE {target}"), grant, b"");
            assert_eq!(status, 403, "{target} by {host}");
        }
        for target in
            [at("keys", b"new"), at("keys", b"content"), "/vault/config".into(), "/vault/?create=true".into()]
        {
            let (status, _) = ask(&mut world.dial(host), &format!("POST {target}"), grant, b"new");
            assert_eq!(status, 403, "{target} by {host}");
        }
        if host != "web-1" {
            let lock = format!("POST {}", at("locks", b"content"));
            assert_eq!(ask(&mut world.dial(host), &lock, grant, b"content").0, 403);
        }
    }
    assert_eq!(files(&world.vault("")).len(), before);
    for path in files(&world.vault("")) {
        assert_eq!(fs::read(&path).unwrap(), b"content", "{}", path.display());
    }
    assert_eq!(ask(&mut client, &format!("DELETE {}", at("locks", b"content")), &own(), b"").0, 200);
    assert_eq!(files(&world.vault("locks")), Vec::<PathBuf>::new());
}

#[test]
fn who_is_not_let_in_learns_nothing() {
    let world = World::new(PATIENT);
    let text = good().seal(&DoorKey([7; 32])).unwrap();
    let encoded = BASE64_STANDARD.encode(format!("grant:{text}"));
    let grants = [
        String::new(),
        sealed(&Grant { until_unix_ms: now() - 1000, ..good() }, 7),
        sealed(&Grant { repository: "other".parse().unwrap(), ..good() }, 7),
        sealed(&Grant { repository: "other".parse().unwrap(), ..good() }, 8),
        sealed(&good(), 8),
        sealed(&Grant { bearer: Bearer::Host("web-2".parse().unwrap()), ..good() }, 7),
        basic(&text),
        basic("grant:"),
        format!("Authorization: Basic {encoded}!\r\n"),
        format!("Authorization: Bearer {encoded}\r\n"),
        format!("Authorization: {encoded}\r\n"),
        format!("{}{}", own(), own()),
    ];
    let (_, unknown) = ask(&mut world.dial("web-1"), "GET /nowhere/config", &own(), b"");
    let asked = [
        "GET /vault/password",
        "GET /vault/config",
        "GET /vault/data/",
        "HEAD /vault/config",
        "DELETE /vault/config",
    ];
    for grant in &grants {
        for request in asked.into_iter().filter(|request| !request.starts_with("HEAD")) {
            let found = ask(&mut world.dial("web-1"), request, grant, b"");
            assert_eq!(found, (401, unknown.clone()), "{request} {grant}");
        }
    }
    // The grant is good, and whoever shows it is nobody, or another host.
    world.authority.enroll(&world.dir.path().join("nobody"), "nobody");
    let mut nobody = patient(dial_unknown(&world.dir.path().join("nobody"), "media-1", &world.address).unwrap());
    assert_eq!(ask(&mut nobody, "GET /vault/data/", &own(), b""), (401, unknown.clone()));
    assert_eq!(ask(&mut world.dial("web-2"), "GET /vault/data/", &own(), b""), (401, unknown));
    assert_eq!(ask(&mut world.dial("web-1"), "GET /vault/data/", &own(), b"").0, 200);
    // Of those for whom it is good, whoever may only read adds nothing, and bearers are not told the password.
    let reads = sealed(&Grant { access: Access::Read, bearer: Bearer::Anyone, ..good() }, 7);
    assert_eq!(ask(&mut nobody, "GET /vault/password", &reads, b"").0, 403);
    assert_eq!(ask(&mut nobody, &format!("POST {}", at("index", b"")), &reads, b"").0, 403);
    assert_eq!(files(&world.vault("")), Vec::<PathBuf>::new());
}

#[test]
fn a_refusal_reaches_whoever_still_sends() {
    let world = World::new(PATIENT);
    let body = vec![0; 16 << 20];
    let expired = sealed(&Grant { until_unix_ms: 1, ..good() }, 7);
    assert_eq!(ask(&mut world.dial("web-1"), &format!("POST {}", at("data", &body)), &expired, &body).0, 401);
    assert_eq!(files(&world.vault("")), Vec::<PathBuf>::new());
}
