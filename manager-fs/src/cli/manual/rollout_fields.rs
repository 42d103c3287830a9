//! The fields of a rollout, which most of its commands print.

/// Path and meaning of each field.
pub(super) const ROLLOUT: &[(&str, &str)] = &[
    ("rollout", "its number; 0: nothing was kept"),
    ("product", "which agents"),
    ("version", "to which version"),
    ("state", "planned, running, paused, halted, rolling_back, rolled_back, done or aborted"),
    ("since_unix_ms", "since when"),
    ("planned_unix_ms", "when it was planned"),
    ("started_unix_ms?", "when it was started"),
    ("halted?", "why it stopped itself, for people"),
    ("next_unix_ms?", "when something is due next, if nothing happens before"),
    ("rings[].name", "a ring"),
    ("rings[].phase", "waiting, canaries, canary_soak, waves, soak or done"),
    ("rings[].done", "whether it has the new version"),
    ("rings[].since_unix_ms", "since when"),
    ("rings[].canaries", "canaries that it has"),
    ("rings[].at_once", "hosts that change over at once"),
    ("rings[].before?", "the version that most of its hosts ran before"),
    ("rings[].hosts.*", "how many hosts there are, and how many are in each state"),
    ("jobs.*", "operations of hosts that have changed over: done and failed"),
    ("baseline.*", "those before the rollout"),
    ("restarts", "agents that were started anew after they had proved themselves"),
    ("problems[].*?", "hosts that are not as ordered: state, reason, count, and the first of them"),
    ("history[].*?", "what happened, and when: at_unix_ms and text"),
];

pub(super) const HISTORY: &[(&str, &str)] = &[("rollouts[].*?", "each as `rollout plan`, the newest last")];
