use std::fs;
use std::path::PathBuf;

use proto::manifest::NodeKind;
use serde_json::{Value, json};

use super::super::{Reading, read_source_within};
use super::*;
use crate::manager::monitor::Monitor;
use crate::manager::publish::{PublishError, PublishOptions, Published, publish};
use crate::manager::testing::{Fixture, Item, Kind, Model, gzip, tree_path};

fn sum(bytes: &[u8]) -> String {
    Hashed::new(bytes).finish().unwrap()
}

/// A layout under construction.
struct Layout {
    fixture: Fixture,
    root: PathBuf,
}

impl Layout {
    fn new() -> Self {
        let fixture = Fixture::new();
        let root = fixture.dir.path().join("image");
        fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        Self { fixture, root }
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = sum(bytes);
        fs::write(self.root.join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({ "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    fn document(&self, value: &Value) -> Value {
        self.blob(value.to_string().as_bytes())
    }

    /// The descriptor of a manifest.
    fn manifest(&self, config: &Value, layers: &[&[u8]]) -> Value {
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(layer)).collect();
        self.document(&json!({ "config": self.document(config), "layers": layers }))
    }

    fn index(&self, manifests: &[Value]) {
        fs::write(self.root.join("index.json"), json!({ "manifests": manifests }).to_string()).unwrap();
    }

    fn publish_as(&self, name: &str) -> (Result<Published, PublishError>, Vec<String>) {
        let told = Told::default();
        let options = PublishOptions { chunk_bytes: Some(4096), ..PublishOptions::default() };
        let cancelled = std::sync::atomic::AtomicBool::new(false);
        let published = publish(&self.fixture.store, Path::new(name), &options, &told, &cancelled);
        (published, told.0.into_inner().unwrap())
    }

    fn publish(&self) -> (Result<Published, PublishError>, Vec<String>) {
        self.publish_as(&format!("oci:{}", self.root.display()))
    }

    fn read_within(&self, limit: BombLimit) -> Result<(), IngestError> {
        let source = format!("oci:{}", self.root.display());
        let (guard, cancelled) = (self.fixture.store.guard(), std::sync::atomic::AtomicBool::new(false));
        let read = self.fixture.store.write_contents(65536, &guard, &Told::default(), &cancelled, |writer| {
            read_source_within(Path::new(&source), Reading::default(), writer, limit)
        });
        read.map(drop)
    }

    fn refused(&self) -> String {
        self.publish().0.unwrap_err().to_string()
    }
}

#[derive(Default)]
struct Told(std::sync::Mutex<Vec<String>>);

impl Monitor for Told {
    fn problem(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

fn with(annotation: (&str, Value), mut descriptor: Value) -> Value {
    descriptor[annotation.0] = annotation.1;
    descriptor
}

fn tar_of(items: &[(&'static str, Item)]) -> Vec<u8> {
    Model::new(items.iter().cloned()).to_tar()
}

fn base() -> Vec<u8> {
    tar_of(&[
        ("bin", Item::new(Kind::Directory)),
        ("bin/run", Item::file("#!/bin/sh\n")),
        ("bin/tool", Item::file("#!/bin/sh\n# tool\n")),
        ("etc", Item::new(Kind::Directory)),
        ("etc/gone", Item::file("gone")),
        ("etc/kept", Item::file("kept")),
        ("var", Item::new(Kind::Directory)),
        ("var/old", Item::file("old")),
    ])
}

fn upper() -> Vec<u8> {
    tar_of(&[
        ("bin", Item::new(Kind::Directory)),
        ("bin/run", Item::file("#!/bin/sh\n# new\n")),
        ("etc", Item::new(Kind::Directory)),
        ("etc/.wh.gone", Item::file("")),
        ("etc/.wh.never", Item::file("")),
        ("var", Item::new(Kind::Directory)),
        ("var/.wh..wh..opq", Item::file("")),
        ("var/new", Item::file("new")),
    ])
}

fn paths(layout: &Layout, published: &Published) -> Vec<String> {
    let manifest = layout.fixture.manifest(published);
    manifest.entries.iter().map(|entry| entry.path.to_string()).filter(|path| path.contains('/')).collect()
}

const LAID: [&str; 4] = ["bin/run", "bin/tool", "etc/kept", "var/new"];

fn config() -> Value {
    json!({
        "config": {
            "Entrypoint": ["tool"], "Cmd": ["--serve", "x y"], "Env": ["PATH=/sbin:/bin", "MODE=fast"],
            "User": "daemon", "WorkingDir": "/",
        },
        "rootfs": { "diff_ids": [format!("sha256:{}", sum(&base())), format!("sha256:{}", sum(&upper()))] },
    })
}

#[test]
fn layers_lie_over_one_another_and_the_configuration_starts() {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&config(), &[&gzip(&base()), &upper()])]);
    let (published, told) = layout.publish();
    let published = published.unwrap();
    assert_eq!(paths(&layout, &published), LAID);
    assert_eq!(published.metadata.entry_point, Some(tree_path("bin/tool")));
    assert_eq!(published.metadata.arguments, ["--serve", "x y"]);
    let [told] = &told[..] else { panic!("{told:?}") };
    assert!(told.contains("environment (MODE), the user daemon") && !told.contains("working"), "{told}");
    let manifest = layout.fixture.manifest(&published);
    let run = manifest.node(manifest.entry(&tree_path("bin/run")).unwrap());
    let NodeKind::File(id) = &run.kind else { panic!() };
    assert_eq!(manifest.object(id).unwrap().bytes, 16);
}

/// The same image in an archive, and as older versions of `docker save` wrote it: equal trees.
#[test]
fn however_an_image_is_saved_its_tree_is_the_same() {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&config(), &[&base(), &upper()])]);
    let tree = layout.publish().0.unwrap().tree;

    let archive = |root: &Path, name: &str| {
        let path = layout.fixture.dir.path().join(name);
        let mut builder = ::tar::Builder::new(fs::File::create(&path).unwrap());
        builder.follow_symlinks(false);
        builder.append_dir_all(".", root).unwrap();
        builder.finish().unwrap();
        path
    };
    let oci = archive(&layout.root, "oci.tar");
    let again = layout.publish_as(&format!("oci-archive:{}", oci.display())).0.unwrap();
    assert_eq!(again.tree, tree);

    let saved = layout.fixture.dir.path().join("saved");
    for layer in ["a", "b", "c"] {
        fs::create_dir_all(saved.join(layer)).unwrap();
    }
    fs::write(saved.join("a/layer.tar"), base()).unwrap();
    fs::write(saved.join("b/layer.tar"), upper()).unwrap();
    std::os::unix::fs::symlink("../b/layer.tar", saved.join("c/layer.tar")).unwrap();
    fs::write(saved.join("config.json"), config().to_string()).unwrap();
    let manifest = json!([{
        "Config": "config.json", "RepoTags": ["it:1.0"], "Layers": ["a/layer.tar", "c/layer.tar"],
    }]);
    fs::write(saved.join("manifest.json"), manifest.to_string()).unwrap();
    let docker = archive(&saved, "docker.tar");
    let named = |reference: &str| layout.publish_as(&format!("docker-archive:{}{reference}", docker.display())).0;
    assert_eq!(named("").unwrap().tree, tree);
    assert_eq!(named(":it:1.0").unwrap().tree, tree);
    let error = named(":it:2.0").unwrap_err().to_string();
    assert!(error.contains("no image of this name (it has it:1.0)"), "{error}");
    fs::write(saved.join("a/layer.tar"), upper()).unwrap();
    let changed = archive(&saved, "changed.tar");
    let error = layout.publish_as(&format!("docker-archive:{}", changed.display())).0.unwrap_err().to_string();
    assert!(error.contains("'a/layer.tar'") && error.contains("is damaged"), "{error}");
}

#[test]
fn of_several_images_one_is_meant() {
    let layout = Layout::new();
    let platform = |architecture: &str, layer: &[u8]| {
        let manifest = layout.manifest(&json!({}), &[layer]);
        with(("platform", json!({ "os": "linux", "architecture": architecture })), manifest)
    };
    let attestation =
        with(("platform", json!({ "os": "unknown", "architecture": "unknown" })), layout.manifest(&json!({}), &[]));
    let platforms =
        [platform("amd64", &base()), platform("arm64", &base()), attestation, platform("s390x", &upper())];
    let inner = layout.document(&json!({ "manifests": platforms }));
    let inner = with(("mediaType", json!("application/vnd.oci.image.index.v1+json")), inner);
    layout.index(&[inner]);
    let (published, told) = layout.publish();
    let published = published.unwrap();
    assert_eq!(paths(&layout, &published).len(), 5);
    assert!(told.iter().all(|line| line.starts_with("no program to start")), "{told:?}");
    assert_eq!(published.architectures, ["x86_64", "aarch64", "s390x"], "this machine's in front");

    // None for this machine, several for one, one whose files are elsewhere, and one of another system.
    let arm = |variant: &str, layer: &[u8]| {
        let platform = json!({ "os": "linux", "architecture": "arm", "variant": variant });
        with(("platform", platform), layout.manifest(&json!({}), &[layer]))
    };
    let elsewhere = json!({
        "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "platform": { "os": "linux", "architecture": "386" }
    });
    let windows = with(
        ("platform", json!({ "os": "windows", "architecture": "amd64" })),
        layout.manifest(&json!({}), &[&upper()]),
    );
    layout.index(&[
        arm("v7", &upper()),
        platform("riscv64", &base()),
        arm("v6", &base()),
        elsewhere.clone(),
        windows,
    ]);
    let (published, told) = layout.publish();
    let published = published.unwrap();
    assert_eq!(
        (paths(&layout, &published).len(), published.architectures.as_slice()),
        (5, &["arm".into(), "riscv64".into()][..])
    );
    assert!(told.iter().any(|line| line.ends_with("linux/arm/v7, linux/386, windows/amd64")), "{told:?}");
    layout.index(&[elsewhere.clone(), elsewhere]);
    assert!(layout.refused().contains("but for linux/386, linux/386"));
    let named = |name: &str, layer: &[u8]| {
        with(
            ("annotations", json!({ "org.opencontainers.image.ref.name": name })),
            layout.manifest(&json!({}), &[layer]),
        )
    };
    layout.index(&[named("one", &base()), named("two", &tar_of(&[]))]);
    assert!(layout.refused().contains("several images (it has one, two)"));
    let two = layout.publish_as(&format!("oci:{}:two", layout.root.display())).0.unwrap();
    assert_eq!(paths(&layout, &two), [""; 0]);
    let mut circle = Value::Null;
    for _ in 0..5 {
        circle = layout.document(&json!({ "manifests": if circle.is_null() { json!([]) } else { json!([circle]) } }));
        circle = with(("mediaType", json!("application/vnd.oci.image.index.v1+json")), circle);
    }
    layout.index(&[circle]);
    assert!(layout.refused().contains("deeper than any image"));
}

#[test]
fn what_an_image_names_must_be_what_it_has() {
    let layout = Layout::new();
    let layer = base();
    layout.index(&[layout.manifest(&config(), &[&layer])]);
    let path = layout.root.join("blobs/sha256").join(sum(&layer));
    let mut changed = layer.clone();
    let at = changed.len() - 1;
    changed[at] ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(layout.refused().contains("is damaged"));
    fs::remove_file(&path).unwrap();
    assert!(layout.refused().contains(&sum(&layer)));

    let odd = json!({ "digest": "sha256:../../../../etc/passwd", "size": 1 });
    layout.index(&[odd]);
    assert!(layout.refused().contains("no SHA-256 digest"));
    layout.index(&[with(("size", json!(3)), layout.manifest(&config(), &[]))]);
    assert!(layout.refused().contains("is damaged"));
    fs::write(layout.root.join("index.json"), "{").unwrap();
    assert!(layout.refused().contains("'index.json'"));
    fs::remove_file(layout.root.join("index.json")).unwrap();
    assert!(layout.refused().contains("neither 'index.json' nor 'manifest.json'"));
    let many: Vec<&[u8]> = vec![&layer; 129];
    layout.index(&[layout.manifest(&config(), &many)]);
    assert!(layout.refused().contains("more than 128 layers"));
}

#[test]
fn what_only_a_container_has_is_told() {
    let layout = Layout::new();
    let mut header = ::tar::Header::new_ustar();
    header.set_path("dev/null").unwrap();
    header.set_entry_type(::tar::EntryType::Char);
    header.set_mode(0o666);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let layer = [header.as_bytes().as_slice(), &base()].concat();
    let config = json!({ "config": { "Entrypoint": ["/bin/none"] } });
    layout.index(&[layout.manifest(&config, &[&layer])]);
    let (published, told) = layout.publish();
    assert_eq!(published.unwrap().metadata.entry_point, None);
    assert!(told[0].contains("1 devices") && told[1].contains("'/bin/none', which is not in the tree"), "{told:?}");
    let onto = PublishOptions { onto: Some(layout.publish().0.unwrap().tree), ..PublishOptions::default() };
    let source = format!("oci:{}", layout.root.display());
    let error = layout.fixture.publish_with(Path::new(&source), &onto, &crate::manager::monitor::Quiet);
    assert!(error.unwrap_err().to_string().contains("cannot be laid over"));
}

#[test]
fn an_image_in_a_directory_is_as_large_as_its_layers() {
    let layout = Layout::new();
    let noise: Vec<u8> =
        (0u32..1 << 18).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..8].to_vec()).collect();
    let large = tar_of(&[("noise", Item::file(noise))]);
    let bomb = gzip(&tar_of(&[("zeros", Item::file(vec![0; 2 << 20]))]));
    let limit = BombLimit { floor_bytes: 1 << 10, holes_floor_bytes: 1 << 10, ratio: 2 };
    for (layer, fits) in [(large, true), (bomb, false)] {
        layout.index(&[layout.manifest(&config(), &[&layer])]);
        let read = layout.read_within(limit);
        assert_eq!(read.is_ok(), fits, "{:?}", read.err().map(|error| error.to_string()));
    }
}

#[test]
fn an_image_of_a_few_kilobytes_is_not_gone_through_for_ever() {
    // Layers that change nothing lie over many entries, each of which is gone through for each of them.
    let layout = Layout::new();
    let mut builder = ::tar::Builder::new(Vec::new());
    for n in 0..20_000 {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("e{n}"), std::io::empty()).unwrap();
    }
    let (many, nothing) = (gzip(&builder.into_inner().unwrap()), gzip(&tar_of(&[])));
    let limit = BombLimit { floor_bytes: 64 << 20, ..BombLimit::DEFAULT };
    for (more, fits) in [(2, true), (20, false)] {
        let layers: Vec<&[u8]> =
            std::iter::once(&many).chain((0..more).map(|_| &nothing)).map(Vec::as_slice).collect();
        layout.index(&[layout.manifest(&config(), &layers)]);
        let read = layout.read_within(limit).map_err(|error| error.to_string());
        assert_eq!(read.is_ok(), fits, "{read:?}");
        assert!(read.err().is_none_or(|error| error.contains("bomb")));
    }

    // One image under the names of many architectures is published for each of them.
    let image = layout.manifest(&config(), &[&base()]);
    let for_machine =
        |n: u32| with(("platform", json!({ "os": "linux", "architecture": format!("machine-{n}") })), image.clone());
    layout.index(&(0..33).map(for_machine).collect::<Vec<_>>());
    assert!(layout.refused().contains("more than 32 architectures"));
    layout.index(&(0..32).map(for_machine).collect::<Vec<_>>());
    layout.publish().0.unwrap();
}
