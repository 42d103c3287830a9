//! Who is let in by a manager that has tokens, and who is not.

use super::*;
use crate::manager::whole::testing::Bench;

const SECRET: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

fn text(name: &str, secret: &str) -> String {
    format!("mfs_{name}.{secret}")
}

fn record(role: Role, credential: Credential) -> ApiTokenRecord {
    ApiTokenRecord { role, credential, created: 1, until: None }
}

async fn give(bench: &Bench, name: &str, secret: &str, role: Role) -> Credential {
    let token: ApiToken = text(name, secret).parse().unwrap();
    let credential = Credential::Secret(*token.hash().as_bytes());
    bench.manager.state.add_api_token(&token.name, &record(role, credential), now()).await.unwrap();
    credential
}

fn with(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value.parse().unwrap());
    headers
}

fn bearing(token: &str) -> HeaderMap {
    with(AUTHORIZATION, &format!("Bearer {token}"))
}

fn signed_in(secret: &str) -> HeaderMap {
    with(COOKIE, &format!("{SESSION_COOKIE}={secret}"))
}

async fn who(bench: &Bench, door: &Door, headers: &HeaderMap, peer: &Peer) -> Result<(String, Role, By), u16> {
    let known = door.caller(&bench.manager.state, headers, peer).await;
    known.map(|caller| (caller.name.to_string(), caller.role, caller.by)).map_err(|problem| problem.status)
}

#[tokio::test]
async fn a_token_opens_with_its_name_and_its_secret_until_it_is_taken_back() {
    let (bench, door) = (Bench::open().await, Door::default());
    give(&bench, "on-call", SECRET, Role::Operator).await;
    let other = SECRET.replace('a', "b");
    give(&bench, "other", &other, Role::Admin).await;
    for wrong in [
        text("on-call", &other),
        text("nobody", SECRET),
        text("on-call", &"0".repeat(64)),
        text("on-call", &SECRET[1..]),
        SECRET.to_owned(),
        String::new(),
    ] {
        let peer = Peer::stranger("10.0.0.1", None);
        assert_eq!(who(&bench, &door, &bearing(&wrong), &peer).await, Err(401), "{wrong}");
        assert!(!peer.has_shown());
    }
    let peer = Peer::stranger("10.0.0.1", None);
    for odd in ["Basic b24=", "Bearer", &text("on-call", SECRET)] {
        assert_eq!(who(&bench, &door, &with(AUTHORIZATION, odd), &peer).await, Err(401), "{odd}");
    }
    let good = bearing(&text("on-call", SECRET));
    let expected = Ok(("on-call".to_owned(), Role::Operator, By::Token));
    assert_eq!(who(&bench, &door, &good, &peer).await, expected);
    assert!(peer.has_shown());
    bench.manager.state.revoke_api_token(&"on-call".parse().unwrap()).await.unwrap();
    let elsewhere = Peer::stranger("10.0.0.2", None);
    assert_eq!(who(&bench, &door, &good, &elsewhere).await, Err(401));
}

#[tokio::test]
async fn a_token_whose_time_is_over_opens_nothing_and_ends_its_sessions() {
    let (bench, door) = (Bench::open().await, Door::default());
    let token: ApiToken = text("brief", SECRET).parse().unwrap();
    let credential = Credential::Secret(*token.hash().as_bytes());
    let ended = ApiTokenRecord { until: Some(now() - 1), ..record(Role::Admin, credential) };
    bench.manager.state.add_api_token(&token.name, &ended, 0).await.unwrap();
    let (peer, session) = (Peer::stranger("10.0.0.1", None), door.sessions.begin(token.name, credential).unwrap());
    assert_eq!(who(&bench, &door, &bearing(&text("brief", SECRET)), &peer).await, Err(401));
    assert_eq!(who(&bench, &door, &signed_in(&session), &peer).await, Err(401));
    assert!(!peer.has_shown());
}

/// A name is free again once its token was taken back. Whoever was signed in with the one before is not the next one,
/// who may have another role.
#[tokio::test]
async fn a_session_ends_with_its_token_also_where_another_has_its_name() {
    let (bench, door) = (Bench::open().await, Door::default());
    let credential = give(&bench, "on-call", SECRET, Role::Viewer).await;
    let name: ApiTokenName = "on-call".parse().unwrap();
    let (peer, session) = (Peer::stranger("10.0.0.1", None), door.sessions.begin(name.clone(), credential).unwrap());
    let expected = Ok(("on-call".to_owned(), Role::Viewer, By::Session));
    assert_eq!(who(&bench, &door, &signed_in(&session), &peer).await, expected);
    bench.manager.state.revoke_api_token(&name).await.unwrap();
    assert_eq!(who(&bench, &door, &signed_in(&session), &peer).await, Err(401));
    give(&bench, "on-call", &SECRET.replace('a', "c"), Role::Admin).await;
    assert_eq!(who(&bench, &door, &signed_in(&session), &peer).await, Err(401), "it is another token");
}

#[tokio::test]
async fn a_certificate_opens_what_it_was_told_of_and_a_secret_never_stands_for_it() {
    let (bench, door) = (Bench::open().await, Door::default());
    let shown = b"der of a certificate";
    let credential = Credential::Certificate(*blake3::hash(shown).as_bytes());
    let name: ApiTokenName = "robot".parse().unwrap();
    bench.manager.state.add_api_token(&name, &record(Role::Publisher, credential), now()).await.unwrap();
    let (robot, other) = (Peer::stranger("10.0.0.1", Some(shown)), Peer::stranger("10.0.0.2", Some(b"another")));
    let none = HeaderMap::new();
    assert_eq!(who(&bench, &door, &none, &robot).await, Ok(("robot".to_owned(), Role::Publisher, By::Certificate)));
    assert_eq!(who(&bench, &door, &none, &other).await, Err(401));
    assert!(robot.has_shown() && !other.has_shown());
    let known = |peer: Peer| {
        let (door, state, none) = (&door, &bench.manager.state, &none);
        async move { door.caller(state, none, &peer).await.unwrap() }
    };
    let (one, again) = (known(robot.clone()).await, known(robot.clone()).await);
    assert!(one.form_key.is_some() && one.form_key == again.form_key, "its forms are good on every connection");
    // A wrong token beside a good certificate is a wrong token, and the hash that is kept is no secret.
    assert_eq!(who(&bench, &door, &bearing(&text("robot", SECRET)), &robot).await, Err(401));
    let hash = blake3::hash(shown).to_hex();
    assert_eq!(who(&bench, &door, &bearing(&text("robot", hash.as_str())), &robot).await, Err(401));
}

#[tokio::test]
async fn of_wrong_tokens_so_many_are_looked_at_and_who_shows_nothing_has_tried_nothing() {
    let (bench, door) = (Bench::open().await, Door::default());
    give(&bench, "on-call", SECRET, Role::Viewer).await;
    let good = bearing(&text("on-call", SECRET));
    let (one, mapped) = (Peer::stranger("10.0.0.1", None), Peer::stranger("::ffff:10.0.0.1", None));
    for _ in 0..FAILURES_MAX * 2 {
        assert_eq!(who(&bench, &door, &HeaderMap::new(), &one).await, Err(401));
        assert_eq!(who(&bench, &door, &signed_in("gone"), &one).await, Err(401));
    }
    for _ in 0..FAILURES_MAX / 2 {
        let wrong = text("on-call", &"0".repeat(64));
        assert_eq!(who(&bench, &door, &bearing(&wrong), &one).await, Err(401));
        let refused = door.bearer(&bench.manager.state, &wrong, &mapped).await.map_err(|problem| problem.status);
        assert_eq!(
            refused.err(),
            Some(401),
            "one at the page that signs in counts as one, and from the same address"
        );
    }
    for peer in [&one, &mapped] {
        assert_eq!(who(&bench, &door, &good, peer).await, Err(429));
    }
    let problem = door.bearer(&bench.manager.state, &text("on-call", SECRET), &one).await.unwrap_err();
    assert_eq!((problem.status, problem.retry_after), (429, Some(6)));
    for address in ["10.0.0.2", "::ffff:10.0.0.2"] {
        assert!(who(&bench, &door, &good, &Peer::stranger(address, None)).await.is_ok(), "{address}");
    }
}

#[test]
fn of_too_many_addresses_those_that_tried_longest_ago_are_forgotten() {
    let door = Door::default();
    let address = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
    for number in 0..=ADDRESSES_MAX {
        door.failed(address(number));
    }
    let strangers = lock(&door.strangers);
    assert_eq!(strangers.len(), ADDRESSES_MAX);
    assert!(!strangers.contains(&address(0)) && strangers.contains(&address(1)));
}

#[test]
fn failures_are_forgotten_one_by_one_and_not_at_once() {
    let ago = |times: u32| Instant::now().checked_sub(FORGOTTEN_AFTER * times).unwrap();
    assert_eq!(remembered(10, Instant::now()), 10);
    assert_eq!(remembered(10, ago(1)), 9);
    assert_eq!(remembered(10, ago(9)), 1);
    assert_eq!(remembered(3, ago(9)), 0);
}
