//! The mount as its users meet it: real processes, real mounts. Needs /dev/fuse, and root or the right to make user
//! namespaces: without root every test that mounts for itself runs in a user and a mount namespace of its own.

#![allow(clippy::unwrap_used)] // Panicking is how a test reports.

mod lab;
mod lives;
mod reads;
mod tree;
mod unprivileged;

use std::sync::atomic::Ordering;
use std::time::Instant;

use tests::needs::{self, Lack};

use lives::{
    a_new_daemon_replaces_what_a_killed_one_left, a_signal_to_every_process_still_unmounts,
    a_stopped_worker_or_helper_is_replaced, a_view_that_somebody_unmounts_comes_back,
    killing_the_helper_in_the_middle_of_attaches_goes_unnoticed, killing_the_worker_again_and_again_goes_unnoticed,
};
use reads::{
    a_second_start_and_any_start_of_local_objects_make_no_fuse_request, an_acl_holds_on_every_path,
    bad_days_of_the_network_fail_one_read_and_nothing_else, metadata_memory_is_capped_and_reported,
    on_a_full_or_read_only_cache_reads_stream, the_overlay_and_the_view_show_the_tree_and_programs_run,
    the_view_follows_the_exports_and_objects_are_closed_to_others,
    with_a_page_of_read_ahead_a_read_is_one_request_and_a_page_comes_alone,
};
use unprivileged::{
    in_a_user_namespace_the_mounts_exist_only_inside, where_nothing_may_be_mounted_a_plain_copy_is_made,
    without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects,
};

type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

/// Tests whose daemon is to begin as a user without rights: without root they run as that user, outside of any namespace.
const OF_A_USER: [&str; 3] = [
    "in_a_user_namespace_the_mounts_exist_only_inside",
    "without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects",
    "where_nothing_may_be_mounted_a_plain_copy_is_made",
];

const TESTS: &[Test] = tests![
    the_overlay_and_the_view_show_the_tree_and_programs_run,
    killing_the_worker_again_and_again_goes_unnoticed,
    a_second_start_and_any_start_of_local_objects_make_no_fuse_request,
    bad_days_of_the_network_fail_one_read_and_nothing_else,
    the_view_follows_the_exports_and_objects_are_closed_to_others,
    metadata_memory_is_capped_and_reported,
    a_new_daemon_replaces_what_a_killed_one_left,
    killing_the_helper_in_the_middle_of_attaches_goes_unnoticed,
    on_a_full_or_read_only_cache_reads_stream,
    a_signal_to_every_process_still_unmounts,
    a_stopped_worker_or_helper_is_replaced,
    a_view_that_somebody_unmounts_comes_back,
    an_acl_holds_on_every_path,
    with_a_page_of_read_ahead_a_read_is_one_request_and_a_page_comes_alone,
];

/// Without the host's root there are no images.
const ONLY_FILES: &[Test] = tests![
    in_a_user_namespace_the_mounts_exist_only_inside,
    without_fuse_an_unprivileged_user_gets_an_overlay_of_local_objects,
    where_nothing_may_be_mounted_a_plain_copy_is_made,
];

/// What a test needs, if it is not here.
fn needs_of(name: &str) -> Result<(), Lack> {
    if name.starts_with("where_nothing_may_be_mounted") {
        return Ok(());
    }
    if name.starts_with("without_fuse") || name.starts_with("in_a_user_namespace") {
        needs::user_namespaces()?;
    }
    if name.starts_with("without_fuse") { Ok(()) } else { needs::mounts() }
}

/// A harness of its own: holder, worker and helper are this binary started again, and a holder may have no thread but
/// one before it enters a user namespace, which the usual harness does not grant.
fn main() {
    lab::process();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let listing = args.iter().any(|arg| arg == "--list");
    let ignored = args.iter().any(|arg| arg == "--ignored");
    let mut failed = Vec::new();
    // Once with metadata layers as images, which only the host's root can mount, and once as directories.
    let images_too = lab::all_users_exist();
    let by_files = ONLY_FILES.iter().chain(TESTS).map(|(name, test)| (format!("{name}_by_files"), *test, false));
    let by_images = TESTS.iter().map(|(name, test)| (name.to_string(), *test, true));
    for (name, test, images) in by_images.chain(by_files).filter(|_| !ignored) {
        lab::IMAGES.store(images, Ordering::Relaxed);
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if listing {
            println!("{name}: test");
            continue;
        }
        if images && !images_too {
            needs::list(Lack::Root, &name);
            continue;
        }
        if let Err(lack) = needs_of(&name) {
            needs::list(lack, &name);
            println!("test {name} ... FAILED (cannot run here, for want of {lack})");
            failed.push(name);
            continue;
        }
        let begun = Instant::now();
        let of_a_user = OF_A_USER.iter().any(|of_a_user| name.starts_with(of_a_user));
        let passed = if rustix::process::geteuid().is_root() || of_a_user {
            std::panic::catch_unwind(test).is_ok()
        } else {
            lab::in_a_namespace(&name)
        };
        println!("test {name} ... {} ({:?})", if passed { "ok" } else { "FAILED" }, begun.elapsed());
        if !passed {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(101);
    }
}
