use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use proto::message::Fault;

use super::*;
use crate::clock::testing::Manual;
use crate::net::{RefuseAll, start};

/// Something that is due at a date and can refuse to be renewed.
struct Fake {
    due: AtomicU64,
    asked: AtomicUsize,
    refuses: AtomicUsize,
}

const LIFE_MS: u64 = 24 * 3_600_000;

impl Renewable for Arc<Fake> {
    fn due(&self) -> Unix {
        self.due.load(Ordering::SeqCst)
    }

    fn renew(&self, _link: Link) -> BoxFuture<Result<(), EnrollError>> {
        let fake = Arc::clone(self);
        Box::pin(async move {
            fake.asked.fetch_add(1, Ordering::SeqCst);
            let refuses = fake.refuses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            match refuses {
                Ok(_) => Err(EnrollError::Refused(Fault::Failed("the disk is full".to_owned()))),
                Err(_) => {
                    fake.due.fetch_add(LIFE_MS, Ordering::SeqCst);
                    Ok(())
                }
            }
        })
    }
}

struct Fixture {
    time: Arc<Manual>,
    fake: Arc<Fake>,
    connection: watch::Sender<Option<Link>>,
    work: tokio::task::JoinHandle<()>,
}

/// A certificate that is due in `left_ms`; must be called in a runtime.
fn fixture(left_ms: u64, refuses: usize) -> Fixture {
    let (time, clock) = Manual::new();
    let due = AtomicU64::new(Manual::BEGINS_UNIX_MS + left_ms);
    let fake = Arc::new(Fake { due, asked: AtomicUsize::new(0), refuses: AtomicUsize::new(refuses) });
    let connection = watch::Sender::new(None);
    let (renewed, connections) = (Arc::clone(&fake), connection.subscribe());
    let work = tokio::spawn(async move { renew_when_due(&renewed, &clock, connections).await });
    Fixture { time, fake, connection, work }
}

impl Fixture {
    fn connect(&self) {
        let (ours, _) = tokio::io::duplex(1 << 10);
        self.connection.send_replace(Some(start(ours, Arc::new(RefuseAll))));
    }

    fn asked(&self) -> usize {
        self.fake.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_when_it_is_due_and_not_before() {
    let fixture = fixture(5 * 3_600_000 + 1_000, 0);
    fixture.connect();
    for _ in 0..5 {
        fixture.time.pass(|left| left == LOOK_AGAIN).await;
        assert_eq!(fixture.asked(), 0);
    }
    fixture.time.pass(|left| left == Duration::from_secs(1)).await;
    // The next one is due a day after this one was.
    fixture.time.waiting(|left| left == LOOK_AGAIN).await;
    assert_eq!(fixture.asked(), 1);
}

#[tokio::test]
async fn a_refused_renewal_is_tried_again_every_minute() {
    let fixture = fixture(0, 3);
    fixture.connect();
    for times in 1..4 {
        fixture.time.waiting(|left| left == RENEW_PAUSE).await;
        assert_eq!(fixture.asked(), times);
        fixture.time.pass(|left| left == RENEW_PAUSE).await;
    }
    fixture.time.waiting(|left| left == LOOK_AGAIN).await;
    assert_eq!(fixture.asked(), 4);
}

#[tokio::test]
async fn what_is_due_while_the_manager_is_away_is_renewed_as_soon_as_it_is_back() {
    let fixture = fixture(1_000, 0);
    fixture.time.pass(|left| left == Duration::from_secs(1)).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.asked(), 0);
    fixture.connect();
    fixture.time.waiting(|left| left == LOOK_AGAIN).await;
    assert_eq!(fixture.asked(), 1);
}

#[tokio::test]
async fn a_machine_that_slept_past_the_date_renews_within_the_hour() {
    let fixture = fixture(60 * LIFE_MS, 0);
    fixture.connect();
    fixture.time.waiting(|left| left == LOOK_AGAIN).await;
    // Asleep for two months: the date goes on, and what counts moments does not.
    fixture.time.set_date(Manual::BEGINS_UNIX_MS + 61 * LIFE_MS);
    fixture.time.pass(|left| left == LOOK_AGAIN).await;
    while fixture.asked() == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_machine_that_slept_past_the_date_renews_with_its_next_connection() {
    let fixture = fixture(60 * LIFE_MS, 0);
    fixture.connect();
    fixture.time.waiting(|left| left == LOOK_AGAIN).await;
    fixture.time.set_date(Manual::BEGINS_UNIX_MS + 61 * LIFE_MS);
    // What was connected before it fell asleep is not any more.
    fixture.connect();
    tokio::time::timeout(Duration::from_secs(20), async {
        while fixture.asked() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is not renewed before the hour is over");
}

#[tokio::test]
async fn a_clock_that_is_years_ahead_does_not_renew_without_end() {
    let fixture = fixture(0, 0);
    fixture.time.set_date(Manual::BEGINS_UNIX_MS + 70 * 365 * LIFE_MS);
    fixture.connect();
    fixture.time.waiting(|left| left == LOOK_AGAIN).await;
    assert_eq!(fixture.asked(), 1);
}

#[tokio::test]
async fn renewals_end_with_the_link() {
    let fixture = fixture(0, 0);
    drop(fixture.connection);
    tokio::time::timeout(Duration::from_secs(20), fixture.work).await.expect("it goes on").unwrap();
}
