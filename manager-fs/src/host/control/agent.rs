//! One agent of this host, asked over its operations socket; and its stub, which takes orders while no agent runs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::AgentPaths;
use proto::Product;
use proto::agent::{AgentReply, AgentRequest, AgentState, AgentStatus};
use proto::message::Fault;

use crate::net::{Link, NetError, RefuseAll, connect_unix, start};

/// Connects to an agent's operations API.
///
/// # Errors
/// [`Fault::Unavailable`]: none runs, and how to start one.
pub(crate) async fn connect(agents_dir: &Path, product: &Product) -> Result<Link, Fault> {
    match connect_unix(&agents_dir.join(format!("{product}.sock"))).await {
        Ok(stream) => Ok(start(stream, Arc::new(RefuseAll))),
        Err(error) => Err(Fault::Unavailable(format!(
            "no agent of {product} runs on this host ({error}); it is started with: manager-fs launch {product}"
        ))),
    }
}

/// One request to an agent.
///
/// # Errors
/// It does not run, does not answer in time, or answers with a fault.
pub(crate) async fn ask(
    agents_dir: &Path,
    product: &Product,
    request: &AgentRequest,
    deadline: Duration,
) -> Result<AgentReply, Fault> {
    ask_on(connect(agents_dir, product).await?, product, request, deadline).await
}

/// How it is noticed that an agent will not answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Between two looks at an agent that lets a request wait.
    pub(super) look_every: Duration,
    /// How long nobody may answer what needs no disk.
    pub(super) silent_max: Duration,
    /// How long the answer may take where there are signs of life.
    pub(super) answer_max: Duration,
}

/// The stub answers at once, unless it has been stopped.
pub(super) const STUB_DEADLINE: Duration = Duration::from_millis(300);
/// What needs no disk is answered in this time.
const LIFE_DEADLINE: Duration = Duration::from_secs(1);

/// One request to an agent that may be coming to its end. The listening socket is its stub's: what is asked between two
/// starts waits for the next one, which may be half a minute away, and an agent that has been stopped accepts as well.
///
/// # Errors
/// As of [`ask`]; [`Fault::Unavailable`] soon after the agent has gone, and when neither it nor a status comes.
pub(super) async fn ask_living(
    agents_dir: &Path,
    product: &Product,
    request: &AgentRequest,
    patience: &Patience,
) -> Result<AgentReply, Fault> {
    let mut asked = std::pin::pin!(ask(agents_dir, product, request, patience.answer_max));
    let mut heard = Instant::now();
    loop {
        match tokio::time::timeout(patience.look_every, &mut asked).await {
            Ok(reply) => return reply,
            Err(_) if stopped(agents_dir, product).await.is_some() => {
                return Err(Fault::Unavailable(format!("the agent of {product} ended before it answered")));
            }
            Err(_) => {}
        }
        let looked = ask(agents_dir, product, &AgentRequest::Status, LIFE_DEADLINE.min(patience.silent_max)).await;
        if looked.is_ok() {
            heard = Instant::now();
        } else if heard.elapsed() >= patience.silent_max {
            let (silent, launch) = (patience.silent_max.as_secs(), format!("manager-fs launch {product}"));
            return Err(Fault::Unavailable(format!(
                "the agent of {product} has answered nothing for {silent} s, not even what it does: its process may be \
                 stopped; kill it, or end `{launch}` and start it again"
            )));
        }
    }
}

/// What the stub says of an agent that does not run: why, and by its process id that orders are taken all the same.
pub(super) async fn stopped(agents_dir: &Path, product: &Product) -> Option<AgentStatus> {
    match ask_stub(agents_dir, product, &AgentRequest::Status, STUB_DEADLINE).await {
        Ok(AgentReply::Status(status)) if status.state == AgentState::Stopped && status.product == *product => {
            Some(status)
        }
        _ => None,
    }
}

/// One request to the stub, which watches the agent whether it runs or not.
///
/// # Errors
/// No stub runs, or it does not answer in time, or answers with a fault.
pub(super) async fn ask_stub(
    agents_dir: &Path,
    product: &Product,
    request: &AgentRequest,
    deadline: Duration,
) -> Result<AgentReply, Fault> {
    let path = AgentPaths::stub_socket_in(agents_dir, product);
    let stream = connect_unix(&path).await.map_err(|error| {
        Fault::Unavailable(format!("no `launch {product}` runs on this host ({}: {error})", path.display()))
    })?;
    ask_on(start(stream, Arc::new(RefuseAll)), product, request, deadline).await
}

async fn ask_on(
    link: Link,
    product: &Product,
    request: &AgentRequest,
    deadline: Duration,
) -> Result<AgentReply, Fault> {
    let reply = link.request(request, |_| (), deadline).await;
    link.close("done");
    match reply.map_err(|error| gone(product, &error))? {
        AgentReply::Fault(fault) => Err(fault),
        reply => Ok(reply),
    }
}

/// What a broken conversation with an agent means.
pub(super) fn gone(product: &Product, error: &NetError) -> Fault {
    match error {
        NetError::Codec(_) | NetError::TooLarge { .. } => Fault::Failed(format!("{product}: {error}")),
        _ => Fault::Unavailable(format!("the agent of {product}: {error}")),
    }
}
