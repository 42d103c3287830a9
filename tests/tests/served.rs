//! A repository that the media agent of one host serves to the data agents of others: what they may do there, what they
//! may not, and that both may change their version in the middle of a backup.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::command::until;
use tests::vault::{DESCRIPTOR, Vault, fill, text};
use tests::{Host, TreeFixture, files_below, noise};

/// Of nothing: no machine reads to its end before the test has looked at everything.
const ENDLESS_BYTES: u64 = 1 << 40;

fn packs(repository: &Path) -> usize {
    files_below(&repository.join("data")).len()
}

#[test]
fn a_host_backs_up_to_another_and_can_take_nothing_away_there() {
    let lab = Vault::new();
    let source = lab.web.path("source");
    fill(&source);
    let backup = lab.job("backup", "web", &[&text(&source)], 0);
    assert_eq!(
        (&backup["repository"], backup["snapshots"].as_array().unwrap().len()),
        (&json!("main"), 1),
        "{backup}"
    );
    lab.restic(&["check", "--read-data"]);
    assert!(lab.restic(&["snapshots", "--host", "web"]).contains("1 snapshots"));
    lab.job("verify", "web", &[], 0);
    let target = lab.web.path("back");
    lab.job("restore", "web", &["--snapshot", "latest", "--target", &text(&target)], 0);
    assert_eq!(fs::read(target.join("noise")).unwrap(), noise(1, 20 << 20));

    // The password is nowhere but with the host that serves.
    let password = fs::read_to_string(lab.password_file()).unwrap();
    let knows = |directory: &Path| {
        let holds = |file: &PathBuf| {
            let bytes = fs::read(file).unwrap_or_default();
            bytes.windows(password.trim().len()).any(|window| window == password.trim().as_bytes())
        };
        files_below(directory).into_iter().find(holds)
    };
    assert_eq!(knows(&lab.manager.store()), None);
    assert_eq!(knows(&lab.web.path("state")), None);

    // The agent that serves prunes, in its own directory; nobody else does.
    lab.job("backup", "web", &["--force", &text(&source)], 0);
    let refused = lab.job("prune", "web", &["--product", "data-agent", "--keep-last", "1"], 1);
    assert!(refused["error"].as_str().unwrap().contains("media agent"), "{refused}");
    let pruned = lab.job("prune", "vault", &["--keep-last", "1"], 0);
    assert_eq!(pruned["snapshots"].as_array().map(Vec::len), Some(1), "{pruned}");
    lab.job("check", "vault", &["--read-data"], 0);

    // A token is for what it says, and for nothing that takes something away.
    let (read, append) = (lab.token(&[]), lab.token(&["--access", "append"]));
    let pack = files_below(&lab.repository().join("data")).pop().unwrap();
    let pack = format!("/main/data/{}", pack.file_name().unwrap().to_string_lossy());
    for (method, path, user, status) in [
        ("GET", "/main/config", Some(&read), "200"),
        ("GET", &pack, Some(&append), "200"),
        ("GET", "/main/config", None, "401"),
        ("GET", "/other/config", Some(&read), "401"),
        ("GET", "/main/password", Some(&append), "403"),
        ("DELETE", &pack, Some(&append), "403"),
        ("POST", &pack, Some(&read), "403"),
        ("DELETE", "/main/config", Some(&append), "403"),
        ("GET", "/main/data/../config", Some(&read), "404"),
        ("GET", "/main/%2e%2e/config", Some(&read), "404"),
    ] {
        assert_eq!(lab.curl(method, path, user.map(String::as_str)), status, "{method} {path} {user:?}");
    }

    let add = ["backup", "--host", "elsewhere", &text(&source.join("below"))];
    let (added, said) = lab.restic_by(&append, &add);
    assert!(added, "{said}");
    let (checked, said) = lab.restic_by(&read, &["check", "--read-data"]);
    assert!(checked && said.contains("no errors were found"), "{said}");
    assert!(lab.restic(&["snapshots"]).contains("2 snapshots"));

    fs::write(lab.web.path("state/permits.toml"), "[repository]\nnames = [\"other\"]\n").unwrap();
    let refused = lab.job("backup", "web", &[&text(&source)], 1);
    assert!(refused["error"].as_str().unwrap().contains("repository.names"), "{refused}");
    fs::remove_file(lab.web.path("state/permits.toml")).unwrap();
    let listed = lab.manager.run(&["repository", "list", "--json"]).expect(0).json();
    assert_eq!(listed["repositories"][0]["address"], json!(lab.address), "{listed}");
    lab.manager.run(&["repository", "remove", "main"]).expect(0);
    let gone = lab.manager.run(&["job", "backup", "--host", "web", "--repository", "main", &text(&source)]).expect(1);
    assert!(gone.stderr.contains("no repository 'main'"), "{}", gone.stderr);
    assert!(lab.repository().join("config").exists() && lab.password_file().exists(), "what lies there stays");
}

/// SHA-256 of a content, as the name of a file of a repository.
fn id_of(content: &Path) -> String {
    let output = Command::new("sha256sum").arg(content).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

/// The way to the repository that a job has told an agent, out of the agent's own file of the job.
fn grant_of(web: &Host) -> String {
    let found = files_below(&web.path("state/agents/data-agent/jobs")).into_iter().find_map(|file| {
        let text = String::from_utf8_lossy(&fs::read(file).ok()?).into_owned();
        let door = text.split("served:main/vault/").nth(1)?.to_owned();
        let grant = door.split('/').nth(1)?;
        Some(grant.chars().take_while(char::is_ascii_hexdigit).collect::<String>())
    });
    found.expect("an agent that was told the way")
}

#[test]
fn what_is_sent_to_a_media_agent_is_taken_whole_under_its_own_name_or_not_at_all() {
    let lab = Vault::new();
    let (read, one, other) = (lab.token(&[]), lab.token(&["--access", "append"]), lab.token(&["--access", "append"]));
    let content = lab.manager.path("content");
    fs::write(&content, "content").unwrap();
    let (sent, id) = (format!("@{}", text(&content)), id_of(&content));
    let send = ["--data-binary", sent.as_str()];
    let index = lab.repository().join("index");
    let names = || fs::read_dir(&index).map(|entries| entries.count()).unwrap_or_default();

    let wrong = format!("/main/index/{}", id.replace(|digit| digit == id.as_bytes()[0] as char, "0"));
    let (status, why) = lab.ask("POST", &wrong, Some(&one), &send);
    assert_eq!((status.as_str(), names()), ("400", 0), "{}", String::from_utf8_lossy(&why));
    assert!(String::from_utf8_lossy(&why).contains("SHA-256"));
    let right = format!("/main/index/{id}");
    assert_eq!(lab.ask("POST", &right, Some(&read), &send).0, "403", "a token for reading");
    assert_eq!(lab.ask("POST", &right, None, &send).0, "401");
    for _ in 0..2 {
        assert_eq!(lab.ask("POST", &right, Some(&one), &send).0, "200");
        assert_eq!((fs::read(index.join(&id)).unwrap().as_slice(), names()), (&b"content"[..], 1));
    }
    // Damage is healed by what has the right hash, and by nothing else.
    fs::write(index.join(&id), "cut").unwrap();
    assert_eq!(lab.ask("POST", &right, Some(&one), &send).0, "200");
    assert_eq!(fs::read(index.join(&id)).unwrap(), b"content");

    let part = |range: &str| lab.ask("GET", &right, Some(&read), &["--header", &format!("Range: bytes={range}")]);
    assert_eq!(part("1-3"), ("206".to_owned(), b"ont".to_vec()));
    assert_eq!(part("4-"), ("206".to_owned(), b"ent".to_vec()));
    assert_eq!(part("7-9").0, "416");
    assert_eq!(lab.ask("HEAD", &right, Some(&read), &["--head"]).0, "200");
    assert_eq!(lab.curl("HEAD", &wrong, Some(&read)), "404");
    let list = |accept: &str| lab.ask("GET", "/main/index/", Some(&read), &["--header", accept]).1;
    let listed: Value = serde_json::from_slice(&list("Accept: application/vnd.x.restic.rest.v2")).unwrap();
    assert_eq!(listed, json!([{ "name": id, "size": 7 }]));
    assert_eq!(serde_json::from_slice::<Value>(&list("Accept: */*")).unwrap(), json!([id]));

    // Neither keys nor the config are anybody's to change, and what is too large is not read.
    for (path, status) in
        [("/main/config", "403"), (&*format!("/main/keys/{id}"), "403"), ("/main/?create=true", "403")]
    {
        assert_eq!(lab.ask("POST", path, Some(&one), &send).0, status, "{path}");
    }
    fs::write(&content, vec![0; 100_000]).unwrap();
    let large = format!("/main/locks/{}", id_of(&content));
    assert_eq!(lab.ask("POST", &large, Some(&one), &send).0, "413");
    let pieces = ["--header", "Transfer-Encoding: chunked", send[0], send[1]];
    assert_ne!(lab.ask("POST", &right, Some(&one), &pieces).0, "200", "a body whose length nobody has said");

    // A lock is of whoever took it.
    fs::write(&content, "lock").unwrap();
    let lock = format!("/main/locks/{}", id_of(&content));
    assert_eq!(lab.ask("POST", &lock, Some(&one), &send).0, "200");
    assert_eq!(lab.ask("POST", &lock, Some(&other), &send).0, "403");
    assert_eq!(lab.curl("DELETE", &lock, Some(&other)), "403");
    assert_eq!(lab.curl("DELETE", &lock, Some(&one)), "200");
    assert_eq!(lab.curl("DELETE", &lock, Some(&one)), "404");
    for kind in ["index", "snapshots", "data", "keys"] {
        assert_eq!(lab.curl("DELETE", &format!("/main/{kind}/{id}"), Some(&one)), "403", "{kind}");
    }

    let short = lab.token(&["--ttl", "1s"]);
    until("a token ends", || (lab.curl("GET", "/main/config", Some(&short)) == "401").then_some(()));
    lab.manager.run(&["repository", "token", "add", "main", "--ttl", "1year"]).expect(1);
    lab.manager.run(&["repository", "token", "add", "other"]).expect(1);
    fs::write(lab.vault.path("state/permits.toml"), "[repository]\nserve = false\n").unwrap();
    let (status, why) = lab.ask("GET", "/main/config", Some(&read), &[]);
    assert_eq!(status, "403");
    assert!(String::from_utf8_lossy(&why).contains("repository.serve"), "{}", String::from_utf8_lossy(&why));
}

#[test]
fn what_lets_an_agent_in_is_worth_nothing_without_its_hosts_certificate() {
    let lab = Vault::new();
    let source = lab.web.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    lab.job("backup", "web", &[&text(&source)], 0);
    let grant = format!("grant:{}", grant_of(&lab.web));
    let shown = |host: &Host| {
        [("cert", "host.pem"), ("key", "host.key")]
            .map(|(flag, file)| [format!("--{flag}"), text(&host.path("state/identity").join(file))])
    };
    let ask = |host: Option<&Host>, path: &str| {
        let more: Vec<String> = host.map(shown).into_iter().flatten().flatten().collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        lab.ask("GET", path, Some(&grant), &more)
    };
    assert_eq!(ask(None, "/main/config").0, "401", "whoever has only the grant");
    assert_eq!(ask(Some(&lab.vault), "/main/config").0, "401", "another host's certificate");
    assert_eq!(ask(Some(&lab.web), "/main/config").0, "200");
    assert_eq!(ask(Some(&lab.web), "/other/config").0, "401");
    let (status, password) = ask(Some(&lab.web), "/main/password");
    let kept = fs::read_to_string(lab.password_file()).unwrap();
    assert_eq!((status.as_str(), String::from_utf8(password).unwrap().as_str()), ("200", kept.trim()));

    // What the manager shows of the job and of the repository lets nobody in.
    let shown = [&["job", "list", "--json"][..], &["repository", "show", "main", "--json"]];
    for command in shown {
        let said = lab.manager.run(command).expect(0).stdout;
        assert!(!said.contains("served:") && !said.contains("\"key\""), "{said}");
    }

    // A token that is taken back opens nothing more, and another one goes on.
    let (mine, theirs) = (lab.token(&[]), lab.token(&["--access", "append"]));
    let listed = lab.manager.run(&["repository", "token", "list", "main", "--json"]).expect(0).json();
    let tokens = listed["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), &tokens[0]["revoked_unix_ms"]), (2, &json!(null)), "{listed}");
    let of = |access: &str| tokens.iter().find(|token| token["access"] == access).unwrap()["id"].as_str().unwrap();
    assert_eq!(lab.curl("GET", "/main/config", Some(&mine)), "200");
    lab.manager.run(&["repository", "token", "revoke", "main", of("read")]).expect(0);
    assert_eq!(lab.curl("GET", "/main/config", Some(&mine)), "401");
    assert_eq!(lab.curl("GET", "/main/config", Some(&theirs)), "200");
    lab.manager.run(&["repository", "token", "revoke", "main", "0000000000000000"]).expect(1);
    // So does what a host was given that is revoked, though it has hours left.
    assert_eq!(ask(Some(&lab.web), "/main/config").0, "200");
    lab.manager.run(&["host", "revoke", "web"]).expect(0);
    until("the media agent is told", || (ask(Some(&lab.web), "/main/config").0 == "401").then_some(()));
    assert_eq!(lab.curl("GET", "/main/config", Some(&theirs)), "200");
}

#[test]
fn a_repository_is_created_once_and_what_cannot_be_is_refused() {
    let lab = Vault::new();
    let path = text(&lab.repository());
    let create = |name: &str, more: &[&str]| {
        lab.manager.run(&[&["repository", "create", name, "--on", "vault", "--path"][..], more].concat())
    };
    create("main", &[&path, "--address", &lab.address]).expect(0);
    let refused = create("main", &["/srv/elsewhere", "--address", &lab.address]).expect(1);
    assert!(refused.stderr.contains("'main' is"), "{}", refused.stderr);
    for (more, why) in
        [(&["relative"][..], "want an absolute path"), (&["/srv/x", "--address", "nowhere"], "HOST:PORT")]
    {
        let refused = create("second", more).expect(1);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    let unknown = lab.manager.run(&["repository", "create", "third", "--on", "nobody", "--path", "/srv/x"]).expect(1);
    assert!(unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    // Another one at the same address, which restic made, with the password that it has.
    let (theirs, file) = (lab.vault.path("theirs"), lab.vault.path("theirs.password"));
    fs::write(&file, "their own\n").unwrap();
    let mut init = Command::new("restic");
    init.args(["--no-cache", "init", "--repo"]).arg(&theirs).arg("--password-file").arg(&file);
    let made = init.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    create("theirs", &[&text(&theirs), "--address", &lab.address, "--password-file", &text(&file)]).expect(0);
    let source = lab.web.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    lab.manager.run(&["job", "backup", "--host", "web", "--repository", "theirs", &text(&source)]).expect(0);
    let listed = lab.manager.run(&["repository", "list"]).expect(0).stdout;
    assert!(listed.contains("main") && listed.contains("theirs"), "{listed}");
    lab.manager.run(&["repository", "remove", "theirs"]).expect(0);
    lab.manager.run(&["repository", "remove", "theirs"]).expect(1);
    lab.job("backup", "web", &[&text(&source)], 0);
    assert!(theirs.join("config").exists());
}

#[test]
fn both_agents_change_their_version_in_the_middle_of_one_backup() {
    let lab = Vault::new();
    let source = lab.web.path("source");
    fill(&source);
    let endless = File::create(source.join("endless")).unwrap();
    endless.set_len(ENDLESS_BYTES).unwrap();
    for (product, role) in [("media-agent", "media"), ("data-agent", "data")] {
        lab.manager.publish(product, "2.0", TreeFixture::agent("2.0", role, DESCRIPTOR).path());
    }
    let order = ["job", "backup", "--host", "web", "--repository", "main", "--detach", &text(&source)];
    let job = lab.manager.run(&order).expect(0).text();
    let show = || lab.manager.run(&["job", "show", &job, "--json"]).expect(0).json();
    let goes_on = || {
        let shown = show();
        assert!(["queued", "running"].contains(&shown["state"].as_str().unwrap()), "{shown}");
        shown
    };
    until("something is stored", || {
        (goes_on()["progress"] != json!(null) && packs(&lab.repository()) > 0).then_some(())
    });
    for (host, product) in [("vault", "media-agent"), ("web", "data-agent")] {
        let generation = format!("{product}@2.0");
        lab.manager.run(&["upgrade", product, &generation, "--to", host, "--export"]).expect(0);
        lab.manager.wait_for_version(host, product, "2.0");
        goes_on();
    }
    until("the new version reads", || {
        let shown = goes_on();
        (shown["progress"]["version"] == "2.0" && shown["progress"]["bytes_done"] != 0).then_some(())
    });
    endless.set_len(0).unwrap();
    let ended = until("the backup is over", || {
        let shown = show();
        (!["queued", "running"].contains(&shown["state"].as_str().unwrap())).then_some(shown)
    });
    assert_eq!((&ended["state"], &ended["versions"]), (&json!("done"), &json!(["1.0", "2.0"])), "{ended}");
    assert_eq!(ended["snapshots"].as_array().map(Vec::len), Some(1), "{ended}");
    let problems = ended["problems"].as_array().unwrap();
    assert!(problems.iter().all(|line| line.as_str().unwrap().contains("endless")), "no other is one: {ended}");
    assert!(lab.restic(&["snapshots"]).contains("1 snapshots"));
    lab.restic(&["check", "--read-data"]);
    let target = lab.web.path("back");
    lab.job("restore", "web", &["--snapshot", "latest", "--target", &text(&target)], 0);
    assert_eq!(fs::read(target.join("noise")).unwrap(), noise(1, 20 << 20));
}
