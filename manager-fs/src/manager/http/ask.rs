//! One request, taken apart: what stands in its address, its query and its body. All of it is somebody else's text, and
//! becomes a value only through the type that it must be.

use std::fmt::Display;
use std::str::FromStr;

use hyper::body::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use super::problem::Problem;
use crate::manager::control::api_tokens::Role;

/// Names and values in one query or form; a name may stand there [`MANY_MAX`] times, beside others.
const PAIRS_MAX: usize = 2 * MANY_MAX;
/// Values of one name.
pub(super) const MANY_MAX: usize = 64;

/// What is asked.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(super) path: Vec<(&'static str, String)>,
    pub(super) query: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// What whoever asks may do.
    pub(super) role: Role,
}

impl Ask {
    /// What stands in the place of `{name}` in the address.
    pub(crate) fn path<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, Problem> {
        let found = self.path.iter().find(|(of, _)| *of == name).map(|(_, text)| text.as_str());
        parsed(name, found.unwrap_or_default())
    }

    /// The value of a name in the query, of which there may be one.
    pub(crate) fn one<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let mut all = self.many(name)?;
        let found = all.pop();
        if all.is_empty() { Ok(found) } else { Err(Problem::bad_request(format!("{name} is given more than once"))) }
    }

    /// The values of a name in the query.
    pub(crate) fn many<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Vec<T>, Problem> {
        let named = self.query.iter().filter(|(of, _)| of == name);
        if named.clone().count() > MANY_MAX {
            return Err(Problem::bad_request(format!("{name}: there are more than {MANY_MAX}")));
        }
        named.map(|(_, text)| parsed(name, text)).collect()
    }

    /// Whether a name in the query is `true`.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.one(name)?.unwrap_or(false))
    }

    /// The body, JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("the body is not what is wanted here: {error}"))
            // It may quote the body, which may be long.
            .map_err(|why| Problem::bad_request(proto::text::line(&why, 400)))
    }
}

fn parsed<T: FromStr<Err: Display>>(name: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error: T::Err| Problem::bad_request(proto::text::line(&format!("{name}: {error}"), 400)))
}

/// A value that stands as text in a body.
pub(super) fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

/// One that may be absent.
pub(super) fn from_text_if_any<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse()).transpose().map_err(D::Error::custom)
}

/// A list of such.
pub(super) fn from_texts<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(from: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(D::Error::custom)
}

/// The names and values of a query or a form (`application/x-www-form-urlencoded`).
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, Problem> {
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == PAIRS_MAX {
            return Err(Problem::bad_request(format!("there are more than {PAIRS_MAX} names in the query")));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| decoded(&text.replace('+', " "));
        let (Some(name), Some(value)) = (plain(name), plain(value)) else {
            return Err(Problem::bad_request("the query is no UTF-8 in percent signs"));
        };
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// A text without its percent signs (RFC 3986); `None`: it has a wrong one, or is no UTF-8.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// A text as a part of an address: everything but letters, digits, `-`, `.`, `_` and `~` in percent signs.
pub(crate) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(query: &str) -> Ask {
        Ask { path: Vec::new(), query: pairs(query).unwrap(), body: Bytes::new(), role: Role::Viewer }
    }

    #[test]
    fn a_query_is_names_and_values_and_each_is_what_it_must_be() {
        let ask = of("host=a&host=b&limit=7&only=&x=%40g%2B+1");
        assert_eq!(ask.many::<proto::HostName>("host").unwrap().len(), 2);
        assert_eq!(ask.one::<u32>("limit").unwrap(), Some(7));
        assert_eq!(ask.one::<String>("x").unwrap().as_deref(), Some("@g+ 1"));
        assert_eq!(ask.one::<u32>("gone").unwrap(), None);
        for name in ["host", "x"] {
            assert_eq!(ask.one::<u32>(name).map_err(|problem| problem.status), Err(400), "{name}");
        }
        assert!(ask.flag("limit").is_err(), "7 is no truth");
        for bad in ["a=%", "a=%1", "a=%zz", "a=%ff", &"a&".repeat(129)] {
            assert_eq!(pairs(bad).map_err(|problem| problem.status), Err(400), "{bad}");
        }
    }

    #[test]
    fn a_body_that_is_something_else_is_refused_with_the_place() {
        let ask = Ask { body: Bytes::from_static(b"{\"a\": 1"), ..of("") };
        let problem = ask.json::<std::collections::BTreeMap<String, u8>>().unwrap_err();
        assert!(problem.status == 400 && problem.detail.contains("line 1 column 7"), "{problem:?}");
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line_however_long_it_is() {
        let long = "x".repeat(1 << 19);
        let body = Bytes::from(format!("{{\"{long}\": true}}"));
        let problem = Ask { body, ..of("") }.json::<std::collections::BTreeMap<String, u8>>().unwrap_err();
        assert!(problem.detail.len() <= 400, "{}", problem.detail.len());
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        let body = Bytes::from(format!("{{\"{long}\\n\": 1}}"));
        let problem = Ask { body, ..of("") }.json::<Nothing>().unwrap_err();
        assert!(problem.detail.len() <= 400 && problem.detail.contains("unknown field"), "{}", problem.detail.len());
        let problem = of(&format!("limit={long}%0a")).one::<proto::HostName>("limit").unwrap_err();
        assert!(problem.detail.len() <= 400 && !problem.detail.contains('\n'), "{}", problem.detail);
    }

    #[test]
    fn percent_signs_are_read_once_and_a_plus_is_a_space_in_queries_alone() {
        assert_eq!(decoded("a%2Fb%252e+").as_deref(), Some("a/b%2e+"));
        assert_eq!(decoded("%00%0d%0A").as_deref(), Some("\0\r\n"), "what it may be, its type decides");
        assert_eq!(decoded("%C3%A4").as_deref(), Some("\u{e4}"));
        for wrong in ["%c3", "%+1", "%-1", "% 1", "%1", "a%", "%\u{e4}a", "%c0%af"] {
            assert_eq!(decoded(wrong), None, "{wrong}");
        }
        let read = |text: &str| pairs(text).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("a=b=c&&a&=d"), [pair("a", "b=c"), pair("a", ""), pair("", "d")]);
        assert_eq!(read("%26=%3D&+=%2b"), [pair("&", "="), pair(" ", "+")]);
        assert_eq!(read(&"a&".repeat(PAIRS_MAX)).len(), PAIRS_MAX);
        assert_eq!(encoded("a/../?#&=% \r\n\"<"), "a%2F..%2F%3F%23%26%3D%25%20%0D%0A%22%3C");
    }

    #[test]
    fn what_stands_in_an_address_is_its_type_or_nothing() {
        let path = |text: &str| Ask { path: vec![("host", text.to_owned())], ..of("") };
        assert_eq!(path("web-1").path::<proto::HostName>("host").unwrap().as_str(), "web-1");
        for wrong in ["..", "", "a/b", "a b", "-a", "a\n", "a\0", "<b>", &"a".repeat(300)] {
            let problem = path(wrong).path::<proto::HostName>("host").unwrap_err();
            assert_eq!(problem.status, 400, "{wrong}");
            assert!(problem.detail.starts_with("host: ") && !problem.detail.contains(['\n', '\0']), "{problem:?}");
        }
        assert!(path("a").path::<proto::HostName>("group").is_err(), "of another name there is none");
    }

    #[test]
    fn bodies_hold_texts_that_are_what_they_must_be() {
        #[derive(Debug, serde::Deserialize)]
        struct Wanted {
            #[serde(deserialize_with = "from_text")]
            one: proto::GenerationRef,
            #[serde(default, deserialize_with = "from_text_if_any")]
            other: Option<proto::GenerationRef>,
            #[serde(deserialize_with = "from_texts")]
            to: Vec<proto::name::Target>,
        }
        let read = |body: &str| Ask { body: Bytes::from(body.to_owned()), ..of("") }.json::<Wanted>();
        let wanted = read(r#"{"one": "p@1", "to": ["a", "@g"]}"#).unwrap();
        assert_eq!((wanted.one.to_string(), wanted.other, wanted.to.len()), ("p@1".to_owned(), None, 2));
        assert!(read(r#"{"one": "p@1", "other": null, "to": []}"#).unwrap().other.is_none());
        for wrong in [
            r#"{"one": "../x", "to": []}"#,
            r#"{"one": 1, "to": []}"#,
            r#"{"one": "p@1", "to": ["a", "a b"]}"#,
            r#"{"one": "p@1", "to": "a"}"#,
            r#"{"one": "p@1", "other": "@", "to": []}"#,
            r#"{"one": "p@1", "one": "p@2", "to": []}"#,
            r#"{"one": "p@1", "to": []} x"#,
            "",
        ] {
            assert_eq!(read(wrong).map_err(|problem| problem.status).err(), Some(400), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_read_back(text in "\\PC*") {
            prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }

        #[test]
        fn no_query_is_too_odd_to_be_answered(text in "[a-c%&=+0-9f]{0,60}") {
            let _ = pairs(&text);
        }
    }
}
