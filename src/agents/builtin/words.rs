//! Sentences, words and languages: what text analysis and summaries share.
//!
//! Words are runs of letters and digits with apostrophes and hyphens inside them; a letter of a script that does not put spaces
//! between words is a word of its own. Sentences end at a full stop, question or exclamation mark that is followed by a space and is
//! not part of a known abbreviation, at a blank line, and before a Markdown heading or list item. All of it is one pass over the text.

use std::collections::HashSet;

use rust_stemmers::{Algorithm, Stemmer};
use whatlang::Lang;

/// A word longer than this is no word, and is not stemmed.
const WORD_CHARS_MAX: usize = 64;
/// Detection looks at no more than the beginning.
const DETECT_BYTES_MAX: usize = 32 * 1024;
/// Below this confidence the language is not known.
const CONFIDENCE_MIN: f64 = 0.25;

const ABBREVIATIONS: [&str; 24] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "cf", "no", "fig", "sec", "al", "approx", "inc", "ltd",
    "z.b", "d.h", "bzw", "ca",
];

/// Languages with stop words, and a stemmer where there is one.
const LANGUAGES: [(Lang, &str, Option<Algorithm>); 26] = [
    (Lang::Eng, "en", Some(Algorithm::English)),
    (Lang::Deu, "de", Some(Algorithm::German)),
    (Lang::Fra, "fr", Some(Algorithm::French)),
    (Lang::Spa, "es", Some(Algorithm::Spanish)),
    (Lang::Ita, "it", Some(Algorithm::Italian)),
    (Lang::Por, "pt", Some(Algorithm::Portuguese)),
    (Lang::Nld, "nl", Some(Algorithm::Dutch)),
    (Lang::Dan, "da", Some(Algorithm::Danish)),
    (Lang::Swe, "sv", Some(Algorithm::Swedish)),
    (Lang::Nob, "no", Some(Algorithm::Norwegian)),
    (Lang::Fin, "fi", Some(Algorithm::Finnish)),
    (Lang::Hun, "hu", Some(Algorithm::Hungarian)),
    (Lang::Ron, "ro", Some(Algorithm::Romanian)),
    (Lang::Rus, "ru", Some(Algorithm::Russian)),
    (Lang::Tur, "tr", Some(Algorithm::Turkish)),
    (Lang::Ell, "el", Some(Algorithm::Greek)),
    (Lang::Ara, "ar", Some(Algorithm::Arabic)),
    (Lang::Tam, "ta", Some(Algorithm::Tamil)),
    (Lang::Pol, "pl", None),
    (Lang::Ces, "cs", None),
    (Lang::Ukr, "uk", None),
    (Lang::Cmn, "zh", None),
    (Lang::Jpn, "ja", None),
    (Lang::Kor, "ko", None),
    (Lang::Hin, "hi", None),
    (Lang::Heb, "he", None),
];

/// What language a text is written in, as far as it can be told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Language {
    /// Two letters where the language is among those known here, otherwise three; `None` when it cannot be told.
    pub(super) code: Option<&'static str>,
    /// From 0 to 1.
    pub(super) confidence: f64,
    /// The name of the writing system.
    pub(super) script: Option<String>,
}

/// Tells the language of a text.
pub(super) fn language(text: &str) -> Language {
    let beginning = &text[..text.floor_char_boundary(DETECT_BYTES_MAX)];
    let Some(info) = whatlang::detect(beginning) else {
        return Language { code: None, confidence: 0.0, script: None };
    };
    let known = LANGUAGES.iter().find(|(lang, _, _)| *lang == info.lang()).map_or_else(|| info.lang().code(), |(_, code, _)| code);
    let code = (info.confidence() >= CONFIDENCE_MIN).then_some(known);
    Language { code, confidence: info.confidence().clamp(0.0, 1.0), script: Some(info.script().name().to_owned()) }
}

/// Brings words to a form in which they can be counted, and knows which say nothing by themselves.
pub(super) struct Lexer {
    stop_words: HashSet<&'static str>,
    stemmer: Option<Stemmer>,
}

impl Lexer {
    /// For a language code; a language that is not known has neither stop words nor stems.
    pub(super) fn new(code: Option<&str>) -> Self {
        let known = LANGUAGES.iter().find(|(_, other, _)| Some(*other) == code);
        let stop_words = known.and_then(|(_, code, _)| stop_words::lookup(code)).unwrap_or_default();
        Self { stop_words: stop_words.iter().copied().collect(), stemmer: known.and_then(|(_, _, stem)| stem.map(Stemmer::create)) }
    }

    /// The stem of a word that carries meaning: no stop word, no number, no single Latin letter.
    pub(super) fn term(&self, word: &str) -> Option<String> {
        let lower = word.to_lowercase().replace('’', "'");
        let chars = lower.chars().count();
        let short = chars < 3 && !lower.chars().all(stands_alone);
        if short || chars > WORD_CHARS_MAX || !lower.chars().any(char::is_alphabetic) || self.stop_words.contains(lower.as_str()) {
            return None;
        }
        Some(self.stemmer.as_ref().map_or_else(|| lower.clone(), |stemmer| stemmer.stem(&lower).into_owned()))
    }
}

/// The words of a text, in order.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(char::is_alphanumeric)?;
        rest = &rest[start..];
        let end = word_end(rest);
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

/// Where the word ends that `text` begins with.
fn word_end(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    let mut end = 0;
    while let Some((at, c)) = chars.next() {
        let joins = matches!(c, '\'' | '’' | '-' | '\u{ad}') && chars.peek().is_some_and(|(_, next)| next.is_alphanumeric());
        let combining = at > 0 && ('\u{300}'..='\u{36f}').contains(&c);
        if !(c.is_alphanumeric() || joins || combining) || (at > 0 && stands_alone(c)) {
            break;
        }
        end = at + c.len_utf8();
        if stands_alone(c) {
            break;
        }
    }
    end
}

/// Whether a letter belongs to a script that writes no spaces between words.
fn stands_alone(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' | '\u{e00}'..='\u{e7f}')
}

/// The sentences of a text, in order, with the space around them taken off; those without any word are left out.
pub(super) fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let after = at + c.len_utf8();
        if start == at && c.is_whitespace() {
            start = after;
            continue;
        }
        let ends = match c {
            '。' | '！' | '？' | '।' => true,
            '!' | '?' | '…' => follows_space(&text[after..]),
            '.' => follows_space(&text[after..]) && !abbreviated(&text[start..at], &text[after..]),
            '\n' => breaks(&text[after..]) || text[start..].starts_with('#'),
            _ => false,
        };
        if ends {
            let closing = text[after..]
                .chars()
                .take_while(|c| matches!(c, '"' | '\'' | '”' | '’' | ')' | ']' | '»'))
                .map(char::len_utf8)
                .sum::<usize>();
            push(&mut found, &text[start..after + closing]);
            start = after + closing;
            while chars.peek().is_some_and(|(at, _)| *at < start) {
                chars.next();
            }
        }
    }
    push(&mut found, &text[start..]);
    found
}

fn push<'a>(found: &mut Vec<&'a str>, piece: &'a str) {
    let piece = piece.trim().trim_start_matches(['#', '>', '-', '*', '•', ' ', '\t']);
    if piece.chars().any(char::is_alphanumeric) {
        found.push(piece);
    }
}

fn follows_space(rest: &str) -> bool {
    rest.trim_start_matches(['"', '\'', '”', '’', ')', ']', '»']).chars().next().is_none_or(char::is_whitespace)
}

/// Whether the text after a line break starts something new.
fn breaks(rest: &str) -> bool {
    let line = rest.split('\n').next().unwrap_or_default().trim_start();
    line.trim_end().is_empty() || ["#", "- ", "* ", "• ", "> "].iter().any(|mark| line.starts_with(mark))
}

/// Whether a full stop belongs to the word before it. Looks back a few bytes only, so that the pass stays linear.
fn abbreviated(before: &str, after: &str) -> bool {
    let near = &before[before.ceil_char_boundary(before.len().saturating_sub(12))..];
    let last = near.rsplit(|c: char| c.is_whitespace() || c == '(').next().unwrap_or_default();
    let lower = last.to_lowercase();
    let initial = last.chars().count() == 1 && last.chars().all(char::is_uppercase);
    let continues = after.trim_start().chars().next().is_some_and(char::is_lowercase);
    // A sentence may end in "etc.", but the next word then starts with a capital.
    initial || continues || (ABBREVIATIONS.contains(&lower.as_str()) && lower != "etc" && lower != "no")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_inner_marks() {
        assert_eq!(words("Don't stop-gap, naïve 42nd—end.").collect::<Vec<_>>(), ["Don't", "stop-gap", "naïve", "42nd", "end"]);
    }

    #[test]
    fn scripts_without_spaces_are_split_by_letter() {
        assert_eq!(words("网络 agent").collect::<Vec<_>>(), ["网", "络", "agent"]);
    }

    #[test]
    fn sentences_end_where_a_reader_ends_them() {
        let text = "Dr. Ada wrote 3.5 pages, e.g. notes. \"Really?\" Yes! J. Doe agreed";
        assert_eq!(sentences(text), ["Dr. Ada wrote 3.5 pages, e.g. notes.", "\"Really?\"", "Yes!", "J. Doe agreed"]);
    }

    #[test]
    fn headings_lists_and_blank_lines_end_sentences() {
        assert_eq!(sentences("# Title\nText goes\non here\n\n- one\n- two\n\n---\n"), ["Title", "Text goes\non here", "one", "two"]);
    }

    #[test]
    fn other_scripts_have_sentences_too() {
        assert_eq!(sentences("你好。世界！").len(), 2);
    }

    #[test]
    fn languages_are_told_apart() {
        assert_eq!(language("This is plainly a sentence in the English language, is it not?").code, Some("en"));
        assert_eq!(language("Dies ist ganz offensichtlich ein Satz in deutscher Sprache.").code, Some("de"));
        assert_eq!(language("").code, None);
    }

    #[test]
    fn terms_are_stems_without_stop_words() {
        let lexer = Lexer::new(Some("en"));
        assert_eq!(lexer.term("The"), None);
        assert_eq!(lexer.term("42"), None);
        assert_eq!(lexer.term("Networks"), lexer.term("network"));
        assert_eq!(lexer.term(&"x".repeat(1000)), None);
    }

    #[test]
    fn hostile_text_takes_linear_time() {
        let started = std::time::Instant::now();
        for text in [
            ". ".repeat(200_000),
            "a.".repeat(200_000),
            "\n".repeat(400_000),
            "\"".repeat(400_000),
            "-".repeat(400_000),
            " ".repeat(200_000) + &"a\n".repeat(100_000),
        ] {
            assert!(sentences(&text).len() <= text.len() && words(&text).count() <= text.len());
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
    }
}
