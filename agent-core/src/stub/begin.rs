//! From nothing to something that can be started: lock, journal, record, attachment, namespaces, socket.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proto::TreeId;
use proto::agent::{AgentReply, AgentState, AgentStatus, StepEvent};
use proto::daemon::{Attached, DaemonReply, DaemonRequest};
use proto::message::Fault;

use super::choose::{self, Choice, Ends};
use super::door::Door;
use super::lock::Lock;
use super::order::{self, Desk, Here, Next};
use super::pause::pause;
use super::wanted::{Heard, Question, Stand, Wanted, unexpected};
use super::{Observer, StubError, io_error};
use crate::AgentPaths;
use crate::control::Client;
use crate::durable;
use crate::jobs::sweep_marks;
use crate::journal::{Journal, Staged};
use crate::records::{self, Verified};
use crate::sys::signal::SignalFd;
use crate::sys::{namespace, socket};

/// How long it may be silent when it is only asked what it has.
const QUICK_SILENCE: Duration = Duration::from_secs(2);
/// Between two looks for a daemon that is not there.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A daemon that is there has this long to give the tree that the journal names, before another one is started.
pub(super) const FALL_BACK_AFTER: Duration = Duration::from_secs(2);

/// All that the first program needs.
pub(super) struct Begun {
    pub(super) lock: Lock,
    pub(super) listener: UnixListener,
    /// As it is to be written.
    pub(super) journal: Journal,
    pub(super) verified: Verified,
    /// The tree's root.
    pub(super) path: PathBuf,
    /// The daemon keeps the tree attached while this connection is open; by then the journal does.
    pub(super) hold: Client,
    /// A change-over that is over before anything is started.
    pub(super) ends: Option<Ends>,
    /// What the last agent was told to change over to, and had not begun to.
    pub(super) staged: Option<Staged>,
    /// Where orders come while no agent runs.
    pub(super) door: Option<Door>,
    pub(super) desk: Desk,
    /// Reports that the daemon has not taken yet.
    pub(super) untold: Vec<StepEvent>,
    /// The steps of an order that came while the stub waited, if that is what is started.
    pub(super) carried: Vec<StepEvent>,
}

/// What waiting is told to end by, and whom to tell.
pub(super) struct Waiting<'a> {
    pub(super) paths: &'a AgentPaths,
    pub(super) signals: &'a mut SignalFd,
    pub(super) observer: &'a mut dyn Observer,
    door: Option<Door>,
    desk: Desk,
    untold: Vec<StepEvent>,
    carried: Vec<StepEvent>,
}

/// `None`: told to end meanwhile.
pub(super) fn begin(
    paths: &AgentPaths,
    signals: &mut SignalFd,
    observer: &mut dyn Observer,
) -> Result<Option<Begun>, StubError> {
    durable::create_dir(&paths.directory())?;
    if let Some(dir) = paths.link().parent() {
        durable::create_dir(dir)?;
    }
    let Some(lock) = Lock::take(paths, signals, observer)? else { return Ok(None) };
    if let Err(e) = sweep_marks(paths) {
        // Then jobs that are found on disk go on unasked, which only matters where STATE is an old copy.
        observer.say(&format!("{}: {e}", paths.asked().display()));
    }
    let door = open_door(paths, observer);
    let (desk, untold, carried) = (Desk::default(), Vec::new(), Vec::new());
    let mut waiting = Waiting { paths, signals, observer, door, desk, untold, carried };
    let mut choices = choose::look(paths, waiting.observer);
    if let Some(fault) = &choices.fault {
        waiting.observer.say(&fault.to_string());
    }
    if choices.ways.is_empty() {
        match choices.fault {
            Some(fault) => return Err(fault.into()),
            None => match waiting.newest()? {
                Some(verified) => choices.ways.push(Choice::first(verified)),
                None => return Ok(None),
            },
        }
    }
    let Some((choice, attached, hold)) = waiting.hold_best(choices.ways)? else { return Ok(None) };
    if let Some(pid) = attached.namespace_pid {
        namespace::enter(pid).map_err(|source| StubError::Namespace { pid, source })?;
    }
    let listener = socket::replace(&paths.socket()).map_err(io_error("the operations socket cannot be bound"))?;
    let path = PathBuf::from(attached.path);
    let Choice { verified, journal, ends } = choice;
    let Waiting { door, desk, untold, carried, .. } = waiting;
    let staged = choices.staged;
    Ok(Some(Begun { lock, listener, journal, verified, path, hold, ends, staged, door, desk, untold, carried }))
}

/// The socket for orders. Without it there is a stub all the same.
fn open_door(paths: &AgentPaths, observer: &mut dyn Observer) -> Option<Door> {
    let path = paths.stub_socket();
    match Door::open(&path) {
        Ok(door) => Some(door),
        Err(e) => {
            observer.say(&format!("no order can be taken while no agent runs: {}: {e}", path.display()));
            None
        }
    }
}

/// The newest record if the daemon has it at once: for a first version that does not come up.
pub(super) fn newest_now(paths: &AgentPaths) -> Option<Verified> {
    let request = DaemonRequest::Newest { product: paths.product().clone() };
    let reply = Client::ask(&paths.daemon_socket(), &request, QUICK_SILENCE).ok()?;
    match reply {
        DaemonReply::Record(bytes) => records::believe(paths, &bytes).ok(),
        DaemonReply::Done
        | DaemonReply::Status(_)
        | DaemonReply::Attached(_)
        | DaemonReply::Bundle(_)
        | DaemonReply::Checked(_)
        | DaemonReply::Traced(_)
        | DaemonReply::Fault(_) => None,
    }
}

impl Waiting<'_> {
    /// A first start: the newest record that the mount daemon knows. `None`: told to end meanwhile.
    fn newest(&mut self) -> Result<Option<Verified>, StubError> {
        let request = DaemonRequest::Newest { product: self.paths.product().clone() };
        let what = format!("the newest version of {}", self.paths.product());
        let Some((reply, _)) = self.ask(&request, &what)? else { return Ok(None) };
        match reply {
            DaemonReply::Record(bytes) => {
                let verified = records::believe(self.paths, &bytes)?;
                records::save(self.paths, &verified)?;
                Ok(Some(verified))
            }
            other => Err(unexpected(&what, &other)),
        }
    }

    /// Has the daemon attach the first of these that it can. The first has some time for itself. `None`: told to end
    /// meanwhile.
    fn hold_best(&mut self, choices: Vec<Choice>) -> Result<Option<(Choice, Attached, Client)>, StubError> {
        let mut ways: Vec<Way> = choices.into_iter().map(Way::of).collect();
        let mut tries = Tries::of(&ways);
        // The first of the ways is an order's, and the next one is what was to be started without it.
        let mut is_ordered = false;
        loop {
            let mut at = 0;
            while at < if tries.is_patient() { 1 } else { ways.len() } {
                let tree = ways[at].wanted.tree();
                let why = match self.look(&mut ways[at], is_ordered && at == 0) {
                    Stand::Attached(attached, hold) => {
                        let why = tries.why_not_first.filter(|_| tree != tries.first);
                        let choice = self.chosen(ways.swap_remove(at).choice, why.as_deref(), is_ordered);
                        return Ok(Some((choice, attached, hold)));
                    }
                    Stand::No(error) => {
                        let why = error.to_string();
                        let way = ways.remove(at);
                        if at == 0 && std::mem::take(&mut is_ordered) {
                            self.give_up_order(&way.choice.journal, &why);
                            tries = Tries::of(&ways);
                        }
                        if ways.is_empty() {
                            return Err(error);
                        }
                        self.observer.say(&why);
                        tries.why_not_first.get_or_insert(why);
                        continue;
                    }
                    Stand::Asked => {
                        at += 1;
                        continue;
                    }
                    Stand::Without(why) => {
                        tries.there_since.get_or_insert_with(Instant::now);
                        why
                    }
                    Stand::Away(e) => {
                        tries.there_since = None;
                        e.to_string()
                    }
                };
                if at == 0 {
                    let line = format!("waiting for the mount daemon to give tree {tree}: {why}");
                    tries.why_not_first = Some(why);
                    // What the manager is asked for is often there in a moment.
                    let is_slow = tries.there_since.is_none_or(|since| since.elapsed() >= LOOK_EVERY);
                    if is_slow && line != tries.said {
                        self.observer.say(&line);
                        tries.said = line;
                    }
                }
                at += 1;
            }
            let answers = ways.iter().filter_map(|way| way.wanted.fd());
            if pause(self.signals, self.door.iter().flat_map(Door::fds).chain(answers), LOOK_EVERY) {
                return Ok(None);
            }
            let now = ways.get(usize::from(is_ordered)).unwrap_or(&ways[0]);
            if let Some(ordered) = self.hear_visitors(&now.choice, &tries.said) {
                // What was to be started goes on being what there is to return to.
                if std::mem::replace(&mut is_ordered, true) {
                    ways.remove(0);
                }
                ways.insert(0, Way::of(ordered));
                tries = Tries::of(&ways);
            }
        }
    }

    /// This one is started; `why_not_first` is why no better one is.
    fn chosen(&mut self, mut choice: Choice, why_not_first: Option<&str>, is_ordered: bool) -> Choice {
        match why_not_first {
            Some(why) if is_ordered => self.give_up_order(&choice.journal, why),
            Some(why) => {
                choice.because(why);
                self.observer.say(&choice.journal.reason);
            }
            None => {
                let order = self.desk.take_complete();
                self.carried = order.map(|order| order.steps).unwrap_or_default();
            }
        }
        choice
    }

    /// Where the daemon stands with this one. An order whose record has no place cannot be carried out.
    fn look(&self, way: &mut Way, is_ordered: bool) -> Stand {
        match way.wanted.look(self.paths) {
            Stand::Attached(attached, hold) if is_ordered => match order::place(self.paths, &way.choice.verified) {
                Ok(()) => Stand::Attached(attached, hold),
                Err(e) => Stand::No(e.into()),
            },
            stand => stand,
        }
    }

    /// Answers whoever is at the door. Returns what is to be started first from now on, if an order says so.
    fn hear_visitors(&mut self, now: &Choice, why: &str) -> Option<Choice> {
        self.tell_untold();
        let mut ordered = None;
        for asked in self.door.as_mut().map(Door::hear).unwrap_or_default() {
            let here = Here {
                paths: self.paths.clone(),
                closed: order::closed_by(&now.journal),
                journal: now.journal.clone(),
                status: stopped(self.paths, &now.journal, why),
            };
            let reply = match &asked.request {
                Err(fault) => AgentReply::Fault(fault.clone()),
                Ok(request) => {
                    let heard = self.desk.hear(request.clone(), &here);
                    self.untold.extend(heard.reports);
                    if let (Next::CarryOut, Some(order)) = (heard.next, &self.desk.order) {
                        let (verified, journal) = (order.verified.clone(), order::intended(&now.journal, order));
                        self.observer.say(&format!("ordered to start {} instead", verified.record.name()));
                        ordered = Some(Choice { verified, journal, ends: None });
                    }
                    heard.reply
                }
            };
            if let Some(door) = &mut self.door {
                door.answer(&asked, &reply);
            }
        }
        self.tell_untold();
        ordered
    }

    /// The order that is here is not what is started.
    fn give_up_order(&mut self, started: &Journal, why: &str) {
        let why = format!("it cannot be started here: {why}");
        if let Some(event) = self.desk.end(self.paths, &started.current, &why) {
            self.untold.push(event);
            self.tell_untold();
        }
    }

    /// There is no thread yet that sends reports: what the daemon does not take at once it is told later.
    fn tell_untold(&mut self) {
        while let Some(event) = self.untold.first() {
            let request = DaemonRequest::Report { event: event.clone() };
            match Client::ask::<_, DaemonReply>(&self.paths.daemon_socket(), &request, QUICK_SILENCE) {
                Ok(_) => drop(self.untold.remove(0)),
                Err(_) => return,
            }
        }
    }

    /// Asks the daemon, waiting for it to be there and able. `None`: told to end meanwhile.
    fn ask(&mut self, request: &DaemonRequest, what: &str) -> Result<Option<(DaemonReply, Client)>, StubError> {
        let mut said = String::new();
        let mut asked = None;
        loop {
            let heard = match asked.take() {
                Some(question) => Question::hear(question),
                None => Question::ask(self.paths, request).map_or_else(Heard::Away, Heard::Nothing),
            };
            let why = match heard {
                Heard::Nothing(question) => {
                    asked = Some(question);
                    None
                }
                Heard::Reply(DaemonReply::Fault(fault @ (Fault::Unavailable(_) | Fault::Failed(_))), _) => {
                    Some(fault.to_string())
                }
                Heard::Reply(DaemonReply::Fault(fault), _) => {
                    return Err(StubError::Daemon { what: what.to_owned(), fault: fault.to_string() });
                }
                Heard::Reply(reply, client) => return Ok(Some((reply, client))),
                Heard::Away(e) => Some(e.to_string()),
            };
            if let Some(why) = why.filter(|why| *why != said) {
                self.observer.say(&format!("waiting for the mount daemon to give {what}: {why}"));
                said = why;
            }
            let answer = asked.as_ref().map(Question::fd);
            if pause(self.signals, self.door.iter().flat_map(Door::fds).chain(answer), LOOK_EVERY) {
                return Ok(None);
            }
            let first = Fault::Unavailable(format!(
                "{} has never run here, and its first start waits: {said}",
                self.paths.product()
            ));
            for asked in self.door.as_mut().map(Door::hear).unwrap_or_default() {
                if let Some(door) = &mut self.door {
                    door.answer(&asked, &AgentReply::Fault(first.clone()));
                }
            }
        }
    }
}

/// One of the ways to start.
struct Way {
    choice: Choice,
    wanted: Wanted,
}

impl Way {
    fn of(choice: Choice) -> Self {
        Self { wanted: Wanted::new(choice.verified.record.tree), choice }
    }
}

/// How it has gone so far with the first of the ways to start.
struct Tries {
    first: TreeId,
    said: String,
    /// Since when the daemon is there, and cannot give it.
    there_since: Option<Instant>,
    why_not_first: Option<String>,
}

impl Tries {
    fn of(ways: &[Way]) -> Self {
        let first = ways.first().map_or(TreeId::of(&[]), |way| way.wanted.tree());
        Self { first, said: String::new(), there_since: None, why_not_first: None }
    }

    /// Whether the first one has all the time for itself.
    fn is_patient(&self) -> bool {
        self.there_since.is_none_or(|since| since.elapsed() < FALL_BACK_AFTER)
    }
}

/// What is said of a product whose agent does not run.
pub(super) fn stopped(paths: &AgentPaths, journal: &Journal, why: &str) -> AgentStatus {
    AgentStatus {
        product: paths.product().clone(),
        version: journal.current.version.clone(),
        tree: journal.current.tree,
        pid: std::process::id(),
        started_unix_ms: 0,
        state: AgentState::Stopped,
        jobs: Vec::new(),
        reason: why.to_owned(),
    }
}
