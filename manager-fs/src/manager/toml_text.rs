//! Files that people write in TOML: what is wrong with one is said with its line, and a misspelt key with the one that
//! was meant.

use std::time::Duration;

use serde::de::DeserializeOwned;

/// Reads a text; a key that is not known is answered with the one that is near to it.
///
/// # Errors
/// What is wrong and where, for people.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let fault = error.to_string();
        let mut quoted =
            fault.split("unknown field `").nth(1).into_iter().flat_map(|rest| rest.split('`')).step_by(2);
        let typed = quoted.next().unwrap_or_default().to_owned();
        let near = quoted.map(|known| (strsim::damerau_levenshtein(&typed, known), known));
        let near = near.filter(|(slips, _)| *slips <= 1 + typed.len() / 4).min();
        let near = near.map(|(_, known)| format!("\n(did you mean '{known}'?)")).unwrap_or_default();
        fault.trim_end().to_owned() + &near
    })
}

/// A duration as people write it, such as `1h 30m`, in milliseconds.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    let duration: Duration =
        humantime::parse_duration(text).map_err(|error| format!("\"{text}\": {error}; want such as \"60s\""))?;
    u64::try_from(duration.as_millis()).map_err(|_| format!("\"{text}\" is longer than a program can run"))
}
