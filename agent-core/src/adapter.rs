//! Programs that know nothing of this library are run by an adapter: a program of the host's that is an agent in their
//! place. Whoever calls the stub names it; it is started with `__adapter` and the path of the tree.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What is executed for a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

/// The record has an adapter, and this host names none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is an unchanged program, and `launch` was started without an adapter to run it", .0.display())]
pub(crate) struct NoAdapter(PathBuf);

impl Start {
    /// The program of a tree itself.
    pub(crate) fn of(program: PathBuf, arguments: &[String]) -> Self {
        Self { program, arguments: arguments.iter().map(OsString::from).collect() }
    }

    /// The adapter that runs it instead, where its record has one. The program was looked at already, so that one which
    /// is not there is found before anything is stopped for it.
    pub(crate) fn by(self, adapter: Option<&Path>, is_adapted: bool, tree: &Path) -> Result<Self, NoAdapter> {
        match (is_adapted, adapter) {
            (false, _) => Ok(self),
            (true, Some(adapter)) => {
                Ok(Self { program: adapter.to_owned(), arguments: vec!["__adapter".into(), tree.into()] })
            }
            (true, None) => Err(NoAdapter(self.program)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_runs_what_has_one_and_nothing_else() {
        let start = || Start::of("/t/bin/nginx".into(), &["-v".into()]);
        let adapter = Some(Path::new("/usr/bin/manager-fs"));
        assert_eq!(start().by(adapter, false, Path::new("/t")), Ok(start()));
        let by = start().by(adapter, true, Path::new("/t")).unwrap();
        assert_eq!((by.program, by.arguments), ("/usr/bin/manager-fs".into(), vec!["__adapter".into(), "/t".into()]));
        let fault = start().by(None, true, Path::new("/t")).unwrap_err().to_string();
        assert!(fault.contains("/t/bin/nginx is an unchanged program"), "{fault}");
    }
}
