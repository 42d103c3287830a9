//! Bytes of an upgrade: what a host receives that has all of the version before.

use anyhow::Result;

use crate::cold::Stopwatch;
use crate::lab::Lab;
use crate::ours::{Mounted, Ours, without_background};
use crate::trees::Tree;

/// Bytes that the host's interface received.
#[derive(Debug, Clone, Copy)]
pub struct Upgrade {
    /// Until the new version's first output byte, with the background fetch paced to next to nothing.
    pub first_bytes: u64,
    /// Until that start had ended.
    pub end_bytes: u64,
    /// Until all of the new version was local, on another host.
    pub whole_bytes: u64,
}

/// Upgrades two hosts from the version before the newest.
///
/// # Errors
/// A program does not start.
pub fn measure(ours: &mut Ours, lab: &Lab, tree: &Tree) -> Result<Upgrade> {
    let (mounted, new) = (with_old_version(ours, lab, tree)?, ours.newest(tree)?);
    let host = mounted.unmount();
    ours.export(&new, &[&host.name]);
    let mounted = ours.mount(lab, host, &without_background())?;
    let started = Stopwatch::start(lab)?.first_byte(&mut mounted.command(tree, &new))?;
    drop(mounted);

    let mounted = with_old_version(ours, lab, tree)?;
    let watch = Stopwatch::start(lab)?;
    ours.export(&new, &[&mounted.host.name]);
    mounted.make_local(tree, &new)?;
    let whole_bytes = watch.received()?;
    Ok(Upgrade { first_bytes: started.first_bytes, end_bytes: started.end_bytes, whole_bytes })
}

/// A new host with all of the version before the newest.
fn with_old_version(ours: &mut Ours, lab: &Lab, tree: &Tree) -> Result<Mounted> {
    let old = ours.generation(tree, tree.versions.len().saturating_sub(2))?;
    let host = ours.enroll(lab);
    ours.export(&old, &[&host.name]);
    let mounted = ours.mount(lab, host, &[])?;
    mounted.make_local(tree, &old)?;
    Ok(mounted)
}
