//! Plain columns, two spaces apart, at most `WIDTH` wide.

use std::fmt::Write as _;

/// Fits a terminal beside another, and a mail.
pub(crate) const WIDTH: usize = 100;

/// The last column keeps at least this much, so that reasons and lists stay readable ...
const LEAST_LAST: usize = 24;

/// ... and this much, where otherwise a name or an address before it would be broken.
const LEAST_LAST_OF_ALL: usize = 12;

/// What a column before it keeps, or its header's width if that is more.
const LEAST: usize = 8;

/// Text from the mesh must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Words in lines of at most `width`; a longer word has a line of its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A cell in lines of at most `width`: a longer word is broken, after a mark where there is one.
fn fold(text: &str, width: usize) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    for line in wrap(text, width) {
        let mut rest: Vec<char> = line.chars().collect();
        while rest.len() > width {
            let mark = rest[..width].iter().rposition(|c| "-.:/,".contains(*c)).map(|i| i + 1);
            let tail = rest.split_off(mark.filter(|at| *at > width / 2).unwrap_or(width));
            lines.push(std::mem::replace(&mut rest, tail).into_iter().collect());
        }
        lines.push(rest.into_iter().collect());
    }
    lines
}

/// Whether a table's rows may take several lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    Folded,
    OneLine,
}

/// Widths that fit: the last column gives first, then the widest that has a space to break at, and only then is a word
/// broken. `words` are the longest words.
fn fit<const N: usize>(header: [&str; N], natural: [usize; N], words: [usize; N]) -> [usize; N] {
    let mut widths = natural;
    let mut shrink = |least: &dyn Fn(usize) -> usize| {
        while widths.iter().sum::<usize>() + 2 * (N - 1) > WIDTH {
            let gives = (0..N).filter(|i| widths[*i] > least(*i).max(header[*i].len()));
            let Some(i) = gives.max_by_key(|i| widths[*i]) else { break };
            widths[i] -= 1;
        }
    };
    let last = |i: usize| i == N - 1;
    shrink(&|i| if last(i) { LEAST_LAST } else { natural[i] });
    shrink(&|i| if last(i) { natural[i] } else { words[i] });
    shrink(&|i| if last(i) { LEAST_LAST_OF_ALL } else { natural[i] });
    shrink(&|i| if last(i) { natural[i] } else { LEAST });
    widths
}

pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]], how: Rows) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| clean(cell))).collect();
    let mut widths = header.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    if how == Rows::Folded {
        let word = |cell: &String| cell.split_whitespace().map(|w| w.chars().count()).max().unwrap_or(0);
        let words = std::array::from_fn(|i| rows.iter().map(|row| word(&row[i])).max().unwrap_or(0));
        widths = fit(header, widths, words);
    }
    let mut out = String::new();
    let header = header.map(str::to_owned);
    for row in std::iter::once(&header).chain(&rows) {
        let cells: Vec<Vec<String>> = row.iter().zip(widths).map(|(cell, width)| fold(cell, width)).collect();
        for i in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(widths) {
                let part = cell.get(i).map_or("", String::as_str);
                _ = write!(line, "{part:width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

/// `key: value` lines, the values aligned.
pub(crate) fn list(entries: &[(&str, String)]) -> String {
    let width = entries.iter().map(|(key, _)| key.len() + 1).max().unwrap_or(0);
    let mut out = String::new();
    for (key, value) in entries {
        for (i, part) in wrap(&clean(value), WIDTH - width - 1).iter().enumerate() {
            let key = if i == 0 { format!("{key}:") } else { String::new() };
            _ = writeln!(out, "{}", format!("{key:width$} {part}").trim_end());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_two_spaces_apart_and_the_last_is_wrapped() {
        let rows = [["ph1".to_owned(), "word ".repeat(30)], ["a-longer-name".to_owned(), String::new()]];
        let text = table(["NAME", "REASON"], &rows, Rows::Folded);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME           REASON");
        assert!(lines[1].starts_with("ph1            word"));
        assert!(lines[2].starts_with("               word"));
        assert_eq!(lines[3], "a-longer-name");
        assert!(lines.iter().all(|l| l.len() <= WIDTH && l.trim_end() == *l), "{text}");
    }

    #[test]
    fn long_names_and_ipv6_addresses_fit_and_nothing_of_them_is_lost() {
        let name = "hypervisor-with-a-long-name-in-rack-17-of-the-second-hall";
        let address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:4650";
        let reason = "the peer has not answered for a while; is UDP open between the hosts?";
        let mut row = [name, "dialing", address, "12.34 ms", "1380", "1023.9 MiB", "1023.9 MiB", reason];
        let header = ["NAME", "STATE", "ENDPOINT", "RTT", "MTU", "RECEIVED", "SENT", "REASON"];
        for _ in 0..2 {
            let text = table(header, &[row.map(str::to_owned)], Rows::Folded);
            assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
            let column = |from: usize, to: usize| {
                text.lines()
                    .skip(1)
                    .map(|l| l.get(from..to.min(l.len())).unwrap_or_default().trim())
                    .collect()
            };
            let at = |name: &str| text.find(name).unwrap_or_default();
            let names: String = column(0, at("STATE"));
            let endpoints: String = column(at("ENDPOINT"), at("RTT"));
            assert_eq!((names.as_str(), endpoints.as_str()), (name, address), "{text}");
            row[7] = "";
        }
    }

    #[test]
    fn an_endpoint_that_fits_is_not_broken_for_the_sake_of_a_reason() {
        let row = |cells: [&str; 8]| cells.map(str::to_owned);
        let there = "198.51.100.14:4650";
        let rows = [
            row(["ph2", "up", "198.51.100.12:4650", "34.74 ms", "1432", "2.4 KiB", "2.4 KiB", ""]),
            row([there, "dialing", there, "-", "-", "0 B", "0 B", "nothing heard in time"]),
        ];
        let header = ["NAME", "STATE", "ENDPOINT", "RTT", "MTU", "RECEIVED", "SENT", "REASON"];
        let text = table(header, &rows, Rows::Folded);
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches(there).count(), 2, "{text}");
    }

    #[test]
    fn text_from_the_mesh_does_not_steer_the_terminal() {
        let rows = [["\x1b[2Jph1".to_owned(), "a\nb".to_owned()]];
        assert_eq!(table(["A", "B"], &rows, Rows::Folded), "A        B\n [2Jph1  a b\n");
    }
}
