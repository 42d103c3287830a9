//! One version for several architectures: each host is shown, and runs, the tree of its own (`docs/tree-format.md`,
//! "Several architectures"). A machine of x86-64 is two: it runs programs of 32 bits as well.

#![cfg(target_arch = "x86_64")]
// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::{Host, Manager, TreeFixture};

const PRODUCT: &str = "idler";
const DESCRIPTOR: &str = "entrypoint = 'bin/run'\nprobation = '2s'\n[adapter]\nhandover = 'restart'\n";
/// `mov eax, PAUSE; int 0x80` or `syscall`; and back to the beginning.
const PAUSE_X86: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
const PAUSE_X86_64: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

/// A program that waits until it is told to end, as one segment without anything else. `mark` makes one differ from another.
fn program(machine: &str, mark: &str) -> Vec<u8> {
    let mut bytes = b"\x7fELF".to_vec();
    let halves = |bytes: &mut Vec<u8>, all: &[u16]| bytes.extend(all.iter().flat_map(|value| value.to_le_bytes()));
    let words = |bytes: &mut Vec<u8>, all: &[u32]| bytes.extend(all.iter().flat_map(|value| value.to_le_bytes()));
    let longs = |bytes: &mut Vec<u8>, all: &[u64]| bytes.extend(all.iter().flat_map(|value| value.to_le_bytes()));
    let is_64 = machine != "x86";
    bytes.extend([if is_64 { 2 } else { 1 }, 1, 1]);
    bytes.resize(16, 0);
    let number = match machine {
        "x86" => 3,
        "x86_64" => 62,
        "aarch64" => 183,
        other => panic!("{other}"),
    };
    halves(&mut bytes, &[2, number]);
    words(&mut bytes, &[1]);
    let head = if is_64 { 64 + 56 } else { 52 + 32 };
    let code = if is_64 { PAUSE_X86_64 } else { PAUSE_X86 };
    let length = head + code.len() as u64 + mark.len() as u64;
    if is_64 {
        let base = 0x0040_0000;
        longs(&mut bytes, &[base + head, 64, 0]);
        words(&mut bytes, &[0]);
        halves(&mut bytes, &[64, 56, 1, 0, 0, 0]);
        words(&mut bytes, &[1, 5]);
        longs(&mut bytes, &[0, base, base, length, length, 4096]);
    } else {
        let base = 0x0804_8000_u32;
        let length = u32::try_from(length).unwrap();
        words(&mut bytes, &[base + 84, 52, 0, 0]);
        halves(&mut bytes, &[52, 32, 1, 0, 0, 0]);
        words(&mut bytes, &[1, 0, base, base, length, length, 5, 4096]);
    }
    bytes.extend(code);
    bytes.extend(mark.bytes());
    bytes
}

fn tree(machine: &str, mark: &str) -> TreeFixture {
    let tree = TreeFixture::new();
    tree.file("bin/run", 0o755, program(machine, mark)).file("manager-fs.toml", 0o644, DESCRIPTOR);
    tree.file("mark", 0o644, format!("{machine} {mark}"));
    tree
}

/// An image layout below `directory` with one image for each of these, as `docker buildx` and `skopeo copy --all` leave it.
fn image(directory: &Path, platforms: &[(&str, &TreeFixture)]) -> String {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let keep = |bytes: &[u8]| -> Value {
        let draft = directory.join("draft");
        fs::write(&draft, bytes).unwrap();
        let sum = Command::new("sha256sum").arg(&draft).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap().split(' ').next().unwrap().to_owned();
        fs::rename(draft, blobs.join(&sum)).unwrap();
        json!({ "digest": format!("sha256:{sum}"), "size": bytes.len() })
    };
    let with = |mut descriptor: Value, more: Value| {
        descriptor.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        descriptor
    };
    let manifests = platforms.iter().map(|(architecture, tree)| {
        let layer = Command::new("tar").args(["-C"]).arg(tree.path()).args(["-c", "."]).output().unwrap().stdout;
        let config = json!({ "architecture": architecture, "os": "linux", "config": {} });
        let config = keep(config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [keep(&layer)] });
        let platform = json!({ "platform": { "os": "linux", "architecture": architecture } });
        with(keep(manifest.to_string().as_bytes()), platform)
    });
    let inner = json!({ "schemaVersion": 2, "manifests": manifests.collect::<Vec<_>>() });
    let media_type = json!({ "mediaType": "application/vnd.oci.image.index.v1+json" });
    let index = json!({ "schemaVersion": 2, "manifests": [with(keep(inner.to_string().as_bytes()), media_type)] });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    format!("oci:{}", directory.display())
}

/// What a generation's tree says of itself, as a host sees it.
fn mark(tree: PathBuf) -> String {
    fs::read_to_string(tree.join("mark")).unwrap()
}

/// The trees of a version by architecture, as `generations` says them.
fn trees(manager: &Manager, version: &str) -> Vec<(String, String)> {
    let document = manager.run(&["generations", PRODUCT, "--json"]).expect(0).json();
    let all = document["generations"].as_array().unwrap();
    let mut found = all.iter().filter(|generation| generation["version"] == version);
    let of = found.next().expect("a version that is published");
    assert!(found.next().is_none(), "a version is one thing: {document}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let architectures = of["architectures"].as_array().cloned().unwrap_or_default();
    architectures.iter().map(|one| (text(&one["architecture"]), text(&one["tree_id"]))).collect()
}

/// Two hosts in the group `all`: `host-1` is this machine, `host-2` runs programs of 32 bits alone.
fn two_hosts(manager: &Manager) -> (Host, Host) {
    let host = Host::mounted("host-1", manager);
    let mut other = Host::of_machine("host-2", "i686");
    other.enroll(manager, &manager.address());
    other.mount(&[]);
    manager.run(&["host", "group", "add", "all", "host-1", "host-2"]).expect(0);
    let hosts = manager.run(&["hosts", "--json"]).expect(0).json();
    assert_eq!((&hosts["hosts"][0]["machine"], &hosts["hosts"][1]["machine"]), (&json!("x86_64"), &json!("i686")));
    (host, other)
}

#[test]
fn each_host_gets_the_tree_of_its_own_architecture() {
    let manager = Manager::start();
    let (mut host, mut other) = two_hosts(&manager);

    // One source after the other.
    let [one, one_x86] = ["x86_64", "x86"].map(|machine| tree(machine, "one"));
    let tree_64 = manager.publish(PRODUCT, "1.0", one.path());
    manager.export("idler@1.0", "@all");
    assert_eq!(mark(other.attach("idler@1.0")), "x86_64 one", "there is nothing else yet");
    other.run(&["release", "idler@1.0"]).expect(0);
    let tree_x86 = manager.publish(PRODUCT, "1.0", one_x86.path());
    let again = manager.run(&["publish", PRODUCT, "1.0", &one_x86.path().to_string_lossy(), "--json"]).expect(0);
    assert_eq!(again.json()["already_published"], true);
    let changed = manager.run(&["publish", PRODUCT, "1.0", &tree("x86", "two").path().to_string_lossy()]).expect(1);
    assert!(changed.stderr.contains("A version never changes"), "{}", changed.stderr);
    assert_eq!(trees(&manager, "1.0"), [("x86_64".into(), tree_64.clone()), ("x86".into(), tree_x86.clone())]);
    assert_eq!(mark(host.attach("idler@1.0")), "x86_64 one");
    tests::command::until("the other host hears of its own tree", || {
        (mark(other.attach("idler@1.0")) == "x86 one").then_some(()).or_else(|| {
            other.run(&["release", "idler@1.0"]).expect(0);
            None
        })
    });
    for host in [&mut host, &mut other] {
        host.launch(PRODUCT);
        manager.wait_for_version(&host.name, PRODUCT, "1.0");
    }
    let runs = |name: &str| manager.agent(name, PRODUCT).unwrap()["tree_id"].as_str().unwrap().to_owned();
    assert_eq!((runs("host-1"), runs("host-2")), (tree_64, tree_x86.clone()));

    // All at once, as an image of several platforms, of which one is nobody's.
    let two = ["x86_64", "x86", "aarch64"].map(|machine| tree(machine, "two"));
    let source = image(&manager.path("image"), &[("386", &two[1]), ("arm64", &two[2]), ("amd64", &two[0])]);
    let published = manager.run(&["publish", PRODUCT, "2.0", &source, "--json"]).expect(0).json();
    assert_eq!(
        (&published["architecture"], published["architectures"].as_array().unwrap().len()),
        (&json!("x86_64"), 3)
    );
    manager.run(&["upgrade", PRODUCT, "idler@2.0", "--to", "@all", "--export"]).expect(0);
    let two: Vec<(String, String)> = trees(&manager, "2.0");
    let of = |machine: &str| two.iter().find(|(name, _)| name == machine).unwrap().1.clone();
    for (host, machine) in [("host-1", "x86_64"), ("host-2", "x86")] {
        manager.wait_for_version(host, PRODUCT, "2.0");
        assert_eq!(runs(host), of(machine));
    }

    // One that is not for all of them.
    manager.publish(PRODUCT, "3.0", tree("x86_64", "three").path());
    let upgrade = ["upgrade", PRODUCT, "idler@3.0", "--to", "host-2", "--export"];
    let refused = manager.run(&upgrade).expect(1);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("idler@3.0 is published for x86_64, and host-2 is i686"), "{said}");
    assert_eq!(runs("host-2"), of("x86"));

    // A version is taken back as the one thing that it is.
    let differs = manager.run(&["diff", "idler@1.0", "idler@2.0", "--json"]).expect(0).json();
    assert_eq!(differs["architectures"].as_array().unwrap().len(), 2);
    let onto =
        manager.run(&["publish", PRODUCT, "4.0", &one.path().to_string_lossy(), "--onto", "idler@1.0"]).expect(1);
    assert!(onto.stderr.contains("name one of") && onto.stderr.contains(&tree_x86), "{}", onto.stderr);
    manager.run(&["unexport", "idler@1.0", "--from", "@all", "--force"]).expect(0);
    let held = manager.run(&["unpublish", "idler@1.0"]).expect(1);
    assert!(held.stderr.contains("is attached on host-"), "{}", held.stderr);
    for host in [&host, &other] {
        host.run(&["release", "idler@1.0"]).expect(0);
    }
    tests::command::until("nobody has it any more", || {
        (manager.run(&["unpublish", "idler@1.0"]).code == Some(0)).then_some(())
    });
    manager.run(&["gc"]).expect(0);
    manager.run(&["show", &tree_x86]).expect(1);
    assert_eq!(trees(&manager, "2.0"), two, "and nothing else is touched");
    let manager_log = manager.log();
    assert!(!manager_log.contains("cannot be read"), "{manager_log}");
}
