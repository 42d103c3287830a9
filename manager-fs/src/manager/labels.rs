//! Labels of hosts, and what is chosen by them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use proto::name::{LabelKey, LabelValue, NameError};
use serde::{Deserialize, Serialize};

/// Labels that one host may have.
pub const LABELS_MAX: usize = 32;
/// Selectors that one rule may have.
pub const SELECTORS_MAX: usize = 16;

/// What an operator says of a host: a value for each key.
pub type Labels = BTreeMap<LabelKey, LabelValue>;

/// One label as it is typed: `site=fra`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label(pub LabelKey, pub LabelValue);

impl FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Ok(Self(key.parse()?, value.parse()?))
    }
}

/// A change of a label as it is typed: `site=fra` sets it, `site-` takes it away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelChange {
    /// It has this value from now on.
    Set(Label),
    /// There is no such label from now on.
    Remove(LabelKey),
}

impl LabelChange {
    /// Changes a host's labels.
    pub fn apply(&self, labels: &mut Labels) {
        match self {
            LabelChange::Set(Label(key, value)) => drop(labels.insert(key.clone(), value.clone())),
            LabelChange::Remove(key) => drop(labels.remove(key)),
        }
    }
}

impl FromStr for LabelChange {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix('-') {
            Some(key) if !text.contains('=') => key.parse().map(LabelChange::Remove),
            _ => text.parse().map(LabelChange::Set),
        }
    }
}

/// A condition on a host's labels, as it is typed: `site=fra`, `site!=fra`, `site`, `!site`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// It has just this label.
    Is(LabelKey, LabelValue),
    /// It has another value there, or none.
    IsNot(LabelKey, LabelValue),
    /// It has some value there.
    Has(LabelKey),
    /// It has none.
    HasNot(LabelKey),
}

impl Selector {
    /// Whether a host with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Selector::Is(key, value) => labels.get(key) == Some(value),
            Selector::IsNot(key, value) => labels.get(key) != Some(value),
            Selector::Has(key) => labels.contains_key(key),
            Selector::HasNot(key) => !labels.contains_key(key),
        }
    }
}

/// Whether all of them mean a host with these labels; no selector means every host.
pub fn all_match(selectors: &[Selector], labels: &Labels) -> bool {
    selectors.iter().all(|selector| selector.matches(labels))
}

impl FromStr for Selector {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(Selector::IsNot(key.parse()?, value.parse()?));
        }
        if let Some((key, value)) = text.split_once('=') {
            return Ok(Selector::Is(key.parse()?, value.parse()?));
        }
        match text.strip_prefix('!') {
            Some(key) => key.parse().map(Selector::HasNot),
            None => text.parse().map(Selector::Has),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Is(key, value) => write!(f, "{key}={value}"),
            Selector::IsNot(key, value) => write!(f, "{key}!={value}"),
            Selector::Has(key) => write!(f, "{key}"),
            Selector::HasNot(key) => write!(f, "!{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let mut labels = Labels::new();
        text.split_whitespace().for_each(|change| change.parse::<LabelChange>().unwrap().apply(&mut labels));
        labels
    }

    #[test]
    fn a_selector_means_the_hosts_that_it_says() {
        let here = labels("site=fra role=db rack=7 rack-");
        assert_eq!(here.len(), 2);
        for (selector, meant) in [
            ("site=fra", true),
            ("site=ams", false),
            ("site!=fra", false),
            ("site!=ams", true),
            ("rack!=7", true),
            ("site", true),
            ("rack", false),
            ("!rack", true),
            ("!site", false),
        ] {
            let parsed: Selector = selector.parse().unwrap();
            assert_eq!((parsed.matches(&here), parsed.to_string().as_str()), (meant, selector));
        }
        assert!(all_match(&[], &here));
        let both = |a: &str, b: &str| all_match(&[a.parse().unwrap(), b.parse().unwrap()], &here);
        assert!(both("site=fra", "role=db") && !both("site=fra", "role=web"));
    }

    #[test]
    fn what_is_no_label_is_refused_by_its_part() {
        for (text, kind) in
            [("site", "label value"), ("=fra", "label key"), ("a b=c", "label key"), ("a=b=c", "label value")]
        {
            assert_eq!(text.parse::<LabelChange>().unwrap_err().kind, kind, "{text}");
        }
        for text in ["", "!", "=", "!=", "a=", "a!=", "!a=b"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        assert_eq!("site-".parse(), Ok(LabelChange::Remove("site".parse().unwrap())));
        assert_eq!("a=b-".parse(), Ok(LabelChange::Set(Label("a".parse().unwrap(), "b-".parse().unwrap()))));
    }
}
