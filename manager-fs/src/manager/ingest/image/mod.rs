//! A container image as a tree: the layers of an OCI layout (a directory, or a tar archive of one) or of `docker save`, one
//! over the other, and what its configuration starts.
//!
//! ```text
//! index.json ──> manifest ──┬─> configuration ──> Start
//! (manifest.json) ──────────┴─> layers: tar, each laid over those before ──> TreeBuilder
//! ```
//! Every blob is compared with the digest by which the image names it. What a container has and a tree has not, devices
//! and an environment, is told.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use proto::manifest::Manifest as Tree;
use rustix::fs::{FileType, Mode, OFlags};
use serde::de::DeserializeOwned;

use super::budget::{BombLimit, Budget};
use super::hashed::Hashed;
use super::service_pack::{self, Absent};
use super::stream::{read_head, read_tar};
use super::tree::{Repeated, TreeBuilder};
use super::{Devices, IngestError, Intake, Start, tar};

mod blobs;
mod documents;
#[cfg(test)]
mod tests;

use blobs::Blobs;
use documents::{Configuration, Descriptor, Execution, Index, Manifest, Platform, Saved};

/// Layers of one image: container runtimes take no more (moby, `layer.MaxLayerDepth` of overlay2: 125 and a few).
const LAYERS_MAX: usize = 128;
/// Architectures of one image: the largest have ten. Each is published by itself.
const ARCHITECTURES_MAX: usize = 32;
/// An index may hold indexes; deeper than this is nothing that anybody writes.
const DEPTH_MAX: usize = 3;
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// A layer, and by which digest it is named.
struct Layer {
    name: String,
    /// Hexadecimal digits.
    sha256: Option<Sum>,
}

/// A digest, of a blob as it lies or of its plain bytes.
enum Sum {
    Stored(String),
    Plain(String),
}

/// Reads an image into the intake. Returns the architectures of one for several: the one that was taken, then those that are
/// left.
pub(super) fn read(
    intake: &mut Intake<'_, '_>,
    path: &Path,
    reference: Option<&str>,
    limit: BombLimit,
) -> Result<Vec<String>, IngestError> {
    if intake.base.is_some() {
        return Err(intake.unfit("an image is whole: it cannot be laid over an earlier generation"));
    }
    let blobs = open(path).map_err(|error| intake.unread(b"", error))?;
    let Found { configuration, layers, architectures } = found(intake, &blobs, reference)?;
    if layers.len() > LAYERS_MAX {
        return Err(intake.unfit("it has more than 128 layers"));
    }
    let mut bytes: u64 = 0;
    for layer in &layers {
        let more = blobs.bytes(&layer.name).map_err(|error| intake.unread(layer.name.as_bytes(), error))?;
        bytes = bytes.saturating_add(more);
    }
    let budget = limit.budget(bytes);
    intake.devices = Devices::LeftOut(0);
    for layer in &layers {
        lay(intake, &blobs, layer, budget.clone())?;
    }
    if let Devices::LeftOut(devices @ 1..) = intake.devices {
        intake.remark(&format!("{devices} devices, sockets and pipes of the image are left out"));
    }
    intake.start = start(intake, configuration.config);
    Ok(architectures)
}

/// The image's files.
fn open(path: &Path) -> io::Result<Blobs> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::Directory => Ok(Blobs::Directory(fd)),
        FileType::RegularFile => Blobs::of_archive(File::from(fd)),
        _ => Err(io::Error::other("it is neither a directory nor a file")),
    }
}

/// The image that is meant.
struct Found {
    configuration: Configuration,
    layers: Vec<Layer>,
    /// Of one for several: its own, then the others.
    architectures: Vec<String>,
}

fn found(intake: &Intake<'_, '_>, blobs: &Blobs, reference: Option<&str>) -> Result<Found, IngestError> {
    match blobs.document("index.json") {
        Ok(bytes) => {
            let index: Index = parsed(intake, "index.json", &bytes)?;
            let (descriptor, architectures) = chosen(intake, blobs, index, reference)?;
            let manifest: Manifest = blob_document(intake, blobs, &descriptor)?;
            let configuration = blob_document(intake, blobs, &manifest.config)?;
            let layers = manifest.layers.iter().map(|layer| {
                let sha256 = sha256_of(intake, &layer.digest)?;
                Ok(Layer { name: blob_name(&sha256), sha256: Some(Sum::Stored(sha256)) })
            });
            let layers = layers.collect::<Result<_, IngestError>>()?;
            Ok(Found { configuration, layers, architectures })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => saved(intake, blobs, reference),
        Err(error) => Err(intake.unread(b"index.json", error)),
    }
}

/// As `docker save` wrote it before it wrote OCI layouts.
fn saved(intake: &Intake<'_, '_>, blobs: &Blobs, reference: Option<&str>) -> Result<Found, IngestError> {
    let bytes = blobs.document("manifest.json").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => intake.unfit("it is no image: it has neither 'index.json' nor 'manifest.json'"),
        _ => intake.unread(b"manifest.json", error),
    })?;
    let images: Vec<Saved> = parsed(intake, "manifest.json", &bytes)?;
    let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let named = |image: &Saved| reference.is_none_or(|wanted| tags(image).iter().any(|tag| tag == wanted));
    let names: Vec<String> = images.iter().flat_map(tags).collect();
    let image = only(intake, images.into_iter().filter(named).collect(), &names)?;
    let bytes = blobs.document(&image.config).map_err(|error| intake.unread(image.config.as_bytes(), error))?;
    let configuration: Configuration = parsed(intake, &image.config, &bytes)?;
    let sums = &configuration.rootfs.diff_ids;
    if sums.len() != image.layers.len() {
        return Err(intake.unfit("its configuration has another number of layers than its manifest"));
    }
    let layers = image
        .layers
        .into_iter()
        .zip(sums)
        .map(|(name, sum)| Ok(Layer { name, sha256: Some(Sum::Plain(sha256_of(intake, sum)?)) }));
    let layers = layers.collect::<Result<_, IngestError>>()?;
    Ok(Found { configuration, layers, architectures: Vec::new() })
}

/// The manifest that is meant: by its reference, and of several platforms by the architecture that is wanted.
fn chosen(
    intake: &Intake<'_, '_>,
    blobs: &Blobs,
    index: Index,
    reference: Option<&str>,
) -> Result<(Descriptor, Vec<String>), IngestError> {
    let name = |descriptor: &Descriptor| descriptor.annotations.get(REFERENCE).cloned();
    let names: Vec<String> = index.manifests.iter().filter_map(name).collect();
    let named = |descriptor: &Descriptor| reference.is_none_or(|wanted| name(descriptor).as_deref() == Some(wanted));
    let mut manifests: Vec<Descriptor> = index.manifests.into_iter().filter(named).collect();
    let mut architectures = Vec::new();
    for _ in 0..DEPTH_MAX {
        // What is told of a build (`unknown/unknown`) is no image.
        manifests.retain(|manifest| manifest.platform.as_ref().is_none_or(|platform| platform.os != "unknown"));
        if manifests.len() > 1 && manifests.iter().all(|manifest| manifest.platform.is_some()) {
            let manifest;
            (manifest, architectures) = of_one_platform(intake, blobs, manifests)?;
            manifests = vec![manifest];
        }
        let manifest = only(intake, manifests, &names)?;
        if !manifest.media_type.contains("index") && !manifest.media_type.contains("manifest.list") {
            return Ok((manifest, architectures));
        }
        let inner: Index = blob_document(intake, blobs, &manifest)?;
        manifests = inner.manifests;
    }
    Err(intake.unfit("its indexes hold indexes, deeper than any image"))
}

/// One of several, for the architecture that is wanted, or else for this machine, or the first; and the architectures: its
/// own, then the others.
fn of_one_platform(
    intake: &Intake<'_, '_>,
    blobs: &Blobs,
    manifests: Vec<Descriptor>,
) -> Result<(Descriptor, Vec<String>), IngestError> {
    let platforms: Vec<String> = manifests.iter().filter_map(|m| Some(m.platform.as_ref()?.to_string())).collect();
    let mut found: Vec<(String, Descriptor)> = Vec::new();
    let mut left = Vec::new();
    for manifest in manifests {
        let Some(platform) = manifest.platform.clone() else { continue };
        // Of what runs on one machine that which demands the least of it, which is named by no variant or the smallest.
        let demands = |of: &Descriptor| of.platform.as_ref().and_then(|platform| platform.variant.clone());
        let name = blob_name(&sha256_of(intake, &manifest.digest)?);
        let is_here = !matches!(blobs.bytes(&name), Err(error) if error.kind() == io::ErrorKind::NotFound);
        let architecture = platform.machine();
        match found.iter_mut().find(|(of, _)| *of == architecture) {
            _ if platform.os != "linux" || !is_here => left.push(platform.to_string()),
            Some((_, other)) if demands(other) <= demands(&manifest) => left.push(platform.to_string()),
            Some((_, other)) => {
                left.extend(other.platform.as_ref().map(Platform::to_string));
                *other = manifest;
            }
            None => found.push((architecture, manifest)),
        }
        if found.len() > ARCHITECTURES_MAX {
            return Err(intake.unfit("it has images for more than 32 architectures"));
        }
    }
    // This machine's in front: it is what hosts get that do not say what they are.
    found.sort_by_key(|(architecture, _)| architecture != std::env::consts::ARCH);
    let wanted = intake.architecture.unwrap_or(found.first().map_or("", |(architecture, _)| architecture));
    let Some(at) = found.iter().position(|(architecture, _)| architecture == wanted) else {
        let listed = platforms.join(", ");
        return Err(intake.unfit(&format!("it has no image for Linux with its files beside it, but for {listed}")));
    };
    let taken = found.remove(at);
    if intake.architecture.is_none() && !left.is_empty() {
        intake.remark(&format!(
            "of the image's platforms these are left out, as another does or their files are not here: {}",
            left.join(", ")
        ));
    }
    let others = found.into_iter().map(|(architecture, _)| architecture);
    Ok((taken.1, std::iter::once(taken.0).chain(others).collect()))
}

/// The only one of what was found.
fn only<T>(intake: &Intake<'_, '_>, found: Vec<T>, names: &[String]) -> Result<T, IngestError> {
    let names = if names.is_empty() { String::new() } else { format!(" (it has {})", names.join(", ")) };
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(intake.unfit(&format!("it has no image of this name{names}"))),
        (Some(_), Some(_)) => {
            Err(intake.unfit(&format!("it has several images{names}: say which, as in oci:PATH:NAME")))
        }
    }
}

fn parsed<T: DeserializeOwned>(intake: &Intake<'_, '_>, name: &str, bytes: &[u8]) -> Result<T, IngestError> {
    serde_json::from_slice(bytes)
        .map_err(|error| intake.refused(name.as_bytes(), format!("is not what it should be: {error}")))
}

/// A document that is named by its digest.
fn blob_document<T: DeserializeOwned>(
    intake: &Intake<'_, '_>,
    blobs: &Blobs,
    descriptor: &Descriptor,
) -> Result<T, IngestError> {
    let sha256 = sha256_of(intake, &descriptor.digest)?;
    let name = blob_name(&sha256);
    let bytes = blobs.document(&name).map_err(|error| intake.unread(name.as_bytes(), error))?;
    let sum = Hashed::new(bytes.as_slice()).finish().map_err(|error| intake.unread(name.as_bytes(), error))?;
    if sum != sha256 || bytes.len() as u64 != descriptor.size {
        return Err(intake.refused(name.as_bytes(), DAMAGED));
    }
    parsed(intake, &name, &bytes)
}

const DAMAGED: &str = "is damaged: its bytes do not have the SHA-256 by which the image names it";

fn blob_name(sha256: &str) -> String {
    format!("blobs/sha256/{sha256}")
}

/// The digits of a digest, which become part of a path.
fn sha256_of(intake: &Intake<'_, '_>, digest: &str) -> Result<String, IngestError> {
    let digits = digest.strip_prefix("sha256:").filter(|digits| digits.len() == 64);
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    match digits.filter(|digits| digits.bytes().all(is_digit)) {
        Some(digits) => Ok(digits.to_owned()),
        None => Err(intake.unfit(&format!("'{}' is no SHA-256 digest", proto::path::printable(digest.as_bytes())))),
    }
}

/// Lays one layer over those before.
fn lay(intake: &mut Intake<'_, '_>, blobs: &Blobs, layer: &Layer, budget: Budget) -> Result<(), IngestError> {
    let unread = |intake: &Intake<'_, '_>, error: io::Error| intake.unread(layer.name.as_bytes(), error);
    let mut stored = Hashed::new(blobs.open(&layer.name).map_err(|error| unread(intake, error))?);
    let mut head = [0; 512];
    let got = read_head(&mut stored, &mut head).map_err(|error| unread(intake, error))?;
    let is_plain = tar::is_header(&head[..got]);

    // What lies below is gone through for each layer, also for an empty one.
    let below_bytes = (tar::BLOCK * intake.tree.described().count()) as u64;
    budget.take(below_bytes).map_err(|error| unread(intake, error))?;
    let below: Tree = std::mem::replace(&mut intake.tree, TreeBuilder::new(Repeated::LaterWins)).into_shape();
    let mut upper = Intake {
        from: intake.from.clone(),
        writer: &mut *intake.writer,
        tree: TreeBuilder::new(Repeated::LaterWins),
        base: Some(&below),
        strict: intake.strict,
        architecture: intake.architecture,
        devices: intake.devices,
        start: None,
        bytes: intake.bytes,
    };
    read_tar(&mut upper, (&head[..got]).chain(&mut stored), budget)?;
    let laid = service_pack::lay(&below, &upper.tree, Absent::Ignored);
    let laid = laid.map_err(|(place, fault)| upper.refused(place.as_bytes(), fault))?;
    (intake.devices, intake.bytes) = (upper.devices, upper.bytes);
    intake.tree = laid;

    let sum = stored.finish().map_err(|error| unread(intake, error))?;
    match &layer.sha256 {
        Some(Sum::Stored(expected)) if *expected != sum => Err(intake.refused(layer.name.as_bytes(), DAMAGED)),
        // Of a compressed one the checksum of its compression has been checked.
        Some(Sum::Plain(expected)) if is_plain && *expected != sum => {
            Err(intake.refused(layer.name.as_bytes(), DAMAGED))
        }
        _ => Ok(()),
    }
}

/// What the image starts; what else a container would have is told.
fn start(intake: &Intake<'_, '_>, execution: Execution) -> Option<Start> {
    let Execution { entrypoint, cmd, env, working_dir, user } = execution;
    let env = env.unwrap_or_default();
    let said = |text: &Option<String>| text.as_deref().is_some_and(|text| !matches!(text, "" | "/" | "root" | "0"));
    let mut left = Vec::new();
    let own: Vec<&str> = env.iter().filter_map(|variable| variable.split_once('=')).map(|(name, _)| name).collect();
    let own: Vec<&str> = own.into_iter().filter(|name| *name != "PATH").collect();
    if !own.is_empty() {
        left.push(format!("the environment ({})", own.join(", ")));
    }
    if said(&working_dir) {
        left.push(format!("the working directory {}", working_dir.unwrap_or_default()));
    }
    if said(&user) {
        left.push(format!("the user {}", user.unwrap_or_default()));
    }
    if !left.is_empty() {
        intake.remark(&format!(
            "what the image sets beside its program is left out: {}; see [adapter] of manager-fs.toml",
            left.join(", ")
        ));
    }
    let mut words = entrypoint.unwrap_or_default().into_iter().chain(cmd.unwrap_or_default());
    let program = words.next()?;
    let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    Some(Start { program, arguments: words.collect(), path: path.split(':').map(str::to_owned).collect() })
}

/// Where a container looks without a PATH of its own (moby, `DefaultPathEnv`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
