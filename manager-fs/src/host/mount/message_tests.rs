use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use super::*;

const SHORT: Duration = Duration::from_millis(300);

fn tree() -> TreeId {
    TreeId::of(b"tree")
}

/// What a made-up helper does with one connection.
type Act = Box<dyn FnOnce(&mut UnixStream, HelperRequest) + Send>;

fn answer(reply: HelperReply) -> Act {
    Box::new(move |stream, _| send(stream, &reply).unwrap())
}

fn raw(bytes: Vec<u8>) -> Act {
    Box::new(move |stream, _| drop(stream.write_all(&bytes)))
}

/// A helper that does one of these on each of its connections, and then listens no more.
struct Helper {
    dir: tempfile::TempDir,
    work: JoinHandle<Vec<HelperRequest>>,
}

impl Helper {
    fn start(acts: Vec<Act>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener: UnixListener = listen(&dir.path().join("helper.sock")).unwrap();
        let work = std::thread::spawn(move || {
            let serve = |act: Act| {
                let (mut stream, _) = listener.accept().unwrap();
                let request: HelperRequest = receive(&mut stream).unwrap();
                act(&mut stream, request.clone());
                request
            };
            acts.into_iter().map(serve).collect()
        });
        Self { dir, work }
    }

    fn client(&self) -> HelperClient {
        HelperClient::new(self.dir.path().join("helper.sock"))
    }
}

#[test]
fn every_question_has_its_answer_and_no_other_is_taken_for_it() {
    let mounted = vec![MountedGeneration { tree: tree(), path: "/gens/x".to_owned(), with_fuse: true }];
    let usage = MetaUsage { inodes: 1, inodes_max: 2, image_bytes: 3, bytes_estimate: 4, bytes_max: 5 };
    let helper = Helper::start(vec![
        answer(HelperReply::Unmounted),
        answer(HelperReply::Busy),
        answer(HelperReply::Warmed { bytes: 7, took_us: 9 }),
        answer(HelperReply::List(mounted.clone())),
        answer(HelperReply::MetaUsage(usage)),
        answer(HelperReply::Prefetched),
        answer(HelperReply::Unmounted),
        answer(HelperReply::Busy),
        answer(HelperReply::Prefetched),
    ]);
    let client = helper.client();
    client.unmount(&tree()).unwrap();
    assert!(matches!(client.unmount(&tree()), Err(HelperError::Busy(busy)) if busy == tree()));
    assert_eq!(client.warm(&tree(), vec![], 10, SHORT).unwrap(), (7, 9));
    assert_eq!(client.mounted().unwrap(), mounted);
    assert_eq!(client.meta_usage().unwrap(), usage);
    client.prefetch(vec![PageRange { object: ObjectId::of(b"o"), offset: 4096, bytes: 8192 }]).unwrap();
    // Of another question each.
    assert!(matches!(client.warm(&tree(), vec![], 10, SHORT), Err(HelperError::Protocol)));
    assert!(matches!(client.mounted(), Err(HelperError::Protocol)));
    assert!(matches!(client.unmount(&tree()), Err(HelperError::Protocol)));
    let asked = helper.work.join().unwrap();
    assert_eq!(asked[0], HelperRequest::Unmount { tree: tree() });
    assert_eq!(asked[2], HelperRequest::Warm { tree: tree(), paths: vec![], bytes_max: 10 });
}

#[test]
fn a_failure_keeps_its_error_number_and_is_not_tried_again() {
    let text = "mount overlay: no space left".to_owned();
    let helper = Helper::start(vec![answer(HelperReply::Failed { errno: libc::ENOSPC, text })]);
    let failed = helper.client().unmount(&tree()).unwrap_err();
    assert!(matches!(&failed, HelperError::Failed { errno: libc::ENOSPC, .. }), "{failed}");
    assert_eq!(failed.to_string(), "mount helper: mount overlay: no space left");
    assert_eq!(helper.work.join().unwrap().len(), 1);
}

#[test]
fn a_helper_that_dies_in_the_middle_is_asked_again_and_nobody_notices() {
    let whole = {
        let body = codec::encode(&HelperReply::Warmed { bytes: 7, took_us: 9 }).unwrap();
        [&width::count(body.len()).to_le_bytes()[..], &body].concat()
    };
    // It dies before it answers, and after each byte of its answer.
    let mut acts: Vec<Act> = (0..whole.len()).map(|cut| raw(whole[..cut].to_vec())).collect();
    acts.push(raw(whole));
    let deaths = acts.len();
    let helper = Helper::start(acts);
    let warmed = helper.client().warm(&tree(), vec![], 10, Duration::from_secs(20)).unwrap();
    assert_eq!(warmed, (7, 9));
    assert_eq!(helper.work.join().unwrap().len(), deaths);
}

#[test]
fn without_a_helper_the_question_ends_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let nobody = HelperClient::new(dir.path().join("helper.sock")).warm(&tree(), vec![], 10, SHORT).unwrap_err();
    assert!(matches!(nobody, HelperError::Unreachable(_)), "{nobody}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    // One that takes the question and says nothing.
    let (silent, wait) = std::sync::mpsc::channel::<()>();
    let mute: Act = Box::new(move |_, _| {
        let _ = wait.recv();
    });
    let helper = Helper::start(vec![mute]);
    let mute = helper.client().warm(&tree(), vec![], 10, SHORT).unwrap_err();
    assert!(matches!(mute, HelperError::Unreachable(_)), "{mute}");
    drop(silent);
    helper.work.join().unwrap();
}

#[test]
fn what_is_no_answer_is_refused_before_memory_is_taken_for_it() {
    let refused = |bytes: &[u8]| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        receive::<HelperReply>(&mut ours).unwrap_err()
    };
    let claims = |len: u32| [&len.to_le_bytes()[..], b"few bytes"].concat();
    assert_eq!(refused(&claims(u32::MAX)).kind(), io::ErrorKind::InvalidData);
    assert_eq!(refused(&claims(width::count(MESSAGE_BYTES_MAX) + 1)).kind(), io::ErrorKind::InvalidData);
    assert_eq!(refused(&claims(1000)).kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(refused(b"").kind(), io::ErrorKind::UnexpectedEof);
    refused(&claims(9));
    let reply = codec::encode(&HelperReply::Busy).unwrap();
    let more = [&width::count(reply.len() + 1).to_le_bytes()[..], &reply, b"x"].concat();
    refused(&more);
}

#[test]
fn a_socket_below_a_long_path_is_reached_and_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a-directory-with-a-long-name/".repeat(8));
    std::fs::create_dir_all(&deep).unwrap();
    let socket = deep.join("helper.sock");
    assert!(socket.as_os_str().len() > 200);
    std::fs::write(&socket, "left by a helper that was killed").unwrap();
    let listener = listen(&socket).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&socket.symlink_metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut ours = connect(&socket).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    send(&mut ours, &HelperRequest::List).unwrap();
    assert_eq!(receive::<HelperRequest>(&mut theirs).unwrap(), HelperRequest::List);
    assert!(connect(&deep.join("nothing.sock")).is_err());
}
