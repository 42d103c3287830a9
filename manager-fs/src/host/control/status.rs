//! What `manager-fs status` shows. Everything here is read from counters and short locks: nothing waits for the disk, the
//! network or the mount.

use std::sync::atomic::Ordering;

use proto::TreeId;
use serde_json::{Value, json};

use super::daemon::Daemon;
use crate::host::generations::Trees;

/// The document of `status --json`.
pub(crate) fn document(daemon: &Daemon) -> Value {
    let manager = daemon.manager.facts();
    let data = daemon.data.facts();
    json!({
        "daemon": {
            "running": true,
            "pid": std::process::id(),
            "started_unix_ms": daemon.started_unix_ms,
            "software": env!("CARGO_PKG_VERSION"),
            "namespace_pid": daemon.data.namespace_pid(),
        },
        "host": daemon.host,
        "manager": {
            "address": daemon.manager.address(),
            "connected": manager.connected_since.is_some(),
            "connected_since_unix_ms": manager.connected_since,
            "connections": manager.connections,
            "last_error": manager.last_error,
            "reports_waiting": daemon.relay.waiting_reports(),
        },
        "mountpoint": data.mountpoint.to_string_lossy(),
        "data_path": data.data_path,
        "fuse": { "requests": data.fuse_requests },
        "fetched_bytes": daemon.manager.bytes_fetched(),
        "fetch": data.fetch,
        "cache": data.cache,
        "generations": generations(daemon),
        "attachments": attachments(daemon),
        "agents": daemon.relay.agents(),
    })
}

fn generations(daemon: &Daemon) -> Vec<Value> {
    let live = daemon.generations.live();
    let records = daemon.records.all();
    let mut all: Vec<Value> = records
        .iter()
        .map(|known| {
            let record = &known.record;
            let mut value = mounted(daemon, &record.tree);
            value["name"] = json!(record.name());
            value["product"] = json!(record.product);
            value["version"] = json!(record.version);
            value["exported"] = json!(true);
            if value["object_bytes"].is_null() {
                value["object_bytes"] = json!(record.metadata.object_bytes);
            }
            value
        })
        .collect();
    let exported = daemon.records.trees();
    for tree in live.keys().filter(|tree| !exported.contains(tree)) {
        let mut value = mounted(daemon, tree);
        let attached = daemon.generations.leases.attached().remove(tree);
        value["name"] = json!(attached);
        value["exported"] = json!(false);
        all.push(value);
    }
    all
}

/// What is true of a tree, whatever it is called.
fn mounted(daemon: &Daemon, tree: &TreeId) -> Value {
    let kept = daemon.generations.kept();
    let users = daemon.generations.users().remove(tree).unwrap_or_default();
    let kept_by = kept.mounted.get(tree).cloned().unwrap_or_default();
    let attached = !kept_by.is_empty() || daemon.generations.leases.attached().contains_key(tree);
    match daemon.generations.live().get(tree) {
        Some(live) => json!({
            "tree_id": tree,
            "attached": attached,
            "mounted": true,
            "path": live.path.to_string_lossy(),
            "data_path": if live.whole_at_mount { "local" } else { "fuse" },
            "local_bytes": live.local_bytes.load(Ordering::Relaxed),
            "object_bytes": live.object_bytes,
            "users": users,
            "kept_by": kept_by,
        }),
        None => json!({
            "tree_id": tree,
            "attached": attached,
            "mounted": false,
            "path": null,
            "data_path": null,
            "local_bytes": null,
            "object_bytes": null,
            "users": users,
            "kept_by": kept_by,
        }),
    }
}

fn attachments(daemon: &Daemon) -> Vec<Value> {
    let attached = daemon.generations.leases.attached();
    attached.into_iter().map(|(tree, name)| json!({ "tree_id": tree, "name": name })).collect()
}
