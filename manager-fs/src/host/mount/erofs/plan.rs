//! Where everything of an image stands, and writing it in that order.

use std::io::{self, Write};

use proto::manifest::{Entry, Manifest, Node, NodeKind};
use proto::width;

use super::format::{
    BLOCK, CHUNK_ADDRESS_BYTES, DIRENT_BYTES, FT_DIRECTORY, FT_REGULAR, FT_SYMLINK, HOLE, INODE_BYTES, Inode, Layout,
    SLOT, SUPER_AT, SUPER_BYTES, Super, align, chunk_bits,
};
use super::xattrs::{Shared, words};
use super::{ImageError, does_not_fit, malformed};

/// Names that do not fill a block stand behind their inode up to this length; longer ones would leave more of the block
/// before them empty than they save.
const NAMES_INLINE_MAX: usize = width::index(BLOCK) / 2;

/// An image that is not written yet.
pub(in crate::host::mount) struct Plan<'m> {
    manifest: &'m Manifest,
    /// One a node, in the manifest's order, which is also theirs in the image.
    places: Vec<Place>,
    /// The sorted names of every directory, in the order of their nodes.
    directories: Vec<Vec<Dirent<'m>>>,
    shared: Shared<'m>,
    shared_at: u64,
    blocks: u32,
}

/// Where a node stands.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    at: u64,
    xattr_bytes: usize,
    links: u32,
    /// Of a file with contents: how many bytes these are.
    file_bytes: u64,
    /// Whole blocks of the body, and the first of them.
    blocks: u32,
    first_block: u32,
    /// What stands right behind the inode and its attributes.
    tail_bytes: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Dirent<'m> {
    name: &'m [u8],
    node: u32,
}

impl<'m> Plan<'m> {
    /// Gives everything its place.
    ///
    /// # Errors
    /// The tree does not fit into the format, or no validated manifest is like that.
    pub(in crate::host::mount) fn new(manifest: &'m Manifest) -> Result<Self, ImageError> {
        let (directories, links) = directories(manifest)?;
        let shared = Shared::of(manifest)?;
        let places = Vec::with_capacity(manifest.nodes.len());
        let mut plan = Plan { manifest, places, directories, shared, shared_at: 0, blocks: 0 };
        let end = plan.place_inodes(&links)?;
        plan.shared_at = align(end, 4);
        let mut next = (plan.shared_at + plan.shared.area().len() as u64).div_ceil(BLOCK);
        for place in &mut plan.places {
            place.first_block = block_number(next)?;
            next += u64::from(place.blocks);
        }
        plan.blocks = block_number(next)?;
        Ok(plan)
    }

    /// Bytes of the image.
    pub(in crate::host::mount) fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }

    /// Writes it.
    ///
    /// # Errors
    /// Of `to`.
    pub(in crate::host::mount) fn write(&self, to: impl Write) -> Result<(), ImageError> {
        let mut out = Out { to, at: 0 };
        out.fill(SUPER_AT)?;
        let root = self.places.first().map_or(0, |root| root.at / SLOT);
        let head = Super {
            root_number: u16::try_from(root).map_err(|_| malformed("", "the root is not the first node"))?,
            inodes: self.places.len() as u64,
            blocks: self.blocks,
            // Inodes name shared attributes from the start of this block; the writing of both goes by `shared_at`.
            shared_block: block_number(self.shared_at / BLOCK)?,
        };
        out.put(&head.encode())?;
        self.write_inodes(&mut out)?;
        out.fill(self.shared_at)?;
        out.put(self.shared.area())?;
        out.fill_block()?;
        self.write_blocks(&mut out)?;
        Ok(out.to.flush()?)
    }

    fn place_inodes(&mut self, links: &[u32]) -> Result<u64, ImageError> {
        let mut directories = self.directories.iter();
        let mut xattrs = Vec::new();
        let mut at = SUPER_AT + SUPER_BYTES;
        for (node, links) in self.manifest.nodes.iter().zip(links) {
            // The length of attributes does not depend on where the shared ones stand.
            self.shared.encode_of(node, 0, &mut xattrs)?;
            let mut place = Place { xattr_bytes: xattrs.len(), links: *links, ..Place::default() };
            match &node.kind {
                NodeKind::Directory => place.set_names(directories.next().map_or(&[], Vec::as_slice)),
                NodeKind::Symlink(target) => place.tail_bytes = target.len() as u64,
                NodeKind::EmptyFile => {}
                NodeKind::File(id) => {
                    let object = self.manifest.object(id);
                    place.file_bytes = object.ok_or_else(|| malformed(id, "a file's object is not listed"))?.bytes;
                    place.tail_bytes = CHUNK_ADDRESS_BYTES;
                }
            }
            at = place.settle(at);
            self.places.push(place);
        }
        Ok(at)
    }

    fn write_inodes<W: Write>(&self, out: &mut Out<W>) -> Result<(), ImageError> {
        let mut directories = self.directories.iter();
        let mut xattrs = Vec::new();
        for (serial, (node, place)) in self.manifest.nodes.iter().zip(&self.places).enumerate() {
            out.fill(place.at)?;
            self.shared.encode_of(node, self.shared_at, &mut xattrs)?;
            out.put(&inode(node, place, width::count(serial) + 1)?.encode())?;
            out.put(&xattrs)?;
            match &node.kind {
                NodeKind::Directory => {
                    let names = directories.next().map_or(&[][..], Vec::as_slice);
                    if place.tail_bytes > 0
                        && let Some(last) = blocks(names).last()
                    {
                        self.write_names(last, out)?;
                    }
                }
                NodeKind::Symlink(target) if place.tail_bytes > 0 => out.put(target)?,
                NodeKind::File(_) => out.put(&HOLE.to_le_bytes())?,
                NodeKind::Symlink(_) | NodeKind::EmptyFile => {}
            }
        }
        Ok(())
    }

    fn write_blocks<W: Write>(&self, out: &mut Out<W>) -> Result<(), ImageError> {
        let mut directories = self.directories.iter();
        for (node, place) in self.manifest.nodes.iter().zip(&self.places) {
            match &node.kind {
                NodeKind::Directory => {
                    let names = directories.next().map_or(&[][..], Vec::as_slice);
                    for block in blocks(names).take(place.blocks as usize) {
                        self.write_names(block, out)?;
                        out.fill_block()?;
                    }
                }
                NodeKind::Symlink(target) if place.blocks > 0 => {
                    out.put(target)?;
                    out.fill_block()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// One block of a directory: all heads, then all names.
    fn write_names<W: Write>(&self, names: &[Dirent<'_>], out: &mut Out<W>) -> Result<(), ImageError> {
        let mut name_at = names.len() * DIRENT_BYTES;
        for dirent in names {
            let (node, place) =
                (self.manifest.nodes.get(dirent.node as usize), self.places.get(dirent.node as usize));
            let (Some(node), Some(place)) = (node, place) else {
                return Err(malformed(dirent.node, "a node is missing"));
            };
            let kind = match node.kind {
                NodeKind::Directory => FT_DIRECTORY,
                NodeKind::Symlink(_) => FT_SYMLINK,
                NodeKind::EmptyFile | NodeKind::File(_) => FT_REGULAR,
            };
            let mut head = [0; DIRENT_BYTES];
            head[..8].copy_from_slice(&(place.at / SLOT).to_le_bytes());
            // Below a block's size: `blocks` cuts so.
            head[8..10].copy_from_slice(&name_at.to_le_bytes()[..2]);
            head[10] = kind;
            out.put(&head)?;
            name_at += dirent.name.len();
        }
        Ok(names.iter().try_for_each(|dirent| out.put(dirent.name))?)
    }
}

impl Place {
    fn set_names(&mut self, names: &[Dirent<'_>]) {
        let (mut count, mut last) = (0, 0);
        for block in blocks(names) {
            count += 1;
            last = block.iter().map(|dirent| DIRENT_BYTES + dirent.name.len()).sum();
        }
        let inline = last > 0 && last <= NAMES_INLINE_MAX;
        self.blocks = count - u32::from(inline);
        self.tail_bytes = if inline { last as u64 } else { 0 };
    }

    /// Settles at the first place from `at` on that the kernel accepts, and returns its end.
    fn settle(&mut self, at: u64) -> u64 {
        let head = INODE_BYTES + self.xattr_bytes as u64;
        let fits = |at: u64| {
            // An inode over two blocks is allowed, but costs an allocation whenever it is read. What stands behind it
            // must be in one block.
            at % BLOCK + INODE_BYTES <= BLOCK && (at + head) % BLOCK + self.tail_bytes <= BLOCK
        };
        let near = align(at, SLOT);
        let chosen = [near, align(near, BLOCK)].into_iter().find(|at| fits(*at));
        self.at = chosen.unwrap_or_else(|| align(near, BLOCK));
        if chosen.is_none() {
            // A long link's target, or names behind very long attributes.
            self.blocks += 1;
            self.tail_bytes = 0;
        }
        self.at + head + self.tail_bytes
    }
}

/// A directory block by block: as many names as fit into each.
fn blocks<'d, 'm>(names: &'d [Dirent<'m>]) -> impl Iterator<Item = &'d [Dirent<'m>]> {
    let mut rest = names;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|dirent| {
            bytes += DIRENT_BYTES + dirent.name.len();
            bytes <= width::index(BLOCK)
        });
        let (block, tail) = rest.split_at(fitting.count());
        rest = tail;
        (!block.is_empty()).then_some(block)
    })
}

/// The names of every directory, sorted, and `st_nlink` of every node.
fn directories(manifest: &Manifest) -> Result<(Vec<Vec<Dirent<'_>>>, Vec<u32>), ImageError> {
    let mut directories: Vec<Vec<Dirent<'_>>> = Vec::new();
    let mut links = vec![0_u32; manifest.nodes.len()];
    // From the root to the directory of the entry at hand: its path, its node, its place in `directories`.
    let mut way: Vec<(&[u8], u32, usize)> = Vec::new();
    for entry in &manifest.entries {
        let path = entry.path.as_bytes();
        let parent = enter_parent(&mut way, entry)?;
        let kind = manifest.nodes.get(entry.node as usize).map(|node| &node.kind);
        let count =
            links.get_mut(entry.node as usize).ok_or_else(|| malformed(&entry.path, "its node is missing"))?;
        *count += 1;
        if kind == Some(&NodeKind::Directory) {
            if *count > 1 {
                return Err(malformed(&entry.path, "a directory has two names"));
            }
            // Its own `.`, beside its name; its directories add their `..`.
            *count += 1;
            let above = parent.map_or(entry.node, |(node, _)| node);
            let node = entry.node;
            way.push((path, node, directories.len()));
            directories.push(vec![Dirent { name: b".", node }, Dirent { name: b"..", node: above }]);
            if let Some((above, _)) = parent {
                links[above as usize] += 1;
            }
        }
        if let Some((_, at)) = parent {
            directories[at].push(Dirent { name: entry.path.name(), node: entry.node });
        }
    }
    for names in &mut directories {
        // Sorted already but for the first two: what sorts before `.` is rare.
        names.sort_by(|a, b| a.name.cmp(b.name));
        if let Some(twice) = names.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(malformed(proto::path::printable(twice[0].name), "two entries have one name"));
        }
    }
    Ok((directories, links))
}

/// Leaves the directories that `entry` is not in; node and place of the one that it is in.
fn enter_parent(way: &mut Vec<(&[u8], u32, usize)>, entry: &Entry) -> Result<Option<(u32, usize)>, ImageError> {
    let path = entry.path.as_bytes();
    if path.is_empty() {
        return if way.is_empty() { Ok(None) } else { Err(malformed("", "the root is not the first entry")) };
    }
    let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&path[..0], |slash| &path[..slash]);
    while way.last().is_some_and(|(path, ..)| *path != parent) {
        way.pop();
    }
    match way.last() {
        Some((_, node, at)) => Ok(Some((*node, *at))),
        None => Err(malformed(&entry.path, "its directory does not come before it")),
    }
}

fn inode(node: &Node, place: &Place, serial: u32) -> Result<Inode, ImageError> {
    let (kind, permissions) = match node.kind {
        NodeKind::Directory => (0o040_000, node.mode),
        // Links have no permissions of their own in Linux.
        NodeKind::Symlink(_) => (0o120_000, 0o777),
        NodeKind::EmptyFile | NodeKind::File(_) => (0o100_000, node.mode),
    };
    let size = match &node.kind {
        NodeKind::Directory => u64::from(place.blocks) * BLOCK + place.tail_bytes,
        NodeKind::Symlink(target) => target.len() as u64,
        NodeKind::EmptyFile | NodeKind::File(_) => place.file_bytes,
    };
    let (layout, at) = match node.kind {
        NodeKind::File(_) => {
            let bits = chunk_bits(size);
            (Layout::Chunks, bits.ok_or_else(|| does_not_fit(serial, "a file of more than 8 TiB"))?)
        }
        _ if place.tail_bytes > 0 => (Layout::Inline, place.first_block),
        _ => (Layout::Plain, place.first_block),
    };
    let xattr_words = words(place.xattr_bytes);
    Ok(Inode {
        layout,
        xattr_words: xattr_words.ok_or_else(|| does_not_fit(serial, "more than 256 KiB of attributes"))?,
        mode: kind | (permissions & 0o7777) as u16,
        size,
        place: at,
        serial,
        uid: node.uid,
        gid: node.gid,
        mtime_s: node.mtime_s,
        mtime_ns: node.mtime_ns,
        links: place.links,
    })
}

fn block_number(block: u64) -> Result<u32, ImageError> {
    u32::try_from(block).ok().filter(|block| *block != HOLE).ok_or_else(|| does_not_fit(block, "more than 16 TiB"))
}

/// Counts where it is.
struct Out<W> {
    to: W,
    at: u64,
}

impl<W: Write> Out<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    /// Zeros up to `to`.
    fn fill(&mut self, to: u64) -> io::Result<()> {
        const ZEROS: [u8; width::index(BLOCK)] = [0; width::index(BLOCK)];
        let mut missing = to.checked_sub(self.at).ok_or_else(|| io::Error::other("an image out of order"))?;
        self.at = to;
        while missing > 0 {
            let piece = missing.min(BLOCK);
            self.to.write_all(&ZEROS[..piece as usize])?;
            missing -= piece;
        }
        Ok(())
    }

    fn fill_block(&mut self) -> io::Result<()> {
        self.fill(align(self.at, BLOCK))
    }
}
