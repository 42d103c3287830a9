//! Each bound at its limit, one beyond it, and with what it does not take; out of the codec and out of formats that
//! describe themselves, as JSON does.

use serde::de::IntoDeserializer;
use serde::de::value::{BytesDeserializer, Error as ValueError, SeqDeserializer, StrDeserializer, UnitDeserializer};

use super::*;
use crate::codec;

/// A field with the bound `B`, by itself.
struct Field<B, P>(P, PhantomData<B>);

impl<'de, P, B: Bound<'de, Plain = P>> Deserialize<'de> for Field<B, P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        within::<D, B>(deserializer).map(|plain| Self(plain, PhantomData))
    }
}

/// What arrives of a value in a field with the bound `B`.
fn read<B: for<'de> Bound<'de, Plain = P>, P>(sent: &impl serde::Serialize) -> Result<P, String> {
    let bytes = codec::encode(sent).unwrap();
    codec::decode::<Field<B, P>, { 1 << 20 }>(&bytes).map(|field| field.0).map_err(|error| error.to_string())
}

#[track_caller]
fn refused<P: fmt::Debug>(result: Result<P, impl fmt::Display>, says: &str) {
    let error = result.err().unwrap_or_else(|| panic!("taken, though it should say: {says}")).to_string();
    assert!(error.contains(says), "wanted '{says}', got: {error}");
}

#[test]
fn an_identifier_has_one_to_so_many_printable_characters() {
    for good in ["a", "abcd", "!~#\\"] {
        assert_eq!(read::<Word<4>, _>(&good), Ok(good.to_owned()));
    }
    refused(read::<Word<4>, _>(&"abcde"), "5 bytes where at most 4 are allowed");
    refused(read::<Word<4>, _>(&""), "an identifier is empty");
    for byte in 0..=0x7f_u8 {
        let text = format!("x{}", char::from(byte));
        assert_eq!(read::<Word<4>, _>(&text).is_ok(), (0x21..0x7f).contains(&byte), "{byte:#x}");
    }
    refused(read::<Word<4>, _>(&"é"), "other than printable ASCII");
}

#[test]
fn exact_text_stays_as_it_is_and_has_no_nul() {
    for good in ["", "a", " \n\u{7f}", "éé"] {
        assert_eq!(read::<Exact<4>, _>(&good), Ok(good.to_owned()));
    }
    refused(read::<Exact<4>, _>(&"ééa"), "5 bytes where at most 4 are allowed");
    refused(read::<Exact<4>, _>(&"a\0b"), "a NUL byte");
    refused(read::<Exact<4>, _>(&"abcd\0"), "5 bytes");
}

#[test]
fn text_for_people_is_cut_at_its_bound_and_never_refused() {
    let max = "x".repeat(60);
    assert_eq!(read::<Line<60>, _>(&max), Ok(max.clone()));
    assert_eq!(read::<Text<60>, _>(&max), Ok(max.clone()));
    let longer = format!("{max}y");
    assert_eq!(read::<Line<60>, _>(&longer), Ok(text::line(&longer, 60)));
    assert_eq!(read::<Text<60>, _>(&longer), Ok(text::lines(&longer, 60)));
    assert_eq!(read::<Line<60>, _>(&"a\nb"), Ok("a\\nb".to_owned()), "one line");
    assert_eq!(read::<Text<60>, _>(&"a\nb\x1b"), Ok("a\nb\\x1b".to_owned()), "several");
}

#[test]
fn bytes_are_whole_or_refused_in_the_codec_and_as_a_list_of_numbers() {
    for count in 0..=4 {
        let bytes = vec![7_u8; count];
        assert_eq!(read::<Blob<4>, _>(&bytes), Ok(bytes.clone()));
        let list = SeqDeserializer::<_, ValueError>::new(bytes.iter().copied());
        assert_eq!(within::<_, Blob<4>>(list).unwrap(), bytes);
        let whole = BytesDeserializer::<ValueError>::new(&bytes);
        assert_eq!(within::<_, Blob<4>>(whole).unwrap(), bytes);
    }
    refused(read::<Blob<4>, _>(&vec![7_u8; 5]), "5 bytes where at most 4 are allowed");
    let list = SeqDeserializer::<_, ValueError>::new([7_u8; 5].into_iter());
    refused(within::<_, Blob<4>>(list), "a list of more than 4 elements");
}

#[test]
fn a_list_is_given_up_at_its_first_element_too_many() {
    type Three = List<Own<u32>, 3>;
    for count in 0..=3 {
        let list: Vec<u32> = (0..count).collect();
        let read = read::<Three, _>(&list).unwrap();
        assert_eq!(read, list);
        assert_eq!(read.capacity(), read.len(), "no room is kept that nothing is in");
    }
    refused(read::<Three, _>(&vec![0_u32; 4]), "a list of more than 3 elements");
    refused(read::<List<Word<2>, 3>, _>(&vec!["ab", "abc"]), "3 bytes where at most 2");
    // The fourth element ends it, however many there are.
    let mut asked = 0;
    let many = std::iter::from_fn(|| {
        asked += 1;
        (asked < 100).then_some(asked)
    });
    refused(within::<_, Three>(SeqDeserializer::<_, ValueError>::new(many)), "a list of more than 3");
    assert_eq!(asked, 4);
}

#[test]
fn paths_are_bounded_one_by_one_and_together() {
    type Few = Paths<3, 10>;
    let few = |paths: &[&str]| read::<Few, _>(&paths);
    assert_eq!(few(&["/abcd", "/fghi"]), Ok(vec!["/abcd".to_owned(), "/fghi".to_owned()]), "ten bytes");
    refused(few(&["/abcd", "/fghij"]), "paths of more than 10 bytes together");
    assert_eq!(few(&["/a", "/b", "/c"]).map(|paths| paths.len()), Ok(3));
    refused(few(&["/a", "/b", "/c", "/d"]), "a list of more than 3 elements");
    refused(few(&["/a\0"]), "a NUL byte");
    let path = |bytes| vec!["x".repeat(bytes)];
    assert!(read::<Paths<1, 5000>, _>(&path(PATH_BYTES_MAX)).is_ok());
    refused(read::<Paths<1, 5000>, _>(&path(PATH_BYTES_MAX + 1)), "4096 bytes where at most 4095");
}

#[test]
fn lines_beyond_their_count_are_counted_in_the_last_one() {
    type Three = Lines<60, 3>;
    let sent = |count: usize| (0..count).map(|n| format!("line {n}\x07")).collect::<Vec<_>>();
    let kept = |count: usize| (0..count).map(|n| format!("line {n}\\x07")).collect::<Vec<_>>();
    for count in 0..=3 {
        assert_eq!(read::<Three, _>(&sent(count)), Ok(kept(count)));
    }
    for count in 4..9 {
        let mut wanted = kept(2);
        wanted.push(format!("… and {} more", count - 2));
        assert_eq!(read::<Three, _>(&sent(count)), Ok(wanted), "{count} lines");
    }
    let long = read::<Three, _>(&vec!["x".repeat(200)]).unwrap();
    assert!(long[0].len() <= 60 && long[0].contains("200 bytes in all"), "{long:?}");
    // What is passed over is read all the same: what follows the list is in its place.
    let bytes = codec::encode(&(sent(9), 77_u32)).unwrap();
    let (lines, after) = codec::decode::<(Field<Three, Vec<String>>, u32), 1024>(&bytes).unwrap();
    assert_eq!((lines.0.len(), after), (3, 77));
    // Beyond the count only text is passed over.
    let mixed = vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec(), b"\xff".to_vec()];
    refused(read::<Three, _>(&mixed), "Utf8");
}

#[test]
fn an_absent_value_stays_absent_and_a_present_one_has_its_bound() {
    assert_eq!(read::<Option<Word<2>>, _>(&None::<&str>), Ok(None));
    assert_eq!(read::<Option<Word<2>>, _>(&Some("ab")), Ok(Some("ab".to_owned())));
    refused(read::<Option<Word<2>>, _>(&Some("abc")), "3 bytes where at most 2");
    let nothing = UnitDeserializer::<ValueError>::new();
    assert_eq!(within::<_, Option<Word<2>>>(nothing).unwrap(), None);
}

/// What stands where something else should: the refusal says what was expected.
#[test]
fn another_kind_of_value_is_refused_by_what_was_expected() {
    fn given_nothing<B: for<'de> Bound<'de, Plain = P>, P: fmt::Debug>(expected: &str) {
        refused(within::<_, B>(UnitDeserializer::<ValueError>::new()), &format!("expected {expected}"));
    }
    given_nothing::<Line<60>, _>("a line of text");
    given_nothing::<Text<60>, _>("text");
    given_nothing::<Word<4>, _>("an identifier");
    given_nothing::<Exact<4>, _>("text without a NUL");
    given_nothing::<Blob<4>, _>("at most 4 bytes");
    given_nothing::<List<Own<u32>, 4>, _>("a list");
    given_nothing::<Paths<4, 9>, _>("a list of paths");
    given_nothing::<Lines<60, 4>, _>("a list of lines");
    let text: StrDeserializer<'_, ValueError> = "text".into_deserializer();
    refused(within::<_, Option<Word<9>>>(text), "expected a value or nothing");
}

/// Nine bytes that claim 2^40 elements, for each bound that holds several of something.
#[test]
fn a_claimed_length_makes_no_room() {
    fn hostile<B: for<'de> Bound<'de, Plain = P>, P: fmt::Debug>() {
        for claim in [1_u64 << 20, 1 << 40, u64::MAX] {
            assert!(read::<B, P>(&claim).is_err());
        }
    }
    hostile::<Line<60>, _>();
    hostile::<Exact<60>, _>();
    hostile::<Blob<{ 1 << 30 }>, _>();
    hostile::<List<Own<[u8; 32]>, { 1 << 30 }>, _>();
    hostile::<Paths<{ 1 << 30 }, { 1 << 40 }>, _>();
    hostile::<Lines<60, { 1 << 30 }>, _>();
}
