//! `status` for people: the same document, in lines.

use std::fmt::Write;

use serde_json::Value;

use super::out::clean;
use super::units::{ago, bytes, bytes_of, count};

/// The lines of a status document.
pub(super) fn lines(document: &Value) -> Vec<String> {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = write(&mut text, document);
    text.lines().map(str::to_owned).collect()
}

fn write(text: &mut String, document: &Value) -> std::fmt::Result {
    let daemon = &document["daemon"];
    if daemon["running"] == true {
        writeln!(
            text,
            "daemon       running as process {}, started {}",
            daemon["pid"],
            since(&daemon["started_unix_ms"])
        )?;
    } else {
        writeln!(text, "daemon       not running: {}", plain(&daemon["reason"]))?;
    }
    writeln!(text, "host         {}", plain(&document["host"]))?;
    write_manager(text, &document["manager"])?;
    if daemon["running"] == true {
        writeln!(text, "view         {} ({})", plain(&document["mountpoint"]), plain(&document["data_path"]))?;
        let cache = &document["cache"];
        let quota =
            cache["quota_bytes"].as_u64().map_or("no quota".to_owned(), |quota| format!("quota {}", bytes(quota)));
        let used = number(&cache["local_bytes"]) + number(&cache["partial_bytes"]);
        let protection = match cache["protection"].as_str() {
            Some("fs-verity") => "; the kernel checks every page (fs-verity)",
            _ => "",
        };
        writeln!(text, "cache        {} used, {quota}{protection}", bytes(used))?;
        writeln!(text, "fetched      {}", bytes(number(&document["fetched_bytes"])))?;
        let requests = document["fuse"]["requests"].as_object();
        let total: u64 = requests.into_iter().flatten().map(|(_, count)| number(count)).sum();
        writeln!(text, "fuse         {}", count(total, "request"))?;
    }
    write_generations(text, document)?;
    write_agents(text, document)
}

fn write_manager(text: &mut String, manager: &Value) -> std::fmt::Result {
    let address = plain(&manager["address"]);
    if manager["connected"] == true {
        return writeln!(text, "manager      {address}, connected {}", since(&manager["connected_since_unix_ms"]));
    }
    writeln!(text, "manager      {address}, not connected")?;
    match manager["last_error"].as_str() {
        Some(error) => writeln!(text, "             {}", clean(error)),
        None => Ok(()),
    }
}

fn write_generations(text: &mut String, document: &Value) -> std::fmt::Result {
    for generation in document["generations"].as_array().into_iter().flatten() {
        let tree = generation["tree_id"].as_str().and_then(|id| id.get(..12)).unwrap_or("?");
        let exported = if generation["exported"] == true { "" } else { ", no longer exported" };
        writeln!(text, "generation   {} ({tree}{exported})", plain(&generation["name"]))?;
        if generation["mounted"] == true {
            let (local, all) = (number(&generation["local_bytes"]), number(&generation["object_bytes"]));
            writeln!(text, "             {}", plain(&generation["path"]))?;
            let users = count(generation["users"].as_array().map_or(0, Vec::len) as u64, "process");
            let path = plain(&generation["data_path"]);
            writeln!(text, "             {} local, data path {path}, {users}", bytes_of(local, all))?;
        }
        for reason in generation["kept_by"].as_array().into_iter().flatten() {
            writeln!(text, "             {}", plain(reason))?;
        }
    }
    Ok(())
}

fn write_agents(text: &mut String, document: &Value) -> std::fmt::Result {
    for agent in document["agents"].as_array().into_iter().flatten() {
        let jobs = count(agent["jobs"].as_array().map_or(0, Vec::len) as u64, "job");
        writeln!(
            text,
            "agent        {}@{}: {}, process {}, {jobs}; {}",
            plain(&agent["product"]),
            plain(&agent["version"]),
            plain(&agent["state"]),
            agent["pid"],
            plain(&agent["reason"]),
        )?;
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        // A line break in it must not begin a line of its own.
        Value::String(text) => clean(text).into_owned(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// How long ago, for people.
fn since(unix_ms: &Value) -> String {
    ago(number(unix_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_lines_say_what_the_document_says() {
        let text = lines(&json!({
            "daemon": { "running": true, "pid": 7, "started_unix_ms": 0 },
            "host": "h1",
            "manager": { "address": "m:1", "connected": false, "last_error": "refused" },
            "mountpoint": "/run/mnt", "data_path": "overlay",
            "cache": { "local_bytes": 20_000_000, "partial_bytes": 0, "quota_bytes": null },
            "fetched_bytes": 5,
            "fuse": { "requests": { "read": 3, "lookup": 4 } },
            "generations": [{
                "name": "p@1", "tree_id": "0123456789abcdef", "exported": false, "mounted": true, "path": "/run/gens/0123",
                "data_path": "fuse", "local_bytes": 1, "object_bytes": 20_000, "users": [1, 2], "kept_by": ["attached as p@1"],
            }],
            "agents": [],
        }))
        .join("\n");
        for wanted in [
            "process 7",
            "h1",
            "refused",
            "20.0 MB used, no quota",
            "7 requests",
            "no longer exported",
            "2 processes",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
        let gone = lines(&json!({ "daemon": { "running": false, "reason": "why\nhost  forged" } }));
        assert_eq!(gone[0], "daemon       not running: why\\nhost  forged");
    }
}
