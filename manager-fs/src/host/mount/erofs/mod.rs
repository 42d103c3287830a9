//! A tree's metadata as an EROFS image: names, modes, times, owners, links and attributes; of contents only the sizes.
//!
//! ```text
//! byte 0     1024         1152                                             a block's start
//! | nothing | superblock | inodes, each with attributes, then what is short | shared attributes | directories, links |
//!                          of its body: names, a link's target, one hole
//! ```
//! The format is the kernel's (`fs/erofs/erofs_fs.h`), little-endian, in blocks of 4 KiB. What is used of it:
//! - every inode is *extended* (64 bytes): only these hold times and 32-bit owners of their own;
//! - a file is *chunk-based* with one chunk of no address: a hole of the file's size, whatever that is;
//! - an attribute that many inodes have, or a long one, is *shared*: inodes name it by its place;
//! - names of a directory are sorted by bytes, `.` and `..` among them, block by block: the kernel searches in halves.
//!
//! [`Plan`] gives everything its place, and then writes front to back.

mod format;
mod plan;
mod xattrs;

#[cfg(test)]
mod tests;

pub(super) use plan::Plan;

/// Why there is no image of a tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    /// The format has no room for it, though a tree may have it.
    #[error("'{place}': {fault}")]
    DoesNotFit { place: String, fault: &'static str },
    /// No tree has that: the manifest was not validated.
    #[error("malformed tree at '{place}': {fault}")]
    Malformed { place: String, fault: &'static str },
    /// It could not be written.
    #[error("write the image: {0}")]
    Write(#[from] std::io::Error),
}

fn does_not_fit(place: impl ToString, fault: &'static str) -> ImageError {
    ImageError::DoesNotFit { place: place.to_string(), fault }
}

fn malformed(place: impl ToString, fault: &'static str) -> ImageError {
    ImageError::Malformed { place: place.to_string(), fault }
}
