use std::time::Duration;

use manager_fs::host::enroll::{self, Identity};
use manager_fs::manager::admin::{AdminReply, Quick};
use manager_fs::net::{self, Link, RefuseAll};
use proto::message::{Fault, HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

use crate::fixture::{self, FakeHost, Fixture, SOON, dial};

#[tokio::test]
async fn a_token_enrols_once() {
    let fixture = Fixture::new().await;
    let token = fixture.token("web-1", SOON).await;
    let identity = enroll::enroll(&fixture.state("a"), &fixture.address, &token, false).await.unwrap();
    assert_eq!(identity.host.as_str(), "web-1");
    assert!(identity.not_after > identity.renew_at() && identity.renew_at() > identity.not_before);

    let second = enroll::enroll(&fixture.state("b"), &fixture.address, &token, false).await.unwrap_err();
    assert!(second.to_string().contains("used before"), "{second}");
    assert_eq!(std::fs::read_dir(fixture.state("b")).unwrap().count(), 0, "a failed enrolment leaves nothing");

    let again = fixture.token("web-1", SOON).await;
    let enrolled = enroll::enroll(&fixture.state("a"), &fixture.address, &again, false).await.unwrap_err();
    assert!(enrolled.to_string().contains("already enrolled as web-1"), "{enrolled}");
    enroll::enroll(&fixture.state("a"), &fixture.address, &again, true).await.unwrap();
}

#[tokio::test]
async fn a_token_expires_and_is_bound_to_its_manager() {
    let (fixture, other) = (Fixture::new().await, Fixture::new().await);
    let expired = fixture.token("web-1", Duration::ZERO).await;
    let error = enroll::enroll(&fixture.state("a"), &fixture.address, &expired, false).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");

    let token = fixture.token("web-1", SOON).await;
    let error = enroll::enroll(&fixture.state("a"), &other.address, &token, false).await.unwrap_err();
    assert!(error.to_string().contains("not the manager that printed the token"), "{error}");
    // The other manager never learned the secret, so the token still works.
    enroll::enroll(&fixture.state("a"), &fixture.address, &token, false).await.unwrap();
}

#[tokio::test]
async fn a_malformed_certificate_request_does_not_use_the_token_up() {
    let fixture = Fixture::new().await;
    let token = fixture.token("web-1", SOON).await;
    let stream = net::connect(&fixture.address, net::enrolment_config(token.authority).unwrap()).await.unwrap();
    let link = net::start(stream, Arc::new(RefuseAll));
    let request =
        HostRequest::Enroll { protocol: PROTOCOL, secret: token.secret.to_vec(), csr: b"nonsense".to_vec() };
    let reply: ManagerReply = link.request(&request, |_| {}, SOON).await.unwrap();
    assert!(matches!(reply, ManagerReply::Fault(Fault::BadRequest(_))), "{reply:?}");
    enroll::enroll(&fixture.state("a"), &fixture.address, &token, false).await.unwrap();
}

#[tokio::test]
async fn a_revoked_host_is_cut_off_and_stays_out() {
    let fixture = Fixture::new().await;
    let host = fixture.host("web-1").await;
    let closed = host.link.closed();
    fixture.ask(Quick::Revoke(host.name.clone())).await.unwrap();
    tokio::time::timeout(SOON, closed).await.unwrap();
    let refused = FakeHost::connect(&fixture.address, host.identity.clone()).await.err().unwrap();
    assert!(refused.contains("revoked") && refused.contains("manager-fs token web-1"), "{refused}");
    // What a host sends right behind its `Hello` is refused for that reason too. The refusal of the `Hello` ends the
    // connection, and may do so first.
    for _ in 0..100 {
        let (link, ..) = dial(&fixture.address, &host.identity).await.unwrap();
        let (hello, behind) = (hello(PROTOCOL), HostRequest::Exports);
        let hello = link.request::<_, ManagerReply>(&hello, |_| {}, SOON);
        match tokio::join!(hello, link.request(&behind, |_| {}, SOON)).1 {
            Ok(ManagerReply::Fault(Fault::Refused(why))) => assert!(why.contains("revoked"), "{why}"),
            Err(net::NetError::Closed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    // Enrolled anew it is let in, with the new certificate only.
    let token = fixture.token("web-1", SOON).await;
    let anew = enroll::enroll(&fixture.state("web-1"), &fixture.address, &token, true).await.unwrap();
    FakeHost::connect(&fixture.address, anew).await.unwrap();
    let old = FakeHost::connect(&fixture.address, host.identity.clone()).await.err().unwrap();
    assert!(old.contains("no longer accepted"), "{old}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_the_reason() {
    let fixture = Fixture::with_lifetime(Duration::ZERO).await;
    let identity = fixture.enrolled("web-1").await;
    // Certificates count whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let error = FakeHost::connect(&fixture.address, identity).await.err().unwrap();
    assert!(error.contains("expired") && error.contains("enrol the host again"), "{error}");
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate_unless_that_was_renewed() {
    let fixture = Fixture::with_lifetime(Duration::from_secs(3)).await;
    let (silent, renewing) = (fixture.host("silent").await, fixture.host("renewing").await);
    let renewed = enroll::renew(&renewing.link, &fixture.state("renewing")).await.unwrap();
    // Whole seconds: the new certificate may end with the old one.
    let until = silent.link.closed();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let renewed = enroll::renew(&renewing.link, &fixture.state("renewing")).await.unwrap_or(renewed);
    tokio::time::timeout(SOON, until).await.unwrap();
    assert!(renewed.not_after > silent.identity.not_after);
    assert_eq!(renewing.exports().await, Vec::<String>::new(), "a renewed host is not disturbed");
}

#[tokio::test]
async fn a_certificate_of_another_manager_is_refused() {
    let (fixture, other) = (Fixture::new().await, Fixture::new().await);
    let mut foreign = other.enrolled("web-1").await;
    let error = FakeHost::connect(&fixture.address, foreign.clone()).await.err().unwrap();
    assert!(error.contains("another manager"), "{error}");
    // Even a host that believes this manager gets nowhere with it.
    foreign.tls.authority = fixture.enrolled("web-2").await.tls.authority;
    let error = FakeHost::connect(&fixture.address, foreign).await.err().unwrap();
    assert!(error.contains("not issued by this manager"), "{error}");
}

#[tokio::test]
async fn a_host_renews_and_goes_on_with_the_new_certificate() {
    let fixture = Fixture::new().await;
    let host = fixture.host("web-1").await;
    let renewed = enroll::renew(&host.link, &fixture.state("web-1")).await.unwrap();
    assert_ne!(renewed.tls.certificate, host.identity.tls.certificate);
    assert_ne!(renewed.tls.key, host.identity.tls.key, "a new key with every certificate");
    assert_eq!(Identity::load(&fixture.state("web-1")).unwrap().tls.certificate, renewed.tls.certificate);
    FakeHost::connect(&fixture.address, renewed).await.unwrap();
    // The old one is good until it ends: the host could have crashed before it saved the new one.
    FakeHost::connect(&fixture.address, host.identity.clone()).await.unwrap();
}

#[tokio::test]
async fn strangers_can_do_nothing_but_enrol() {
    let fixture = Fixture::new().await;
    let token = fixture.token("web-1", SOON).await;
    let stranger = || async {
        let config = net::enrolment_config(token.authority).unwrap();
        net::start(net::connect(&fixture.address, config).await.unwrap(), Arc::new(RefuseAll))
    };
    for request in [HostRequest::Exports, hello(PROTOCOL)] {
        let link: Link = stranger().await;
        let reply: ManagerReply = link.request(&request, |_| {}, SOON).await.unwrap();
        assert!(matches!(reply, ManagerReply::Fault(Fault::Refused(_))), "{reply:?}");
        tokio::time::timeout(SOON, link.closed()).await.unwrap();
    }
    let link = stranger().await;
    let large = HostRequest::Enroll { protocol: PROTOCOL, secret: vec![0; 20], csr: vec![0; 1 << 20] };
    assert!(link.request::<_, ManagerReply>(&large, |_| {}, SOON).await.is_err());
}

#[tokio::test]
async fn hello_comes_first_and_names_the_protocol() {
    let fixture = Fixture::new().await;
    let identity = fixture.enrolled("web-1").await;
    let (link, ..) = dial(&fixture.address, &identity).await.unwrap();
    let reply: ManagerReply = link.request(&HostRequest::Exports, |_| {}, SOON).await.unwrap();
    assert!(matches!(reply, ManagerReply::Fault(Fault::BadRequest(_))), "{reply:?}");
    tokio::time::timeout(SOON, link.closed()).await.unwrap();

    let (link, ..) = dial(&fixture.address, &identity).await.unwrap();
    let reply: ManagerReply = link.request(&hello(PROTOCOL + 1), |_| {}, SOON).await.unwrap();
    let ManagerReply::Fault(Fault::Refused(text)) = reply else { panic!("{reply:?}") };
    assert!(text.contains(&PROTOCOL.to_string()) && text.contains(&(PROTOCOL + 1).to_string()), "{text}");
    tokio::time::timeout(SOON, link.closed()).await.unwrap();
}

#[tokio::test]
async fn noise_and_malformed_messages_end_only_their_own_connection() {
    let fixture = Fixture::new().await;
    let host = fixture.host("web-1").await;
    let mut noise = tokio::net::TcpStream::connect(&fixture.address).await.unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (link, ..) = dial(&fixture.address, &fixture.enrolled("web-2").await).await.unwrap();
    let malformed: ManagerReply = link.request(&(0xffff_ffffu32, "x"), |_| {}, SOON).await.unwrap();
    assert!(matches!(malformed, ManagerReply::Fault(Fault::BadRequest(_))), "{malformed:?}");
    tokio::time::timeout(SOON, link.closed()).await.unwrap();
    assert_eq!(host.exports().await, Vec::<String>::new());
}

/// The two behaviours that control-protocol.md has under "Versions", for a host that is newer than its manager.
#[tokio::test]
async fn what_an_older_manager_cannot_read_is_refused_and_nothing_else_ends() {
    let fixture = Fixture::new().await;
    let host = fixture.host("web-1").await;
    for request in [(999_u32, 1_u64), (6, 5_000)] {
        let reply: ManagerReply = host.link.request(&request, |_| {}, SOON).await.unwrap();
        let ManagerReply::Fault(Fault::BadRequest(text)) = reply else { panic!("{reply:?}") };
        assert!(text.contains("cannot read the request"), "{text}");
    }
    assert_eq!(host.exports().await, Vec::<String>::new(), "the same connection goes on");

    // Also right behind a Hello that is still being answered.
    let (link, ..) = dial(&fixture.address, &fixture.enrolled("web-2").await).await.unwrap();
    let greeting = hello(PROTOCOL);
    let (welcome, unknown) = tokio::join!(
        link.request::<_, ManagerReply>(&greeting, |_| {}, SOON),
        link.request::<_, ManagerReply>(&999_u32, |_| {}, SOON),
    );
    assert!(matches!(welcome, Ok(ManagerReply::Welcome { .. })), "{welcome:?}");
    assert!(matches!(unknown, Ok(ManagerReply::Fault(Fault::BadRequest(_)))), "{unknown:?}");
    let exports: ManagerReply = link.request(&HostRequest::Exports, |_| {}, SOON).await.unwrap();
    assert_eq!(exports, ManagerReply::Exports(vec![]));
}

#[tokio::test]
async fn a_second_connection_of_a_host_replaces_the_first() {
    let fixture = Fixture::new().await;
    let first = fixture.host("web-1").await;
    let second = FakeHost::connect(&fixture.address, first.identity.clone()).await.unwrap();
    tokio::time::timeout(SOON, first.link.closed()).await.unwrap();
    let AdminReply::Hosts(hosts) = fixture.ask(Quick::Hosts).await.unwrap() else { panic!() };
    assert!(hosts[0].connected_since.is_some(), "the end of the first is not the end of the second");
    drop(second);
}

fn hello(protocol: u16) -> HostRequest {
    fixture::hello(protocol, Role::Control, Instance([0; 16]))
}
