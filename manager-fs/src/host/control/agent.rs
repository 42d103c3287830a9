//! One agent of this host, asked over its operations socket; and its stub, which takes orders while no agent runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_core::AgentPaths;
use proto::Product;
use proto::agent::{AgentReply, AgentRequest};
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
