//! `[health]` of a product file, for a program that embeds the library: it is asked from outside, beside what it says of
//! itself, and a version that does not answer well is gone back from, while the one before goes on serving.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use tests::command::{program, until};
use tests::{Host, Manager, TreeFixture};

const PRODUCT: &str = "hello";

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn publish(manager: &Manager, version: &str, address: SocketAddr, health: &str) {
    let tree = TreeFixture::new();
    tree.file("bin/hello", 0o755, fs::read(program("examples/hello_service")).unwrap());
    tree.file("VERSION", 0o644, version);
    let head = format!("entrypoint = 'bin/hello'\narguments = ['{address}']\nprobation = '2s'\n");
    tree.file("manager-fs.toml", 0o644, format!("{head}[health]\n{health}\n"));
    manager.publish(PRODUCT, version, tree.path());
    manager.export(&format!("{PRODUCT}@{version}"), "host-1");
}

fn answer(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_version_whose_service_does_not_answer_as_its_product_file_says_is_gone_back_from() {
    let manager = Manager::start();
    let mut host = Host::mounted("host-1", &manager);
    let (address, nobody) = (free(), free());
    publish(&manager, "1", address, &format!("http = 'http://{address}/'"));
    host.launch(PRODUCT);
    manager.wait_for_version("host-1", PRODUCT, "1");
    let pid = until("the agent", || manager.agent("host-1", PRODUCT))["pid"].as_u64().unwrap();

    let bad = [
        ("nobody-answers", format!("http = 'http://{nobody}/'\ntimeout = '200ms'")),
        ("says-no", "command = ['/bin/sh', '-c', 'echo the cache is cold >&2; exit 3']".to_owned()),
        ("hangs", "command = ['/bin/sh', '-c', 'sleep 1000']\ntimeout = '200ms'".to_owned()),
    ];
    for (version, health) in bad {
        publish(&manager, version, address, &health);
        let upgrade = manager.run(&["upgrade", PRODUCT, &format!("{PRODUCT}@{version}"), "--to", "host-1"]);
        assert_ne!(upgrade.code, Some(0), "{version}: {}", upgrade.stdout);
        manager.wait_for_version("host-1", PRODUCT, "1");
        assert!(answer(address).ends_with("hello from version 1\n"), "{version}");
        let told = host.run(&["status"]).text();
        assert!(told.contains(version), "{version}: {told}");
        let log = host.stub(PRODUCT).log();
        assert!(
            log.contains(&format!("hello@{version} failed: did not confirm within 2000 ms; returning to 1")),
            "{log}"
        );
    }

    let well = format!("socket = '{address}'");
    publish(&manager, "2", address, &well);
    manager.run(&["upgrade", PRODUCT, "hello@2", "--to", "host-1"]).expect(0);
    assert!(answer(address).ends_with("hello from version 2\n"));
    let now = until("the agent", || manager.agent("host-1", PRODUCT));
    assert_ne!((now["version"].as_str(), now["pid"].as_u64()), (Some("1"), Some(pid)));
}
