//! Examples of every command: a line to type, and what it does.

type Examples = &'static [(&'static str, &'static str)];

/// The examples of a command, by its names from the top (`job backup`).
pub(super) fn of(path: &str) -> Examples {
    EXAMPLES.iter().find(|(command, _)| *command == path).map_or(&[], |(_, examples)| examples)
}

/// Every command that has examples.
#[cfg(test)]
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    EXAMPLES.iter().map(|(command, _)| *command)
}

const EXAMPLES: &[(&str, Examples)] = &[
    (
        "serve",
        &[
            ("manager-fs serve --store /srv/manager-fs", "serve hosts on port 7420; the store is made if need be"),
            ("manager-fs serve --listen 127.0.0.1:0", "on a free port, which STORE/address names"),
            ("manager-fs serve --http 0.0.0.0:7443", "with the console and the API (docs/console.md, docs/api.md)"),
        ],
    ),
    (
        "publish",
        &[
            ("manager-fs publish data-agent 2.0 ./build/data-agent", "take in a directory"),
            ("manager-fs publish node 22.1 node-22.1.tar.xz --entrypoint bin/node", "an archive, and what to start"),
            ("manager-fs publish data-agent 2.0.1 ./fix --onto data-agent@2.0", "only the files that changed"),
            ("manager-fs publish data-agent 2.0 ./build/arm64", "the same version for another kind of machine"),
        ],
    ),
    ("unpublish", &[("manager-fs unpublish data-agent@1.9", "take it back; `gc` then frees its space")]),
    (
        "generations",
        &[
            ("manager-fs generations", "all of them"),
            ("manager-fs generations data-agent --json", "those of one product, for a program"),
        ],
    ),
    ("show", &[("manager-fs show data-agent@2.0", "what is known of it: entry point, libraries, exports")]),
    ("diff", &[("manager-fs diff data-agent@1.9 data-agent@2.0", "which files were added, removed and changed")]),
    (
        "verify",
        &[
            ("manager-fs verify", "read every pack; exit code 3 where something is wrong"),
            ("manager-fs verify --repair", "and put it back from hosts; exit code 0 when all is whole again"),
            ("manager-fs verify --repair --from ./data-agent-2.0.tar.gz", "out of the published files, too"),
            ("manager-fs verify --host --repair", "the cache of this host"),
        ],
    ),
    ("gc", &[("manager-fs gc --dry-run", "what would be freed"), ("manager-fs gc", "free it")]),
    ("record list", &[("manager-fs record list", "what cannot be read, and why not")]),
    ("record remove", &[("manager-fs record remove job/000006b1a0c4f3d2", "one that cannot be read")]),
    ("recover", &[("manager-fs recover --store /var/lib/manager-fs/store", "after the manager has ended")]),
    (
        "store backup",
        &[
            ("manager-fs store backup /backup/manager-2026-12-01", "while it serves; packs/ is copied by itself"),
            ("manager-fs store backup --packs /backup/all-2026-12-01", "one file with everything"),
        ],
    ),
    (
        "store restore",
        &[(
            "manager-fs store restore /backup/all-2026-12-01 --store /srv/manager-fs",
            "on this machine or another, before `serve`",
        )],
    ),
    (
        "save",
        &[
            ("manager-fs save data-agent@2.1 /media/usb/agents", "all of it, for a side that has nothing"),
            ("manager-fs save data-agent@2.1 /media/usb/agents --have /media/usb/have", "only what it lacks"),
        ],
    ),
    (
        "load",
        &[
            ("manager-fs load --have > /media/usb/have", "what this side has"),
            ("manager-fs load /media/usb/agents", "from a manager with the same keys"),
            (
                "manager-fs load /media/usb/agents --publisher 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29",
                "from another one, whose key `show` prints there",
            ),
        ],
    ),
    (
        "export",
        &[
            ("manager-fs export data-agent@2.0 --to host-17", "to one host"),
            ("manager-fs export data-agent@2.0 --to @production host-18", "to a group, and to a host beside it"),
        ],
    ),
    (
        "unexport",
        &[("manager-fs unexport data-agent@1.9 --from @production", "refused where it is attached, unless --force")],
    ),
    (
        "hosts",
        &[
            ("manager-fs hosts", "which hosts there are, and which are connected"),
            ("manager-fs hosts @production --label site=fra --only away", "those of a site that are away"),
        ],
    ),
    (
        "host label",
        &[("manager-fs host label host-17 site=fra role=db", "by which it is found, and comes to groups")],
    ),
    ("host group rule", &[("manager-fs host group rule frankfurt site=fra !spare", "who is in it from now on")]),
    ("host revoke", &[("manager-fs host revoke host-17", "cut its connections, and refuse it from now on")]),
    ("host forget", &[("manager-fs host forget host-17", "it must enrol to come back")]),
    ("host group add", &[("manager-fs host group add production host-17 host-18", "made if need be")]),
    ("host group remove", &[("manager-fs host group remove production host-18", "it keeps its own exports")]),
    ("host group list", &[("manager-fs host group list", "every group with its hosts")]),
    ("host group delete", &[("manager-fs host group delete production", "and the exports to it")]),
    (
        "token",
        &[
            ("manager-fs token host-17 > token", "one line, to be carried to the host"),
            ("manager-fs token host-17 --ttl 1h", "valid for an hour"),
        ],
    ),
    (
        "api-token add",
        &[
            ("manager-fs api-token add on-call --role operator > token", "one line, for the console or a program"),
            ("manager-fs api-token add board --role viewer --expires 90d", "good for three months"),
            (
                "manager-fs api-token add ci --role publisher --certificate ci.pem",
                "whoever has the key of this certificate",
            ),
        ],
    ),
    ("api-token list", &[("manager-fs api-token list", "who is let in, as what, and until when")]),
    ("api-token revoke", &[("manager-fs api-token revoke on-call", "refused from the next request on")]),
    (
        "enroll",
        &[
            ("manager-fs enroll --manager manager.example:7420 --token-file token", "with a token in a file"),
            (
                "manager-fs token host-17 | ssh host-17 manager-fs enroll --manager manager.example:7420 --token-file -",
                "from the manager's machine: the token is never in a list of processes",
            ),
        ],
    ),
    (
        "mount",
        &[
            ("manager-fs mount", "in the foreground; the view is at RUN/mnt"),
            ("manager-fs mount /agents --cache-quota 20G", "the view at /agents, with a bounded cache"),
        ],
    ),
    ("unmount", &[("manager-fs unmount", "what is in use stays mounted until its programs end")]),
    (
        "status",
        &[
            ("manager-fs status", "connection, cache, generations, agents"),
            ("manager-fs status --json", "the same for a program"),
        ],
    ),
    ("attach", &[("manager-fs attach data-agent@2.0", "prints the path of its tree, and keeps it")]),
    ("release", &[("manager-fs release data-agent@2.0", "it is unmounted when nobody uses it")]),
    (
        "exec",
        &[
            ("manager-fs exec node@22.1 -- node --version", "a program of its bin directories"),
            ("manager-fs exec data-agent@2.0", "its entry point"),
        ],
    ),
    (
        "profile",
        &[
            ("manager-fs profile data-agent@2.0", "run its entry point until it is up"),
            ("manager-fs profile node@22.1 -- node app.js", "another program; recordings add up"),
        ],
    ),
    ("launch", &[("manager-fs launch data-agent", "the newest exported version, or the one that ran last")]),
    ("permits check", &[("manager-fs permits check --restore /srv/restored", "as the host's administrator")]),
    ("rescue", &[("manager-fs rescue data-agent --to data-agent@2.0", "while no launch of it runs")]),
    (
        "upgrade",
        &[
            ("manager-fs upgrade data-agent data-agent@2.1 --to @production", "and follow it to its end"),
            (
                "manager-fs upgrade data-agent data-agent@2.1 --to @production --canary 5 --batch 10% --max-failures 2",
                "as a rollout: five first, then a tenth at once, and no more after the third failure",
            ),
            ("manager-fs upgrade data-agent data-agent@2.0 --to host-17", "back again: the same operation"),
            (
                "manager-fs upgrade data-agent data-agent@2.1 --to host-17 --export --no-wait",
                "export it first, and do not wait",
            ),
        ],
    ),
    (
        "rollout plan",
        &[
            ("manager-fs rollout plan ./data-agent-2.1.toml --dry-run", "who would be in which ring now"),
            ("manager-fs rollout plan ./data-agent-2.1.toml", "keep it; prints its number"),
        ],
    ),
    ("rollout start", &[("manager-fs rollout start --watch", "the one that was planned last, and follow it")]),
    ("rollout status", &[("manager-fs rollout status", "rings, and hosts that are not as ordered, by the reason")]),
    ("rollout watch", &[("manager-fs rollout watch", "Ctrl-C leaves it running")]),
    ("rollout pause", &[("manager-fs rollout pause", "what was ordered goes on")]),
    ("rollout resume", &[("manager-fs rollout resume", "also after it has halted")]),
    ("rollout abort", &[("manager-fs rollout abort", "what has changed over stays")]),
    ("rollout rollback", &[("manager-fs rollout rollback", "also of one that is done")]),
    (
        "rollout force",
        &[("manager-fs rollout force host-17 --reason needed-tonight", "outside of its window, or once more")],
    ),
    (
        "rollout history",
        &[
            ("manager-fs rollout history", "every rollout"),
            ("manager-fs rollout history 00h6q-8tz4c", "what happened in one, and when"),
        ],
    ),
    (
        "policy create",
        &[(
            "manager-fs policy create hourly --hosts @servers --source /srv --repository /mnt/backup --schedule hourly",
            "what is not said is usual; \"daily 02:00 Europe/Berlin\" is a schedule, too",
        )],
    ),
    (
        "policy apply",
        &[
            ("manager-fs policy apply ./nightly.toml --dry-run", "what would change"),
            ("manager-fs policy apply ./nightly.toml", "change it"),
        ],
    ),
    ("policy list", &[("manager-fs policy list", "how many hosts are late, or failed")]),
    (
        "policy show",
        &[
            ("manager-fs policy show nightly", "hosts that need somebody first"),
            ("manager-fs policy show nightly --toml > nightly.toml", "as a file, to change and apply"),
        ],
    ),
    ("protection", &[("manager-fs protection --at-risk", "what somebody must look at, and why")]),
    ("policy remove", &[("manager-fs policy remove nightly", "its snapshots stay")]),
    ("policy run", &[("manager-fs policy run nightly --host host-17", "now, whatever its schedule says")]),
    ("policy pause", &[("manager-fs policy pause nightly", "what is under way goes on")]),
    ("policy resume", &[("manager-fs policy resume nightly", "what was missed is made up for once")]),
    ("agents", &[("manager-fs agents", "with the steps of each last change-over")]),
    (
        "job backup",
        &[
            (
                "manager-fs job backup --host host-17 --repository /backup/repo /srv/data",
                "back up one directory, and follow it to its end",
            ),
            (
                "manager-fs job backup --host host-17 --repository /backup/repo /srv /etc --detach",
                "print its number only",
            ),
            (
                "manager-fs job backup --host host-17 --repository /backup/repo /home --exclude '*.iso' --exclude-caches",
                "without images and caches",
            ),
            ("manager-fs job backup --host host-17 --repository /backup/repo /srv --dry-run", "what would be stored"),
            (
                "manager-fs job backup --host host-17 --repository /backup/repo --stdin-from-command dump",
                "what a command prints that the host's permits.toml calls so",
            ),
            (
                "manager-fs job backup --host host-17 --repository /backup/repo /srv --limit-upload 5M",
                "no more than that a second",
            ),
        ],
    ),
    (
        "job restore",
        &[
            (
                "manager-fs job restore --host host-17 --repository /backup/repo --snapshot latest --target /srv/restored",
                "the newest snapshot",
            ),
            (
                "manager-fs job restore --host host-17 --repository /backup/repo --snapshot latest --target /srv/back --include /srv/a",
                "only some of its files",
            ),
            (
                "manager-fs job restore --host host-17 --repository main --snapshot latest --target /srv --overwrite always --dry-run",
                "in place: what would be written over",
            ),
        ],
    ),
    (
        "job restore-test",
        &[("manager-fs job restore-test --host host-17 --repository /backup/repo", "a sample of each source")],
    ),
    ("job verify", &[("manager-fs job verify --host host-17 --repository /backup/repo", "against the source")]),
    (
        "job check",
        &[(
            "manager-fs job check --host host-17 --repository /backup/repo --read-data",
            "every byte, by the media agent",
        )],
    ),
    (
        "job prune",
        &[(
            "manager-fs job prune --host host-17 --repository /backup/repo --keep-last 7",
            "seven of each source stay",
        )],
    ),
    (
        "job forget",
        &[(
            "manager-fs job forget --host host-17 --repository /backup/repo --keep-daily 7 --keep-weekly 4 --dry-run",
            "what would stay of each source of each host",
        )],
    ),
    (
        "job snapshots",
        &[("manager-fs job snapshots --host host-17 --repository /backup/repo --any-host", "of every host")],
    ),
    (
        "job ls",
        &[("manager-fs job ls --host host-17 --repository /backup/repo /srv/data", "one directory of the newest")],
    ),
    (
        "job find",
        &[
            ("manager-fs job find --host host-17 --repository /backup/repo '*.conf'", "in all of its snapshots"),
            ("manager-fs job find --host host-17 --repository /backup/repo -O 2026-01-31", "modified since"),
        ],
    ),
    ("job diff", &[("manager-fs job diff --host host-17 --repository /backup/repo latest~1", "what changed since")]),
    (
        "job dump",
        &[(
            "manager-fs job dump --host host-17 --repository /backup/repo /srv/data/a.conf",
            "the file, as it was; permits.toml must allow it",
        )],
    ),
    (
        "job run",
        &[(
            "manager-fs job run worker digest --host host-17 --arg pause_ms=50",
            "an operation that the program of worker brings itself",
        )],
    ),
    (
        "job list",
        &[
            ("manager-fs job list --limit 20", "the newest twenty"),
            ("manager-fs job list --only failed --since 1d --host @servers", "what failed there since yesterday"),
        ],
    ),
    ("job show", &[("manager-fs job show 7", "its state, snapshots and problems")]),
    ("job wait", &[("manager-fs job wait 7", "follow it; Ctrl-C leaves it running")]),
    (
        "repository create",
        &[
            (
                "manager-fs repository create main --on vault --path /srv/repository",
                "served by the media agent of vault, at vault:7421",
            ),
            (
                "manager-fs repository create cloud --on vault --s3 https://s3.example/backups/cloud",
                "in a bucket; storage.toml of vault says what lets that host in",
            ),
            (
                "manager-fs repository create far --on vault --sftp sftp://backup@store.example//srv/main",
                "on a host that is reached by SSH; storage.toml of vault says by which key",
            ),
            (
                "manager-fs repository create main --on vault-2 --path /srv/repository --password-file /srv/p --adopt",
                "vault is lost, its disk in vault-2; /srv/p has what `repository key recover` printed",
            ),
        ],
    ),
    ("repository list", &[("manager-fs repository list", "what is served, and by whom")]),
    ("repository show", &[("manager-fs repository show main", "where it lies and how it is reached")]),
    (
        "repository certificate",
        &[(
            "manager-fs repository certificate main > main.pem",
            "then: restic --cacert main.pem -r rest:https://me:TOKEN@vault:7421/main/ …",
        )],
    ),
    ("repository remove", &[("manager-fs repository remove main", "served no longer; what lies in it stays")]),
    (
        "repository token add",
        &[("manager-fs repository token add main --access append --ttl 2h > token", "for a person's own program")],
    ),
    ("repository token list", &[("manager-fs repository token list main", "their numbers, and when they end")]),
    (
        "repository token revoke",
        &[("manager-fs repository token revoke main 5e5e5e5e5e5e5e5e", "whoever has it is let in no longer")],
    ),
    (
        "repository key new",
        &[("manager-fs repository key new recovery.secret > recovery.key", "once; keep recovery.secret in a safe")],
    ),
    (
        "repository key escrow",
        &[(
            "manager-fs repository key escrow main --to recovery.key > main.sealed",
            "to be kept anywhere but on the host that serves it",
        )],
    ),
    (
        "repository key recover",
        &[(
            "manager-fs repository key recover main.sealed --secret recovery.secret > password",
            "then: restic --password-file password -r /srv/repository …",
        )],
    ),
    (
        "repository key add",
        &[(
            "manager-fs repository key add main --to alice.key > alice.sealed",
            "for one person, until it is removed",
        )],
    ),
    ("repository key list", &[("manager-fs repository key list main", "as `restic key list` does")]),
    ("repository key remove", &[("manager-fs repository key remove main 4e4e…", "its password opens nothing more")]),
    ("job cancel", &[("manager-fs job cancel 7", "it stops at its next unit boundary")]),
    (
        "demo",
        &[
            ("manager-fs demo", "needs the reference agent beside this program"),
            ("manager-fs demo --dir /var/tmp --json", "elsewhere, as one JSON document"),
        ],
    ),
    (
        "completions",
        &[("manager-fs completions bash > /etc/bash_completion.d/manager-fs", "for new shells of every user")],
    ),
    ("man", &[("manager-fs man /usr/local/share/man/man1", "then: man manager-fs-publish")]),
];
