use super::super::definition::difference;
use super::super::machine::vocabulary::Task;
use super::*;

const SMALL: &str = "name = \"nightly\"\nhosts = [\"@all\"]\nsources = [\"/srv\"]\nrepository = \"/mnt/backup\"\n\
                     schedule = \"daily 02:00 Europe/Berlin\"\n";

#[test]
fn what_a_policy_does_not_say_is_usual() {
    let policy = Policy::parse(SMALL).unwrap();
    assert_eq!((policy.jitter_ms, policy.window, policy.rpo_ms), (0, None, None));
    assert_eq!((policy.product.as_str(), policy.media_product.as_str()), ("data-agent", "media-agent"));
    assert_eq!(policy.limits, Limits { repository: 100, host: 1, site: UNLIMITED });
    assert_eq!((policy.schedule_of(Task::Verify), policy.schedule_of(Task::Prune)), (None, None));
    assert_eq!(policy.promised_ms(Task::Backup), Some(36 * 3_600_000), "one and a half times a day");
    assert_eq!(policy.promised_ms(Task::Check), None);
}

/// Everything that can be said.
fn large() -> String {
    String::from(
        r#"
        name          = "nightly"
        hosts         = ["host-7", "@servers"]
        sources       = ["/srv/a \"b\"", "/etc"]
        repository    = "/mnt/backup"
        password-file = "/etc/secret"
        product       = "data-agent"
        schedule      = "daily 02:00 Europe/Berlin"
        jitter        = "30m"
        window        = "22:00-06:00"
        rpo           = "26h"
        verify        = "weekly"
        restore-test  = "monthly 1"
        media         = ["media-1"]
        check         = "weekly saturday"
        prune         = "weekly sunday 06:00"
        [keep]
        last    = 1
        daily   = 7
        weekly  = 4
        monthly = 12
        within  = "3d"
        tags    = ["forever"]
        [limits]
        repository = 10
        host       = 2
        site       = 4
        sites      = ["@berlin", "@paris"]
        [backup]
        exclude = ["*.o"]
        exclude-caches = true
        exclude-larger-than = 1000000
        one-file-system = true
        together = true
        tags = ["web"]
        readers = 2
        compression = 3
        before = "freeze"
        after = "thaw"
        command-deadline = "90s"
        "#,
    )
}

#[test]
fn everything_that_can_be_said_is_read_and_written_the_same() {
    let policy = Policy::parse(&large()).unwrap();
    assert_eq!(
        policy.check.as_ref().map(ToString::to_string).as_deref(),
        Some("weekly saturday 02:00 Europe/Berlin")
    );
    assert_eq!((policy.keep.monthly, policy.keep.within_seconds), (12, Some(3 * 24 * 3600)));
    assert_eq!((policy.rpo_ms, policy.jitter_ms, policy.sites.len()), (Some(26 * 3_600_000), 1_800_000, 2));
    assert_eq!((policy.options.compression, policy.options.exclude_larger_than), (Some(3), Some(1_000_000)));
    let (before, after) = (policy.commands.before.as_ref(), policy.commands.after.as_ref());
    let names = [before, after].map(|name| name.map(ToString::to_string));
    assert_eq!((names, policy.commands.seconds), ([Some("freeze".into()), Some("thaw".into())], 90));
    let served = Policy::parse(&SMALL.replace("/mnt/backup", "main")).unwrap();
    assert_eq!(served.place.repository().path, "main");
    for policy in [policy, served, Policy::parse(SMALL).unwrap()] {
        assert_eq!(Policy::parse(&policy.text()), Ok(policy.clone()), "{}", policy.text());
        assert_eq!(difference(Some(&policy), &policy), Vec::<String>::new());
    }
}

#[test]
fn a_difference_is_the_lines_that_go_and_come() {
    let old = Policy::parse(SMALL).unwrap();
    let new = Policy::parse(&format!("{}jitter = \"30m\"\nverify = \"weekly\"\n", SMALL)).unwrap();
    let lines = ["- jitter = \"0s\"", "+ jitter = \"30m\"", "+ verify = \"weekly sunday 02:00 Europe/Berlin\""];
    assert_eq!(difference(Some(&old), &new), lines);
    let back = ["- jitter = \"30m\"", "+ jitter = \"0s\"", "- verify = \"weekly sunday 02:00 Europe/Berlin\""];
    assert_eq!(difference(Some(&new), &old), back);
    assert_eq!(difference(None, &old).len(), old.text().lines().count());
}

#[test]
fn a_refusal_names_the_line_and_the_fault() {
    let with = |line: &str| format!("{SMALL}{line}\n");
    let cases = [
        (with("jitter = \"soon\""), "line 6", "soon"),
        (with("jitter = \"2d\""), "line 6", "longer than 1 days"),
        (with("window = \"22:00\""), "line 6", "no window"),
        (with("verify = \"never\""), "line 6", "no schedule"),
        (SMALL.replace("Berlin", "Berlyn"), "line 5", "no time zone"),
        (SMALL.replace("/mnt/backup", "./backup"), "line 4", "not an absolute path"),
        (SMALL.replace("\"/mnt/backup\"", "\"main\"\npassword-file = \"/p\""), "line 5", "whoever serves"),
        (with("backup.before = \"rm -rf\""), "line 6", "command"),
        (with("backup.command-deadline = \"1m\""), "line 6", "no command"),
        (with("backup.after = \"a\"\nbackup.command-deadline = \"2d\""), "line 7", "longer than"),
        (with("backup.after = \"a\"\nbackup.command-deadline = \"1ms\""), "line 7", "a second"),
        (SMALL.replace("\"/srv\"", "\"srv\""), "line 3", "not an absolute path"),
        (SMALL.replace("[\"/srv\"]", "[]"), "line 3", "there are 0"),
        (SMALL.replace("@all", "@-"), "line 2", "group"),
        (SMALL.replace("\"nightly\"", "\"a b\""), "line 1", "policy name"),
        (with("prune = \"weekly\""), "line 6", "say what stays"),
        (with("keep.daily = 7"), "keep", "say when"),
        (with("keep.daily = 7\nprune = \"weekly\""), "media", "whose media agent"),
        (with("check = \"weekly\""), "media", "whose media agent"),
        (with("limits.host = 0"), "limits", "nothing would ever begin"),
        (with("limits.site = 3"), "limits", "belong together"),
        (with("shedule = \"daily\""), "line 6", "did you mean 'schedule'?"),
        (" ".repeat(TEXT_BYTES_MAX + 1), "bytes", "are allowed"),
    ];
    for (text, place, fault) in cases {
        let error = Policy::parse(&text).unwrap_err().to_string();
        assert!(
            error.contains(place) && error.contains(fault),
            "want {place} and {fault}:\n{error}\n---\n{text:.400}"
        );
    }
}
