//! `[health]` of a product file, for a program that embeds the library: it is asked from outside, beside what it says of
//! itself, and a version that does not answer well is gone back from, while the one before goes on serving.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tests::command::program;
use tests::site::free_address;
use tests::{Site, TreeFixture};

fn publish(site: &Site, version: &str, health: &str) {
    let tree = TreeFixture::new();
    tree.file("bin/hello", 0o755, fs::read(program("examples/hello_service")).unwrap());
    tree.file("VERSION", 0o644, version);
    let head = format!("entrypoint = 'bin/hello'\narguments = ['{}']\nprobation = '4s'\n", site.address);
    tree.file("manager-fs.toml", 0o644, format!("{head}[health]\n{health}\n"));
    site.publish(version, tree.path());
}

#[test]
fn a_version_whose_service_does_not_answer_as_its_product_file_says_is_gone_back_from() {
    let mut site = Site::new("hello");
    let (address, nobody) = (site.address, free_address());
    publish(&site, "1", &format!("http = 'http://{address}/'"));
    site.launch("1");
    let pid = site.agent()["pid"].as_u64().unwrap();

    let bad = [
        ("nobody-answers", format!("http = 'http://{nobody}/'\ntimeout = '200ms'"), "http://"),
        (
            "says-no",
            "command = ['/bin/sh', '-c', 'echo the cache is cold >&2; exit 3']".to_owned(),
            "the cache is cold",
        ),
        ("hangs", "command = ['/bin/sh', '-c', 'sleep 1000']\ntimeout = '200ms'".to_owned(), "sleep 1000"),
    ];
    for (version, health, why) in bad {
        publish(&site, version, &health);
        let upgrade = site.upgrade(version);
        assert_ne!(upgrade.code, Some(0), "{version}: {}", upgrade.stdout);
        site.serves("1");
        assert_eq!(site.ask().unwrap(), "200 hello from version 1", "{version}");
        let told = site.host.run(&["status"]).text();
        assert!(told.contains(version), "{version}: {told}");
        let log = site.stub().log();
        assert!(log.contains(&format!("hello@{version} failed: did not confirm within 4000 ms: ")), "{log}");
        // Whoever ordered it is told what was wrong with it, at once and later.
        let agents = site.manager.run(&["agents"]).stdout;
        for told in [&upgrade.stdout, &agents] {
            assert!(told.contains("did not confirm within 4000 ms: ") && told.contains(why), "{version}: {told}");
        }
    }

    publish(&site, "2", &format!("socket = '{address}'"));
    site.upgrade("2").expect(0);
    assert_eq!(site.ask().unwrap(), "200 hello from version 2");
    let now = site.agent();
    assert_ne!((now["version"].as_str(), now["pid"].as_u64()), (Some("1"), Some(pid)));
}
