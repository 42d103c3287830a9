//! A policy as an operator sees it.

use proto::message::Unix;
use std::collections::BTreeMap;

use proto::HostName;
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::definition::Policy;
use super::machine::vocabulary::{LaneNo, Task, Waits};
use super::runs::{LaneKey, RunFact};
use crate::manager::control::policies::PolicyRecord;

/// Lanes that are shown of one policy.
const LANES_MAX: usize = 2000;

/// When hosts were last there.
pub(super) type Seen = BTreeMap<HostName, Unix>;

/// A policy, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// What it promises.
    pub policy: Policy,
    /// When it was created.
    pub created: Unix,
    /// Since when it orders nothing.
    pub paused: Option<Unix>,
    /// Its tasks.
    pub tasks: Vec<TaskView>,
    /// Its hosts, those that need somebody first.
    pub lanes: Vec<LaneView>,
    /// Lanes that are not shown.
    pub left_out: u64,
}

/// One task of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// Which.
    pub task: Task,
    /// When it is due.
    pub schedule: String,
    /// The next slot.
    pub next: Option<Unix>,
    /// Hosts that it is done on.
    pub hosts: u32,
    /// Those on which it is under way.
    pub running: u32,
    /// Those on which it is late.
    pub late: u32,
    /// Those on which the last run failed.
    pub failed: u32,
}

/// One task on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    /// Which host.
    pub host: HostName,
    /// Which task.
    pub task: Task,
    /// The last run.
    pub last: Option<RunFact>,
    /// The last good one.
    pub good: Option<RunFact>,
    /// How it stands.
    pub standing: Standing,
    /// When something will be begun, as far as it is known.
    pub next: Option<Unix>,
    /// Why nothing is under way.
    pub waits: Waits,
    /// When the host was last there, if it is away.
    pub seen: Option<Unix>,
}

impl LaneView {
    /// Why nothing is under way, for people; empty of what is, or is not due. `moment` is how times are written.
    pub fn reason(&self, moment: impl Fn(Unix) -> String) -> String {
        waits_for(self.waits, &self.host, self.seen, moment)
    }
}

/// What a task on a host waits for, for people; nothing of one that is under way, or not due.
pub fn waits_for(waits: Waits, host: &HostName, seen: Option<Unix>, moment: impl Fn(Unix) -> String) -> String {
    match waits {
        Waits::Running | Waits::Until(Some(_)) => String::new(),
        Waits::Until(None) => String::from("is never due again"),
        Waits::Paused => String::from("the policy is paused"),
        Waits::Away => match seen {
            Some(seen) => format!("{host} is away since {}", moment(seen)),
            None => format!("{host} has never been there"),
        },
        Waits::Window(Some(opens)) => format!("waits for its window until {}", moment(opens)),
        Waits::Window(None) => String::from("its window never opens"),
        Waits::NoBackup => String::from("waits for the first good backup"),
        Waits::Behind(task) => format!("waits for the {task} that is under way there"),
        Waits::Host(limit) => format!("waits: {limit} under way on {host}, as many as may be"),
        Waits::Repository(limit) => format!("waits: {limit} under way at the repository, as many as may be"),
        Waits::Site(limit) => format!("waits: {limit} under way at its site, as many as may be"),
    }
}

/// How a task on a host stands. In the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The last run failed, or was cancelled.
    Failed,
    /// A slot has passed, and it has not begun.
    Late,
    /// It is under way.
    Running,
    /// It is not due.
    Waiting,
}

/// A policy as it stands, all of it or one host.
pub(super) fn view(
    board: &Board,
    record: &PolicyRecord,
    host: Option<&HostName>,
    seen: &Seen,
    now: Unix,
) -> PolicyView {
    let policy = &record.policy;
    let of_policy = board.lanes_of(&policy.name);
    let mut lanes: Vec<LaneView> = of_policy
        .iter()
        .filter(|((_, of, _), _)| host.is_none_or(|host| host == of))
        .map(|(key, lane)| lane_view(board, key, *lane, seen))
        .collect();
    lanes.sort_by(|a, b| (a.standing, &a.host, a.task).cmp(&(b.standing, &b.host, b.task)));
    let tasks = Task::ALL.into_iter().filter_map(|task| task_view(policy, task, &lanes, now)).collect();
    let left_out = lanes.len().saturating_sub(LANES_MAX) as u64;
    lanes.truncate(LANES_MAX);
    PolicyView { policy: policy.clone(), created: record.created, paused: record.paused, tasks, lanes, left_out }
}

fn task_view(policy: &Policy, task: Task, lanes: &[LaneView], now: Unix) -> Option<TaskView> {
    let schedule = policy.schedule_of(task)?;
    let of_task = || lanes.iter().filter(|lane| lane.task == task);
    let in_state = |standing| proto::width::count(of_task().filter(|lane| lane.standing == standing).count());
    Some(TaskView {
        task,
        schedule: schedule.to_string(),
        next: schedule.next(now),
        hosts: proto::width::count(of_task().count()),
        running: in_state(Standing::Running),
        late: in_state(Standing::Late),
        failed: in_state(Standing::Failed),
    })
}

fn lane_view(board: &Board, key: &LaneKey, lane: LaneNo, seen: &Seen) -> LaneView {
    let (_, host, task) = key;
    let (waits, runs) = (board.machine.waits(lane), board.runs.lane(key));
    let failed = runs.last.as_ref().is_some_and(|run| run.state.is_final() && run.error.is_some());
    let standing = match waits {
        Waits::Running => Standing::Running,
        _ if failed => Standing::Failed,
        _ if board.machine.late(lane).is_some() => Standing::Late,
        _ => Standing::Waiting,
    };
    let next = match waits {
        Waits::Until(at) | Waits::Window(at) => at,
        _ => None,
    };
    let seen = if waits == Waits::Away { seen.get(host).copied() } else { None };
    LaneView { host: host.clone(), task: *task, last: runs.last, good: runs.good, standing, next, waits, seen }
}
