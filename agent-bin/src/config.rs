//! What the process was told to be. Where its files are and what it inherits, `agent-core` reads.

use std::ffi::OsString;
use std::fmt;

/// What this process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Reads and writes the host's data: backup, restore, verify.
    Data,
    /// Looks after the storage that backups go to: check, prune.
    Media,
}

impl fmt::Display for Role {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Role::Data => "data",
            Role::Media => "media",
        })
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Run(Role),
    Help,
    Version,
}

/// The process was told nothing that it could be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskedFault {
    #[error("--role needs data or media")]
    NoRole,
    #[error("unknown argument {0:?}; see --help")]
    UnknownArgument(String),
    #[error("unknown role {0:?}; there are data and media")]
    UnknownRole(String),
    #[error("the product name {0:?} says neither data nor media; give --role in its arguments")]
    NoRoleOfProduct(String),
    #[error("neither --role nor MANAGER_FS_PRODUCT says what to be; start agents with `manager-fs launch PRODUCT`")]
    Nothing,
}

pub(crate) const HELP: &str = "\
The reference storage agent of manager-fs: a data agent (backup, restore, verify) or a media agent (check, prune).
Started by `manager-fs launch PRODUCT`, never by hand.

Usage: agent-bin [--role data|media]

      --role ROLE   what to be; otherwise MANAGER_FS_ROLE, otherwise the name of the product (`data-agent`, `media-agent`)
      --help        this text
      --version     the version of the program (the agent's own version comes from its generation's record)

Environment (set by launch): MANAGER_FS_PRODUCT, MANAGER_FS_STATE, MANAGER_FS_RUN; MANAGER_FS_LOG sets what is logged to
stderr, such as `debug` or `rustic_core=info` (default: info, and warnings of the libraries)
";

impl Asked {
    /// Reads the command line (without the program's name) and the environment.
    ///
    /// # Errors
    /// The process then ends with code 2.
    pub(crate) fn read(
        arguments: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, AskedFault> {
        let mut role = None;
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--help" | "-h") => return Ok(Asked::Help),
                Some("--version" | "-V") => return Ok(Asked::Version),
                Some("--role") => role = Some(role_of(&text(arguments.next().ok_or(AskedFault::NoRole)?))?),
                Some(flag) if flag.starts_with("--role=") => role = Some(role_of(&flag["--role=".len()..])?),
                _ => return Err(AskedFault::UnknownArgument(text(argument))),
            }
        }
        let role = match (role, variable("MANAGER_FS_ROLE"), variable("MANAGER_FS_PRODUCT")) {
            (Some(role), _, _) => role,
            (None, Some(role), _) => role_of(&text(role))?,
            (None, None, Some(product)) => role_of_product(&text(product))?,
            (None, None, None) => return Err(AskedFault::Nothing),
        };
        Ok(Asked::Run(role))
    }
}

fn text(argument: OsString) -> String {
    argument.to_string_lossy().into_owned()
}

fn role_of(role: &str) -> Result<Role, AskedFault> {
    match role {
        "data" => Ok(Role::Data),
        "media" => Ok(Role::Media),
        other => Err(AskedFault::UnknownRole(other.to_owned())),
    }
}

fn role_of_product(product: &str) -> Result<Role, AskedFault> {
    match (product.contains("data"), product.contains("media")) {
        (true, false) => Ok(Role::Data),
        (false, true) => Ok(Role::Media),
        _ => Err(AskedFault::NoRoleOfProduct(product.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Asked, AskedFault> {
        let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        Asked::read(arguments.iter().map(OsString::from), variable)
    }

    fn role(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Role, AskedFault> {
        match read(arguments, variables)? {
            Asked::Run(role) => Ok(role),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_argument_wins_over_the_variable_over_the_product() {
        let both = [("MANAGER_FS_ROLE", "media"), ("MANAGER_FS_PRODUCT", "data-agent")];
        assert_eq!(role(&["--role", "data"], &both), Ok(Role::Data));
        assert_eq!(role(&["--role=data"], &both), Ok(Role::Data));
        assert_eq!(role(&[], &both), Ok(Role::Media));
        assert_eq!(role(&[], &both[1..]), Ok(Role::Data));
        assert_eq!(role(&[], &[("MANAGER_FS_PRODUCT", "media-agent")]), Ok(Role::Media));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (arguments, variables, named) in [
            (&["--rolle"][..], &[][..], "--rolle"),
            (&["--role"], &[], "--role"),
            (&["--role", "both"], &[], "both"),
            (&[], &[("MANAGER_FS_PRODUCT", "index")], "index"),
            (&[], &[], "MANAGER_FS_PRODUCT"),
        ] {
            let error = role(arguments, variables).expect_err("must be refused").to_string();
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }
}
