//! What the commands of policies print with `--json`.

use super::fields::{Document, ONE};

/// The JSON documents of these commands.
pub(super) const DOCUMENTS: &[Document] = &[
    Document { command: "policy create", what: "As policy show, with what changes", fields: &[] },
    Document { command: "policy apply", what: "As policy show, with what changes", fields: &[] },
    Document {
        command: "policy list",
        what: ONE,
        fields: &[("policies[].*?", "each as `policy show`, without hosts")],
    },
    Document { command: "policy show", what: ONE, fields: POLICY },
    Document { command: "policy remove", what: "As policy show, as it was", fields: &[] },
    Document { command: "policy run", what: ONE, fields: RAN },
    Document { command: "protection", what: ONE, fields: PROTECTION },
    Document { command: "policy pause", what: "As policy show", fields: &[] },
    Document { command: "policy resume", what: "As policy show", fields: &[] },
];

/// Path and meaning of each field.
const POLICY: &[(&str, &str)] = &[
    ("policy", "its name"),
    ("text", "what it says, as a file that `policy apply` takes"),
    ("created_unix_ms", "when it was created"),
    ("paused_unix_ms?", "since when it orders nothing"),
    ("tasks[].task", "backup, verify, check or prune"),
    ("tasks[].schedule", "when it is due"),
    ("tasks[].next_unix_ms?", "the next time at which it is, without jitter"),
    ("tasks[].hosts", "hosts that it is done on"),
    ("tasks[].running", "those on which it is under way"),
    ("tasks[].late", "those on which it is due and has not begun"),
    ("tasks[].failed", "those on which the last run failed"),
    ("hosts[].host?", "a host, once for each task; those that need somebody first"),
    ("hosts[].task?", "which"),
    ("hosts[].standing?", "failed, late, running or waiting"),
    ("hosts[].next_unix_ms?", "when it begins, as far as that is known"),
    ("hosts[].reason?", "why it has not begun, for people"),
    (
        "hosts[].last.*?",
        "the last run: job, due_unix_ms, ordered_unix_ms, ended_unix_ms, state, problems, error, snapshots",
    ),
    ("hosts[].good.*?", "the last good run, likewise"),
    ("changes[]?", "policy apply: lines that go (-) and come (+)"),
    ("applied?", "policy apply: whether something was changed"),
    ("left_out", "how many more there are; --host shows one"),
];

/// Of `policy run`.
const RAN: &[(&str, &str)] = &[
    ("jobs[].job?", "a job that was ordered"),
    ("jobs[].host?", "on which host"),
    ("not_ordered[].host?", "a host on which none was"),
    ("not_ordered[].reason?", "why, for people"),
];

/// Of `protection`.
const PROTECTION: &[(&str, &str)] = &[
    ("at_risk", "sources at risk; exit code 3 unless it is 0"),
    ("sources", "all of them"),
    ("rows[].host?", "a source of a host; what is at risk first"),
    ("rows[].source?", "its path"),
    ("rows[].policy?", "which policy promises it"),
    ("rows[].at_risk?", "whether that promise is broken"),
    ("rows[].risks[]?", "what is not as promised, for people"),
    ("rows[].rpo_ms?", "how old the newest good backup may be"),
    ("rows[].backup.*?", "the newest good backup: job, ordered_unix_ms, ended_unix_ms, problems, snapshots"),
    ("rows[].verified.*?", "the newest verification without problems, likewise"),
    ("rows[].restore_tested.*?", "the newest restore test without problems, likewise"),
    ("without_policy[]?", "hosts that no policy backs up"),
];
