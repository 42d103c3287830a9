//! What is wrong with one entry of a source.

use std::borrow::Cow;

use proto::path::PathError;

use super::acl::AclFault;
use super::tree::TreeFault;
use super::xattr::XattrFault;

/// What is wrong with one entry of a source, and what to do; which entry it is stands beside it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// Its name is no path of a tree.
    #[error("{}", .0.fault)]
    Name(#[from] PathError),
    /// The tree has no place for it.
    #[error(transparent)]
    Tree(#[from] TreeFault),
    /// An extended attribute of it.
    #[error(transparent)]
    Xattr(#[from] XattrFault),
    /// Its access control list.
    #[error(transparent)]
    Acl(#[from] AclFault),
    /// The archive, package or image that it comes in has it in a form that is not taken.
    #[error("{0}")]
    Form(Cow<'static, str>),
}

impl From<&'static str> for EntryFault {
    fn from(text: &'static str) -> Self {
        Self::Form(Cow::Borrowed(text))
    }
}

impl From<String> for EntryFault {
    fn from(text: String) -> Self {
        Self::Form(Cow::Owned(text))
    }
}
