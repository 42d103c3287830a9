//! A whole manager in a directory of its own, and hosts that answer it as a test says.

use std::collections::BTreeSet;

use proto::agent::{AgentState, AgentStatus, ChangeId, Step, StepEvent};
use proto::codec;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::message::{HostReply, HostReport, Instance, ManagerRequest, Role};
use proto::record::Metadata;
use proto::{GenerationRecord, Product, SignedRecord, TreeId, TreePath, Version};
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::manager::connections::{ConnectionError, Newcomer};
use crate::manager::control::generations::Generation;
use crate::manager::control::tokens::TokenRecord;
use crate::manager::identity::{HOST_CERTIFICATE_LIFETIME, Peer, secret_hash};
use crate::net::{Answer, BoxFuture, Handler, Link, RefuseAll, start};

/// How long what must come may take on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) manager: Arc<Manager>,
    _store: tempfile::TempDir,
}

/// Answers what the manager asks of a host; `None`: it drops the request.
pub(crate) type Answers = dyn Fn(ManagerRequest) -> BoxFuture<Option<HostReply>> + Send + Sync;

/// The host's side of a connection.
struct Host(Box<Answers>);

impl Handler for Host {
    fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
        let replied = (self.0)(codec::decode::<_, MESSAGE_BYTES_MAX>(&body).unwrap());
        Box::pin(async move {
            match replied.await {
                Some(reply) => answer.finish(&reply).await.unwrap_or_default(),
                None => drop(answer),
            }
        })
    }
}

/// A host that answers at once, and always, with what this says.
pub(crate) fn at_once(says: impl Fn(ManagerRequest) -> HostReply + Send + Sync + 'static) -> Box<Answers> {
    Box::new(move |request| Box::pin(std::future::ready(Some(says(request)))))
}

/// A host that is there, and has nothing.
pub(crate) fn alive() -> Box<Answers> {
    at_once(|request| match request {
        ManagerRequest::Agents => HostReply::Agents(Vec::new()),
        _ => HostReply::Done,
    })
}

pub(crate) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub(crate) fn instance(number: u8) -> Instance {
    Instance([number; 16])
}

/// A request for a certificate of a new key.
pub(crate) fn request_for_certificate() -> Vec<u8> {
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    request.der().to_vec()
}

/// An agent that runs, or (without a process) one that does not.
pub(crate) fn agent(generation: &Generation, state: AgentState, pid: u32) -> AgentStatus {
    let GenerationRecord { product, version, tree, .. } = generation.record.clone();
    let reason = String::from("launched");
    AgentStatus { product, version, tree, pid, started_unix_ms: 1, state, jobs: Vec::new(), reason }
}

/// A step of a change-over to this generation; `at` tells it from others of its kind.
pub(crate) fn step(change: ChangeId, to: &Generation, step: Step, at: u64) -> StepEvent {
    let (product, to) = (to.record.product.clone(), to.record.tree);
    let detail = format!("{step:?} at {at}");
    StepEvent { change, product, from: None, to, step, at_unix_ms: at, duration_us: 1, detail }
}

impl Bench {
    pub(crate) async fn open() -> Self {
        let store = tempfile::tempdir().unwrap();
        let options = ManagerOptions {
            store: store.path().join("store"),
            host_certificate_lifetime: HOST_CERTIFICATE_LIFETIME,
        };
        Self { manager: Manager::open(&options).await.unwrap(), _store: store }
    }

    pub(crate) fn enrolment(&self) -> &Enrolment {
        &self.manager.services.enrolment
    }

    /// A record of a tree whose id is that of these bytes. Nothing of it lies in the store.
    pub(crate) async fn publish(&self, name: &str, tree: &str) -> Arc<Generation> {
        self.publish_with(name, tree, Some(TreePath::parse(b"bin/agent").unwrap())).await
    }

    pub(crate) async fn publish_with(
        &self,
        name: &str,
        tree: &str,
        entry_point: Option<TreePath>,
    ) -> Arc<Generation> {
        let (product, version) = name.split_once('@').unwrap();
        let (product, version) = (product.parse().unwrap(), version.parse().unwrap());
        let record = GenerationRecord {
            product,
            version,
            sequence: 0,
            tree: TreeId::of(tree.as_bytes()),
            manifest_bytes: 1,
            published_unix_ms: 1,
            metadata: Metadata { entry_point, ..Metadata::default() },
        };
        let sign = |sequence| {
            let record = GenerationRecord { sequence, ..record.clone() };
            Ok::<_, ManagerError>(
                SignedRecord::sign(&record, self.manager.identity.publisher()).unwrap().to_bytes().unwrap(),
            )
        };
        self.manager.state.add_generation(&record.product, &record.version, None, sign).await.unwrap()
    }

    /// A version for one more architecture, or the first with one: a tree whose id is that of these bytes.
    pub(crate) async fn publish_for(&self, name: &str, architecture: &str, tree: &str) -> Arc<Generation> {
        let (product, version) = name.split_once('@').unwrap();
        let (product, version): (Product, Version) = (product.parse().unwrap(), version.parse().unwrap());
        let also = self.manager.state.generation(&product, &version).map(|_| architecture);
        let sign = |sequence| {
            let record = GenerationRecord {
                product: product.clone(),
                version: version.clone(),
                sequence,
                tree: TreeId::of(tree.as_bytes()),
                manifest_bytes: 1,
                published_unix_ms: 1,
                metadata: Metadata {
                    entry_point: Some(TreePath::parse(b"bin/agent").unwrap()),
                    architecture: Some(architecture.to_owned()),
                    ..Metadata::default()
                },
            };
            Ok::<_, ManagerError>(
                SignedRecord::sign(&record, self.manager.identity.publisher()).unwrap().to_bytes().unwrap(),
            )
        };
        self.manager.state.add_generation(&product, &version, also, sign).await.unwrap()
    }

    /// A token whose secret is this, good for so many milliseconds from now on.
    pub(crate) async fn token(&self, name: &str, secret: &[u8], ttl_ms: u64) {
        let record = TokenRecord { host: host(name), expires: now() + ttl_ms, used: None };
        self.manager.state.add_token(&secret_hash(secret), &record, now()).await.unwrap();
    }

    /// Enrols a host, as it does by itself.
    pub(crate) async fn enrol(&self, name: &str) -> HostName {
        let secret = format!("{name} {}", now()).into_bytes();
        self.token(name, &secret, 60_000).await;
        let csr = request_for_certificate();
        self.enrolment().enroll(proto::message::PROTOCOL, &secret, &csr).await.unwrap();
        host(name)
    }

    /// The certificate that the host got last.
    pub(crate) fn serial(&self, host: &HostName) -> String {
        let record = self.manager.state.host(host).unwrap();
        record.certificates.last().map(|issued| issued.serial.clone()).unwrap_or_default()
    }

    pub(crate) fn newcomer(&self, host: &HostName, role: Role, number: u8) -> Newcomer {
        let peer = Peer { host: host.clone(), serial: self.serial(host) };
        Newcomer { peer, role, software: String::from("0.6.0"), instance: instance(number), machine: None }
    }

    /// A connection that asks to be let in. Returns the manager's end of it.
    pub(crate) async fn greet(&self, newcomer: &Newcomer, says: Box<Answers>) -> Result<Link, ConnectionError> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let link = start(near, Arc::new(RefuseAll));
        start(far, Arc::new(Host(says)));
        self.manager.connections.may_come(newcomer).await?;
        self.manager.connections.greeted(newcomer, &link).await?;
        Ok(link)
    }

    /// The control connection of an enrolled host.
    pub(crate) async fn connect(&self, host: &HostName, says: Box<Answers>) -> Link {
        self.greet(&self.newcomer(host, Role::Control, 1), says).await.unwrap()
    }

    pub(crate) async fn report(&self, host: &HostName, reports: Vec<HostReport>) {
        self.manager.services.reports.take(host, reports).await.unwrap();
    }

    /// The names of all that a host may see.
    pub(crate) fn visible(&self, host: &HostName) -> BTreeSet<String> {
        self.manager.state.exported_to(host).iter().map(|generation| generation.record.name()).collect()
    }
}
