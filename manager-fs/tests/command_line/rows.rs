//! One row a command: how it is typed, and whom it asks. A command without a row fails the tests.

use manager_fs::cli::manual::every_command;

/// Whom a command asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// The manager, through its local socket.
    Manager,
    /// This host's mount daemon, through its local socket.
    Daemon,
    /// Neither, or it is a service that says so itself; with the reason why it is not tried here.
    Nobody(&'static str),
}

/// A recovery key.
const RECOVERY: &str =
    "manager-fs-recovery-1:4521557cd220ab608adb734388117cd51b06e1e5a008cba1f40d7e204529422a121fcb72";

/// The rows.
const ROWS: &[(&str, &[&str], Asks)] = &[
    ("serve", &[], Asks::Nobody("it is the manager")),
    ("publish", &["p", "1", "/etc/hostname"], Asks::Manager),
    ("unpublish", &["p@1"], Asks::Manager),
    ("generations", &[], Asks::Manager),
    ("show", &["p@1"], Asks::Manager),
    ("diff", &["p@1", "p@2"], Asks::Manager),
    ("verify", &[], Asks::Manager),
    ("gc", &[], Asks::Manager),
    ("record list", &[], Asks::Manager),
    ("record remove", &["host/h"], Asks::Manager),
    ("recover", &[], Asks::Nobody("it works on a store that no manager has open")),
    ("store backup", &["/nowhere/b"], Asks::Nobody("without a manager it works on the store itself")),
    ("store restore", &["/nowhere/b"], Asks::Nobody("it works on a directory that is no store yet")),
    ("save", &["p@1", "/nowhere/f"], Asks::Manager),
    ("load", &["/nowhere/f"], Asks::Manager),
    ("export", &["p@1", "--to", "h"], Asks::Manager),
    ("unexport", &["p@1", "--from", "h"], Asks::Manager),
    ("hosts", &[], Asks::Manager),
    ("host revoke", &["h"], Asks::Manager),
    ("host forget", &["h"], Asks::Manager),
    ("host label", &["h", "site=fra"], Asks::Manager),
    ("host group rule", &["g", "site=fra"], Asks::Manager),
    ("host group add", &["g", "h"], Asks::Manager),
    ("host group remove", &["g", "h"], Asks::Manager),
    ("host group list", &[], Asks::Manager),
    ("host group delete", &["g"], Asks::Manager),
    ("token", &["h"], Asks::Manager),
    ("api-token add", &["n", "--role", "viewer"], Asks::Manager),
    ("api-token list", &[], Asks::Manager),
    ("api-token revoke", &["n"], Asks::Manager),
    ("enroll", &[], Asks::Nobody("it asks the manager over the network, with a token: tests/tests/cli.rs")),
    ("upgrade", &["p", "p@1", "--to", "h"], Asks::Manager),
    ("rollout plan", &["/dev/null"], Asks::Manager),
    ("rollout start", &[], Asks::Manager),
    ("rollout status", &[], Asks::Manager),
    ("rollout watch", &[], Asks::Manager),
    ("rollout pause", &[], Asks::Manager),
    ("rollout resume", &[], Asks::Manager),
    ("rollout abort", &[], Asks::Manager),
    ("rollout rollback", &[], Asks::Manager),
    ("rollout force", &["h", "--reason", "x"], Asks::Manager),
    ("rollout history", &[], Asks::Manager),
    (
        "policy create",
        &["n", "--hosts", "h", "--source", "/s", "--repository", "/r", "--schedule", "daily 02:00"],
        Asks::Manager,
    ),
    ("protection", &[], Asks::Manager),
    ("policy apply", &["/dev/null"], Asks::Manager),
    ("policy list", &[], Asks::Manager),
    ("policy show", &["n"], Asks::Manager),
    ("policy remove", &["n"], Asks::Manager),
    ("policy run", &["n"], Asks::Manager),
    ("policy pause", &["n"], Asks::Manager),
    ("policy resume", &["n"], Asks::Manager),
    ("agents", &[], Asks::Manager),
    ("job backup", &["--host", "h", "--repository", "/r", "/s"], Asks::Manager),
    ("job restore", &["--host", "h", "--repository", "/r", "--snapshot", "latest", "--target", "/t"], Asks::Manager),
    ("job restore-test", &["--host", "h", "--repository", "/r"], Asks::Manager),
    ("job verify", &["--host", "h", "--repository", "/r"], Asks::Manager),
    ("job check", &["--host", "h", "--repository", "/r"], Asks::Manager),
    ("job prune", &["--host", "h", "--repository", "/r", "--keep-last", "1"], Asks::Manager),
    ("job forget", &["--host", "h", "--repository", "/r", "--keep-daily", "7"], Asks::Manager),
    ("job snapshots", &["--host", "h", "--repository", "/r"], Asks::Manager),
    ("job ls", &["--host", "h", "--repository", "/r"], Asks::Manager),
    ("job find", &["--host", "h", "--repository", "/r", "*.o"], Asks::Manager),
    ("job diff", &["--host", "h", "--repository", "/r", "a1b2c3"], Asks::Manager),
    ("job dump", &["--host", "h", "--repository", "/r", "/p"], Asks::Manager),
    ("job run", &["p", "k", "--host", "h", "--arg", "a=b"], Asks::Manager),
    ("job list", &[], Asks::Manager),
    ("job show", &["1"], Asks::Manager),
    ("job wait", &["1"], Asks::Manager),
    ("job cancel", &["1"], Asks::Manager),
    ("repository create", &["r", "--on", "h", "--path", "/r"], Asks::Manager),
    ("repository list", &[], Asks::Manager),
    ("repository show", &["r"], Asks::Manager),
    ("repository certificate", &["r"], Asks::Manager),
    ("repository remove", &["r"], Asks::Manager),
    ("repository token add", &["r"], Asks::Manager),
    ("repository token list", &["r"], Asks::Manager),
    ("repository token revoke", &["r", "0123456789abcdef"], Asks::Manager),
    ("repository key new", &["/dev/null"], Asks::Nobody("it writes a file")),
    ("repository key escrow", &["r", "--to", RECOVERY], Asks::Manager),
    ("repository key recover", &["/dev/null", "--secret", "/dev/null"], Asks::Nobody("it reads two files")),
    ("repository key add", &["r", "--to", RECOVERY], Asks::Manager),
    ("repository key list", &["r"], Asks::Manager),
    ("repository key remove", &["r", "k"], Asks::Manager),
    ("launch", &["p"], Asks::Nobody("a service: it waits for its daemon, and says so")),
    ("permits check", &["--restore", "/srv/x"], Asks::Nobody("it reads a file of this host")),
    ("rescue", &["p", "--to", "p@1"], Asks::Nobody("it works offline")),
    ("mount", &[], Asks::Nobody("it is the mount daemon")),
    ("unmount", &[], Asks::Daemon),
    ("status", &[], Asks::Daemon),
    ("attach", &["p@1"], Asks::Daemon),
    ("release", &["p@1"], Asks::Daemon),
    ("exec", &["p@1", "--", "true"], Asks::Daemon),
    ("profile", &["p@1"], Asks::Daemon),
    ("demo", &[], Asks::Nobody("it starts its own")),
    ("completions", &["bash"], Asks::Nobody("it asks nobody")),
    ("man", &["."], Asks::Nobody("it asks nobody")),
];

/// The command line of each command that asks somebody, and whom.
pub(crate) fn every_asking_command() -> Vec<(Vec<&'static str>, Asks)> {
    let asking = ROWS.iter().filter(|(_, _, asks)| !matches!(asks, Asks::Nobody(_)));
    asking
        .map(|(path, arguments, asks)| (path.split(' ').chain(arguments.iter().copied()).collect(), *asks))
        .collect()
}

#[test]
fn every_command_has_a_row_and_parses_as_it_is_typed_there() {
    let commands: Vec<String> = every_command().into_iter().map(|(path, _)| path).collect();
    for path in &commands {
        assert!(ROWS.iter().any(|(row, _, _)| row == path), "{path} has no row in rows.rs");
    }
    for (path, arguments, asks) in ROWS {
        assert!(commands.iter().any(|command| command == path), "a row for {path}, which there is not");
        if !matches!(asks, Asks::Nobody(_)) {
            let words = ["manager-fs"].into_iter().chain(path.split(' ')).chain(arguments.iter().copied());
            let parsed = manager_fs::cli::manual::commands().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{path}: {}", parsed.unwrap_err());
        }
    }
}
