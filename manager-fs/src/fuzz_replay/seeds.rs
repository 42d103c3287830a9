//! What the targets begin with: a few valid inputs of each, out of the samples of the documents where these have them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use proto::bulk::Encoding;
use proto::delta::Run;
use proto::proof::{PageRun, PageSet};
use proto::relative::{Recipe, Stretch};
use proto::{GenerationRecord, TreeId, bundle, codec, delta};
use serde::Serialize;
use serde_json::json;

use super::formats::{patch_base, tree};
use crate::manager::ingest::rpm;
use crate::manager::testing::{deb, gzip, xz};
use crate::patch;

type Seeds = BTreeMap<(String, String), Vec<u8>>;

pub(super) fn all() -> Seeds {
    let mut seeds = Seeds::new();
    let mut put = |target: &str, name: &str, bytes: Vec<u8>| {
        assert!(seeds.insert((target.to_owned(), name.to_owned()), bytes).is_none(), "{target}/{name} twice");
    };
    messages(&mut put);
    samples(&mut put);
    texts(&mut put);
    packets(&mut put);
    streams(&mut put);
    records(&mut put);
    archives(&mut put);
    files(&mut put);
    seeds
}

/// Puts a seed: target, name, bytes.
type Put<'a> = dyn FnMut(&str, &str, Vec<u8>) + 'a;

/// The blocks ` ```hex NAME ` of a document.
fn blocks(document: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(document);
    let text = fs::read_to_string(&path).unwrap();
    let mut blocks = Vec::new();
    for part in text.split("```hex ").skip(1) {
        let (name, rest) = part.split_once('\n').unwrap();
        let block = rest.split("```").next().unwrap();
        let digits = block.lines().flat_map(|line| line.split('#').next().unwrap().chars());
        let digits: Vec<u32> = digits.filter_map(|c| c.to_digit(16)).collect();
        let bytes = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]).to_le_bytes()[0]).collect();
        blocks.push((name.trim().to_owned(), bytes));
    }
    blocks
}

fn block(document: &str, name: &str) -> Vec<u8> {
    let found = blocks(document).into_iter().find(|(block, _)| block == name);
    found.unwrap_or_else(|| panic!("docs/{document} has no block `hex {name}`")).1
}

fn bytes_of(value: &impl Serialize) -> Vec<u8> {
    codec::encode(value).unwrap()
}

fn messages(put: &mut Put<'_>) {
    for (name, bytes) in blocks("messages.md") {
        let (kind, variant) = name.split_once("::").unwrap_or((&name, "sample"));
        let target = match kind {
            "HostRequest" | "ManagerReply" | "ManagerRequest" | "HostReply" | "AgentRequest" | "AgentReply"
            | "DaemonRequest" | "DaemonReply" => snake(kind),
            "HostReport" | "Progress" | "StepEvent" | "StageProgress" => "events".to_owned(),
            _ => continue,
        };
        if matches!(kind, "HostReport") {
            put("spool", variant, bytes.clone());
        }
        put(&target, &format!("{kind}-{variant}"), bytes);
    }
    for (name, bytes) in blocks("swap.md") {
        // Behind magic and checksum, or behind the byte of the format.
        let front = if name.starts_with("stub-") { 1 } else { 40 };
        put("agent_files", &name, bytes[front..].to_vec());
    }
}

fn snake(name: &str) -> String {
    let apart = |c: char| if c.is_uppercase() { format!("_{}", c.to_lowercase()) } else { c.to_string() };
    name.chars().map(apart).collect::<String>().trim_start_matches('_').to_owned()
}

fn samples(put: &mut Put<'_>) {
    let manifest = block("tree-format.md", "manifest");
    let record = block("tree-format.md", "generation record");
    put("local_greeting", "sample", bytes_of(&proto::local_greeting::Greeting::new("1.4.0", [7; 16])));
    put("frame", "sample", block("control-protocol.md", "frame"));
    put("chunk", "sample", block("control-protocol.md", "chunk"));
    put("manifest", "sample", manifest.clone());
    put("image", "sample", manifest);
    put("record", "signed", block("tree-format.md", "signed record"));
    let metadata = codec::decode::<GenerationRecord, 65_536>(&record).unwrap().metadata;
    put("start_up", "sample", bytes_of(&metadata));
    put("record", "generation", record);
    let bigger = tree().encode().unwrap().0;
    put("manifest", "three-chunks", bigger.clone());
    put("image", "three-chunks", bigger);
}

fn texts(put: &mut Put<'_>) {
    let token = proto::token::Token { secret: [7; 20], authority: [9; 32] }.to_string();
    for (name, text) in [
        ("generation", "data-agent@1:2.0~rc1"),
        ("tree", "0af3"),
        ("group", "@production"),
        ("path", "bin/agent.d/..x/y"),
        ("lines", "exit status 1\n\x1b[0mnoise\u{202e}\tend\n"),
        ("publishers", "# ours\n3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29\n"),
        ("token", &token),
    ] {
        put("names", name, text.as_bytes().to_vec());
    }
    let descriptor = "entrypoint = \"bin/agent\"\narguments = [\"--role\", \"data\"]\nstate_schemas = [1, 2]\n\
                      drain_deadline = \"2min 30s\"\nprobation = \"10s\"\n";
    put("descriptor", "whole", descriptor.as_bytes().to_vec());
    let plan = "product = \"a\"\ngeneration = \"a@2\"\nrollback = true\nrollback-to = \"a@1\"\nmax-failures = 7\n\
                patience = \"5m\"\n[gates]\nmax-restarts = 4\njobs = { min = 20, success = \"90%\" }\n\
                [[ring]]\nname = \"lab\"\nto = [\"@lab\", \"host-7\"]\ncanaries = 2\ncanary-soak = \"10m\"\n\
                in-flight = \"25%\"\nmin-hosts = 3\n[[ring]]\nname = \"rest\"\nto = [\"@all\"]\nwait = \"1d\"\n";
    put("rollout_plan", "whole", plan.as_bytes().to_vec());
    let policy = "name = \"n\"\nhosts = [\"@all\", \"host-7\"]\nsources = [\"/srv\"]\nrepository = \"/mnt\"\n\
                  schedule = \"daily 02:00,14:00 Europe/Berlin\"\njitter = \"30m\"\nwindow = \"22:00-06:00\"\n\
                  verify = \"weekly mon,thu\"\nmedia = [\"m\"]\nprune = \"monthly 1,15 05:00\"\ncheck = \"every 50h\"\n\
                  keep.daily = 7\nkeep.within = \"3d\"\nlimits.site = 2\nlimits.sites = [\"@a\"]\nbackup.exclude = [\"*.o\"]\n";
    put("policy", "whole", policy.as_bytes().to_vec());
    let permits = "[change-over]\npinned = [\"data-agent\"]\n[backup]\nsources = [\"/home\", \"/srv\"]\n\
                   [restore]\ntargets = [\"/srv/restored\"]\n[repository]\nplaces = [\"/mnt\"]\nprune = true\nkeep-last = 7\n";
    put("permits", "whole", permits.as_bytes().to_vec());
    let listing = "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>true</IsTruncated>\
                   <NextContinuationToken>a&#x2F;b</NextContinuationToken><!-- two -->\
                   <Contents><Key>deep/index/a&amp;b</Key><Size>7</Size></Contents>\
                   <Contents><Key>deep/index/c</Key><Size>8</Size></Contents></ListBucketResult>";
    put("s3_answer", "listing", listing.as_bytes().to_vec());
    let refused = "<Error><Code>NoSuchBucket</Code><Message>none</Message><Region>eu</Region></Error>";
    put("s3_answer", "refusal", refused.as_bytes().to_vec());
    for (name, text) in [
        ("access", "user::rw-,user:joe:r--:12,group::r--,mask::r--,other::r--"),
        ("lines", "user::rwx\ngroup::r-x\t#effective:r--\nother::---\n"),
    ] {
        put("acl", name, text.as_bytes().to_vec());
    }
}

/// What a server of SFTP says first, and one answer of each kind.
fn packets(put: &mut Put<'_>) {
    let number = |number: u32| number.to_be_bytes().to_vec();
    let string = |text: &str| [number(u32::try_from(text.len()).unwrap()), text.as_bytes().to_vec()].concat();
    let attributes = [number(1 | 2 | 4 | 8), number(0), number(9), number(0), number(0), number(0o100_600)].concat();
    let attributes = [attributes, number(7), number(8)].concat();
    let answer = |kind: u8, parts: &[Vec<u8>]| [vec![kind], number(1), parts.concat()].concat();
    let packets = [
        [vec![2], number(3), string("fsync@openssh.com"), string("1")].concat(),
        answer(101, &[number(2), string("No such file"), string("en")]),
        answer(102, &[string("handle")]),
        answer(103, &[string("content")]),
        answer(104, &[number(1), string("name"), string("-rw name"), attributes.clone()]),
        answer(105, &[attributes]),
    ];
    let sent = packets.map(|packet| [number(u32::try_from(packet.len()).unwrap()), packet].concat());
    put("sftp_packet", "answers", sent.concat());
}

/// A part's stored and plain length, as the targets read it.
fn sizes(stored: usize, plain: usize) -> Vec<u8> {
    [stored, plain].iter().flat_map(|size| u16::try_from(*size).unwrap().to_be_bytes()).collect()
}

/// Of the file of [`tree`] the first chunk anew out of itself; and the index without the stream around it.
fn streams(put: &mut Put<'_>) {
    let tree = tree();
    let (manifest, _) = tree.encode().unwrap();
    let chunk = vec![7_u8; 65_536];
    let made = patch::Encoder::default().encode(&chunk, &chunk, 3).unwrap();
    let stretches = vec![Stretch { object: 0, offset: 0, bytes: 65_536 }];
    let makes = vec![Run { object: 0, first: 0, count: 1 }];
    let recipe = Recipe { stretches: stretches.clone(), patch: made.patch, literals: made.literals };
    let frame = delta::Frame { makes, recipe };
    let index = delta::encode_index(std::slice::from_ref(&frame)).unwrap();
    let frames_bytes = u16::try_from(made.stored.len()).unwrap().to_be_bytes();
    put("delta_index", "one-frame", [&[0, 0], &frames_bytes, index.as_slice()].concat());
    let stored_manifest = patch::compress(&manifest, &manifest, 3).unwrap();
    let stored_index = patch::compress(&index, &[], 3).unwrap();
    let front = [sizes(stored_manifest.len(), manifest.len()), sizes(stored_index.len(), index.len())].concat();
    let body = [stored_manifest, stored_index, made.stored.clone()].concat();
    put("delta_stream", "one-frame", [front, frames_bytes.to_vec(), body].concat());

    let runs = vec![PageRun { first: 0, count: 2 }, PageRun { first: 4, count: 1 }];
    let pages = PageSet::of_runs(&runs, 65_536).unwrap();
    let proof = proto::proof::prove(&chunk, &pages);
    let plain = vec![7_u8; 3 * 4096];
    // A base is what came before, which is nothing, and then the stretches.
    let made = patch::Encoder::default().encode(&chunk, &plain, 3).unwrap();
    let makes = vec![bundle::Pages { object: 0, chunk: 0, runs }];
    let recipe = Recipe { stretches, patch: made.patch, literals: made.literals };
    let frame = bundle::Frame { makes, recipe };
    let index = bundle::encode_index(&[frame]).unwrap();
    let frames_bytes = u16::try_from(made.stored.len()).unwrap().to_be_bytes();
    let values = [u8::try_from(proof.len()).unwrap()];
    put("bundle_index", "one-frame", [&values, &[0], frames_bytes.as_slice(), &index].concat());
    let stored_index = patch::compress(&index, &[], 3).unwrap();
    let front = [sizes(stored_index.len(), index.len()), values.to_vec(), frames_bytes.to_vec()].concat();
    put("bundle_stream", "one-frame", [front, stored_index, proof.concat(), made.stored].concat());

    let base = patch_base();
    let mut plain: Vec<u8> = [&base[100..1100], b"something that was not there", &base[2000..3000]].concat();
    plain.resize(2032, 9);
    let made = patch::Encoder::default().encode(&base, &plain, 3).unwrap();
    let u16_of = |bytes: u32| u16::try_from(bytes).unwrap().to_be_bytes();
    let literals = [u8::try_from(made.literals.stored_bytes).unwrap()];
    let front = [literals.as_slice(), &u16_of(made.patch.plain_bytes), &u16_of(made.literals.plain_bytes), &[127]];
    put("patch", "two-segments", [front.concat(), made.stored].concat());
    put("proof", "some-pages", [&[0x10, 0, 2, 1, 2, 9, 1], [5; 64].as_slice()].concat());
    put("proof", "whole", vec![0, 0xff, 1, 0, 1]);
}

fn records(put: &mut Put<'_>) {
    use crate::manager::admin::{AdminEvent, AdminReply, AdminRequest, Long, Quick};
    let product: proto::Product = "agent".parse().unwrap();
    let host: proto::HostName = "host-1".parse().unwrap();
    let step = block("messages.md", "StepEvent");
    let status = block("messages.md", "AgentStatus");
    let outcome = block("messages.md", "Outcome::Done");
    let operation = block("messages.md", "Operation::Backup");
    let with = |parts: &[&[u8]]| parts.concat();

    put("admin_request", "generations", bytes_of(&AdminRequest::from(Quick::Generations(Some(product.clone())))));
    put("admin_request", "gc", bytes_of(&AdminRequest::Long(Long::Gc { dry_run: true })));
    put("admin_request", "wait", bytes_of(&AdminRequest::Long(Long::JobWait(proto::agent::JobId(9)))));
    let group = ("web".parse().unwrap(), vec![host.clone()]);
    put("admin_reply", "groups", bytes_of(&AdminReply::Groups(vec![group])));
    put("admin_reply", "token", bytes_of(&AdminReply::Token("mfs1-abc".into())));
    put("admin_reply", "damaged", bytes_of(&AdminReply::Damaged(vec![("host/a".into(), "why".into())])));
    let progress = AdminEvent::Progress { task: "reading".into(), done: 1, total: 2, bytes: true };
    put("admin_event", "progress", bytes_of(&progress));
    put("admin_event", "problem", bytes_of(&AdminEvent::Problem("why".into())));

    // Records of the control state, put together of their fields (docs/control-state.md).
    let named = || bytes_of(&(&host, &product));
    let job = with(&[&named(), &operation, &bytes_of(&(7_u64, Some(8_u64), false, 0_u8))]);
    put("control_records", "job", job);
    let end = (7_u64, Some(8_u64), false, 1_u8, 9_u64, 0_u32);
    let ended = with(&[&named(), &operation, &bytes_of(&end), &outcome, &[0, 0]]);
    put("control_records", "job-ended", ended);
    put("control_records", "host", bytes_of(&(7_u64, vec![("0a:0b", 8_u64)], Some(9_u64))));
    put("control_records", "token", bytes_of(&(&host, 7_u64, None::<u64>)));
    put("control_records", "export", bytes_of(&(&product, "1.0", 0_u32, &host, 7_u64)));
    put("control_records", "step", step.clone());
    put("control_records", "commit", bytes_of(&vec![("host/a", Some(vec![1_u8, 2])), ("host/b", None)]));
    put(
        "control_records",
        "status",
        with(&[&bytes_of(&("0.1.0", 7_u64, 1_u64)), &status, &bytes_of(&(0_u64, 0_u64))]),
    );

    let old = |key: &str, body: &[u8]| [key.as_bytes(), b"\n\x01\0\0\0\0\0\0\0\x01", body].concat();
    put("old_record", "host", old("host/host-1", &bytes_of(&(7_u64, vec![("0a:0b", 8_u64)], None::<u64>))));
    put("old_record", "export", old("export/agent/1.0/host-1", &bytes_of(&(&product, "1.0", 0_u32, &host, 7_u64))));
    put("old_record", "counter", old("counter/sequence", &bytes_of(&7_u64)));
    put("old_record", "history", old("history/host-1/agent", &[&bytes_of(&1_u64), step.as_slice()].concat()));
    let status = with(&[&bytes_of(&("0.1.0", 7_u64, 1_u64)), &status, &bytes_of(&(0_u64, 0_u64))]);
    put("old_record", "status", old("status/host-1", &status));
    put("old_record", "group", old("group/web", &bytes_of(&vec![&host])));

    put("local_messages", "mount", bytes_of(&(0_u32, TreeId::from_bytes([7; 32]), true)));
    put("local_messages", "warm", bytes_of(&(3_u32, TreeId::from_bytes([7; 32]), vec!["bin/agent"], 4096_u64)));
    put("local_messages", "ready", bytes_of(&(1_u32, "ready")));
    put("local_messages", "mounted", bytes_of(&(0_u32, "/run/x", false, 7_u64, 8_u64, 9_u64)));
    let numbers = (
        vec![&product],
        vec![(&product, "1.0", TreeId::from_bytes([7; 32]))],
        vec![1_u32],
        vec![TreeId::from_bytes([7; 32])],
    );
    put("local_messages", "numbers", bytes_of(&numbers));
}

/// A header that no library would write, with its checksum.
fn tar_header(name: &[u8], kind: u8, size: usize, link: &[u8], more: &dyn Fn(&mut [u8])) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o755);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    let mut bytes = header.as_bytes().to_vec();
    more(&mut bytes);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn entry(name: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
    let mut bytes = tar_header(name.as_bytes(), kind, content.len(), link.as_bytes(), &|_| {});
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A pax header with these records.
fn pax(kind: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let record = |(key, value): &(&str, &str)| {
        let bare = key.len() + value.len() + 3;
        let length = (1..9).map(|digits| bare + digits).find(|length| length.to_string().len() + bare == *length);
        format!("{} {key}={value}\n", length.unwrap())
    };
    entry("pax", kind, records.iter().map(record).collect::<String>().as_bytes(), "")
}

fn whole(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

fn compressed(put: &mut Put<'_>, plain: &[u8]) {
    put("compressed", "gzip", gzip(plain));
    put("compressed", "gzip-members", [gzip(&plain[..700]), gzip(&plain[700..]), vec![0; 40]].concat());
    put("compressed", "xz", xz(plain));
    put("compressed", "zstd", zstd::bulk::compress(plain, 3).unwrap());
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(plain).unwrap();
    put("compressed", "bzip2", bzip2.finish().unwrap());
}

fn archives(put: &mut Put<'_>) {
    let plain = whole(&[
        entry("bin/", b'5', b"", ""),
        entry("bin/agent", b'0', b"#!/bin/sh\n", ""),
        entry("bin/same", b'1', b"", "bin/agent"),
        entry("link", b'2', b"", "bin/agent"),
        entry("empty", b'0', b"", ""),
    ]);
    put("tar", "plain", plain.clone());
    let described = [
        ("path", "größe/a"),
        ("mtime", "-1.5"),
        ("SCHILY.xattr.user.a%3Db", "value"),
        ("SCHILY.acl.access", "user::rw-,group::r--,other::r--"),
        ("uid", "70000"),
    ];
    let records = pax(b'x', &described);
    put("tar", "pax", whole(&[pax(b'g', &[("comment", "all")]), records, entry("x", b'0', b"content", "")]));
    let long = "long/".repeat(30);
    put(
        "tar",
        "gnu-names",
        whole(&[
            entry("././@LongLink", b'L', format!("{long}name\0").as_bytes(), ""),
            entry("././@LongLink", b'K', format!("{long}target\0").as_bytes(), ""),
            entry("short", b'2', b"", "short"),
        ]),
    );
    let sparse = |gnu: &mut [u8]| {
        gnu[386..398].copy_from_slice(b"00000010000\0");
        gnu[398..410].copy_from_slice(b"00000000003\0");
        gnu[410..422].copy_from_slice(b"00000021450\0");
        gnu[422..434].copy_from_slice(b"00000000002\0");
        gnu[483..495].copy_from_slice(b"00000023420\0");
    };
    let mut data = b"abcde".to_vec();
    data.resize(512, 0);
    put("tar", "sparse-gnu", whole(&[tar_header(b"sparse", b'S', 5, b"", &sparse), data.clone()]));
    let new = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", "10000"),
    ];
    let mut map = b"2\n4096\n3\n9000\n2\n".to_vec();
    map.resize(512, 0);
    let content = [map, b"abcde".to_vec()].concat();
    put("tar", "sparse-1.0", whole(&[pax(b'x', &new), entry("GNUSparseFile.1/s", b'0', &content, "")]));
    let middle = [("GNU.sparse.size", "10000"), ("GNU.sparse.name", "s"), ("GNU.sparse.map", "4096,3,9000,2")];
    put("tar", "sparse-0.1", whole(&[pax(b'x', &middle), entry("GNUSparseFile.1/s", b'0', b"abcde", "")]));

    compressed(put, &plain);
    put("deb", "plain", deb("data.tar", &plain));
    put("deb", "xz", deb("data.tar.xz", &xz(&plain)));
    for (compression, bytes) in rpm::SAMPLES {
        put("rpm", compression, bytes.to_vec());
    }
    let upper = whole(&[entry("bin/.wh.same", b'0', b"", ""), entry("bin/new", b'1', b"", "empty")]);
    put("container", "saved", saved(&[gzip(&plain), gzip(&upper)]));
    put("zip", "sample", zip());
    put(
        "service_pack",
        "pack",
        whole(&[
            entry("bin/.wh.tool", b'0', b"", ""),
            entry("bin/agent", b'0', b"new", ""),
            entry("etc/.wh..wh..opq", b'0', b"", ""),
            entry("etc/other", b'1', b"", "readme"),
            entry("readme", b'5', b"", ""),
            entry("readme/now", b'2', b"", "../bin"),
        ]),
    );
}

/// An image as `docker save` wrote it. Of compressed layers it states no sums, which would keep every change out.
fn saved(layers: &[Vec<u8>]) -> Vec<u8> {
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let sums = vec![format!("sha256:{}", "0".repeat(64)); layers.len()];
    let config =
        json!({ "config": { "Entrypoint": ["agent"], "Env": ["PATH=/bin"] }, "rootfs": { "diff_ids": sums } });
    let manifest = json!([{ "Config": "config", "RepoTags": ["it:1"], "Layers": names }]).to_string();
    let mut entries = vec![entry("manifest.json", b'0', manifest.as_bytes(), "")];
    entries.push(entry("config", b'0', config.to_string().as_bytes(), ""));
    entries.extend(names.iter().zip(layers).map(|(name, layer)| entry(name, b'0', layer, "")));
    whole(&entries)
}

fn zip() -> Vec<u8> {
    use ::zip::write::SimpleFileOptions;
    let mut zip = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    let time = ::zip::DateTime::from_date_and_time(2024, 1, 2, 3, 4, 6).unwrap();
    let options = |mode| SimpleFileOptions::default().unix_permissions(mode).last_modified_time(time);
    zip.add_directory("bin/", options(0o755)).unwrap();
    zip.start_file("bin/agent", options(0o755)).unwrap();
    zip.write_all(&b"#!/bin/sh\n".repeat(20)).unwrap();
    zip.start_file("stored", options(0o600).compression_method(::zip::CompressionMethod::Stored)).unwrap();
    zip.write_all(b"stored").unwrap();
    zip.start_file("squeezed", options(0o600).compression_method(::zip::CompressionMethod::Bzip2)).unwrap();
    zip.write_all(b"squeezed").unwrap();
    zip.add_symlink("link", "bin/agent", options(0o777)).unwrap();
    zip.finish().unwrap().into_inner()
}

fn files(put: &mut Put<'_>) {
    put("elf", "library", library());
    let entry = |plain: u32, stored: u32| {
        [[7; 32].as_slice(), &stored.to_le_bytes(), &plain.to_le_bytes(), &[Encoding::Zstd.code()], &[9; 8]].concat()
    };
    let index = [entry(4096, 100), entry(262_144, 200)].concat();
    put("pack_index", "two-frames", [300_u32.to_le_bytes().to_vec(), index].concat());
    let value = crate::manager::fuzzing::sealed("sequence", 7);
    let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    put("backup", "sequence", format!("manager-fs control state\nsequence\t{hex}\n").into_bytes());
    put("manager_backup", "small", block("parcel-format.md", "backup"));
    put("saved_generations", "one", block("parcel-format.md", "saved"));
    put("certificate", "request", request());
}

/// A shared object with a loaded segment, an interpreter, and the names of what it needs.
fn library() -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[3, 0, 62, 0, 1, 0, 0, 0]);
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 3, 0]);
    // Kind, flags, offset, address twice, bytes twice, alignment.
    let segments: [(u32, u64, u64); 3] = [(1, 0, 0x400), (3, 0x300, 16), (2, 0x200, 96)];
    for (n, (kind, at, len)) in segments.into_iter().enumerate() {
        let at_header = 64 + 56 * n;
        put(at_header, &[kind.to_le_bytes(), 5_u32.to_le_bytes()].concat());
        put(at_header + 8, &[at, at, at, len, len, 0x1000].map(u64::to_le_bytes).concat());
    }
    put(0x300, b"/lib64/ld.so\0");
    put(0x310, b"\0libc.so.6\0libme.so\0$ORIGIN/lib\0");
    let dynamic: [(u64, u64); 6] = [(5, 0x310), (10, 33), (1, 1), (14, 11), (29, 20), (0, 0)];
    for (n, (tag, value)) in dynamic.into_iter().enumerate() {
        put(0x200 + 16 * n, &[tag, value].map(u64::to_le_bytes).concat());
    }
    bytes
}

/// A certificate request, signed with a key that is always the same (RFC 8410: the bytes before an ed25519 seed).
fn request() -> Vec<u8> {
    const BEFORE_SEED: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let der = [BEFORE_SEED.as_slice(), &[7; 32]].concat();
    let key = rcgen::KeyPair::try_from(der).unwrap();
    let params = rcgen::CertificateParams::new(vec!["host-1".to_owned()]).unwrap();
    let request = params.serialize_request(&key).unwrap();
    request.der().to_vec()
}
