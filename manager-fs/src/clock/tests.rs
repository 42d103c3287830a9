use std::sync::Mutex;

use super::testing::Manual;
use super::*;
use crate::sync::lock;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn work_that_is_done_in_time_wins_and_what_is_late_is_dropped() {
    let (time, clock) = Manual::new();
    let deadline = clock.now() + SECOND;
    assert_eq!(clock.within(deadline, async { 7 }).await, Some(7));
    time.advance(SECOND);
    assert_eq!(clock.within(deadline, async { 7 }).await, Some(7), "what is there already is not too late");
    assert_eq!(clock.within(deadline, std::future::pending::<()>()).await, None);
    assert_eq!(clock.left(deadline), Duration::ZERO);
    assert_eq!(clock.left(deadline + SECOND), SECOND);
}

#[tokio::test]
async fn tasks_and_threads_wake_when_their_time_has_come_and_no_sooner() {
    let (time, clock) = Manual::new();
    let (by_task, by_thread) = (clock.clone(), clock.clone());
    let task = tokio::spawn(async move { by_task.sleep(3 * SECOND).await });
    let thread = std::thread::spawn(move || by_thread.rest(5 * SECOND));
    time.waiting(|left| left == 3 * SECOND).await;
    time.waiting(|left| left == 5 * SECOND).await;
    time.advance(3 * SECOND);
    task.await.unwrap();
    assert!(!thread.is_finished());
    time.advance(2 * SECOND);
    thread.join().unwrap();
    assert_eq!(time.waits(), [] as [Duration; 0]);
    assert_eq!(clock.unix_ms(), Manual::BEGINS_UNIX_MS + 5_000);
}

#[test]
fn a_condition_is_waited_for_until_the_moment() {
    let (time, clock) = Manual::new();
    let (flag, changed) = (Mutex::new(false), Condvar::new());
    let until = clock.now() + SECOND;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut flag = lock(&flag);
            while !*flag {
                match clock.wait_until(&changed, flag, until) {
                    Some(again) => flag = again,
                    None => return false,
                }
            }
            true
        });
        time.advance(SECOND - Duration::from_millis(1));
        *lock(&flag) = true;
        changed.notify_all();
        assert!(waiting.join().unwrap());
    });
    *lock(&flag) = false;
    time.advance(Duration::from_millis(1));
    assert!(clock.wait_until(&changed, lock(&flag), until).is_none());
}

#[test]
fn the_machines_clock_goes_on_by_itself() {
    let clock = Clock::system();
    let (begun, date) = (clock.now(), clock.unix_ms());
    clock.rest(Duration::from_millis(5));
    assert!(clock.now() - begun >= Duration::from_millis(5));
    assert!(clock.unix_ms() >= date && date > 1_700_000_000_000, "{date}");
}
