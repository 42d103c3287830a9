//! Which name somebody may have meant.

/// The nearest of these names, if it is near: as many slips of the hand as a name of that length is known again with.
pub(crate) fn near<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (typed.len() / 3).clamp(1, 3);
    let by_slips = names.into_iter().map(|name| (strsim::damerau_levenshtein(typed, name), name));
    by_slips.filter(|(slips, _)| *slips <= most).min_by_key(|(slips, _)| *slips).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_hand_is_near_and_another_word_is_not() {
        let names = ["rotate", "compact", "keep"];
        for (typed, meant) in [
            ("rotat", Some("rotate")),
            ("rotaet", Some("rotate")),
            ("kepe", Some("keep")),
            ("compakt", Some("compact")),
            ("cmpakt", Some("compact")),
            ("kek", None),
            ("verify", None),
            ("x", None),
        ] {
            assert_eq!(near(typed, names), meant, "{typed}");
        }
    }
}
