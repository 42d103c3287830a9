//! What `docs/mount-semantics.md` promises to a program that runs from a mount.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::command::until;
use tests::{Host, Manager, Output, TreeFixture};

/// A host with this tree attached; the paths are the attached one and the browsing view.
fn attached(tree: &TreeFixture) -> (Manager, Host, [PathBuf; 2]) {
    let manager = Manager::start();
    manager.publish("sample", "1.0", tree.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let path = host.attach("sample@1.0");
    let view = host.mountpoint().join("sample/1.0");
    until("the view shows it", || view.is_dir().then_some(()));
    (manager, host, [path, view])
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("must be refused").raw_os_error().expect("an error number")
}

#[test]
fn nothing_can_be_changed() {
    let tree = TreeFixture::new();
    tree.file("file", 0o666, "content").link("link", "file");
    let (_manager, _host, roots) = attached(&tree);
    for root in roots {
        assert_eq!(errno(fs::write(root.join("file"), "other")), libc::EROFS);
        assert_eq!(errno(fs::write(root.join("new"), "other")), libc::EROFS);
        assert_eq!(errno(fs::remove_file(root.join("file"))), libc::EROFS);
        assert_eq!(errno(fs::create_dir(root.join("dir"))), libc::EROFS);
        assert_eq!(errno(fs::rename(root.join("file"), root.join("moved"))), libc::EROFS);
        assert_eq!(errno(fs::hard_link(root.join("file"), root.join("hard"))), libc::EROFS);
        let permissions = fs::metadata(root.join("file")).unwrap().permissions();
        assert_eq!(errno(fs::set_permissions(root.join("file"), permissions)), libc::EROFS);
        let set = rustix::fs::setxattr(root.join("file"), "user.x", b"y", rustix::fs::XattrFlags::empty());
        assert_eq!(set.expect_err("must be refused"), rustix::io::Errno::ROFS);
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "content");
    }
}

#[test]
fn setuid_programs_and_devices_have_no_power_here() {
    let tree = TreeFixture::new();
    tree.file("setuid", 0o4755, "#!/bin/sh\n");
    let (_manager, _host, roots) = attached(&tree);
    for root in roots {
        assert_eq!(fs::metadata(root.join("setuid")).unwrap().mode() & 0o7777, 0o4755, "the bit is shown");
        let flags = rustix::fs::statvfs(&root).unwrap().f_flag;
        for needed in [
            rustix::fs::StatVfsMountFlags::RDONLY,
            rustix::fs::StatVfsMountFlags::NOSUID,
            rustix::fs::StatVfsMountFlags::NODEV,
            rustix::fs::StatVfsMountFlags::NOATIME,
        ] {
            assert!(flags.contains(needed), "{}: {needed:?} is missing from {flags:?}", root.display());
        }
    }
}

#[test]
fn names_of_any_bytes_and_directories_of_any_size() {
    let tree = TreeFixture::new();
    for n in 0..2500 {
        tree.file(&format!("many/entry-{n}"), 0o644, format!("{n}"));
    }
    let odd: [&[u8]; 5] = [b"\xff\xfe", b"a\nb", b"\"quoted\" \\ name", "ünïcödé".as_bytes(), &[b'x'; 255]];
    fs::create_dir(tree.path().join("odd")).unwrap();
    for name in odd {
        fs::write(tree.path().join("odd").join(OsStr::from_bytes(name)), name).unwrap();
    }
    let (_manager, _host, roots) = attached(&tree);
    for root in roots {
        let mut names: Vec<_> = fs::read_dir(root.join("many")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 2500);
        assert_eq!(fs::read_to_string(root.join("many/entry-2499")).unwrap(), "2499");
        for name in odd {
            assert_eq!(fs::read(root.join("odd").join(OsStr::from_bytes(name))).unwrap(), name);
        }
        assert_eq!(errno(fs::metadata(root.join("many/no-such-entry"))), libc::ENOENT);
        assert_eq!(errno(fs::metadata(root.join("many/entry-1/below"))), libc::ENOTDIR);
        assert_eq!(errno(fs::read_dir(root.join("many/entry-1")).map(drop)), libc::ENOTDIR);
    }
}

#[test]
fn reads_at_any_place_give_the_bytes_that_are_there() {
    let tree = TreeFixture::new();
    let content: Vec<u8> = (0..1_000_003u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    tree.file("large", 0o644, &content).file("empty", 0o644, "");
    fs::File::create(tree.path().join("sparse")).unwrap().set_len(10 << 20).unwrap();
    let (_manager, _host, roots) = attached(&tree);
    for root in roots {
        let file = fs::File::open(root.join("large")).unwrap();
        for offset in [0u64, 1, 4095, 65_535, 65_536, 262_143, 3_999_000, 4_000_011, 4_000_012, 9_000_000] {
            let mut buffer = vec![0; 70_001];
            let read = read_at(&file, &mut buffer, offset);
            let from = usize::try_from(offset).unwrap().min(content.len());
            let to = (from + buffer.len()).min(content.len());
            assert!(buffer[..read] == content[from..to], "at {offset}");
        }
        assert_eq!(fs::read(root.join("empty")).unwrap(), b"");
        let sparse = fs::read(root.join("sparse")).unwrap();
        assert!(sparse.len() == 10 << 20 && sparse.iter().all(|byte| *byte == 0));
    }
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &fs::File, buffer: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64).unwrap() {
            0 => break,
            read => done += read,
        }
    }
    done
}

/// Without root there is no other user to try it as: what the owner may not read stays closed to the owner too, and what
/// would open it by another name is the mounter's alone.
fn permissions_of_the_tree_hold_for_its_owner() {
    let tree = TreeFixture::new();
    tree.file("open", 0o644, "for all").file("closed", 0o644, "for nobody");
    let packed = tempfile::NamedTempFile::new().unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(tree.path()).arg("-cf").arg(packed.path());
    Output::of(tar.args(["--mode=u=,g=,o=", "closed"])).expect(0);
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(tree.path()).arg("-rf").arg(packed.path());
    Output::of(tar.arg("open")).expect(0);
    let manager = Manager::start();
    manager.publish("sample", "1.0", packed.path());
    let host = Host::mounted("host-1", &manager);
    manager.export("sample@1.0", "host-1");
    let root = host.attach("sample@1.0");
    for root in [root, host.mountpoint().join("sample/1.0")] {
        assert_eq!(fs::read_to_string(root.join("open")).unwrap(), "for all");
        let refused = fs::read(root.join("closed")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{}", root.display());
    }
    for dir in [host.path("cache/local"), host.mountpoint().join(".objects")] {
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&dir).unwrap());
        assert_eq!(mode & 0o077, 0, "{} is open to others", dir.display());
    }
}

#[test]
fn permissions_of_the_tree_hold_for_other_users() {
    if !rustix::process::geteuid().is_root() {
        return permissions_of_the_tree_hold_for_its_owner();
    }
    let tree = TreeFixture::new();
    tree.file("open", 0o644, "for all").file("closed", 0o600, "for root alone");
    let (_manager, host, roots) = attached(&tree);
    fs::set_permissions(host.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |path: &Path| {
        let mut command = Command::new("cat");
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        std::os::unix::process::CommandExt::gid(&mut command, 65_534);
        Output::of(command.arg(path))
    };
    for root in roots {
        let open = as_nobody(&root.join("open"));
        assert_eq!(open.stdout, "for all", "{}: {}", root.display(), open.stderr);
        assert_eq!(as_nobody(&root.join("closed")).code, Some(1), "{}", root.display());
    }
    // Nor by way of the objects, whose names are no secret.
    let id = blake3::hash(b"for root alone").to_hex().to_string();
    for dir in ["cache/local", "run/mnt/.objects"] {
        let object = host.path(dir).join(&id[..2]).join(&id[2..]);
        assert_eq!(as_nobody(&object).code, Some(1), "{} can be read", object.display());
    }
}

/// An access control list as the kernel has it (linux/posix_acl_xattr.h): user 1234 may read, the owner's group may not,
/// though the permission bits that show the mask say so.
fn list_for_user_1234() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(0x01, 6, u32::MAX), (0x02, 4, 1234), (0x04, 0, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

#[test]
fn access_control_lists_hold_on_every_way_to_a_file() {
    if !tests::needs::root() {
        return;
    }
    let tree = TreeFixture::new();
    tree.file("listed", 0o600, "for user 1234");
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.path().join("listed"), "system.posix_acl_access", &list_for_user_1234(), none).unwrap();
    let (manager, host, roots) = attached(&tree);
    // A host on which nothing may be mounted has a plain copy.
    let other = Host::new("host-2");
    other.enroll(&manager, &manager.address());
    manager.export("sample@1.0", "host-2");
    let mount = other.command(&["mount"]);
    let mut lesser = Command::new("setpriv");
    lesser.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"]);
    lesser.arg(mount.get_program()).args(mount.get_args());
    lesser.envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let _service = tests::command::Service::start("a mount daemon that may mount nothing", &mut lesser);
    let copy = other.attach("sample@1.0");
    let open = |path: &Path| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    open(&host.path(""));
    // Whoever comes that far: the directories of a host let nobody else through.
    let own: Vec<_> = copy.ancestors().skip(1).take_while(|path| path.starts_with(other.path(""))).collect();
    own.into_iter().for_each(open);
    let read_by = |path: &Path, user: u32, group: u32| {
        let mut command = Command::new("cat");
        std::os::unix::process::CommandExt::uid(&mut command, user);
        std::os::unix::process::CommandExt::gid(&mut command, group);
        Output::of(command.arg(path))
    };
    for root in roots.iter().chain([&copy]) {
        let path = root.join("listed");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640, "{}", path.display());
        let of_the_group = read_by(&path, 65_534, 0);
        assert_eq!(of_the_group.code, Some(1), "{}: {}", path.display(), of_the_group.stdout);
        assert_eq!(read_by(&path, 1234, 65_534).expect(0).stdout, "for user 1234", "{}", path.display());
    }
}

#[test]
fn a_program_finds_itself_and_its_libraries_beside_it() {
    let tree = TreeFixture::new();
    tree.system_program("bin/program", "sleep");
    let (_manager, host, roots) = attached(&tree);
    for root in roots {
        let program = root.join("bin/program");
        let mut child = Command::new(&program).arg("60").spawn().unwrap();
        let link = format!("/proc/{}/exe", child.id());
        let exe = until("the program runs", || fs::read_link(&link).ok().filter(|exe| exe.ends_with("program")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(exe, host.told(&program));
    }
    // `$ORIGIN` in a library path, by the compiler that building this project needs anyway.
    let work = tempfile::tempdir().unwrap();
    let source = |name: &str, text: &str| {
        let path = work.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let library = source("answer.c", "int answer(void) { return 42; }\n");
    let program = source("main.c", "int answer(void); int main(void) { return answer(); }\n");
    let tree = TreeFixture::new();
    fs::create_dir_all(tree.path().join("bin")).unwrap();
    fs::create_dir_all(tree.path().join("lib")).unwrap();
    let cc = |args: &[&OsStr]| drop(Output::of(Command::new("cc").args(args)).expect(0));
    let out = tree.path().join("lib/libanswer.so");
    cc(&["-shared".as_ref(), "-fPIC".as_ref(), "-o".as_ref(), out.as_os_str(), library.as_os_str()]);
    let main = tree.path().join("bin/main");
    cc(&[
        "-o".as_ref(),
        main.as_os_str(),
        program.as_os_str(),
        out.as_os_str(),
        "-Wl,-rpath,$ORIGIN/../lib".as_ref(),
    ]);
    let (_manager, _host, roots) = attached(&tree);
    for root in roots {
        assert_eq!(Output::of(&mut Command::new(root.join("bin/main"))).code, Some(42), "{}", root.display());
    }
}

#[test]
fn a_running_program_keeps_its_generation_after_its_release() {
    let tree = TreeFixture::new();
    tree.system_program("bin/program", "sleep").file("late", 0o644, "read late");
    let (_manager, host, [path, _]) = attached(&tree);
    let directory = fs::File::open(&path).unwrap();
    host.run(&["release", "sample@1.0"]).expect(0);
    // Held by a descriptor of this process: the mount stays until it is closed.
    use std::os::fd::AsRawFd;
    let late = format!("/proc/self/fd/{}/late", directory.as_raw_fd());
    assert_eq!(fs::read_to_string(&late).unwrap(), "read late");
    drop(directory);
    until("the mount is collected", || (!path.join("late").exists()).then_some(()));
}
