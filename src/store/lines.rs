//! Small files of lines that are replaced as a whole: a heading that says what the file is and in which format, a line for each entry, and a
//! checksum of all before it.

/// The text of such a file.
pub(super) fn encode(heading: &str, lines: impl Iterator<Item = String>) -> String {
    let body: String = std::iter::once(heading.to_owned()).chain(lines).map(|line| line + "\n").collect();
    format!("{body}{}\n", checksum(&body))
}

/// The lines of a file with that heading; `None` if it is another file, or what stands there was torn or changed.
pub(super) fn decode<'b>(heading: &str, bytes: &'b [u8]) -> Option<std::str::Lines<'b>> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (body, sum) = text.split_at(text.rfind('\n')?.checked_add(1)?);
    let mut lines = body.lines();
    (checksum(body) == sum && lines.next() == Some(heading)).then_some(lines)
}

/// What shows that nothing of a text was changed.
pub(super) fn checksum(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex().chars().take(32).collect()
}
