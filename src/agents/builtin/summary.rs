//! The agent that shortens a text by choosing from it: nothing is rewritten, so nothing is made up.
//!
//! Each sentence is scored by how much it shares with the whole (the weight of its terms, by how often the text uses them, over the
//! root of its length), with a bonus near the beginning and less for headings. Sentences are then taken one by one, best first; one
//! whose terms the summary already has counts less. They are shown in the order of the text.
//!
//! The work is linear in the text for the scores and linear in the sentences for each one taken.
//!
//! Source: centroid summaries (Radev and others 2004) and maximal marginal relevance (Carbonell and Goldstein 1998), simplified.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use super::{
    Builtin, Failure, Offer, Output, Settings, count, rounded, string,
    text::TEXT_BYTES_MAX,
    words::{self, Lexer},
};

/// The `summarization` agent.
pub const AGENT: Builtin =
    Builtin { name: "summarization", description: "Summarises a text by its most telling sentences", capabilities: offers, run };

const SENTENCES_MAX: usize = 20;
const SENTENCES_DEFAULT: usize = 3;
/// How much a sentence loses that says only what the summary says.
const REPETITION: f64 = 0.7;

fn offers() -> Vec<Offer> {
    let sentence = json!({
        "type": "object",
        "required": ["index", "text", "score"],
        "properties": {"index": {"type": "integer", "minimum": 0}, "text": {"type": "string"}, "score": {"type": "number", "minimum": 0}},
        "additionalProperties": false,
    });
    vec![Offer {
        id: "summarization",
        version: "1.0.0",
        description: "The sentences of a text that say most, in their order",
        input_schema: json!({
            "type": "object",
            "required": ["text"],
            "properties": {
                "text": {"type": "string", "maxLength": TEXT_BYTES_MAX},
                "max_sentences": {"type": "integer", "minimum": 1, "maximum": SENTENCES_MAX},
            },
            "additionalProperties": false,
        }),
        output_schema: json!({
            "type": "object",
            "required": ["summary", "sentences", "compression"],
            "properties": {
                "summary": {"type": "string"},
                "sentences": {"type": "array", "maxItems": SENTENCES_MAX, "items": sentence},
                "compression": {"type": "number", "minimum": 0, "maximum": 1},
            },
            "additionalProperties": false,
        }),
    }]
}

fn run(_capability: &str, input: &Value, _settings: &Settings) -> Result<Output, Failure> {
    let text = string(input, "text", TEXT_BYTES_MAX)?;
    let max = count(input, "max_sentences", SENTENCES_DEFAULT, SENTENCES_MAX)?;
    let sentences = words::sentences(text);
    let chosen = choose(&sentences, &Lexer::new(words::language(text).code), max);
    let shown: Vec<(usize, String, f64)> = chosen.into_iter().map(|(index, score)| (index, one_line(sentences[index]), score)).collect();
    let summary = shown.iter().map(|(_, text, _)| text.as_str()).collect::<Vec<_>>().join(" ");
    let listed: Vec<Value> =
        shown.iter().map(|(index, text, score)| json!({"index": index, "text": text, "score": rounded(*score)})).collect();
    let chars = |text: &str| f64::from(u32::try_from(text.chars().count()).unwrap_or(u32::MAX));
    let compression = if text.is_empty() { 0.0 } else { (chars(&summary) / chars(text)).min(1.0) };
    Ok(Output::of(json!({"summary": summary, "sentences": listed, "compression": rounded(compression)})))
}

struct Candidate {
    terms: Vec<usize>,
    score: f64,
}

/// The places and scores of at most `max` sentences, in the order of the text.
fn choose(sentences: &[&str], lexer: &Lexer, max: usize) -> Vec<(usize, f64)> {
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut uses: Vec<u32> = Vec::new();
    let mut candidates = Vec::with_capacity(sentences.len());
    for sentence in sentences {
        let mut terms = Vec::new();
        for term in words::words(sentence).filter_map(|word| lexer.term(word)) {
            let next = uses.len();
            let id = *ids.entry(term).or_insert(next);
            if id == next {
                uses.push(0);
            }
            uses[id] = uses[id].saturating_add(1);
            terms.push(id);
        }
        terms.sort_unstable();
        terms.dedup();
        candidates.push(Candidate { terms, score: 0.0 });
    }
    for (index, (candidate, sentence)) in candidates.iter_mut().zip(sentences).enumerate() {
        // A term used once says little about the whole; the floor keeps texts without repetition ranked by position and length.
        let weight: f64 = candidate.terms.iter().map(|id| 0.1 + f64::from(uses[*id] - 1).ln_1p()).sum();
        let length = f64::from(u32::try_from(candidate.terms.len()).unwrap_or(u32::MAX)).max(4.0);
        let early = 1.0 + 0.3 / (1.0 + f64::from(u32::try_from(index).unwrap_or(u32::MAX)) / 4.0);
        let heading = if sentence.ends_with(['.', '!', '?', '…', '。', '！', '？', '"', '”', ')', ':']) { 1.0 } else { 0.4 };
        candidate.score = weight / length.sqrt() * early * heading;
    }
    let mut taken = BTreeSet::new();
    let mut said = vec![false; uses.len()];
    for _ in 0..max.min(candidates.len()) {
        let mut best: Option<(usize, f64)> = None;
        for (index, candidate) in candidates.iter().enumerate().filter(|(index, _)| !taken.contains(index)) {
            let repeated = candidate.terms.iter().filter(|id| said[**id]).count();
            let share = if candidate.terms.is_empty() { 1.0 } else { ratio(repeated, candidate.terms.len()) };
            let score = candidate.score * (1.0 - REPETITION * share);
            if best.is_none_or(|(_, other)| score > other) {
                best = Some((index, score));
            }
        }
        let Some((index, _)) = best else { break };
        taken.insert(index);
        candidates[index].terms.iter().for_each(|id| said[*id] = true);
    }
    taken.into_iter().map(|index| (index, candidates[index].score)).collect()
}

fn ratio(part: usize, whole: usize) -> f64 {
    f64::from(u32::try_from(part).unwrap_or(u32::MAX)) / f64::from(u32::try_from(whole).unwrap_or(u32::MAX))
}

fn one_line(sentence: &str) -> String {
    sentence.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# About meshes\n\nA mesh of agents shares work between many machines. Cats are nice. \
        Agents in the mesh find each other by capability, and the mesh routes work to agents. \
        The mesh of agents shares the work between machines. Payment is settled later.";

    fn summed(input: Value) -> Value {
        run("summarization", &input, &Settings::default()).unwrap().value
    }

    #[test]
    fn the_sentences_that_share_most_with_the_text_are_chosen_in_order() {
        let value = summed(json!({"text": TEXT, "max_sentences": 2}));
        let indices: Vec<u64> = value["sentences"].as_array().unwrap().iter().map(|s| s["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [1, 3], "{value}");
        assert!(value["summary"].as_str().unwrap().starts_with("A mesh of agents shares work"));
    }

    #[test]
    fn the_summary_is_shorter_and_says_by_how_much() {
        let value = summed(json!({"text": TEXT, "max_sentences": 1}));
        let compression = value["compression"].as_f64().unwrap();
        assert!(compression > 0.0 && compression < 0.5, "{value}");
    }

    #[test]
    fn a_short_text_is_its_own_summary() {
        assert_eq!(summed(json!({"text": "Just this."}))["summary"], "Just this.");
        assert_eq!(summed(json!({"text": ""})), json!({"summary": "", "sentences": [], "compression": 0.0}));
    }

    #[test]
    fn other_languages_are_summarised_with_their_own_stop_words() {
        let text =
            "Ein Netz von Agenten teilt die Arbeit. Das Wetter ist schön. Die Agenten im Netz finden die Arbeit und teilen das Netz.";
        let value = summed(json!({"text": text, "max_sentences": 1}));
        assert!(value["summary"].as_str().unwrap().contains("Netz"), "{value}");
    }

    #[test]
    fn counts_out_of_range_are_bad_input() {
        for count in [json!(0), json!(21), json!("3"), json!(1.5)] {
            let failure = run("summarization", &json!({"text": "x", "max_sentences": count}), &Settings::default()).unwrap_err();
            assert!(matches!(failure, Failure::BadInput { path, .. } if path == "/max_sentences"));
        }
    }

    #[test]
    fn a_long_text_takes_linear_time() {
        let started = std::time::Instant::now();
        summed(json!({"text": "Mesh agent work. ".repeat(20_000), "max_sentences": 20}));
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
