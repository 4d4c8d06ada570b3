//! What may have been meant by a name that is not there. One rule for the configuration, the node's answers and `mesh-ctl`.

/// The candidate nearest to a mistyped name; none where all are too far to be it.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let far = (typed.chars().count() / 3).max(1);
    let scored = candidates.into_iter().map(|c| (distance(c, typed), c));
    scored.filter(|(d, _)| *d <= far).min().map(|(_, c)| c)
}

/// `did you mean X?`, or else the remedy.
pub fn or_else<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>, remedy: &str) -> String {
    nearest(typed, candidates).map_or_else(|| remedy.to_owned(), |c| format!("did you mean {c}?"))
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let next = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood_and_another_word_is_not() {
        let names = ["default", "blue", "ph2"];
        assert_eq!(nearest("defualt", names), Some("default"));
        assert_eq!(nearest("ph22", names), Some("ph2"));
        assert_eq!(nearest("green", names), None);
        assert_eq!(nearest("x", []), None);
        assert_eq!(or_else("bleu", names, "list them"), "list them");
        assert_eq!(or_else("blu", names, "list them"), "did you mean blue?");
    }
}
