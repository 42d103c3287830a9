//! Arguments of an operation, which come as text, as the type that the program reads them as.

use std::fmt;

use proto::own::Arguments;
use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::near::near;

/// An argument that the operation does not take, or takes as something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ArgumentFault(String);

impl de::Error for ArgumentFault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(format!("the arguments are not those of this operation: {text}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("argument '{field}' is missing (--arg {field}=VALUE)"))
    }
}

pub(crate) fn typed<A: DeserializeOwned>(arguments: &Arguments) -> Result<A, ArgumentFault> {
    A::deserialize(All(arguments))
}

/// All of them: a struct, or a map.
struct All<'a>(&'a Arguments);

impl<'de> Deserializer<'de> for All<'_> {
    type Error = ArgumentFault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgumentFault> {
        let pairs = self.0.iter().map(|(name, value)| (name.to_owned(), Value { name, value }));
        visitor.visit_map(MapDeserializer::new(pairs))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ArgumentFault> {
        // What was misspelt was meant to say something: it is never passed over.
        if let Some((name, _)) = self.0.iter().find(|(name, _)| !fields.contains(name)) {
            let near = near(name, fields.iter().copied());
            let near = near.map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
            let takes = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
            return Err(ArgumentFault(format!("the operation takes no argument '{name}'{near}; it takes {takes}")));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgumentFault> {
        match self.0.iter().next() {
            Some((name, _)) => Err(ArgumentFault(format!("the operation takes no argument '{name}'; it takes none"))),
            None => visitor.visit_unit(),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ArgumentFault> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ArgumentFault> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// The text of one argument, which becomes what its field is.
struct Value<'a> {
    name: &'a str,
    value: &'a str,
}

impl<'de> IntoDeserializer<'de, ArgumentFault> for Value<'_> {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl Value<'_> {
    fn fault(&self, what: &dyn fmt::Display) -> ArgumentFault {
        ArgumentFault(format!("argument '{}' is '{}': {what}", self.name, self.value))
    }
}

macro_rules! parsed {
    ($($deserialize:ident $visit:ident)*) => {
        $(fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgumentFault> {
            let value = self.value.parse().map_err(|fault| self.fault(&fault))?;
            visitor.$visit(value).map_err(|fault: ArgumentFault| self.fault(&fault))
        })*
    };
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = ArgumentFault;

    parsed! {
        deserialize_bool visit_bool
        deserialize_i8 visit_i8 deserialize_i16 visit_i16 deserialize_i32 visit_i32 deserialize_i64 visit_i64
        deserialize_u8 visit_u8 deserialize_u16 visit_u16 deserialize_u32 visit_u32 deserialize_u64 visit_u64
        deserialize_f32 visit_f32 deserialize_f64 visit_f64 deserialize_char visit_char
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgumentFault> {
        visitor.visit_str::<ArgumentFault>(self.value).map_err(|fault| self.fault(&fault))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ArgumentFault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ArgumentFault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ArgumentFault> {
        if !variants.contains(&self.value) {
            return Err(self.fault(&format_args!("want one of {}", variants.join(", "))));
        }
        let name: de::value::StrDeserializer<'_, ArgumentFault> = self.value.into_deserializer();
        visitor.visit_enum(name)
    }

    forward_to_deserialize_any! {
        i128 u128 str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum How {
        Fast,
        VeryFast,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Path(String);

    #[derive(Debug, PartialEq, Deserialize)]
    struct Nothing;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Wrapped(Rotate);

    #[derive(Debug, PartialEq, Deserialize)]
    struct Rotate {
        log: Path,
        keep: u8,
        ratio: Option<f32>,
        how: Option<How>,
        #[serde(default)]
        dry: bool,
    }

    fn read<A: DeserializeOwned>(pairs: &[(&str, &str)]) -> Result<A, String> {
        let mut arguments = Arguments::default();
        pairs.iter().for_each(|(name, value)| arguments.add(name.parse().unwrap(), value).unwrap());
        typed(&arguments).map_err(|fault| fault.to_string())
    }

    #[test]
    fn text_becomes_what_the_program_wants() {
        let all = [("log", "/var/log/a=b"), ("keep", "7"), ("ratio", "0.5"), ("how", "very-fast"), ("dry", "true")];
        let log = Path("/var/log/a=b".to_owned());
        let full = Rotate { log, keep: 7, ratio: Some(0.5), how: Some(How::VeryFast), dry: true };
        assert_eq!(read::<Rotate>(&all), Ok(full));
        let least = read::<Rotate>(&all[..2]).unwrap();
        assert_eq!((least.ratio, least.how, least.dry), (None, None, false));
        let map: BTreeMap<String, String> = read(&all[1..3]).unwrap();
        assert_eq!(
            map.into_iter().collect::<Vec<_>>(),
            [("keep".into(), "7".into()), ("ratio".into(), "0.5".into())]
        );
        assert_eq!(read::<()>(&[]), Ok(()));
        assert_eq!(read::<Nothing>(&[]), Ok(Nothing));
        assert_eq!(read::<Wrapped>(&all[..2]), read(&all[..2]).map(Wrapped));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let log = ("log", "/l");
        for (pairs, words) in [
            (&[log][..], &["argument 'keep' is missing", "--arg keep=VALUE"][..]),
            (&[log, ("keep", "256")], &["argument 'keep' is '256'"]),
            (&[log, ("keep", "-1")], &["'keep'", "invalid digit"]),
            (&[log, ("keep", "1"), ("how", "slow")], &["'how' is 'slow'", "fast, very-fast"]),
            (&[log, ("keep", "1"), ("dry", "yes")], &["'dry' is 'yes'"]),
            (&[log, ("kepe", "1")], &["no argument 'kepe'", "did you mean 'keep'", "log, keep, ratio, how, dry"]),
        ] {
            let fault = read::<Rotate>(pairs).unwrap_err();
            assert!(words.iter().all(|word| fault.contains(word)), "{fault}");
        }
        assert!(read::<()>(&[log]).unwrap_err().contains("it takes none"));
        assert!(read::<Nothing>(&[log]).unwrap_err().contains("it takes none"));
    }
}
