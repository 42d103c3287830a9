//! Many hosts in one process: real identities, connections and requests, without mounts.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manager_fs::host::enroll;
use manager_fs::net::{self, ClientConfig, Incoming, RefuseAll};
use proto::GenerationRef;
use proto::message::{HostRequest, Instance, ManagerReply, PROTOCOL, Role};
use proto::token::Token;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::lab::Lab;
use crate::ours::{Generation, Ours};

/// One host may wait this long while all others are served.
const DEADLINE: Duration = Duration::from_secs(300);

/// Enrolled hosts.
pub struct Crowd {
    runtime: Runtime,
    hosts: Vec<Arc<ClientConfig>>,
    names: Vec<String>,
}

/// What one host received, and when it had all of it.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Seconds from the moment at which all hosts began to dial.
    pub seconds: f64,
    /// Bytes of manifest and start-up pages.
    pub bytes: u64,
}

impl Crowd {
    /// Enrols `count` hosts.
    ///
    /// # Errors
    /// The manager refuses one.
    pub fn enroll(lab: &Lab, ours: &Ours, count: u16) -> Result<Self> {
        lab.crowd(count)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let address = lab.direct(ours.port()).to_string();
        let mut crowd = Self { runtime, hosts: Vec::new(), names: Vec::new() };
        for at in 0..count {
            let name = format!("crowd-{at}");
            let token: Token = ours.token(&name).parse().context("the manager's token")?;
            let state = lab.dir(&name)?;
            let identity = crowd.runtime.block_on(enroll::enroll(&state, &address, &token, false))?;
            crowd.hosts.push(net::client_config(&identity.tls)?);
            crowd.names.push(name);
        }
        Ok(crowd)
    }

    /// The hosts' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// All hosts dial at the same moment; each asks for all that a start of the generation needs.
    ///
    /// # Errors
    /// One of them is not served.
    pub fn start(&self, lab: &Lab, ours: &Ours, generation: &Generation) -> Result<Vec<Served>> {
        let generation: GenerationRef = generation.name.parse().context("the generation's name")?;
        self.runtime.block_on(async {
            let begin = Arc::new((Barrier::new(self.hosts.len()), OnceLock::new()));
            let mut tasks = JoinSet::new();
            for (host, at) in self.hosts.iter().zip(0..) {
                let address = lab.dial_as(at, ours.port())?.to_string();
                let (host, begin) = (Arc::clone(host), Arc::clone(&begin));
                let generation = generation.clone();
                tasks.spawn(async move {
                    begin.0.wait().await;
                    let since = begin.1.get_or_init(Instant::now);
                    let bytes = fetch(&address, host, generation).await?;
                    anyhow::Ok(Served { seconds: since.elapsed().as_secs_f64(), bytes })
                });
            }
            tasks.join_all().await.into_iter().collect()
        })
    }
}

/// What a mount daemon does before a program's first page: greeting and request go out together.
async fn fetch(address: &str, host: Arc<ClientConfig>, generation: GenerationRef) -> Result<u64> {
    let link = net::start(net::connect(address, host).await?, Arc::new(RefuseAll));
    let hello = HostRequest::Hello {
        protocol: PROTOCOL,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        role: Role::Control,
        instance: Instance([0; 16]),
    };
    let start = HostRequest::Start { generation, from: None, manifest: true };
    let (mut frames, mut bytes) = (0, 0);
    let on = |incoming| {
        if let Incoming::Bulk(body) = incoming {
            frames += 1;
            bytes += body.len() as u64;
        }
    };
    let (welcome, sent) = tokio::join!(link.request(&hello, |_| (), DEADLINE), link.request(&start, on, DEADLINE));
    match welcome? {
        ManagerReply::Welcome { .. } => {}
        other => bail!("the manager answered Hello with {other:?}"),
    }
    match sent? {
        ManagerReply::Sent(sent) => ensure!(sent == frames, "{frames} of {sent} frames came"),
        other => bail!("the manager answered Start with {other:?}"),
    }
    link.close("served");
    Ok(bytes)
}
