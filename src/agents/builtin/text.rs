//! The agents that say what a text is like: language, keywords, sentiment, readability and counts.
//!
//! Two names, one answer: `text-analysis` is the word of one of the older protocols and `nlp_analysis` of another (AITP). The latter's
//! example takes what was found from a field `analysis`, so there it stands under that name as well.
//!
//! - **Keywords** are stems counted, damped by a logarithm, with a prior for longer words; what is shown is the form used most.
//! - **Sentiment** adds up a small lexicon for English, where a negation before a word turns it and an intensifier strengthens it,
//!   and presses the sum into -1 to 1. For other languages it is null with a note: a guess would look like a measurement.
//! - **Readability** is Flesch's reading ease, whose constants hold for English; the counts are given for every language.
//!
//! Left to others: anything that needs a model. Source: Flesch 1948; the normalisation of the sentiment sum follows VADER (Hutto and
//! Gilbert 2014), the lexicon does not.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::{
    Builtin, Failure, Offer, Output, Settings, count, rounded, string,
    words::{self, Lexer},
};

/// The `text-analysis` agent.
pub const TEXT_ANALYSIS: Builtin = Builtin {
    name: "text-analysis",
    description: "Language, keywords, sentiment and readability of a text",
    capabilities: text_offers,
    run,
};

/// The same under the name `nlp_analysis`.
pub const NLP_ANALYSIS: Builtin =
    Builtin { name: "nlp_analysis", description: "Language, keywords, sentiment and readability of a text", capabilities: nlp_offers, run };

/// The longest text, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
const KEYWORDS_MAX: usize = 50;
const KEYWORDS_DEFAULT: usize = 10;
/// Words that a negation or an intensifier reaches over.
const REACH: usize = 3;
/// Scores nearer to zero than this are called neutral.
const NEUTRAL: f64 = 0.1;

const POSITIVE: [(&str, f64); 4] = [
    ("excellent outstanding superb wonderful amazing fantastic perfect brilliant delightful love loved loves best", 3.0),
    (
        "great good happy beautiful impressive enjoy enjoyed enjoyable success successful succeed win wins valuable elegant robust trustworthy",
        2.0,
    ),
    (
        "reliable helpful useful fast improve improved improvement improves safe secure pleasant glad fair clear easy efficient effective",
        1.5,
    ),
    (
        "nice fine works benefit benefits benefited gain gains calm like liked likes smooth strong solid thanks recommend recommended friendly",
        1.0,
    ),
];

const NEGATIVE: [(&str, f64); 4] = [
    ("terrible awful horrible disastrous catastrophic hate hated hates worst dreadful disgusting", -3.0),
    (
        "bad failure failures fail fails failed broken useless angry sad painful dangerous harmful corrupt corrupted disappointing disappointed unreliable",
        -2.0,
    ),
    (
        "wrong problem problems slow insecure difficult confusing annoying ugly crash crashes crashed loss lost error errors poor unfair hostile",
        -1.5,
    ),
    ("weak unclear delay delays delayed late worry worried risk risks risky complain complaint complaints boring dull missing", -1.0),
];

const NEGATIONS: &str = "not no never none neither nor without cannot hardly barely";
const STRONGER: &str = "very extremely really highly absolutely completely truly incredibly remarkably especially";
const WEAKER: &str = "slightly somewhat fairly rather partly mildly little";

fn text_offers() -> Vec<Offer> {
    offers("text-analysis")
}

fn nlp_offers() -> Vec<Offer> {
    offers("nlp_analysis")
}

fn offers(id: &'static str) -> Vec<Offer> {
    let number = json!({"type": "number"});
    let whole = json!({"type": "integer", "minimum": 0});
    let object = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false});
    let share = json!({"type": "number", "minimum": 0, "maximum": 1});
    let keyword = object(&["term", "count", "score"], json!({"term": {"type": "string"}, "count": whole, "score": share}));
    let mut output = json!({
        "language": object(&["code", "confidence", "script"], json!({
            "code": {"type": ["string", "null"]}, "confidence": share, "script": {"type": ["string", "null"]},
        })),
        "keywords": {"type": "array", "maxItems": KEYWORDS_MAX, "items": keyword},
        "sentiment": object(&["score", "label", "note"], json!({
            "score": {"type": ["number", "null"], "minimum": -1, "maximum": 1},
            "label": {"enum": ["positive", "neutral", "negative", null]},
            "note": {"type": ["string", "null"]},
        })),
        "readability": object(&["flesch_reading_ease", "sentences", "words", "syllables"], json!({
            "flesch_reading_ease": {"type": ["number", "null"]}, "sentences": whole, "words": whole, "syllables": whole,
        })),
        "statistics": object(
            &["characters", "words", "unique_words", "sentences", "paragraphs", "average_word_length", "average_sentence_length"],
            json!({
                "characters": whole, "words": whole, "unique_words": whole, "sentences": whole, "paragraphs": whole,
                "average_word_length": number, "average_sentence_length": number,
            }),
        ),
    });
    let found = ["language", "keywords", "sentiment", "readability", "statistics"];
    let mut given = found.to_vec();
    if id == NLP_ANALYSIS.name {
        output["analysis"] = object(&found, output.clone());
        given.push("analysis");
    }
    vec![Offer {
        id,
        version: "1.0.0",
        description: "Language, keywords with scores, sentiment (English), readability and counts",
        input_schema: object(
            &["text"],
            json!({
                "text": {"type": "string", "maxLength": TEXT_BYTES_MAX},
                "max_keywords": {"type": "integer", "minimum": 1, "maximum": KEYWORDS_MAX},
            }),
        ),
        output_schema: object(&given, output),
    }]
}

fn run(capability: &str, input: &Value, _settings: &Settings) -> Result<Output, Failure> {
    let text = string(input, "text", TEXT_BYTES_MAX)?;
    let keywords_max = count(input, "max_keywords", KEYWORDS_DEFAULT, KEYWORDS_MAX)?;
    let language = words::language(text);
    let all: Vec<&str> = words::words(text).collect();
    let sentences = words::sentences(text).len();
    let mut found = json!({
        "language": {"code": language.code, "confidence": rounded(language.confidence), "script": language.script},
        "keywords": keywords(&all, &Lexer::new(language.code), keywords_max),
        "sentiment": sentiment(&all, language.code),
        "readability": readability(&all, sentences, language.code),
        "statistics": statistics(text, &all, sentences),
    });
    if capability == NLP_ANALYSIS.name {
        found["analysis"] = found.clone();
    }
    Ok(Output::of(found))
}

#[derive(Default)]
struct Tally<'a> {
    count: u32,
    forms: BTreeMap<&'a str, u32>,
}

fn keywords(words: &[&str], lexer: &Lexer, max: usize) -> Value {
    let mut tallies: BTreeMap<String, Tally<'_>> = BTreeMap::new();
    for &word in words {
        if let Some(term) = lexer.term(word) {
            let tally = tallies.entry(term).or_default();
            tally.count = tally.count.saturating_add(1);
            *tally.forms.entry(word).or_insert(0) += 1;
        }
    }
    let mut scored: Vec<(f64, u32, String)> = tallies
        .values()
        .map(|tally| {
            let form = tally.forms.iter().fold(("", 0), |best, (form, uses)| if *uses > best.1 { (*form, *uses) } else { best }).0;
            let length = f64::from(u8::try_from(form.chars().count().min(12)).unwrap_or(12)) / 12.0;
            ((1.0 + f64::from(tally.count).ln()) * (0.6 + 0.4 * length), tally.count, form.to_lowercase())
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.2.cmp(&b.2)));
    let best = scored.first().map_or(1.0, |first| first.0);
    scored.iter().take(max).map(|(score, count, term)| json!({"term": term, "count": count, "score": rounded(score / best)})).collect()
}

fn sentiment(words: &[&str], code: Option<&str>) -> Value {
    if code != Some("en") {
        let note = if code.is_some() { "sentiment is estimated for English only" } else { "the language could not be told" };
        return json!({"score": null, "label": null, "note": note});
    }
    let listed = |list: &'static str| list.split(' ').collect::<HashSet<&str>>();
    let (negations, stronger, weaker) = (listed(NEGATIONS), listed(STRONGER), listed(WEAKER));
    let lexicon: BTreeMap<&str, f64> =
        POSITIVE.iter().chain(&NEGATIVE).flat_map(|(list, weight)| list.split(' ').map(|word| (word, *weight))).collect();
    let lower: Vec<String> = words.iter().map(|word| word.to_lowercase().replace('’', "'")).collect();
    let mut sum = 0.0;
    for (at, word) in lower.iter().enumerate() {
        let Some(mut weight) = lexicon.get(word.as_str()).copied() else {
            continue;
        };
        for before in &lower[at.saturating_sub(REACH)..at] {
            if negations.contains(before.as_str()) || before.ends_with("n't") {
                weight *= -0.75;
            } else if stronger.contains(before.as_str()) {
                weight *= 1.4;
            } else if weaker.contains(before.as_str()) {
                weight *= 0.6;
            }
        }
        sum += weight;
    }
    let score = sum / (sum * sum + 15.0_f64).sqrt();
    let label = if score >= NEUTRAL {
        "positive"
    } else if score <= -NEUTRAL {
        "negative"
    } else {
        "neutral"
    };
    json!({"score": rounded(score), "label": label, "note": null})
}

fn readability(words: &[&str], sentences: usize, code: Option<&str>) -> Value {
    let syllables: usize = words.iter().map(|word| syllables(word)).sum();
    let ease = (code == Some("en") && sentences > 0 && !words.is_empty())
        .then(|| rounded(206.835 - 1.015 * ratio(words.len(), sentences) - 84.6 * ratio(syllables, words.len())));
    json!({"flesch_reading_ease": ease, "sentences": sentences, "words": words.len(), "syllables": syllables})
}

/// An estimate: groups of vowels, without a silent `e` at the end.
fn syllables(word: &str) -> usize {
    let vowel = |c: char| "aeiouyäöüáéíóúàèìòùâêîôûåæøœ".contains(c);
    let lower = word.to_lowercase();
    let mut groups = 0;
    let mut within = false;
    for c in lower.chars() {
        let is_vowel = vowel(c);
        groups += usize::from(is_vowel && !within);
        within = is_vowel;
    }
    let silent = groups > 1 && lower.ends_with('e') && !lower.ends_with("le");
    groups.saturating_sub(usize::from(silent)).max(1)
}

fn statistics(text: &str, words: &[&str], sentences: usize) -> Value {
    let letters: usize = words.iter().map(|word| word.chars().count()).sum();
    let unique: HashSet<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let mut paragraphs = 0;
    let mut within = false;
    for line in text.lines() {
        let filled = !line.trim().is_empty();
        paragraphs += usize::from(filled && !within);
        within = filled;
    }
    json!({
        "characters": text.chars().count(),
        "words": words.len(),
        "unique_words": unique.len(),
        "sentences": sentences,
        "paragraphs": paragraphs,
        "average_word_length": rounded(ratio(letters, words.len())),
        "average_sentence_length": rounded(ratio(words.len(), sentences)),
    })
}

/// Zero where there is nothing to divide by. Counts fit 32 bits as the text is bounded.
fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    if whole == 0 { 0.0 } else { number(part) / number(whole) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysed(text: &str) -> Value {
        run("text-analysis", &json!({"text": text}), &Settings::default()).unwrap().value
    }

    fn score(text: &str) -> f64 {
        let words: Vec<&str> = words::words(text).collect();
        sentiment(&words, Some("en"))["score"].as_f64().unwrap()
    }

    #[test]
    fn keywords_count_stems_and_show_the_usual_form() {
        let value =
            analysed("The mesh routes tasks. Agents in the mesh take tasks, and every agent in a mesh has tasks to route for the agents.");
        let terms: Vec<&str> = value["keywords"].as_array().unwrap().iter().map(|k| k["term"].as_str().unwrap()).collect();
        assert!(terms[..3].contains(&"agents") && terms[..3].contains(&"tasks"), "{terms:?}");
        assert_eq!(value["keywords"][0]["score"], 1.0);
        assert!(!terms.contains(&"the"));
    }

    #[test]
    fn sentiment_follows_negation_and_emphasis() {
        assert!(score("this is good") > 0.3);
        assert!(score("this is not good") < -0.2);
        assert!(score("this isn't good") < -0.2);
        assert!(score("this is very good") > score("this is good"));
        assert!(score("this is slightly bad") > score("this is bad"));
        assert!(score("the table has four legs").abs() < f64::EPSILON);
    }

    #[test]
    fn other_languages_have_a_note_and_no_score() {
        let value = analysed("Dieser Satz ist wirklich sehr schlecht geschrieben und niemand wird ihn mögen.");
        assert_eq!(value["language"]["code"], "de");
        assert!(value["sentiment"]["score"].is_null() && value["sentiment"]["note"].is_string());
        assert!(value["readability"]["flesch_reading_ease"].is_null());
    }

    #[test]
    fn easy_text_reads_easier_than_hard_text() {
        let easy = analysed("The cat sat on the mat. The dog ran to the cat. They were both glad to see the sun.");
        let hard = analysed(
            "Decentralised infrastructures necessitate sophisticated authentication methodologies notwithstanding considerable organisational heterogeneity.",
        );
        let ease = |value: &Value| value["readability"]["flesch_reading_ease"].as_f64().unwrap();
        assert!(ease(&easy) > 80.0 && ease(&hard) < 0.0, "{} {}", ease(&easy), ease(&hard));
    }

    #[test]
    fn counts_are_right() {
        let statistics = &analysed("One two.\n\nThree four five.")["statistics"];
        assert_eq!((&statistics["words"], &statistics["sentences"], &statistics["paragraphs"]), (&json!(5), &json!(2), &json!(2)));
        assert_eq!(statistics["average_sentence_length"], 2.5);
    }

    #[test]
    fn syllables_are_estimated() {
        for (word, expected) in [("cat", 1), ("table", 2), ("analysis", 4), ("make", 1), ("rhythm", 1)] {
            assert_eq!(syllables(word), expected, "{word}");
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        let failure = run("text-analysis", &json!({"text": "x".repeat(TEXT_BYTES_MAX + 1)}), &Settings::default()).unwrap_err();
        assert!(matches!(failure, Failure::BadInput { path, .. } if path == "/text"));
    }
}
