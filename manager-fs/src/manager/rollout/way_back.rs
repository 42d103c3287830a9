//! What a host goes back to when a rollout is taken back, and whether it can.

use std::sync::Arc;

use proto::{GenerationRef, HostName, TreeId, Version};

use super::machine::vocabulary::{HostNo, HostState};
use super::run::{Here, Run};
use crate::manager::control::ControlError;
use crate::manager::control::generations::Generation;

/// Why a rollout is not taken back: some host could not go where it came from, and half of a fleet on one version and
/// half on another is what nobody has ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoWayBack {
    /// What it would go back to is not there any more: collected, or set aside because its record cannot be read.
    #[error(
        "{generation}, to which {} would go back, is no longer published; publish it again, or \
         roll out another generation", named(.hosts)
    )]
    Gone {
        /// As people name it.
        generation: String,
        /// Whom that concerns.
        hosts: Vec<HostName>,
    },
    /// It is there, and they do not see it.
    #[error(
        "{generation}, to which {} would go back, is not exported there any more; \
         `manager-fs export {generation} --to HOST` does that", named(.hosts)
    )]
    NotExported {
        /// As people name it.
        generation: String,
        /// Whom that concerns.
        hosts: Vec<HostName>,
    },
    /// Nobody has noted what they ran before.
    #[error(
        "it is not known what ran on {} before; roll out the generation that should run there, \
         or plan with rollback-to", named(.hosts)
    )]
    Unknown {
        /// Whom that concerns.
        hosts: Vec<HostName>,
    },
}

/// The first of them, and how many more.
fn named(hosts: &[HostName]) -> String {
    match hosts {
        [] => String::from("no host"),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

/// Looks whether every host that a rollback would order something can do it. Of several reasons the first is said.
///
/// # Errors
/// The control state failed.
pub(super) async fn check(here: &Here, run: &Run) -> Result<Result<(), NoWayBack>, ControlError> {
    let mut found: Option<NoWayBack> = None;
    for (no, host) in run.all_hosts() {
        let goes = matches!(run.machine.host(no), Some(HostState::Good | HostState::InFlight(_) | HostState::Silent));
        if !goes {
            continue;
        }
        let Err(fault) = of(here, run, no).await? else { continue };
        match (&mut found, fault) {
            (None, fault) => found = Some(fault),
            (
                Some(NoWayBack::Gone { generation, hosts } | NoWayBack::NotExported { generation, hosts }),
                NoWayBack::Gone { generation: also, .. } | NoWayBack::NotExported { generation: also, .. },
            ) if *generation == also => hosts.push(host),
            (Some(NoWayBack::Unknown { hosts }), NoWayBack::Unknown { .. }) => hosts.push(host),
            (Some(_), _) => {}
        }
    }
    Ok(found.map_or(Ok(()), Err))
}

/// What a host is to go back to.
///
/// # Errors
/// The control state failed; within: there is no such thing.
pub(super) async fn of(
    here: &Here,
    run: &Run,
    no: HostNo,
) -> Result<Result<(Version, TreeId), NoWayBack>, ControlError> {
    let (record, state) = (&run.record, &here.state);
    let product = &record.plan.product;
    let Some(host) = run.name(no) else { return Ok(Err(NoWayBack::Unknown { hosts: Vec::new() })) };
    let hosts = || vec![host.clone()];
    let wanted = match &record.plan.rollback_to {
        Some(wanted) => match state.resolve_of(product, wanted) {
            Ok(found) => (found.record.version.clone(), found.record.tree),
            Err(_) => return Ok(Err(NoWayBack::Gone { generation: wanted.to_string(), hosts: hosts() })),
        },
        None => match before(here, run, no, host).await? {
            Some(before) => before,
            None => return Ok(Err(NoWayBack::Unknown { hosts: hosts() })),
        },
    };
    let generation = GenerationRef::Named(product.clone(), wanted.0.clone()).to_string();
    if state.generation(product, &wanted.0).is_none_or(|found| found.record.tree != wanted.1) {
        return Ok(Err(NoWayBack::Gone { generation, hosts: hosts() }));
    }
    let is_meant = |found: &Arc<Generation>| found.record.product == *product && found.record.version == wanted.0;
    if !state.exported_to(host).iter().any(is_meant) {
        return Ok(Err(NoWayBack::NotExported { generation, hosts: hosts() }));
    }
    Ok(Ok(wanted))
}

/// What it ran before, by its own change-over or by what its ring ran when the rollout began.
async fn before(
    here: &Here,
    run: &Run,
    no: HostNo,
    host: &HostName,
) -> Result<Option<(Version, TreeId)>, ControlError> {
    let (record, state) = (&run.record, &here.state);
    if let Some(change) = state.last_change(host, &record.plan.product) {
        let from = state.steps_of(&change).await?.iter().find_map(|step| step.from);
        let of = |generation: &&Arc<Generation>| {
            generation.record.product == record.plan.product && Some(generation.record.tree) == from
        };
        let exported = state.exported_to(host);
        if let Some(found) = exported.iter().rev().find(of) {
            return Ok(Some((found.record.version.clone(), found.record.tree)));
        }
    }
    let ring = (0..).zip(&record.before).find(|(ring, _)| run.hosts_of(*ring).iter().any(|(of, _)| *of == no));
    Ok(ring.and_then(|(_, before)| before.clone()))
}
