//! Which pages of which objects the kernel asks for, in order: what a program touches while nothing of it is cached.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::bundle::{TOUCHES_MAX, Touch};
use proto::manifest::Manifest;
use proto::proof::PAGE_BYTES;
use proto::width;

use crate::host::objects::numbers::Ino;
use crate::host::objects::object_prefix;
use crate::sync::lock;

/// Notes the first touch of every page while it is switched on.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Looked at before every read, so that a recorder that is off costs nothing.
    on: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    known: HashSet<(u64, u32)>,
    order: Vec<(u64, u32)>,
    /// When something was touched for the first time last.
    last: Option<Instant>,
}

impl Recorder {
    /// Forgets what was touched so far, and records from now on.
    pub fn begin(&self) {
        *lock(&self.seen) = Seen::default();
        self.on.store(true, Ordering::Release);
    }

    /// A read of a node of the mount.
    pub fn note(&self, ino: Ino, offset: u64, bytes: u32) {
        if !self.on.load(Ordering::Acquire) {
            return;
        }
        let Ino::Object(prefix) = ino else { return };
        let page_bytes = u64::from(PAGE_BYTES);
        let mut seen = lock(&self.seen);
        for page in offset / page_bytes..(offset + u64::from(bytes)).div_ceil(page_bytes) {
            let Ok(page) = u32::try_from(page) else { return };
            if seen.order.len() < TOUCHES_MAX && seen.known.insert((prefix, page)) {
                seen.order.push((prefix, page));
                seen.last = Some(Instant::now());
            }
        }
    }

    /// For how long nothing new has been touched; `None` before the first touch.
    pub fn idle(&self) -> Option<Duration> {
        lock(&self.seen).last.map(|last| last.elapsed())
    }

    /// Ends, with what was touched of a tree.
    pub fn end(&self, tree: &Manifest) -> Vec<Touch> {
        self.on.store(false, Ordering::Release);
        touches(&std::mem::take(&mut *lock(&self.seen)).order, tree)
    }
}

fn touches(order: &[(u64, u32)], tree: &Manifest) -> Vec<Touch> {
    let objects: HashMap<u64, usize> =
        tree.objects.iter().enumerate().map(|(at, object)| (object_prefix(&object.id), at)).collect();
    let mut touches: Vec<Touch> = Vec::new();
    for (prefix, page) in order {
        let Some(at) = objects.get(prefix) else { continue };
        // A read may reach past the end.
        if u64::from(*page) * u64::from(PAGE_BYTES) >= tree.objects[*at].bytes {
            continue;
        }
        match touches.last_mut() {
            Some(last) if last.object == width::count(*at) && last.first + last.count == *page => last.count += 1,
            _ => touches.push(Touch { object: width::count(*at), first: *page, count: 1 }),
        }
    }
    touches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::manifest::Object;
    use proto::{ChunkId, ObjectId};

    #[test]
    fn first_touches_are_noted_in_order_and_only_of_the_tree() {
        let object = |content: &[u8]| Object {
            id: ObjectId::of(content),
            bytes: content.len() as u64,
            chunks: content.chunks(65_536).map(ChunkId::of).collect(),
        };
        let (a, b, other) = (object(&[1; 20_000]), object(&[2; 70_000]), object(&[3; 10]));
        let tree =
            Manifest { chunk_bytes: 65_536, objects: vec![a.clone(), b.clone()], nodes: vec![], entries: vec![] };
        let recorder = Recorder::default();
        let ino = |object: &Object| Ino::Object(object_prefix(&object.id));
        recorder.note(ino(&a), 0, 4096);
        recorder.begin();
        recorder.note(ino(&b), 65_536, 4_096);
        recorder.note(ino(&other), 0, 10);
        recorder.note(ino(&b), 69_632, 4_096);
        recorder.note(ino(&a), 4_096, 8_192);
        recorder.note(ino(&a), 0, 20_480);
        recorder.note(Ino::Root, 0, 4_096);
        let touch = |object, first, count| Touch { object, first, count };
        assert_eq!(recorder.end(&tree), [touch(1, 16, 2), touch(0, 1, 2), touch(0, 0, 1), touch(0, 3, 2)]);
        recorder.note(ino(&a), 0, 4096);
        assert_eq!(recorder.end(&tree), []);
    }
}
