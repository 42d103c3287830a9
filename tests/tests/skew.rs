//! Which versions may be together: manager >= media agents >= data agents, with real agents and a repository that one
//! serves to the other.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tests::vault::{DESCRIPTOR, free_address, running, text};
use tests::{Manager, TreeFixture};

fn publish(manager: &Manager, role: &str, version: &str, speaks: u32, hears: Option<u32>) {
    let hears = hears.map(|hears| format!("hears = {hears}\n")).unwrap_or_default();
    let descriptor = format!("{DESCRIPTOR}[company]\nrole = \"{role}\"\nspeaks = {speaks}\n{hears}");
    manager.publish(&format!("{role}-agent"), version, TreeFixture::agent(version, role, &descriptor).path());
}

#[test]
fn what_would_part_a_data_agent_from_its_media_agent_is_refused_and_nothing_changes() {
    let manager = Manager::start();
    for role in ["media", "data"] {
        publish(&manager, role, "1.0", 1, None);
        publish(&manager, role, "2.0", 2, None);
    }
    publish(&manager, "media", "2.1", 2, Some(2));
    publish(&manager, "data", "9.0", 99, None);
    let vault = running(&manager, "vault", "media-agent", "media");
    let web = running(&manager, "web", "data-agent", "data");
    let (path, address) = (text(&vault.path("repository")), free_address());
    manager.run(&["repository", "create", "main", "--on", "vault", "--path", &path, "--address", &address]).expect(0);
    let upgrade = |role: &str, version: &str, host: &str, code: i32| {
        let (product, generation) = (format!("{role}-agent"), format!("{role}-agent@{version}"));
        manager.run(&["upgrade", &product, &generation, "--to", host, "--export"]).expect(code).stderr
    };

    // Upwards media agents come first, in an upgrade and in a plan.
    let first = "data-agent@2.0 speaks 2, and media-agent@1.0 on vault knows what was said up to 1: media agents come \
                 first";
    let refused = upgrade("data", "2.0", "web", 1);
    assert!(refused.contains(first), "{refused}");
    let plan = manager.path("plan.toml");
    fs::write(&plan, "product = \"data-agent\"\ngeneration = \"data-agent@2.0\"\nexport = true\n[[ring]]\nname = \"all\"\nto = [\"web\"]\n").unwrap();
    let refused = manager.run(&["rollout", "plan", &text(&plan)]).expect(1).stderr;
    assert!(refused.contains(first), "{refused}");
    let refused = upgrade("media", "2.1", "vault", 1);
    assert!(refused.contains("data-agent@1.0 on web speaks 1, and media-agent@2.1 answers from 2 on"), "{refused}");
    let refused = upgrade("data", "9.0", "web", 1);
    assert!(refused.contains("data-agent@9.0 speaks 99") && refused.contains("manager first"), "{refused}");
    for (host, product) in [("vault", "media-agent"), ("web", "data-agent")] {
        assert_eq!(manager.agent(host, product).unwrap()["version"], "1.0");
    }
    // What is refused is not exported either.
    let shown = manager.run(&["show", "data-agent@2.0", "--json"]).expect(0).json();
    assert_eq!(shown["exported_to"], serde_json::json!([]));

    upgrade("media", "2.0", "vault", 0);
    // The plan that was refused is one now.
    manager.run(&["rollout", "plan", &text(&plan)]).expect(0);
    upgrade("data", "2.0", "web", 0);
    let source = web.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "file").unwrap();
    manager.run(&["job", "backup", "--host", "web", "--repository", "main", &text(&source)]).expect(0);

    // Backwards data agents do.
    let refused = upgrade("media", "1.0", "vault", 1);
    assert!(refused.contains("data-agent@2.0 on web speaks 2, and media-agent@1.0 knows"), "{refused}");
    upgrade("data", "1.0", "web", 0);
    upgrade("media", "1.0", "vault", 0);
}
