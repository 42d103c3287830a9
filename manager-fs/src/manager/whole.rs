//! The manager, put together: opens its parts and hands each what it needs. No part knows the whole.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proto::HostName;
use tokio::net::TcpListener;

use super::budget::Budgets;
use super::bundle::Bundles;
use super::company::Company;
use super::connections::Connections;
use super::control::backup::BACKUP_FILE;
use super::control::{self, ControlStore, LocalObservations, LocalStore, State};
use super::delta::Deltas;
use super::enrolment::Enrolment;
use super::error::ManagerError;
use super::export::Exporter;
use super::exports::Exports;
use super::identity::ManagerIdentity;
use super::idle_work::IdleWork;
use super::jobs::Jobs;
use super::news::{News, NewsBoard};
use super::now;
use super::policy::{self, Policies};
use super::record_files::RecordFiles;
use super::reports::Reports;
use super::repositories::Repositories;
use super::rollout::{Here, Rollouts};
use super::server::accept_hosts;
use super::session::Services;
use super::store::Store;
use super::tally::Tally;
use super::targets::Targets;
use super::upgrade::Upgrades;
use super::worker::blocking;
use crate::clock::Clock;
use crate::metrics::http;
use crate::net;

/// How the manager is set up.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// The store's directory (`--store`), made where it is missing.
    pub store: PathBuf,
    /// How long hosts' certificates are valid.
    pub host_certificate_lifetime: Duration,
}

/// The manager: its parts, for its listeners and for the operator's commands.
pub struct Manager {
    pub(super) store: Arc<Store>,
    pub(super) state: Arc<State>,
    pub(super) identity: Arc<ManagerIdentity>,
    pub(super) news: Arc<NewsBoard>,
    pub(super) connections: Arc<Connections>,
    pub(super) exports: Arc<Exports>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) upgrades: Arc<Upgrades>,
    pub(super) targets: Arc<Targets>,
    pub(super) rollouts: Arc<Rollouts>,
    pub(super) policies: Arc<Policies>,
    pub(super) bundles: Arc<Bundles>,
    pub(super) idle: Arc<IdleWork>,
    services: Arc<Services>,
    pub(super) tally: Arc<Tally>,
    /// What its operator should be told of its opening.
    notices: Vec<String>,
    files: (Arc<LocalStore>, Arc<LocalObservations>),
    pub(super) records: Arc<RecordFiles>,
    /// Keeps the copy of the decisions up.
    copying: tokio::task::JoinHandle<()>,
    /// Tells hosts that come what was ordered meanwhile.
    delivering: tokio::task::JoinHandle<()>,
    address: OnceLock<SocketAddr>,
}

impl Manager {
    /// Opens store, keys and control state; makes them in an empty directory.
    ///
    /// # Errors
    /// The store is in use, of a newer format, or damaged.
    pub async fn open(options: &ManagerOptions) -> Result<Arc<Self>, ManagerError> {
        let (options, root) = (options.clone(), options.store.clone());
        let (store, identity, files) = blocking(move || {
            let store = Arc::new(Store::open(&options.store)?);
            let identity = ManagerIdentity::open(&options.store, options.host_certificate_lifetime)?;
            Ok::<_, ManagerError>((store, Arc::new(identity), control::open(&options.store)?))
        })
        .await?;
        let state = Arc::new(State::open(Arc::clone(&files.store) as _, Arc::clone(&files.observations) as _).await?);
        let records = Arc::new(RecordFiles::of(&root));
        let mut notices = files.notices;
        notices.extend(complete(&records, &state).await?);
        let (news, tally) = (Arc::new(NewsBoard::default()), Arc::new(Tally::default()));
        let connections = Arc::new(Connections::new(Arc::clone(&state), Arc::clone(&news)));
        let first = state.begin_lists(now()).await?;
        let exports = Arc::new(Exports::new(Arc::clone(&state), Arc::clone(&connections), first));
        let jobs = Arc::new(Jobs::new(Arc::clone(&state), Arc::clone(&connections), Arc::clone(&news)));
        let upgrades = Arc::new(Upgrades::new(&state, &connections, &news, &exports, Company::new(&state, &store)));
        let (targets, rollouts) = for_many(&state, &connections, &news, &exports, &upgrades);
        let policies = policies(&state, &connections, &news, &jobs);
        let (deltas, bundles) = made_once(&store, &state, &exports);
        let services = Arc::new(Services {
            state: Arc::clone(&state),
            enrolment: Enrolment {
                state: Arc::clone(&state),
                identity: Arc::clone(&identity),
                connections: Arc::clone(&connections),
            },
            connections: Arc::clone(&connections),
            exports: Arc::clone(&exports),
            exporter: Arc::new(Exporter::new(Arc::clone(&store), Arc::clone(&exports))),
            deltas: Arc::clone(&deltas),
            bundles: Arc::clone(&bundles),
            reports: Reports {
                state: Arc::clone(&state),
                news: Arc::clone(&news),
                exports: Arc::clone(&exports),
                jobs: Arc::clone(&jobs),
                upgrades: Arc::clone(&upgrades),
                bundles: Arc::clone(&bundles),
                tally: Arc::clone(&tally),
            },
            budgets: Budgets::default(),
            tally: Arc::clone(&tally),
        });
        let idle = Arc::new(IdleWork::new(Arc::clone(&store), deltas));
        Ok(Arc::new(Self {
            store,
            state,
            identity,
            news,
            connections,
            exports,
            jobs,
            upgrades,
            delivering: tokio::spawn(Arc::clone(&targets).deliver()),
            targets,
            rollouts,
            policies,
            bundles,
            idle,
            services,
            tally,
            notices,
            copying: tokio::spawn(control::backup::keep(Arc::clone(&files.store) as _, root.join(BACKUP_FILE))),
            files: (files.store, files.observations),
            records,
            address: OnceLock::new(),
        }))
    }

    /// What media agents serve.
    pub(super) fn repositories(&self) -> Repositories {
        Repositories { state: Arc::clone(&self.state), jobs: Arc::clone(&self.jobs) }
    }

    /// Begins to listen for hosts and to drive jobs that are not over; returns the actual address.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(&self, address: &str) -> Result<SocketAddr, ManagerError> {
        let failed = |cause| ManagerError::Listen { address: address.to_owned(), cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let config = net::server_config(self.identity.server())?;
        let _ = self.address.set(local);
        tokio::spawn(accept_hosts(Arc::clone(&self.services), listener, config));
        self.jobs.resume().await?;
        self.rollouts.resume().await?;
        self.policies.begin();
        self.idle.work();
        let bundles = Arc::clone(&self.bundles);
        blocking(move || {
            bundles.resume();
            Ok::<_, ManagerError>(())
        })
        .await?;
        Ok(local)
    }

    /// Begins to answer monitoring; returns the actual address.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn answer_monitoring(self: &Arc<Self>, address: SocketAddr) -> Result<SocketAddr, ManagerError> {
        let failed = |cause| ManagerError::Listen { address: address.to_string(), cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tokio::spawn(http::serve(listener, Arc::clone(self) as _));
        Ok(local)
    }

    /// What an operator should be told: records that cannot be read, observations that were lost, a store that was
    /// brought over.
    pub fn notices(&self) -> Vec<String> {
        let damaged = self.state.damaged().into_iter();
        let damaged = damaged.map(|(key, reason)| format!("the record '{key}' cannot be read: {reason}"));
        self.notices.iter().cloned().chain(damaged).collect()
    }

    /// How often the disk was synced since the start: for decisions, and for what hosts reported.
    pub fn synced(&self) -> (u64, u64) {
        (self.files.0.synced(), self.files.1.synced())
    }

    /// Where decisions are kept.
    pub(super) fn decisions(&self) -> Arc<dyn ControlStore> {
        Arc::clone(&self.files.0) as _
    }

    /// Where hosts reach this manager, once it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Revokes a host and cuts its connections.
    ///
    /// # Errors
    /// There is no such host.
    pub async fn revoke(&self, host: &HostName) -> Result<(), ManagerError> {
        self.state.revoke(host, now()).await?;
        self.connections.cut(host, "the host was revoked");
        // Its jobs end for want of a host; those that wait for it look at it now.
        self.news.tell(host, News::Disconnected);
        tracing::warn!(%host, "host revoked");
        self.repositories().refuse(host).await;
        Ok(())
    }

    /// Forgets a host and cuts its connections: it is a stranger from now on.
    ///
    /// # Errors
    /// There is no such host.
    pub async fn forget(&self, host: &HostName) -> Result<(), ManagerError> {
        self.state.forget_host(host).await?;
        self.connections.cut(host, "the host was forgotten");
        self.news.tell(host, News::Disconnected);
        tracing::warn!(%host, "host forgotten");
        self.repositories().refuse(host).await;
        Ok(())
    }

    /// Ends every host's connection; what they report from now on they keep and send again.
    pub fn close(&self) {
        self.idle.cancel();
        self.connections.close("the manager is ending");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.copying.abort();
        self.delivering.abort();
        self.policies.end();
    }
}

/// What orders many hosts: now, when they come, and by a plan.
fn for_many(
    state: &Arc<State>,
    connections: &Arc<Connections>,
    news: &Arc<NewsBoard>,
    exports: &Arc<Exports>,
    upgrades: &Arc<Upgrades>,
) -> (Arc<Targets>, Arc<Rollouts>) {
    let (state, connections, news) = (Arc::clone(state), Arc::clone(connections), Arc::clone(news));
    let (exports, upgrades) = (Arc::clone(exports), Arc::clone(upgrades));
    let of_targets = (Arc::clone(&state), Arc::clone(&connections), Arc::clone(&news), Arc::clone(&upgrades));
    let targets = Arc::new(Targets::new(of_targets.0, of_targets.1, of_targets.2, of_targets.3));
    let company = Arc::clone(&upgrades.company);
    let here = Here { state, connections, news, exports, upgrades, targets: Arc::clone(&targets), company };
    (targets, Arc::new(Rollouts::new(here)))
}

/// What is made once and sent as it lies.
fn made_once(store: &Arc<Store>, state: &Arc<State>, exports: &Arc<Exports>) -> (Arc<Deltas>, Arc<Bundles>) {
    let parts = || (Arc::clone(store), Arc::clone(state), Arc::clone(exports));
    let (of_deltas, of_bundles) = (parts(), parts());
    let deltas = Deltas::new(of_deltas.0, of_deltas.1, of_deltas.2);
    (Arc::new(deltas), Arc::new(Bundles::new(of_bundles.0, of_bundles.1, of_bundles.2)))
}

/// What orders storage operations by itself.
fn policies(
    state: &Arc<State>,
    connections: &Arc<Connections>,
    news: &Arc<NewsBoard>,
    jobs: &Arc<Jobs>,
) -> Arc<Policies> {
    let (state, connections) = (Arc::clone(state), Arc::clone(connections));
    let (news, jobs) = (Arc::clone(news), Arc::clone(jobs));
    Arc::new(Policies::new(policy::Here { state, connections, news, jobs, clock: Clock::system() }))
}

/// Sees to it that every generation has its record as a file; returns what an operator should know.
async fn complete(records: &Arc<RecordFiles>, state: &Arc<State>) -> Result<Option<String>, ManagerError> {
    let (records, generations) = (Arc::clone(records), state.generations());
    blocking(move || {
        let completed = records.complete(generations.iter().map(Arc::as_ref));
        Ok(completed.err().map(|error| format!("records are not written as files: {error}")))
    })
    .await
}

#[cfg(test)]
#[path = "whole_tests.rs"]
pub(super) mod testing;
