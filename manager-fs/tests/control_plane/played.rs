//! An order to change over, and what a host says of one.

use manager_fs::manager::upgrade::UpgradeOrder;
use proto::TreeId;
use proto::agent::{AgentState, AgentStatus, Step, StepEvent};
use proto::message::{ChangeOver, HostReport};

pub(crate) fn order(to: &[&str]) -> UpgradeOrder {
    UpgradeOrder {
        product: "data-agent".parse().unwrap(),
        generation: "data-agent@2.0".parse().unwrap(),
        targets: to.iter().map(|target| target.parse().unwrap()).collect(),
        lazy: false,
        drain_deadline_ms: Some(1500),
        retry_bad: false,
        export: false,
        wait: true,
        timeout_ms: None,
    }
}

pub(crate) fn status(version: &str, tree: TreeId) -> AgentStatus {
    AgentStatus {
        product: "data-agent".parse().unwrap(),
        version: version.parse().unwrap(),
        tree,
        pid: 7,
        started_unix_ms: 1,
        state: AgentState::Serving,
        jobs: vec![],
        reason: "launched".into(),
    }
}

pub(crate) fn step(change: &ChangeOver, step: Step, detail: &str) -> HostReport {
    HostReport::Step(StepEvent {
        change: change.change,
        product: change.product.clone(),
        from: None,
        to: change.attach,
        step,
        at_unix_ms: 1000 + step as u64,
        duration_us: 5,
        detail: detail.into(),
    })
}
