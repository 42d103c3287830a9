//! What an upgrade costs: publishes two directories into a scratch store, makes the delta from the first to the second,
//! applies it, and prints one line of figures. `cargo run --release --example delta -- OLD NEW [LEVEL] [THREADS]`

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use manager_fs::host::delta::{Arrived, Reader, make};
use manager_fs::manager::delta::{self, DeltaOptions, LEVEL_BEST};
use manager_fs::manager::monitor::Quiet;
use manager_fs::manager::publish::{PublishOptions, Published, publish};
use manager_fs::manager::store::Store;
use proto::width;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let old = arguments.next().context("name the directory of the old version")?;
    let new = arguments.next().context("name the directory of the new version")?;
    let level = arguments.next().map_or(Ok(LEVEL_BEST), |level| level.parse())?;
    let threads = arguments.next().map_or(Ok(1), |threads| threads.parse())?;
    let scratch = tempfile::tempdir()?;
    let store = Store::open(scratch.path())?;
    let (old, new) = (take_in(&store, &old)?, take_in(&store, &new)?);
    let begun = Instant::now();
    let options = DeltaOptions { level, threads };
    let stats = delta::make(&store, &old.tree, &new.tree, options, &AtomicBool::new(false))?;
    let make_s = begun.elapsed().as_secs_f64();
    let (apply_s, made_bytes) = apply(&store, &old, &new)?;
    ensure!(made_bytes == stats.made_bytes, "{made_bytes} bytes made of {}", stats.made_bytes);
    let total_mb = (stats.delta_bytes + stats.left_out_stored_bytes) as f64 / 1e6;
    println!("level {level}: all {total_mb:.3} MB, made in {make_s:.1} s, applied in {apply_s:.2} s: {stats:?}");
    Ok(())
}

fn take_in(store: &Store, source: &str) -> Result<Published> {
    let options = PublishOptions::default();
    Ok(publish(store, Path::new(source), &options, &Quiet, &AtomicBool::new(false))?)
}

/// Applies the delta as a host would that has every object of the old tree.
fn apply(store: &Store, old: &Published, new: &Published) -> Result<(f64, u64)> {
    let header = store.delta(&old.tree, &new.tree)?.context("the delta is not there")?;
    let stream_bytes = header.front_bytes() + header.frames_bytes;
    let stream = store.delta_bytes(&old.tree, &new.tree, 0..stream_bytes)?;
    let old_manifest = store.manifest(&old.tree)?.context("the old manifest is not there")?;
    let tree = store.tree(&old.tree)?;
    let mut contents = std::collections::HashMap::new();
    for object in &tree.objects {
        let mut content = Vec::new();
        for chunk in &object.chunks {
            content.extend(store.plain_chunk(chunk)?);
        }
        contents.insert(object.id, content);
    }
    let begun = Instant::now();
    let mut reader = Reader::new(old.tree, new.tree, old_manifest)?;
    let mut pieces = stream.chunks(1 << 20);
    let mut made_bytes = 0;
    loop {
        let Some(arrived) = reader.arrived()? else {
            reader.push(pieces.next().context("the delta is cut off")?);
            continue;
        };
        match arrived {
            Arrived::Manifest(_) => {}
            Arrived::End => return Ok((begun.elapsed().as_secs_f64(), made_bytes)),
            Arrived::Frame(frame, stored) => {
                let new_tree = reader.new_tree().context("no manifest before the frames")?;
                let trees = (reader.old(), new_tree);
                let mut read_old = |object: &proto::manifest::Object, offset: u64, into: &mut [u8]| {
                    let content = contents.get(&object.id).ok_or(std::io::ErrorKind::NotFound)?;
                    let stretch = content.get(width::index(offset)..width::index(offset) + into.len());
                    into.copy_from_slice(stretch.ok_or(std::io::ErrorKind::UnexpectedEof)?);
                    Ok(())
                };
                make(&frame, &stored, trees, &mut read_old, &mut |chunk| made_bytes += chunk.plain.len() as u64)?;
            }
        }
    }
}
