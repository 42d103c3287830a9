use super::*;
use crate::manager::whole::testing::{Answers, Bench, SOON, alive, at_once};

async fn reason(link: &Link) -> String {
    tokio::time::timeout(SOON, link.closed()).await.unwrap()
}

/// A daemon that takes requests and never answers, as one does whose machine hangs.
fn hangs() -> Box<Answers> {
    Box::new(|_| Box::pin(std::future::pending()))
}

/// A clone that connected would take over its original's jobs and orders.
#[tokio::test]
async fn of_two_daemons_with_one_identity_the_first_is_served_as_long_as_it_lives() {
    let bench = Bench::open().await;
    let (connections, web) = (&bench.manager.connections, bench.enrol("web").await);
    let link = bench.connect(&web, alive()).await;
    for role in [Role::Control, Role::Bulk] {
        let refused = bench.greet(&bench.newcomer(&web, role, 2), alive()).await.err().unwrap();
        assert_eq!(refused, ConnectionError::Clone(web.clone()));
        assert!(refused.to_string().contains("`manager-fs enroll --force` there"), "{refused}");
    }
    assert!(connections.control_link(&web).unwrap().is_same(&link), "it keeps its place");
    link.close("it ends");
    let second = bench.greet(&bench.newcomer(&web, Role::Control, 2), alive()).await.unwrap();
    assert!(connections.control_link(&web).unwrap().is_same(&second));
}

#[tokio::test]
async fn whatever_a_daemon_answers_is_a_sign_of_life_and_silence_is_none() {
    let bench = Bench::open().await;
    let (odd, dead) = (bench.enrol("odd").await, bench.enrol("dead").await);
    bench.connect(&odd, at_once(|_| HostReply::Sent(7))).await;
    assert!(bench.greet(&bench.newcomer(&odd, Role::Control, 2), alive()).await.is_err());
    let link = bench.connect(&dead, hangs()).await;
    let second = bench.greet(&bench.newcomer(&dead, Role::Control, 2), alive()).await.unwrap();
    assert!(reason(&link).await.contains("replaced by another daemon"));
    assert!(bench.manager.connections.control_link(&dead).unwrap().is_same(&second));
}

#[tokio::test]
async fn a_newer_connection_of_the_same_daemon_takes_the_place_of_the_oldest_of_its_kind() {
    let bench = Bench::open().await;
    let (connections, web) = (&bench.manager.connections, bench.enrol("web").await);
    let first = bench.connect(&web, alive()).await;
    let mut bulk = Vec::new();
    for _ in 0..=BULK_CONNECTIONS_MAX {
        bulk.push(bench.greet(&bench.newcomer(&web, Role::Bulk, 1), alive()).await.unwrap());
    }
    assert!(reason(&bulk[0]).await.contains("replaced by a newer connection of the same host"));
    assert!(bulk[1..].iter().chain([&first]).all(|link| link.closed_reason().is_none()), "no more than it takes");
    let second = bench.connect(&web, alive()).await;
    assert!(reason(&first).await.contains("replaced by a newer connection"));
    assert!(connections.control_link(&web).unwrap().is_same(&second));
    connections.close("the manager is ending");
    for link in bulk[1..].iter().chain([&second]) {
        assert!(reason(link).await.contains("the manager is ending"));
    }
    assert!(connections.control_link(&web).is_none() && connections.connected_since(&web).is_none());
}

/// A reconnection is no absence: who waits for a host must not hear that it went while its next connection is there.
#[tokio::test]
async fn a_host_is_said_to_be_gone_when_its_last_control_connection_is() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let mut news = bench.manager.news.of(&web);
    let mut hears = async || tokio::time::timeout(SOON, news.next()).await.unwrap();
    bench.connect(&web, alive()).await;
    assert_eq!(hears().await, Some(News::Connected));
    let second = bench.connect(&web, alive()).await;
    let bulk = bench.greet(&bench.newcomer(&web, Role::Bulk, 1), alive()).await.unwrap();
    assert_eq!(hears().await, Some(News::Connected));
    bulk.close("done");
    second.close("done");
    assert_eq!(hears().await, Some(News::Disconnected), "and neither of the two others was told");
    let status = bench.manager.state.observations().status(&web).await.unwrap();
    assert_eq!(status.software, "0.6.0");
    assert!(status.last_seen > 0);
}

#[tokio::test]
async fn a_host_that_is_shut_out_while_it_greets_is_not_let_in() {
    let bench = Bench::open().await;
    let web = bench.enrol("web").await;
    let newcomer = bench.newcomer(&web, Role::Control, 1);
    let mut news = bench.manager.news.of(&web);
    bench.manager.state.revoke(&web, 1).await.unwrap();
    let refused = bench.greet(&newcomer, alive()).await.err().unwrap();
    assert!(refused.to_string().contains("host 'web' was revoked"), "{refused}");
    assert!(bench.manager.connections.control_link(&web).is_none());
    bench.manager.news.tell(&web, News::Agents);
    assert_eq!(news.next().await, Some(News::Agents), "nobody heard that it was there");
}

#[tokio::test]
async fn hosts_are_told_of_changes_of_their_own_exports() {
    let bench = Bench::open().await;
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    for name in ["one", "other"] {
        let (host, told) = (bench.enrol(name).await, told.clone());
        let listens = at_once(move |request| {
            assert_eq!(request, ManagerRequest::ExportsChanged);
            told.send(name).unwrap();
            HostReply::Done
        });
        bench.connect(&host, listens).await;
    }
    let generation = bench.publish("a@1", "tree").await;
    let exports = &bench.manager.exports;
    for name in ["other", "one", "away", "other"] {
        exports.export(&generation, &[name.parse().unwrap()]).await.unwrap();
        if name != "away" {
            assert_eq!(tokio::time::timeout(SOON, hears.recv()).await.unwrap(), Some(name));
        }
    }
}
