use proto::message::Role;

use super::*;
use crate::manager::control::hosts::{ShutOut, TokenFault};
use crate::manager::control::tokens::TokenRecord;
use crate::manager::identity::secret_hash;
use crate::manager::whole::testing::{Bench, SOON, alive, host, request_for_certificate};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

async fn enroll(bench: &Bench, secret: &[u8]) -> Result<ManagerReply, EnrolmentError> {
    bench.enrolment().enroll(PROTOCOL, secret, &request_for_certificate()).await
}

fn fault(refused: Result<ManagerReply, EnrolmentError>) -> TokenFault {
    let Err(EnrolmentError::Host(HostError::Token(fault))) = refused else { panic!("{refused:?}") };
    fault
}

#[tokio::test]
async fn a_token_enrols_once_in_its_time_the_host_that_it_was_printed_for() {
    let bench = Bench::open().await;
    bench.token("web", b"good", HOUR).await;
    bench.token("late", b"late", 0).await;
    assert_eq!(fault(enroll(&bench, b"guessed").await), TokenFault::Unknown);
    assert_eq!(fault(enroll(&bench, b"late").await), TokenFault::Expired);
    let Ok(ManagerReply::Certificate { host: named, publishers, authority, .. }) = enroll(&bench, b"good").await
    else {
        panic!("not enrolled")
    };
    assert_eq!((named, authority.as_str()), (host("web"), bench.manager.identity.authority()));
    assert_eq!(publishers, [bench.manager.identity.publisher().verifying_key().to_bytes()]);
    let refused = enroll(&bench, b"good").await;
    assert_eq!(
        refused.as_ref().unwrap_err().to_string(),
        "this token was used before, it enrols only once; print a new one with `manager-fs token`"
    );
    assert_eq!(fault(refused), TokenFault::Used);
    assert_eq!(bench.manager.state.hosts().len(), 1, "nobody else was let in");
}

/// What the host did wrong must not cost the operator a new token.
#[tokio::test]
async fn a_request_that_cannot_be_used_leaves_the_token_as_it_is() {
    let bench = Bench::open().await;
    bench.token("web", b"good", HOUR).await;
    let csr = request_for_certificate();
    let mut forged = csr.clone();
    *forged.last_mut().unwrap() ^= 1;
    for bad in [&b""[..], b"\x30\x03abc", &csr[..csr.len() - 1], &forged] {
        let refused = bench.enrolment().enroll(PROTOCOL, b"good", bad).await;
        assert!(matches!(refused, Err(EnrolmentError::Request(_))), "{refused:?}");
    }
    for other in [PROTOCOL - 1, PROTOCOL + 1] {
        let refused = bench.enrolment().enroll(other, b"good", &csr).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("protocol {other}, this manager {PROTOCOL}")), "{refused}");
    }
    enroll(&bench, b"good").await.unwrap();
}

/// A token that leaked is used by two at the same moment.
#[tokio::test]
async fn of_many_who_come_with_one_token_at_once_one_is_enrolled() {
    let bench = Bench::open().await;
    bench.token("web", b"good", HOUR).await;
    let csrs: Vec<_> = (0..8).map(|_| request_for_certificate()).collect();
    let enrolment = Arc::new(Enrolment {
        state: Arc::clone(&bench.manager.state),
        identity: Arc::clone(&bench.manager.identity),
        connections: Arc::clone(&bench.manager.connections),
    });
    let all = csrs.into_iter().map(|csr| {
        let enrolment = Arc::clone(&enrolment);
        tokio::spawn(async move { enrolment.enroll(PROTOCOL, b"good", &csr).await })
    });
    let mut enrolled = 0;
    for one in all.collect::<Vec<_>>() {
        match one.await.unwrap() {
            Ok(_) => enrolled += 1,
            refused => assert_eq!(fault(refused), TokenFault::Used),
        }
    }
    assert_eq!(enrolled, 1);
    assert_eq!(bench.manager.state.host(&host("web")).unwrap().certificates.len(), 1);
}

#[tokio::test]
async fn why_a_token_is_refused_is_remembered_for_a_week() {
    let bench = Bench::open().await;
    let (state, expires) = (&bench.manager.state, 100 * DAY);
    let record = TokenRecord { host: host("web"), expires, used: None };
    state.add_token(&secret_hash(b"old"), &record, 1).await.unwrap();
    let near = &secret_hash(b"old")[..2];
    let mut others = (0_u64..).map(|number| secret_hash(&number.to_le_bytes())).filter(|hash| hash.starts_with(near));
    for (later, expected) in [(7 * DAY, TokenFault::Expired), (7 * DAY + 1, TokenFault::Unknown)] {
        // Printing another one forgets those near to it that ended long ago.
        let now = expires + later;
        let other = TokenRecord { expires: now + 1, ..record.clone() };
        state.add_token(&others.next().unwrap(), &other, now).await.unwrap();
        let refused = state.token(&secret_hash(b"old"), now).await.map(|token| token.record);
        assert_eq!(refused, Err(HostError::Token(expected)), "after {later} ms");
    }
}

#[tokio::test]
async fn an_enrolment_anew_ends_the_old_identity_and_its_connections() {
    let bench = Bench::open().await;
    let (state, web) = (&bench.manager.state, bench.enrol("web").await);
    let first = bench.serial(&web);
    let link = bench.connect(&web, alive()).await;
    bench.enrol("web").await;
    let reason = tokio::time::timeout(SOON, link.closed()).await.unwrap();
    assert!(reason.contains("the host was enrolled anew"), "{reason}");
    let shut_out = |why| Err(HostError::ShutOut { host: web.clone(), why });
    assert_eq!(state.admit(&web, &first), shut_out(ShutOut::EnrolledAnew));
    assert_eq!(state.admit(&web, &bench.serial(&web)), Ok(()));
}

/// The host may crash before it has saved the new certificate.
#[tokio::test]
async fn a_renewal_leaves_the_old_certificate_good_and_cuts_nothing() {
    let bench = Bench::open().await;
    let (state, web) = (&bench.manager.state, bench.enrol("web").await);
    let first = bench.serial(&web);
    let link = bench.connect(&web, alive()).await;
    bench.enrolment().renew(&web, &first, &request_for_certificate()).await.unwrap();
    let second = bench.serial(&web);
    assert_ne!(first, second);
    assert_eq!((state.admit(&web, &first), state.admit(&web, &second)), (Ok(()), Ok(())));
    assert_eq!(link.closed_reason(), None);
}

#[tokio::test]
async fn a_revoked_host_neither_renews_nor_comes_back_until_it_has_a_new_token() {
    let bench = Bench::open().await;
    let (manager, web) = (&bench.manager, bench.enrol("web").await);
    let before = bench.newcomer(&web, Role::Control, 1);
    let link = bench.connect(&web, alive()).await;
    manager.revoke(&web).await.unwrap();
    assert!(tokio::time::timeout(SOON, link.closed()).await.unwrap().contains("the host was revoked"));
    let serial = bench.serial(&web);
    let refused =
        bench.enrolment().renew(&web, &serial, &request_for_certificate()).await.map(drop).unwrap_err().to_string();
    assert_eq!(
        refused,
        "host 'web' was revoked: to let it in again, `manager-fs token web` on the manager, then `manager-fs enroll \
         --force` with that token on the host"
    );
    assert!(bench.greet(&before, alive()).await.is_err());
    assert!(manager.connections.control_link(&web).is_none(), "not even for a moment");
    bench.enrol("web").await;
    assert!(bench.greet(&before, alive()).await.is_err(), "with the certificate of before");
    bench.connect(&web, alive()).await;
    for unknown in [manager.revoke(&host("nobody")).await, manager.forget(&host("nobody")).await] {
        assert!(unknown.unwrap_err().to_string().contains("host 'nobody' is not enrolled"));
    }
}
