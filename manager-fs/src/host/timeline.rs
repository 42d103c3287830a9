//! What a start asks for and what comes, in the order of time, while somebody wants to see it (`exec --trace`).

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::trace::{TRACE_EVENTS_MAX, TRACE_FILES_MAX, Trace, TraceEvent, TraceWhat};
use proto::width;

use crate::sync::lock;

/// Bytes of all names of a trace: it is one message (`MESSAGE_BYTES_MAX`), and a path may have 4 KiB. Files beyond have none.
const NAMES_BYTES_MAX: usize = 4 << 20;

/// Notes what happens while it is switched on.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Looked at first everywhere, so that one that is off costs nothing.
    on: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    /// Whose it is, and when it began; `None`: nobody's.
    begun: Option<(u64, Instant)>,
    /// Processor time when it began.
    cpu: Duration,
    /// With the object that an event is about (`objects::object_prefix`).
    events: Vec<(TraceEvent, Option<u64>)>,
    left_out: u64,
}

/// Something that began while the timeline was on.
#[derive(Debug, Clone, Copy)]
pub struct Since(Instant);

/// What an event was about.
#[derive(Debug, Clone, Copy, Default)]
pub struct About {
    /// The object, by the 63 bits that are its number; `None`: none, or several.
    pub object: Option<u64>,
    /// Where in it, bytes.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Timeline {
    /// Notes from now on, for this owner; whether nobody else has it.
    pub fn begin(&self, owner: u64) -> bool {
        let mut noted = lock(&self.noted);
        if noted.begun.is_some_and(|(of, _)| of != owner) {
            return false;
        }
        *noted = Noted { begun: Some((owner, Instant::now())), cpu: processor_time(), ..Noted::default() };
        self.on.store(true, Ordering::Release);
        true
    }

    /// Stops, if it is this owner's, and gives what was noted. `name`: the path of each of these objects, as far as known.
    pub fn end(&self, owner: u64, name: impl FnOnce(&[u64]) -> HashMap<u64, String>) -> Option<Trace> {
        let noted = {
            let mut noted = lock(&self.noted);
            noted.begun.filter(|(of, _)| *of == owner)?;
            self.on.store(false, Ordering::Release);
            std::mem::take(&mut *noted)
        };
        Some(noted.named(name))
    }

    /// When something began that may be noted; `None` while nobody wants to see it.
    pub fn since(&self) -> Option<Since> {
        self.on.load(Ordering::Acquire).then(|| Since(Instant::now()))
    }

    /// Notes what began then and is over now.
    pub fn note(&self, what: TraceWhat, since: Option<Since>, about: About) {
        let Some(Since(from)) = since else { return };
        let (now, cpu) = (Instant::now(), processor_time());
        let mut noted = lock(&self.noted);
        let Some((_, begun)) = noted.begun else { return };
        if noted.events.len() >= TRACE_EVENTS_MAX {
            noted.left_out += 1;
            return;
        }
        let event = TraceEvent {
            what,
            from_us: width::micros(from.saturating_duration_since(begun)),
            until_us: width::micros(now.saturating_duration_since(begun)),
            cpu_us: width::micros(cpu.saturating_sub(noted.cpu)),
            bytes: about.bytes,
            offset: about.offset,
            file: None,
        };
        noted.events.push((event, about.object));
    }

    /// Notes what comes now.
    pub fn arrived(&self, bytes: u64) {
        self.note(TraceWhat::Arrived, self.since(), About { bytes, ..About::default() });
    }
}

impl Noted {
    fn named(self, name: impl FnOnce(&[u64]) -> HashMap<u64, String>) -> Trace {
        let mut objects: Vec<u64> = self.events.iter().filter_map(|(_, object)| *object).collect();
        objects.sort_unstable();
        objects.dedup();
        let mut paths = name(&objects);
        let (mut numbers, mut files) = (HashMap::new(), Vec::new());
        let mut names_bytes = 0;
        for object in objects.into_iter().take(TRACE_FILES_MAX) {
            if let Some(path) = paths.remove(&object) {
                names_bytes += path.len();
                if names_bytes > NAMES_BYTES_MAX {
                    break;
                }
                numbers.insert(object, width::count(files.len()));
                files.push(path);
            }
        }
        let with_file = |(event, object): (TraceEvent, Option<u64>)| {
            let file = object.and_then(|object| numbers.get(&object).copied());
            TraceEvent { file, ..event }
        };
        Trace { events: self.events.into_iter().map(with_file).collect(), files, left_out: self.left_out }
    }
}

/// Of all threads of this process, clock_gettime(2).
fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proto::codec;
    use proto::daemon::DaemonReply;
    use proto::limits::MESSAGE_BYTES_MAX;

    use super::*;

    #[test]
    fn what_is_noted_has_its_time_and_its_file_and_belongs_to_one_owner() {
        let timeline = Timeline::default();
        timeline.note(TraceWhat::Present, timeline.since(), About::default());
        assert!(timeline.begin(1) && !timeline.begin(2));
        let since = timeline.since();
        std::thread::sleep(Duration::from_millis(2));
        timeline.note(TraceWhat::Missing, since, About { object: Some(7), offset: 4096, bytes: 100 });
        timeline.note(TraceWhat::Chunks, since, About { object: Some(8), ..About::default() });
        timeline.arrived(9);
        let named = |objects: &[u64]| {
            assert_eq!(objects, [7, 8]);
            HashMap::from([(7, "bin/x".to_owned())])
        };
        assert_eq!(timeline.end(2, |_| HashMap::new()), None);
        let trace = timeline.end(1, named).unwrap();
        let [missing, chunks, arrived] = trace.events[..] else { panic!("{trace:?}") };
        assert_eq!(
            (missing.what, missing.file, missing.offset, missing.bytes),
            (TraceWhat::Missing, Some(0), 4096, 100)
        );
        assert!(missing.until_us - missing.from_us >= 2_000);
        assert_eq!((chunks.file, arrived.bytes, arrived.from_us <= arrived.until_us), (None, 9, true));
        assert_eq!((trace.files, trace.left_out), (vec!["bin/x".to_owned()], 0));
        assert!(timeline.since().is_none() && timeline.end(1, |_| HashMap::new()).is_none());
        assert!(timeline.begin(2));
    }

    #[test]
    fn no_more_is_kept_than_a_message_holds() {
        let timeline = Timeline::default();
        timeline.begin(1);
        for _ in 0..TRACE_EVENTS_MAX + 3 {
            timeline.arrived(1);
        }
        let trace = timeline.end(1, |_| HashMap::new()).unwrap();
        assert_eq!((trace.events.len(), trace.left_out), (TRACE_EVENTS_MAX, 3));
        timeline.begin(1);
        for object in 0..TRACE_FILES_MAX as u64 {
            let about = About { object: Some(object), ..About::default() };
            timeline.note(TraceWhat::Present, timeline.since(), about);
        }
        let long = |objects: &[u64]| objects.iter().map(|object| (*object, "x".repeat(4_000))).collect();
        let trace = timeline.end(1, long).unwrap();
        let read = codec::encode(&DaemonReply::Traced(trace)).unwrap();
        assert!(read.len() < MESSAGE_BYTES_MAX && codec::decode::<DaemonReply, MESSAGE_BYTES_MAX>(&read).is_ok());
    }
}
