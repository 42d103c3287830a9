//! Bytes of an upgrade: what a host receives that has all of the version before.

use anyhow::Result;

use crate::cold::{Start, Stopwatch};
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
    /// Like `first_bytes`, on a third host: what the manager makes for such upgrades once it is asked, it has by then.
    pub later_first_bytes: u64,
}

/// Upgrades three hosts from the version before the newest.
///
/// # Errors
/// A program does not start.
pub fn measure(ours: &mut Ours, lab: &Lab, tree: &Tree) -> Result<Upgrade> {
    let started = start(ours, lab, tree)?;
    let new = ours.newest(tree)?;
    let mounted = with_old_version(ours, lab, tree)?;
    let watch = Stopwatch::start(lab)?;
    ours.export(&new, &[&mounted.host.name]);
    mounted.make_local(tree, &new)?;
    let whole_bytes = watch.received()?;
    drop(mounted);
    let later = start(ours, lab, tree)?;
    Ok(Upgrade {
        first_bytes: started.first_bytes,
        end_bytes: started.end_bytes,
        whole_bytes,
        later_first_bytes: later.first_bytes,
    })
}

/// The first start of the newest version on a new host that has all of the one before.
fn start(ours: &mut Ours, lab: &Lab, tree: &Tree) -> Result<Start> {
    let (mounted, new) = (with_old_version(ours, lab, tree)?, ours.newest(tree)?);
    let host = mounted.unmount();
    ours.export(&new, &[&host.name]);
    let mounted = ours.mount(lab, host, &without_background())?;
    Stopwatch::start(lab)?.first_byte(&mut mounted.command(tree, &new))
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
