//! `permits.toml` as rules, each with the place where it stands.
//!
//! The document is read by the TOML library, and made into rules here: what makes any type out of any document would be
//! a tenth of a small program that embeds this crate, for a dozen keys.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use proto::{CommandName, OperationKind, Product, RepositoryName};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

pub(crate) type List<T> = Spanned<Vec<Spanned<T>>>;

/// What the file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) pinned: Option<List<Product>>,
    pub(crate) sources: Option<List<PathBuf>>,
    pub(crate) targets: Option<List<PathBuf>>,
    pub(crate) over: Option<List<PathBuf>>,
    pub(crate) tests: Option<Spanned<bool>>,
    pub(crate) places: Option<List<PathBuf>>,
    pub(crate) prune: Option<Spanned<bool>>,
    pub(crate) keep_last: Option<Spanned<u32>>,
    pub(crate) show: Option<List<PathBuf>>,
    pub(crate) names: Option<List<RepositoryName>>,
    pub(crate) serve: Option<Spanned<bool>>,
    pub(crate) kinds: Option<List<OperationKind>>,
    /// Name, and program with its arguments.
    pub(crate) commands: Vec<(CommandName, Vec<String>)>,
}

const TABLES: [(&str, &[&str]); 6] = [
    ("change-over", &["pinned"]),
    ("backup", &["sources"]),
    ("restore", &["targets", "over", "tests"]),
    ("repository", &["places", "prune", "keep-last", "show", "names", "serve"]),
    ("operations", &["kinds"]),
    // Its keys are names of the administrator's.
    ("commands", &[]),
];

/// What is not understood, and where it stands in the file, in bytes.
#[derive(Debug)]
pub(crate) struct Unclear {
    pub(crate) at: Range<usize>,
    pub(crate) what: String,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Rules {
    /// # Errors
    /// It is no TOML, or something else than the keys above with values of their kinds: what is not known may be meant to
    /// forbid something.
    pub(crate) fn parse(text: &str) -> Result<Self, Unclear> {
        let file = DeTable::parse(text)
            .map_err(|error| Unclear { at: error.span().unwrap_or_default(), what: error.message().to_owned() })?;
        let mut rules = Self::default();
        for (name, table) in file.get_ref() {
            let known = TABLES.iter().find(|(known, _)| *known == name.get_ref().as_ref());
            let Some((_, keys)) = known else {
                return Err(unknown("table", name, &TABLES.map(|(known, _)| known)));
            };
            let DeValue::Table(table) = table.get_ref() else { return Err(wrong(table, "a table")) };
            for (key, value) in table {
                match (name.get_ref().as_ref(), key.get_ref().as_ref()) {
                    ("change-over", "pinned") => rules.pinned = Some(list(value, named)?),
                    ("backup", "sources") => rules.sources = Some(list(value, path)?),
                    ("restore", "targets") => rules.targets = Some(list(value, path)?),
                    ("restore", "over") => rules.over = Some(list(value, path)?),
                    ("restore", "tests") => rules.tests = Some(flag(value)?),
                    ("repository", "places") => rules.places = Some(list(value, path)?),
                    ("repository", "prune") => rules.prune = Some(flag(value)?),
                    ("repository", "keep-last") => rules.keep_last = Some(number(value)?),
                    ("repository", "show") => rules.show = Some(list(value, path)?),
                    ("repository", "names") => rules.names = Some(list(value, named)?),
                    ("repository", "serve") => rules.serve = Some(flag(value)?),
                    ("operations", "kinds") => rules.kinds = Some(list(value, named)?),
                    ("commands", name) => {
                        let name = named(name).map_err(|what| Unclear { at: key.span(), what })?;
                        rules.commands.push((name, command(value)?));
                    }
                    _ => return Err(unknown("key", key, keys)),
                }
            }
        }
        Ok(rules)
    }
}

fn list<T>(value: &Value<'_>, read: impl Fn(&str) -> Result<T, String>) -> Result<List<T>, Unclear> {
    let DeValue::Array(items) = value.get_ref() else { return Err(wrong(value, "a list of texts")) };
    let items = items.iter().map(|item| {
        let DeValue::String(text) = item.get_ref() else { return Err(wrong(item, "a text")) };
        let read = read(text).map_err(|what| Unclear { at: item.span(), what })?;
        Ok(Spanned::new(item.span(), read))
    });
    Ok(Spanned::new(value.span(), items.collect::<Result<_, _>>()?))
}

/// A program by its absolute path, and its arguments.
fn command(value: &Value<'_>) -> Result<Vec<String>, Unclear> {
    let words = list(value, |text| Ok(text.to_owned()))?.into_inner().into_iter().map(Spanned::into_inner);
    let words: Vec<String> = words.collect();
    let is_clear = words.first().is_some_and(|program| program.starts_with('/'))
        && words.iter().all(|word| !word.contains('\0'));
    let unclear =
        || Unclear { at: value.span(), what: "a command is a program's absolute path, then its arguments".into() };
    is_clear.then_some(words).ok_or_else(unclear)
}

fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

fn named<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn flag(value: &Value<'_>) -> Result<Spanned<bool>, Unclear> {
    match value.get_ref() {
        DeValue::Boolean(flag) => Ok(Spanned::new(value.span(), *flag)),
        _ => Err(wrong(value, "true or false")),
    }
}

fn number(value: &Value<'_>) -> Result<Spanned<u32>, Unclear> {
    let read = value.get_ref().as_integer().and_then(|it| u32::from_str_radix(it.as_str(), it.radix()).ok());
    read.map(|number| Spanned::new(value.span(), number)).ok_or_else(|| wrong(value, "a number from 0 on"))
}

fn wrong(value: &Value<'_>, want: &str) -> Unclear {
    Unclear { at: value.span(), what: format!("this is {}, and wants {want}", value.get_ref().type_str()) }
}

fn unknown(what: &str, name: &Spanned<DeString<'_>>, known: &[&str]) -> Unclear {
    Unclear { at: name.span(), what: format!("unknown {what} `{}`: there are {}", name.get_ref(), known.join(", ")) }
}
