//! The pack: chunk frames, then their index, then a trailer. Specified in `docs/tree-format.md`, "Pack".
//!
//! ```text
//! header  preamble with magic "MFSPACK\0"
//! frames  stored bytes of the chunks, one after another
//! index   a frame: chunk id 32 | stored u32 | plain u32 | encoding u8 | check 8
//! trailer frames u64 (bytes) | count u32 | pack id 32 | magic "MFSPKEND"
//! ```

use std::io;

use proto::bulk::Encoding;
use proto::limits::CHUNK_BYTES_MAX;
use proto::preamble::{PREAMBLE_BYTES, Preamble, PreambleFault};
use proto::width;
use proto::{ChunkId, ObjectId};

use super::pack_id::PackId;
use super::pack_store::{BlobName, Draft, PackStore};

const PREAMBLE: Preamble = Preamble::new(*b"MFSPACK\0");
const END_MAGIC: &[u8; 8] = b"MFSPKEND";
/// Ignorable feature: the frames are compressed as well as [`Effort::Best`] can.
const BEST_EFFORT: u32 = 1;
const HEADER_BYTES: u64 = PREAMBLE_BYTES as u64;
const ENTRY_BYTES: usize = 32 + 4 + 4 + 1 + 8;
const TRAILER_BYTES: u64 = 8 + 4 + 32 + 8;
/// Keeps a pack's id from being the hash of something else.
const ID_CONTEXT: &[u8] = b"manager-fs pack 1\0";

/// One frame of a pack, as its index tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// The chunk that it decodes to.
    pub(super) chunk: ChunkId,
    /// Where the stored bytes begin in the pack.
    pub(super) offset: u64,
    /// How many they are.
    pub(super) stored_bytes: u32,
    /// How many they are when decoded.
    pub(super) plain_bytes: u32,
    /// How they are stored.
    pub(super) encoding: Encoding,
    /// The start of the BLAKE3 of the stored bytes: tells damage before bytes are served, cheaper than decoding.
    pub(super) check: [u8; 8],
}

/// The check of stored bytes.
pub(super) fn check_of(stored: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(stored).as_bytes()[..8]);
    check
}

/// How hard a pack's frames are compressed. It only decides whether [`Store::repack`](super::Store::repack) has
/// something to gain: every frame decodes the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// While someone waits for the publication.
    Fast,
    /// Afterwards, when nobody waits.
    Best,
}

impl Effort {
    /// The zstd level (`docs/decisions.md`, entry 5).
    pub(super) fn level(self) -> i32 {
        match self {
            Effort::Fast => 3,
            Effort::Best => 16,
        }
    }

    fn features(self) -> u32 {
        match self {
            Effort::Fast => 0,
            Effort::Best => BEST_EFFORT,
        }
    }
}

/// What a pack holds, as its header and index tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackIndex {
    pub(super) effort: Effort,
    pub(super) frames: Vec<Frame>,
}

/// Why a pack cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackFault {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("it is of pack format {version} with features {features:#x}; this program reads format 1: upgrade it")]
    Newer { version: u16, features: u32 },
}

impl From<PreambleFault> for PackFault {
    fn from(fault: PreambleFault) -> Self {
        match fault {
            PreambleFault::Other => PackFault::Malformed("its first bytes are not those of a pack"),
            PreambleFault::Newer { version, features } => PackFault::Newer { version, features },
        }
    }
}

/// A pack that is being written.
pub(super) struct PackWriter {
    draft: Box<dyn Draft>,
    effort: Effort,
    frames: Vec<Frame>,
    offset: u64,
}

impl PackWriter {
    /// Starts a pack.
    pub(super) fn create(store: &dyn PackStore, effort: Effort) -> io::Result<Self> {
        let mut draft = store.create()?;
        draft.append(&header(effort))?;
        Ok(Self { draft, effort, frames: Vec::new(), offset: HEADER_BYTES })
    }

    /// Appends frames whose stored bytes stand one after another; their offsets are ours to set.
    pub(super) fn append_many(&mut self, frames: impl IntoIterator<Item = Frame>, stored: &[u8]) -> io::Result<()> {
        if stored.is_empty() {
            return Ok(());
        }
        self.draft.append(stored)?;
        for frame in frames {
            self.frames.push(Frame { offset: self.offset, ..frame });
            self.offset += u64::from(frame.stored_bytes);
        }
        Ok(())
    }

    /// The frames so far.
    pub(super) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Reads a frame back before the pack is committed.
    pub(super) fn read(&self, frame: &Frame) -> io::Result<Vec<u8>> {
        self.draft.read(frame.offset..frame.offset + u64::from(frame.stored_bytes))
    }

    /// Writes index and trailer: the pack is whole, and still invisible.
    pub(super) fn seal(mut self) -> io::Result<SealedPack> {
        let index: Vec<u8> = self.frames.iter().flat_map(encode_entry).collect();
        let frames_bytes = self.offset - HEADER_BYTES;
        let count = u32::try_from(self.frames.len()).map_err(|_| io::Error::other("more than 2^32 chunks"))?;
        let id = pack_id(&header(self.effort), &index, frames_bytes, count);
        self.draft.append(&index)?;
        let mut trailer = Vec::with_capacity(width::index(TRAILER_BYTES));
        trailer.extend_from_slice(&frames_bytes.to_le_bytes());
        trailer.extend_from_slice(&count.to_le_bytes());
        trailer.extend_from_slice(id.0.as_bytes());
        trailer.extend_from_slice(END_MAGIC);
        self.draft.append(&trailer)?;
        Ok(SealedPack { id, draft: self.draft, index: PackIndex { effort: self.effort, frames: self.frames } })
    }
}

/// A pack that only needs its name.
pub(super) struct SealedPack {
    id: PackId,
    draft: Box<dyn Draft>,
    index: PackIndex,
}

impl SealedPack {
    pub(super) fn id(&self) -> PackId {
        self.id
    }

    /// Makes the pack durable and visible. Equal ids mean equal indexes, so a pack that is there already holds the same
    /// chunks at the same places.
    pub(super) fn commit(self) -> io::Result<(PackId, PackIndex)> {
        self.draft.commit(&BlobName::Pack(self.id))?;
        Ok((self.id, self.index))
    }

    /// As [`SealedPack::commit`], in the place of a damaged pack with this id.
    pub(super) fn replace(self) -> io::Result<(PackId, PackIndex)> {
        self.draft.replace(&BlobName::Pack(self.id))?;
        Ok((self.id, self.index))
    }
}

/// How long a pack of so many frames with so many stored bytes is.
pub(super) fn pack_bytes(frames: u64, stored_bytes: u64) -> u64 {
    HEADER_BYTES + stored_bytes + frames * ENTRY_BYTES as u64 + TRAILER_BYTES
}

/// Reads and checks a pack's header, index and trailer.
pub(super) fn read_index(store: &dyn PackStore, id: &PackId) -> Result<PackIndex, PackFault> {
    let name = BlobName::Pack(*id);
    let bytes = store.size(&name)?.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
    if bytes < HEADER_BYTES + TRAILER_BYTES {
        return Err(PackFault::Malformed("it is shorter than a header and a trailer"));
    }
    let header = store.get(&name, 0..HEADER_BYTES)?;
    let effort = effort_of(&header)?;
    let trailer = store.get(&name, bytes - TRAILER_BYTES..bytes)?;
    if trailer[44..] != END_MAGIC[..] {
        return Err(PackFault::Malformed("its end is cut off or overwritten"));
    }
    let mut number = [0; 8];
    number.copy_from_slice(&trailer[..8]);
    let frames_bytes = u64::from_le_bytes(number);
    let count = u32::from_le_bytes([trailer[8], trailer[9], trailer[10], trailer[11]]);
    let index_bytes = u64::from(count) * ENTRY_BYTES as u64;
    let sum = frames_bytes.checked_add(HEADER_BYTES + TRAILER_BYTES + index_bytes);
    if sum != Some(bytes) {
        return Err(PackFault::Malformed("its length is not what its trailer says"));
    }
    let index = store.get(&name, HEADER_BYTES + frames_bytes..bytes - TRAILER_BYTES)?;
    if pack_id(&header, &index, frames_bytes, count) != *id || trailer[12..44] != id.0.as_bytes()[..] {
        return Err(PackFault::Malformed("the hash of its header and index is not its id"));
    }
    Ok(PackIndex { effort, frames: decode_index(&index, frames_bytes)? })
}

fn header(effort: Effort) -> [u8; PREAMBLE_BYTES] {
    PREAMBLE.encode(effort.features())
}

fn effort_of(header: &[u8]) -> Result<Effort, PackFault> {
    let preamble = header.first_chunk().ok_or(PreambleFault::Other)?;
    let features = PREAMBLE.decode(preamble)?;
    Ok(if features & BEST_EFFORT == 0 { Effort::Fast } else { Effort::Best })
}

fn pack_id(header: &[u8], index: &[u8], frames_bytes: u64, count: u32) -> PackId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(ID_CONTEXT).update(header).update(&frames_bytes.to_le_bytes()).update(&count.to_le_bytes());
    hasher.update(index);
    PackId(ObjectId::from_bytes(*hasher.finalize().as_bytes()))
}

fn encode_entry(frame: &Frame) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..32].copy_from_slice(frame.chunk.as_bytes());
    entry[32..36].copy_from_slice(&frame.stored_bytes.to_le_bytes());
    entry[36..40].copy_from_slice(&frame.plain_bytes.to_le_bytes());
    entry[40] = frame.encoding.code();
    entry[41..].copy_from_slice(&frame.check);
    entry
}

fn decode_index(index: &[u8], frames_bytes: u64) -> Result<Vec<Frame>, PackFault> {
    let mut offset = HEADER_BYTES;
    let mut frames = Vec::with_capacity(index.len() / ENTRY_BYTES);
    for entry in index.chunks_exact(ENTRY_BYTES) {
        let mut id = [0; 32];
        id.copy_from_slice(&entry[..32]);
        let mut check = [0; 8];
        check.copy_from_slice(&entry[41..]);
        let frame = Frame {
            chunk: ChunkId::from_bytes(id),
            offset,
            stored_bytes: u32::from_le_bytes([entry[32], entry[33], entry[34], entry[35]]),
            plain_bytes: u32::from_le_bytes([entry[36], entry[37], entry[38], entry[39]]),
            encoding: Encoding::from_code(entry[40]).ok_or(PackFault::Malformed("an unknown encoding"))?,
            check,
        };
        let sizes = 1..=CHUNK_BYTES_MAX;
        if !sizes.contains(&frame.plain_bytes) || !(1..=frame.plain_bytes).contains(&frame.stored_bytes) {
            return Err(PackFault::Malformed("a frame's size is out of range"));
        }
        offset += u64::from(frame.stored_bytes);
        frames.push(frame);
    }
    if offset != HEADER_BYTES + frames_bytes {
        return Err(PackFault::Malformed("its frames do not add up to what its trailer says"));
    }
    Ok(frames)
}

/// For `tests/fuzz`.
#[cfg(any(test, fuzzing))]
pub(super) fn read_any_index(index: &[u8], frames_bytes: u64) -> bool {
    decode_index(index, frames_bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::LocalPacks;
    use super::*;

    fn frame(plain: &[u8], stored: &[u8], encoding: Encoding) -> Frame {
        Frame {
            chunk: ChunkId::of(plain),
            offset: 0,
            stored_bytes: width::count(stored.len()),
            plain_bytes: width::count(plain.len()),
            encoding,
            check: check_of(stored),
        }
    }

    /// Format 1, byte for byte as `docs/tree-format.md` has it.
    #[test]
    fn the_format_is_what_is_written_down() {
        assert_format(Effort::Fast, b"MFSPACK\0\x01\0\0\0\0\0\0\0\0\0");
        assert_format(Effort::Best, b"MFSPACK\0\x01\0\x01\0\0\0\0\0\0\0");
    }

    fn assert_format(effort: Effort, header: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalPacks::open(dir.path()).unwrap();
        let mut pack = PackWriter::create(&store, effort).unwrap();
        let frames = [frame(b"one", b"one", Encoding::Raw), frame(&[7; 4096], b"(zstd)", Encoding::Zstd)];
        pack.append_many(frames, b"one(zstd)").unwrap();
        let (id, made) = pack.seal().unwrap().commit().unwrap();
        let frames = &made.frames;

        let entry = |frame: &Frame, stored: u32, plain: u32, encoding: u8| -> Vec<u8> {
            [
                frame.chunk.as_bytes().as_slice(),
                &stored.to_le_bytes(),
                &plain.to_le_bytes(),
                &[encoding],
                &frame.check,
            ]
            .concat()
        };
        let index = [entry(&frames[0], 3, 3, 0), entry(&frames[1], 6, 4096, 1)].concat();
        let sizes = [9_u64.to_le_bytes().as_slice(), &2_u32.to_le_bytes()].concat();
        let named = [b"manager-fs pack 1\0".as_slice(), header, &sizes, &index].concat();
        assert_eq!(id.to_hex(), blake3::hash(&named).to_hex().to_string());
        let wanted = [header, b"one(zstd)", &index, &sizes, blake3::hash(&named).as_bytes(), b"MFSPKEND"].concat();
        let name = BlobName::Pack(id);
        let length = store.size(&name).unwrap().unwrap();
        assert_eq!(store.get(&name, 0..length).unwrap(), wanted);
        assert_eq!(pack_bytes(2, 9), length);
        assert_eq!(read_index(&store, &id).unwrap(), made);
        assert_eq!((frames[0].offset, frames[1].offset), (18, 21));
        assert_eq!(frames[0].check, blake3::hash(b"one").as_bytes()[..8]);
    }

    #[test]
    fn an_index_that_contradicts_itself_is_refused() {
        let good = frame(b"one", b"one", Encoding::Raw);
        let index = |frame: Frame| encode_entry(&frame).to_vec();
        assert!(decode_index(&index(good), 3).is_ok());
        assert!(decode_index(&index(good), 4).is_err());
        for bad in [
            Frame { stored_bytes: 0, ..good },
            Frame { plain_bytes: 0, ..good },
            Frame { plain_bytes: CHUNK_BYTES_MAX + 1, ..good },
            Frame { stored_bytes: 4, ..good },
        ] {
            assert!(decode_index(&index(bad), u64::from(bad.stored_bytes)).is_err(), "{bad:?}");
        }
        let mut unknown = index(good);
        unknown[40] = 9;
        assert!(decode_index(&unknown, 3).is_err());
        assert!(read_any_index(&index(good), 3) && !read_any_index(&unknown, 3));
    }

    #[test]
    fn a_pack_of_another_length_than_its_own_is_refused_and_an_empty_one_is_none_of_these() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalPacks::open(dir.path()).unwrap();
        let (id, made) = PackWriter::create(&store, Effort::Fast).unwrap().seal().unwrap().commit().unwrap();
        assert_eq!(read_index(&store, &id).unwrap(), made);
        assert_eq!(made, PackIndex { effort: Effort::Fast, frames: Vec::new() });
        let (shard, rest) = id.to_shard();
        let path = dir.path().join("packs").join(shard).join(format!("{rest}.pack"));
        let whole = std::fs::read(&path).unwrap();
        let longer = [whole.as_slice(), b"x"].concat();
        for length in (0..whole.len()).chain([longer.len()]) {
            std::fs::write(&path, &longer[..length]).unwrap();
            let refused = read_index(&store, &id);
            assert!(matches!(refused, Err(PackFault::Malformed(_))), "{length} bytes: {refused:?}");
        }
    }

    /// `docs/decisions.md`, entry 5.
    #[test]
    fn what_somebody_waits_for_is_compressed_fast_and_everything_else_as_well_as_it_goes() {
        assert_eq!((Effort::Fast.level(), Effort::Best.level()), (3, 16));
    }
}
