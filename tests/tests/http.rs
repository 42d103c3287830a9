//! `docs/api.md` and `docs/console.md`: the manager by HTTP, as programs and browsers use it; and what hostile ones cost.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::command::until;
use tests::repository::root;
use tests::web::{Lab, ROLES};
use tests::{Host, TreeFixture, noise};

/// What every address takes, beside what only looks at something, which takes a viewer. A route that is not here, or takes
/// another role, fails the test: who may do what is decided, and not only written down.
const ORDERS: [(&str, &str, &str); 35] = [
    ("post", "/v1/upgrades", "operator"),
    ("post", "/v1/rollouts", "operator"),
    ("post", "/v1/rollouts/{rollout}/{wish}", "operator"),
    ("post", "/v1/rollouts/{rollout}/hosts/{host}", "operator"),
    ("post", "/v1/labels", "operator"),
    ("post", "/v1/hosts/{host}/revoke", "admin"),
    ("delete", "/v1/hosts/{host}", "admin"),
    ("post", "/v1/enrolments", "admin"),
    ("post", "/v1/groups/{group}/hosts", "operator"),
    ("delete", "/v1/groups/{group}/hosts", "operator"),
    ("put", "/v1/groups/{group}/rule", "operator"),
    ("delete", "/v1/groups/{group}", "operator"),
    ("post", "/v1/generations", "publisher"),
    ("post", "/v1/generations/{generation}/exports", "operator"),
    ("delete", "/v1/generations/{generation}/exports", "operator"),
    ("delete", "/v1/generations/{generation}", "publisher"),
    ("delete", "/v1/generations/{generation}/profile", "publisher"),
    ("post", "/v1/gc", "admin"),
    ("post", "/v1/verify", "admin"),
    ("post", "/v1/jobs", "operator"),
    ("post", "/v1/jobs/{job}/cancel", "operator"),
    ("post", "/v1/repositories", "operator"),
    ("delete", "/v1/repositories/{repository}", "operator"),
    ("post", "/v1/repositories/{repository}/tokens", "admin"),
    ("delete", "/v1/repositories/{repository}/tokens/{token}", "admin"),
    ("post", "/v1/policies", "operator"),
    ("delete", "/v1/policies/{policy}", "operator"),
    ("post", "/v1/policies/{policy}/runs", "operator"),
    ("post", "/v1/policies/{policy}/{halt}", "operator"),
    ("get", "/v1/api-tokens", "admin"),
    ("post", "/v1/api-tokens", "admin"),
    ("delete", "/v1/api-tokens/{token}", "admin"),
    ("delete", "/v1/records", "admin"),
    ("get", "/v1/events", "viewer"),
    ("get", "/v1/openapi.json", "viewer"),
];

#[test]
fn every_address_takes_a_role_and_whoever_has_less_is_refused() {
    let lab = Lab::open();
    let description = lab.get("/v1/openapi.json");
    let mut seen = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let known = ORDERS.iter().find(|(of, at, _)| of == method && at == path);
            let wanted = known.map_or("viewer", |(_, _, role)| role);
            assert!(known.is_some() || method == "get", "{method} {path}: nobody has decided who may do this");
            assert_eq!(operation["description"], format!("Takes the role {wanted}."), "{method} {path}");
            seen += usize::from(known.is_some());
            let filled = path.replace("{host}", "h").replace("{generation}", "p@1").replace("{rollout}", "1");
            let filled = filled.replace("{wish}", "pause").replace("{job}", "1").replace("{group}", "g");
            let filled = filled.replace("{halt}", "pause").replace("{policy}", "n").replace("{token}", "gone");
            let filled = filled.replace("{repository}", "r");
            let method = method.to_ascii_uppercase();
            lab.ask(&filled, &["-X", &method]).expect(401);
            for (at, role) in ROLES.iter().enumerate() {
                let may = at >= ROLES.iter().position(|role| *role == wanted).unwrap();
                // What may be done is done elsewhere: here it is only asked for nothing.
                if !may {
                    let answer = lab.ask_as(role, &filled, &["-X", &method]).expect(403);
                    assert!(answer.json()["detail"].as_str().unwrap().contains(wanted), "{}", answer.body);
                }
            }
        }
    }
    assert_eq!(seen, ORDERS.len(), "some of the table is not there");
}

#[test]
fn the_description_is_the_committed_one() {
    let lab = Lab::open();
    let served = format!("{:#}\n", lab.get("/v1/openapi.json"));
    let file = root().join("docs/openapi.json");
    if std::env::var_os("MANAGER_FS_WRITE_DOCS").is_some() {
        fs::write(&file, &served).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == served,
        "docs/openapi.json is another: MANAGER_FS_WRITE_DOCS=1 with this test writes it anew"
    );
}

/// Every operation with values that its description allows, and ones that it does not: nobody is answered with a fault of
/// the manager, and every answer is of the form that is described. `MANAGER_FS_TEST_EXAMPLES=100` looks longer.
#[test]
fn whatever_is_asked_is_answered_as_it_is_described() {
    let lab = Lab::open();
    let tree = TreeFixture::script("echo one", "");
    lab.manager.publish("sample", "1", tree.path());
    lab.manager.publish("sample", "2", tree.path());
    let description = lab.manager.path("openapi.json");
    fs::write(&description, lab.get("/v1/openapi.json").to_string()).unwrap();
    let examples = std::env::var("MANAGER_FS_TEST_EXAMPLES").unwrap_or_else(|_| "4".to_owned());
    let mut probe = Command::new(tests::tools::find("schemathesis"));
    probe.current_dir(lab.manager.path("")).arg("run").arg(&description);
    probe.args(["--url", &format!("https://{}", lab.address), "--tls-verify", "false", "--no-color"]);
    probe.args(["--header", &format!("Authorization: Bearer {}", lab.token("admin"))]);
    probe.args(["--max-examples", &examples, "--seed", "1", "--workers", "1", "--request-timeout", "30"]);
    // A stream that goes on has no end; of wrong tokens few are looked at; and a fraction such as 3.0 is no whole number
    // here, which JSON Schema takes for one.
    probe.args(["--exclude-path", "/v1/events", "--exclude-path-regex", "api-tokens"]);
    probe.args(["--exclude-checks", "ignored_auth,missing_required_header,positive_data_acceptance"]);
    let output = probe.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("Tested: "),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn programs_see_what_the_command_line_shows_and_order_what_it_orders() {
    let lab = Lab::open();
    let tree = TreeFixture::script("echo one", "");
    lab.manager.publish("sample", "1", tree.path());
    let host = Host::mounted("host-1", &lab.manager);
    host.run(&["status"]).expect(0);
    until("the host is connected", || {
        let hosts = lab.get("/v1/hosts");
        (hosts["hosts"][0]["connected"] == true).then_some(())
    });
    // The same documents, apart from the moment at which they were asked for.
    let same = |line: &[&str], path: &str| {
        // What the host reports meanwhile is in one of the two alone.
        until(&format!("both tell the same: {path}"), || {
            let mut told = lab.manager.run(&[line, &["--json"]].concat()).json();
            let mut asked = lab.get(path);
            for document in [&mut told, &mut asked] {
                if let Some(host) = document["hosts"].get_mut(0).and_then(Value::as_object_mut) {
                    host.remove("last_seen_unix_ms");
                }
            }
            (told == asked).then_some(())
        });
    };
    let body = r#"{"of": ["host-1"], "labels": ["site=fra"]}"#;
    lab.ask_as("operator", "/v1/labels", &["-d", body]).expect(200);
    lab.ask_as("operator", "/v1/groups/all/rule", &["-X", "PUT", "-d", r#"{"rule": ["site"]}"#]).expect(200);
    lab.ask_as("operator", "/v1/generations/sample@1/exports", &["-d", r#"{"to": ["@all"]}"#]).expect(200);
    host.run(&["exec", "sample@1", "--", "/bin/true"]).expect(0);
    same(&["hosts"], "/v1/hosts");
    same(&["host", "group", "list"], "/v1/groups");
    same(&["generations"], "/v1/generations");
    same(&["show", "sample@1"], "/v1/generations/sample@1");
    same(&["agents"], "/v1/agents");
    same(&["job", "list"], "/v1/jobs");
    same(&["rollout", "history"], "/v1/rollouts");
    same(&["policy", "list"], "/v1/policies");
    same(&["protection"], "/v1/protection");
    same(&["repository", "list"], "/v1/repositories");
    assert_eq!(lab.get("/v1/hosts?label=site%3Dfra&only=connected")["hosts"][0]["name"], "host-1");
    assert_eq!(lab.get("/v1/hosts?label=site%3Dams")["hosts"], json!([]));
    assert_eq!(lab.get("/v1/hosts?after=host-1")["hosts"], json!([]));
    for (path, status) in [
        ("/v1/hosts/host-1", 200),
        ("/v1/hosts/host-2", 404),
        ("/v1/hosts?limit=0", 400),
        ("/v1/hosts?lable=x", 400),
        ("/v1/jobs/1", 404),
        ("/v1/nothing", 404),
        ("/v1/events", 400),
    ] {
        let answer = lab.ask_as("viewer", path, &[]).expect(status);
        let is_problem = answer.head.contains("content-type: application/problem+json");
        assert_eq!(is_problem, status != 200, "{path}: {}", answer.head);
    }
    // A change-over that nobody can take arrives as events, the last of which says how it ended.
    let order = r#"{"product": "sample", "generation": "sample@1", "to": ["host-1"], "wait": true}"#;
    let events = lab.ask_as("operator", "/v1/upgrades", &["-d", order]).expect(200);
    assert!(events.head.contains("content-type: text/event-stream"), "{}", events.head);
    assert!(
        events.body.contains("event: done\ndata: ") || events.body.contains("event: failed\ndata: "),
        "{}",
        events.body
    );
    let collected = lab.ask_as("admin", "/v1/gc?dry_run=true", &["-X", "POST"]).expect(200);
    assert!(collected.body.contains("event: done\n"), "{}", collected.body);
}

#[test]
fn a_token_that_was_taken_back_opens_nothing_and_whoever_guesses_waits() {
    let lab = Lab::open();
    lab.manager.run(&["api-token", "add", "short", "--role", "viewer", "--expires", "1ms"]).expect(0);
    let gone = lab.manager.run(&["api-token", "add", "gone", "--role", "admin"]).expect(0).text();
    let bearer = format!("Authorization: Bearer {}", gone.trim());
    lab.ask("/v1/status", &["-H", &bearer]).expect(200);
    lab.ask_as("admin", "/v1/api-tokens/gone", &["-X", "DELETE"]).expect(200);
    lab.ask("/v1/status", &["-H", &bearer]).expect(401);
    lab.manager.run(&["api-token", "revoke", "gone"]).expect(1);
    let store = lab.manager.store().join("control.redb");
    let secret = gone.trim().split_once('.').unwrap().1;
    assert!(!String::from_utf8_lossy(&fs::read(store).unwrap()).contains(secret), "the secret is kept");
    let wrong = format!("Authorization: Bearer mfs_viewer.{}", "00".repeat(32));
    let refused = (0..30).map(|_| lab.ask("/v1/status", &["-H", &wrong])).find(|answer| answer.status == 429);
    assert!(refused.expect("nobody had to wait").head.contains("retry-after: "));
    lab.ask("/healthz", &[]).expect(200);
}

#[test]
fn whoever_has_the_key_of_a_certificate_needs_no_token() {
    let lab = Lab::open();
    // A host's certificate is one that some operator may have; that a host has it lets nobody in.
    let host = Host::new("host-1");
    host.enroll(&lab.manager, &lab.manager.address());
    let state = host.path("state");
    let found = |ending: &str| -> PathBuf {
        let files = tests::tree::files_below(&state);
        let is_it = |file: &&PathBuf| file.to_string_lossy().ends_with(ending);
        files.iter().find(is_it).unwrap_or_else(|| panic!("no {ending} in {files:?}")).clone()
    };
    let (certificate, key) = (found("host.pem"), found("host.key"));
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let shown = ["--cert", certificate, "--key", key];
    lab.ask("/v1/status", &shown).expect(401);
    lab.manager.run(&["api-token", "add", "by-key", "--role", "operator", "--certificate", certificate]).expect(0);
    assert_eq!(lab.ask("/v1/status", &shown).expect(200).json()["name"], "by-key");
    let labels = ["-d", r#"{"of": ["host-1"], "labels": ["site=fra"]}"#];
    lab.ask("/v1/labels", &[&shown[..], &labels].concat()).expect(200);
    // A page of somebody else that makes a browser with this certificate order something.
    lab.ask("/v1/labels", &[&shown[..], &labels, &["-H", "Sec-Fetch-Site: cross-site"]].concat()).expect(403);
}

#[test]
fn the_console_shows_the_fleet_and_orders_only_what_a_page_of_its_own_asked() {
    let lab = Lab::open();
    let tree = TreeFixture::script("echo one", "");
    lab.manager.publish("sample", "1", tree.path());
    let _host = Host::mounted("host-1", &lab.manager);
    lab.manager.export("sample@1", "host-1");
    let plan = lab.manager.path("plan.toml");
    fs::write(
        &plan,
        "product = \"sample\"\ngeneration = \"sample@1\"\n[[ring]]\nname = \"lab\"\nto = [\"host-1\"]\n",
    )
    .unwrap();
    let planned = lab.manager.run(&["rollout", "plan", plan.to_str().unwrap()]).expect(0).text();
    let rollout = format!("/rollouts/{}", planned.trim());
    assert!(lab.ask("/", &[]).expect(303).head.contains("location: /sign-in"));
    lab.ask("/sign-in", &["-d", "token=mfs_x.00"]).expect(401);
    let signed_in = lab.ask("/sign-in", &["-d", &format!("token={}", lab.token("operator"))]).expect(303);
    let cookie = signed_in.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    for flag in ["__host-manager-fs=", "; secure", "; httponly", "; samesite=strict"] {
        assert!(cookie.contains(flag), "{cookie}");
    }
    // Names of cookies have capitals; `head` has none.
    let session = format!("Cookie: __Host-manager-fs={}", cookie.split(['=', ';']).nth(1).unwrap());
    let page = |path: &str| lab.ask(path, &["-H", &session]);
    for (path, shows) in [
        ("/", "What is broken, and since when"),
        ("/hosts", "host-1"),
        ("/hosts?q=&label=&only=", "host-1"),
        ("/hosts?q=%22%3E%3Cb%3Elab", "&quot;&gt;&lt;b&gt;lab"),
        ("/hosts/host-1", "Agents, and how they came"),
        ("/rollouts", "sample@1"),
        ("/failures", "Jobs of the last seven days"),
        ("/generations", "sample@1"),
        ("/generations/sample%401", "Who runs it"),
        ("/work", "Protection"),
        ("/style.css", "color-scheme: light dark"),
    ] {
        let shown = page(path).expect(200);
        assert!(shown.body.contains(shows), "{path}: {}", shown.body);
        assert!(shown.head.contains("default-src 'none'") && !shown.body.contains("<script"), "{path}");
        assert!(!shown.body.contains(" style=") && !shown.body.contains("<b>lab"), "{path}");
    }
    let one = page(&rollout).expect(200).body;
    assert!(one.contains("lab") && one.contains(&format!("href=\"{rollout}/start\"")), "{one}");
    // Giving up asks once more; without what that page bears, nothing is ordered.
    let confirm = page(&format!("{rollout}/abort")).expect(200).body;
    let key = confirm.split("name=\"form_key\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let abort = |form: &str| lab.ask(&format!("{rollout}/abort"), &["-H", &session, "-d", form]);
    abort("").expect(403);
    abort(&format!("form_key={}", "0".repeat(64))).expect(403);
    lab.ask(&format!("/v1{rollout}/abort"), &["-H", &session, "-X", "POST"]).expect(403);
    abort(&format!("form_key={key}")).expect(303);
    assert_eq!(lab.get(&format!("/v1{rollout}"))["state"], "aborted");
    // Whoever only looks is offered nothing, and may nothing.
    let viewer = lab.ask("/sign-in", &["-d", &format!("token={}", lab.token("viewer"))]).expect(303);
    let cookie = viewer.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap().to_owned();
    let looks = format!("Cookie: __Host-manager-fs={}", cookie.split(['=', ';']).nth(1).unwrap());
    assert!(!lab.ask(&rollout, &["-H", &looks]).expect(200).body.contains("/rollback"));
    lab.ask(&format!("{rollout}/rollback"), &["-H", &looks]).expect(403);
    // Whose token is taken back is out at once; whoever signs out, too.
    lab.ask("/sign-out", &["-H", &session, "-d", &format!("form_key={key}")]).expect(303);
    page("/").expect(303);
    lab.manager.run(&["api-token", "revoke", "viewer"]).expect(0);
    lab.ask("/", &["-H", &looks]).expect(303);
}

#[test]
fn an_archive_that_is_sent_becomes_a_generation_and_nothing_else_of_it_stays() {
    let lab = Lab::open();
    let (tree, archive) = (TreeFixture::script("echo one", ""), lab.manager.path("one.tar.gz"));
    // Larger than what is written at once, and nothing that compresses.
    tree.file("data", 0o644, noise(1, 5 << 20));
    let packed = Command::new("tar").arg("-C").arg(tree.path()).arg("-czf").arg(&archive).arg(".").status().unwrap();
    assert!(packed.success());
    let send = |role: &str, path: &str, file: &Path| {
        let from = format!("@{}", file.display());
        lab.ask_as(
            role,
            path,
            &["--data-binary", &from, "-H", "Expect:", "-H", "Content-Type: application/octet-stream"],
        )
    };
    let address = "/v1/generations?product=sample&version=1";
    send("operator", address, &archive).expect(403);
    let told = send("publisher", &format!("{address}&entrypoint=bin/agent"), &archive).expect(200);
    assert!(told.head.contains("text/event-stream"), "{}", told.head);
    let (_, done) = told.body.split_once("event: done\ndata: ").unwrap_or_else(|| panic!("{}", told.body));
    let done: Value = serde_json::from_str(done.trim()).unwrap();
    lab.manager.publish("local", "1", &archive);
    let local = lab.manager.run(&["show", "local@1", "--json"]).expect(0).json();
    let sent = &done["records"][0]["tree_id"];
    assert!(sent.is_string() && *sent == local["tree_id"], "{done}\n{local}");
    assert_eq!(lab.get("/v1/generations/sample@1")["entry_point"], "bin/agent");

    // What is no archive, what is asked wrongly, and what breaks off in the middle.
    let text = lab.manager.path("text");
    fs::write(&text, "no archive").unwrap();
    let failed = send("publisher", "/v1/generations?product=sample&version=2", &text).expect(200).body;
    assert!(
        failed.contains("event: failed") && failed.contains("upload") && failed.contains("\"status\":409"),
        "{failed}"
    );
    send("publisher", "/v1/generations?product=sample", &archive).expect(400);
    send("publisher", "/v1/generations?product=sample&version=a/b", &archive).expect(400);
    let bearer = format!("Authorization: Bearer {}", lab.token("publisher"));
    let (from, version) = (format!("@{}", archive.display()), lab.url("/v1/generations?product=sample&version=3"));
    let broken = lab
        .curl()
        .args([
            "-H",
            &bearer,
            "-H",
            "Expect:",
            "--limit-rate",
            "1M",
            "--max-time",
            "1",
            "--data-binary",
            &from,
            &version,
        ])
        .output()
        .unwrap();
    assert_eq!(broken.status.code(), Some(28), "{}", String::from_utf8_lossy(&broken.stderr));
    until("nothing of it is left", || {
        (fs::read_dir(lab.manager.store().join("tmp")).unwrap().count() == 0).then_some(())
    });
    let published = lab.get("/v1/generations");
    let known: Vec<&Value> = published["generations"].as_array().unwrap().iter().map(|one| &one["product"]).collect();
    assert_eq!(known, ["local", "sample"], "{published}");
}

#[test]
fn what_is_too_large_or_too_slow_costs_its_bound_and_the_rest_is_answered_beside_it() {
    let lab = Lab::open();
    let large = lab.manager.path("large");
    fs::write(&large, "x".repeat(3 << 20)).unwrap();
    let from = format!("@{}", large.display());
    // Also whoever sends all of it before reading the answer reads it, whatever the answer is, and whoever asks first too.
    for _ in 0..8 {
        lab.ask_as("operator", "/v1/policies", &["--data-binary", &from, "-H", "Expect:"]).expect(413);
        let chunked = ["--data-binary", &from, "-H", "Expect:", "-H", "Transfer-Encoding: chunked"];
        lab.ask_as("operator", "/v1/policies", &chunked).expect(413);
        lab.ask("/v1/policies", &["--data-binary", &from, "-H", "Expect:"]).expect(401);
        lab.ask_as("operator", "/v1/nothing", &["--data-binary", &from, "-H", "Expect:"]).expect(404);
        lab.ask("/sign-in", &["--data-binary", &from, "-H", "Expect:"]).expect(413);
    }
    lab.ask_as("operator", "/v1/policies", &["--data-binary", &from, "-H", "Expect: 100-continue"]).expect(413);
    let header = format!("X-Large: {}", "x".repeat(64 << 10));
    let output = lab.curl().args(["-H", &header, &lab.url("/healthz")]).output().unwrap();
    let answered = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!answered.contains(" 200 "), "{answered}");
    // Three hundred who say nothing, half of them in the middle of a handshake.
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(&lab.address).unwrap();
        if number % 2 == 0 {
            stream.write_all(&[0x16, 0x03, 0x01]).unwrap();
        }
        silent.push(stream);
        if number % 100 == 99 {
            let asked = Instant::now();
            lab.ask("/healthz", &[]).expect(200);
            lab.get("/v1/status");
            assert!(asked.elapsed() < Duration::from_secs(30), "after {number}: {:?}", asked.elapsed());
        }
    }
    // Each of them is cut in the end: by one more that came, or by its time.
    let mut first = silent.remove(0);
    first.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    let ended = first.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock));
    // Somebody whose body takes minutes.
    fs::write(&large, "x".repeat(900 << 10)).unwrap();
    let slow =
        lab.ask_as("operator", "/v1/policies", &["--limit-rate", "4k", "-H", "Expect:", "--data-binary", &from]);
    slow.expect(408);
}
