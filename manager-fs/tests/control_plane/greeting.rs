//! What a manager makes of commands that are of another build.

use std::sync::Arc;

use manager_fs::manager::admin::{AdminReply, AdminRequest, Long, Quick};
use manager_fs::net::{self, Link, RefuseAll};
use manager_fs::version;
use proto::local_greeting::Greeting;

use crate::fixture::{Fixture, SOON};

async fn connect(fixture: &Fixture) -> Link {
    let socket = fixture.directory.path().join("store/manager.sock");
    net::start(net::connect_unix(&socket).await.unwrap(), Arc::new(RefuseAll))
}

/// What the manager answers to a request on this connection, for people.
async fn refusal(link: &Link, request: AdminRequest) -> String {
    match link.request::<_, AdminReply>(&request, |_| {}, SOON).await.unwrap() {
        AdminReply::Fault(fault) => fault.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_command_of_another_build_is_told_which_version_this_is_and_nothing_else() {
    let fixture = Fixture::new().await;
    let tree = fixture.publish("data-agent@1.0", b"one").await;
    let ours = version::greeting();
    for (version, messages) in [("0.0.7", [7; 16]), (version::VERSION, [7; 16])] {
        let link = connect(&fixture).await;
        let answered = link.request::<_, Greeting>(&Greeting::new(version, messages), |_| {}, SOON).await.unwrap();
        assert_eq!(answered, ours);
        let unpublish = Quick::Unpublish("data-agent@1.0".parse().unwrap());
        for request in [AdminRequest::from(unpublish), Long::Gc { dry_run: false }.into()] {
            let refused = refusal(&link, request).await;
            assert!(refused.contains(&format!("this manager runs version {}", version::VERSION)), "{refused}");
        }
    }
    // Nor is anybody heard who does not greet; whoever greets as the same is.
    let link = connect(&fixture).await;
    assert!(refusal(&link, Quick::Groups.into()).await.contains("greets it first"));
    let same = Greeting::new("another number", ours.messages);
    assert!(link.request::<_, Greeting>(&same, |_| {}, SOON).await.is_err(), "a version is one word");
    let same = Greeting::new("9.9.9", ours.messages);
    assert_eq!(link.request::<_, Greeting>(&same, |_| {}, SOON).await, Ok(ours));
    let shown = Quick::Show("data-agent@1.0".parse().unwrap());
    match link.request::<_, AdminReply>(&AdminRequest::from(shown), |_| {}, SOON).await.unwrap() {
        AdminReply::Generation(view) => assert_eq!(view.record.tree, tree),
        other => panic!("{other:?}"),
    }
}
