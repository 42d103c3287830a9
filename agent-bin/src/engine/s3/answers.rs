//! What S3 says in XML: pages of a listing, and why something is refused.
//!
//! As much of XML as these documents have: elements, text, the five entities and characters by number. What else there is
//! in the language (document types, sections that are not escaped) is refused, not understood.

/// Elements in each other; a page of a listing has three.
const DEPTH_MAX: usize = 16;
/// Objects of one page; a server gives a thousand.
const PAGE_MAX: usize = 10_000;

/// A document is none that is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it answers with a document that cannot be understood ({0})")]
pub(super) struct AnswerFault(&'static str);

/// A part of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// Keys and sizes in bytes.
    pub(super) objects: Vec<(String, u64)>,
    /// By what the next part is asked for; `None`: this is the last one.
    pub(super) next: Option<String>,
}

/// Why something is refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: String,
    pub(super) message: String,
    /// Where the bucket is, if that is the reason.
    pub(super) region: String,
}

/// Reads a page of `ListObjectsV2`.
pub(super) fn page(bytes: &[u8]) -> Result<Page, AnswerFault> {
    let (mut page, mut is_more, mut is_page) = (Page::default(), false, false);
    let (mut key, mut size) = (None, None);
    leaves(bytes, |path, text| {
        is_page |= path.first() == Some(&"ListBucketResult");
        match path {
            ["ListBucketResult", "Contents", "Key"] => key = Some(text),
            ["ListBucketResult", "Contents", "Size"] => {
                let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let bytes = if is_number { text.parse().ok() } else { None };
                size = Some(bytes.ok_or(AnswerFault("a size is no number"))?);
            }
            ["ListBucketResult", "Contents"] => match (key.take(), size.take()) {
                _ if page.objects.len() == PAGE_MAX => return Err(AnswerFault("a page is too long")),
                (Some(key), Some(size)) => page.objects.push((key, size)),
                _ => return Err(AnswerFault("an object has no key, or no size")),
            },
            ["ListBucketResult", "IsTruncated"] => is_more = text == "true",
            ["ListBucketResult", "NextContinuationToken"] => page.next = Some(text),
            _ => {}
        }
        Ok(())
    })?;
    match (is_page, is_more, &page.next) {
        (false, ..) => Err(AnswerFault("it is no listing")),
        (_, true, None) => Err(AnswerFault("a listing goes on, and it is not said by what")),
        (_, true, Some(_)) => Ok(page),
        (_, false, _) => Ok(Page { next: None, ..page }),
    }
}

/// Reads a refusal; what is none says nothing.
pub(super) fn refused(bytes: &[u8]) -> Refused {
    let mut refused = Refused::default();
    let read = leaves(bytes, |path, text| {
        match path {
            ["Error", "Code"] => refused.code = text,
            ["Error", "Message"] => refused.message = text,
            ["Error", "Region"] => refused.region = text,
            _ => {}
        }
        Ok(())
    });
    read.map_or_else(|_| Refused::default(), |()| refused)
}

/// Calls for every element, when it ends, with the names that lead to it and its text.
fn leaves<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(&[&'a str], String) -> Result<(), AnswerFault>,
) -> Result<(), AnswerFault> {
    let text = std::str::from_utf8(bytes).map_err(|_| AnswerFault("it is no UTF-8"))?;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut path, mut content, mut is_over) = (Vec::new(), String::new(), false);
    while !rest.is_empty() {
        let Some(at) = rest.find('<') else {
            return if rest.trim().is_empty() && is_over { Ok(()) } else { Err(AnswerFault("it is cut")) };
        };
        let before = &rest[..at];
        if path.is_empty() && !before.trim().is_empty() {
            return Err(AnswerFault("text stands outside of every element"));
        }
        unescape(before, &mut content)?;
        rest = &rest[at + 1..];
        if let Some(end) = skipped(rest)? {
            rest = end;
            continue;
        }
        let (tag, end) = tag(rest)?;
        rest = end;
        if let Some(name) = tag.strip_prefix('/') {
            if path.last() != Some(&local(name.trim_end())) {
                return Err(AnswerFault("an element ends that did not begin"));
            }
            each(&path, std::mem::take(&mut content))?;
            path.pop();
            is_over = path.is_empty();
            continue;
        }
        if is_over || path.len() == DEPTH_MAX {
            return Err(AnswerFault("it has more than one element, or too many in each other"));
        }
        let (tag, is_empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let name = tag.split(char::is_whitespace).next().unwrap_or_default();
        path.push(local(name));
        content.clear();
        if is_empty {
            each(&path, String::new())?;
            path.pop();
            is_over = path.is_empty();
        }
    }
    if is_over { Ok(()) } else { Err(AnswerFault("it is cut")) }
}

/// What follows a declaration or a remark, if one begins here.
fn skipped(rest: &str) -> Result<Option<&str>, AnswerFault> {
    for (begin, end) in [("?", "?>"), ("!--", "-->")] {
        if let Some(within) = rest.strip_prefix(begin) {
            let at = within.find(end).ok_or(AnswerFault("it is cut"))?;
            return Ok(Some(&within[at + end.len()..]));
        }
    }
    if rest.starts_with('!') { Err(AnswerFault("it has a document type or a section")) } else { Ok(None) }
}

/// A tag without its brackets, and what follows. A `>` in quotes does not end it.
fn tag(rest: &str) -> Result<(&str, &str), AnswerFault> {
    let mut quote = None;
    for (at, char) in rest.char_indices() {
        match (quote, char) {
            (None, '>') => return Ok((&rest[..at], &rest[at + 1..])),
            (None, '"' | '\'') => quote = Some(char),
            (Some(begun), _) if begun == char => quote = None,
            _ => {}
        }
    }
    Err(AnswerFault("it is cut"))
}

/// A name without what says whose it is.
fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, name)| name)
}

fn unescape(text: &str, to: &mut String) -> Result<(), AnswerFault> {
    let mut parts = text.split('&');
    to.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once(';').ok_or(AnswerFault("an entity does not end"))?;
        let number = |digits: &str, radix| u32::from_str_radix(digits, radix).ok().and_then(char::from_u32);
        let char = match (name, name.strip_prefix("#x"), name.strip_prefix('#')) {
            ("amp", ..) => Some('&'),
            ("lt", ..) => Some('<'),
            ("gt", ..) => Some('>'),
            ("quot", ..) => Some('"'),
            ("apos", ..) => Some('\''),
            (_, Some(digits), _) => number(digits, 16),
            (_, None, Some(digits)) => number(digits, 10),
            _ => None,
        };
        to.push(char.ok_or(AnswerFault("an entity is not known"))?);
        to.push_str(rest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- a > remark -->\
        <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\n  <KeyCount>2</KeyCount>\
        <IsTruncated>true</IsTruncated><Contents><Key>p/data/a&amp;b</Key><Size>7</Size><Owner><ID>x</ID></Owner></Contents>\
        <s3:Contents a='>'><s3:Size>0</s3:Size><s3:Key>&#x41;&#66;</s3:Key></s3:Contents><Prefix/>\
        <NextContinuationToken>t&lt;+/=</NextContinuationToken></ListBucketResult>\n";

    #[test]
    fn a_page_is_read() {
        let expected = Page { objects: vec![("p/data/a&b".into(), 7), ("AB".into(), 0)], next: Some("t<+/=".into()) };
        assert_eq!(page(TWO.as_bytes()).unwrap(), expected);
        let last = TWO.replace(">true<", ">false<");
        assert_eq!(page(last.as_bytes()).unwrap().next, None);
        assert_eq!(page(b"<ListBucketResult></ListBucketResult>").unwrap(), Page::default());
    }

    #[test]
    fn a_refusal_is_read_and_what_is_none_says_nothing() {
        let text = "<Error><Code>NoSuchBucket</Code><Message>It isn&apos;t</Message><Region>eu</Region></Error>";
        let Refused { code, message, region } = refused(text.as_bytes());
        assert_eq!((code.as_str(), message.as_str(), region.as_str()), ("NoSuchBucket", "It isn't", "eu"));
        for text in ["", "no", "<html><body>503</body></html>", "<Error><Code>x</Code>"] {
            assert_eq!(refused(text.as_bytes()), Refused::default(), "{text}");
        }
    }

    #[test]
    fn what_is_no_listing_is_a_fault() {
        let object = |inner: &str| format!("<ListBucketResult><Contents>{inner}</Contents></ListBucketResult>");
        let deep = "<a>".repeat(100_000);
        let many = object("<Key>k</Key><Size>1</Size>").replace("<Contents>", "<Contents><Key>k</Key><Size>1</Size>");
        let long = "<Contents><Key>k</Key><Size>1</Size></Contents>".repeat(PAGE_MAX + 1);
        for text in [
            "",
            "{}",
            "<Error/>",
            "<ListBucketResult>",
            "<ListBucketResult></Other>",
            "<ListBucketResult/><ListBucketResult/>",
            "x<ListBucketResult/>",
            "<ListBucketResult/>x",
            "<!DOCTYPE a [<!ENTITY b \"c\">]><ListBucketResult/>",
            "<ListBucketResult><![CDATA[x]]></ListBucketResult>",
            "<ListBucketResult>&b;</ListBucketResult>",
            "<ListBucketResult>&amp</ListBucketResult>",
            "<ListBucketResult>&#xd800;</ListBucketResult>",
            "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
            &object("<Key>k</Key>"),
            &object("<Key>k</Key><Size>-1</Size>"),
            &object("<Key>k</Key><Size>+1</Size>"),
            &object("<Key>k</Key><Size>18446744073709551616</Size>"),
            &deep,
            &format!("<ListBucketResult>{long}</ListBucketResult>"),
        ] {
            assert!(page(text.as_bytes()).is_err(), "{:.80}", text);
        }
        assert!(page(many.as_bytes()).is_ok());
        assert!(page(b"<ListBucketResult>\xff</ListBucketResult>").is_err());
    }

    proptest! {
        #[test]
        fn cut_anywhere_a_page_is_none_and_changed_anywhere_it_is_a_page_or_a_fault(at in 0..TWO.len(), byte: u8) {
            let end = TWO.trim_end().len();
            if at < end {
                prop_assert!(page(&TWO.as_bytes()[..at]).is_err());
            }
            let mut changed = TWO.as_bytes().to_vec();
            changed[at] = byte;
            drop(page(&changed));
            drop(refused(&changed));
        }

        #[test]
        fn any_parts_of_a_document_are_a_page_or_a_fault(parts in prop::collection::vec(prop_oneof![
            Just("<"), Just(">"), Just("/"), Just("</"), Just("/>"), Just("<ListBucketResult>"), Just("</ListBucketResult>"),
            Just("<Contents>"), Just("</Contents>"), Just("<Key>"), Just("</Key>"), Just("<Size>1</Size>"), Just("&"),
            Just(";"), Just("&#x"), Just("<?"), Just("?>"), Just("<!--"), Just("-->"), Just("é"), Just("\""), Just(" "),
        ], 0..40)) {
            drop(page(parts.concat().as_bytes()));
        }
    }
}
