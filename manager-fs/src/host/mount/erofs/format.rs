//! The format's constants and records, field by field.

use proto::width;

/// Bytes of a block: the page size of every machine that this runs on, and accepted by all kernels.
pub(super) const BLOCK: u64 = 4096;
/// Where the superblock stands, and how long it is.
pub(super) const SUPER_AT: u64 = 1024;
pub(super) const SUPER_BYTES: u64 = 128;
/// An inode stands at a multiple of this, and its number is the multiple.
pub(super) const SLOT: u64 = 32;
pub(super) const INODE_BYTES: u64 = 64;
pub(super) const DIRENT_BYTES: usize = 12;
pub(super) const XATTR_HEADER_BYTES: usize = 12;
/// One block address of a chunk-based file.
pub(super) const CHUNK_ADDRESS_BYTES: u64 = 4;
/// `EROFS_NULL_ADDR`: the chunk is a hole.
pub(super) const HOLE: u32 = u32::MAX;

pub(super) const FT_REGULAR: u8 = 1;
pub(super) const FT_DIRECTORY: u8 = 2;
pub(super) const FT_SYMLINK: u8 = 7;

const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_MTIME`: the times are those of modification.
const COMPAT_MTIME: u32 = 0x2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const INCOMPAT_CHUNKED: u32 = 0x4;
const BLOCK_BITS: u8 = 12;
const _: () = assert!(BLOCK == 1 << BLOCK_BITS);

/// How an inode's body is stored: the number of the format, already in its place beside the bit for "extended".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole blocks only.
    Plain = 0,
    /// What does not fill a block stands right behind the inode.
    Inline = 2,
    /// Addresses of chunks stand right behind the inode.
    Chunks = 4,
}

/// What the superblock says of one image.
pub(super) struct Super {
    pub(super) root_number: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) shared_block: u32,
}

impl Super {
    /// Without checksum and build time: the image lives in the memory of this boot, and equal trees give equal images.
    pub(super) fn encode(&self) -> [u8; width::index(SUPER_BYTES)] {
        let mut bytes = [0; width::index(SUPER_BYTES)];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(8, &COMPAT_MTIME.to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root_number.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        // 40: inode numbers count from block 0.
        put(44, &self.shared_block.to_le_bytes());
        put(80, &INCOMPAT_CHUNKED.to_le_bytes());
        bytes
    }
}

/// An extended inode.
pub(super) struct Inode {
    pub(super) layout: Layout,
    pub(super) xattr_words: u16,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// The first block, or the chunk's size as a power of two above a block's.
    pub(super) place: u32,
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) links: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; width::index(INODE_BYTES)] {
        let mut bytes = [0; width::index(INODE_BYTES)];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(1 | (self.layout as u16) << 1).to_le_bytes());
        put(2, &self.xattr_words.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.place.to_le_bytes());
        put(20, &self.serial.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime_s.to_le_bytes());
        put(40, &self.mtime_ns.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }
}

/// The smallest chunk that holds a whole file, as a power of two above a block's.
pub(super) fn chunk_bits(file_bytes: u64) -> Option<u32> {
    let bits = file_bytes.div_ceil(BLOCK).checked_next_power_of_two()?.trailing_zeros();
    // Five bits of the format.
    (bits < 32).then_some(bits)
}

/// The next multiple, which is a power of two.
pub(super) fn align(at: u64, to: u64) -> u64 {
    at.next_multiple_of(to)
}
