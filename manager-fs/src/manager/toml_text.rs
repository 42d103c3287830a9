//! Files that people write in TOML: what is wrong with one is said with its line, and a misspelt key with the one that
//! was meant.

use std::time::Duration;

use serde::de::DeserializeOwned;

/// Why a text is not what it should be in TOML, and in which line; if a key of it is not known, with the one that is near.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TomlFault(String);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationFault {
    /// Another form than `1h 30m`.
    #[error("\"{text}\": {cause}; want such as \"60s\"")]
    Form {
        /// The text.
        text: String,
        /// Where in it.
        cause: humantime::DurationError,
    },
    /// Beyond what 64 bits of milliseconds hold.
    #[error("\"{0}\" is longer than a program can run")]
    TooLong(String),
}

/// Reads a text; a key that is not known is answered with the one that is near to it.
///
/// # Errors
/// See [`TomlFault`].
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, TomlFault> {
    toml::from_str(text).map_err(|error| {
        let fault = error.to_string();
        let mut quoted =
            fault.split("unknown field `").nth(1).into_iter().flat_map(|rest| rest.split('`')).step_by(2);
        let typed = quoted.next().unwrap_or_default().to_owned();
        let near = quoted.map(|known| (strsim::damerau_levenshtein(&typed, known), known));
        let near = near.filter(|(slips, _)| *slips <= 1 + typed.len() / 4).min();
        let near = near.map(|(_, known)| format!("\n(did you mean '{known}'?)")).unwrap_or_default();
        TomlFault(fault.trim_end().to_owned() + &near)
    })
}

/// A duration as people write it, such as `1h 30m`, in milliseconds.
///
/// # Errors
/// See [`DurationFault`].
pub(super) fn duration_ms(text: &str) -> Result<u64, DurationFault> {
    let form = |cause| DurationFault::Form { text: text.to_owned(), cause };
    let duration: Duration = humantime::parse_duration(text).map_err(form)?;
    u64::try_from(duration.as_millis()).map_err(|_| DurationFault::TooLong(text.to_owned()))
}
