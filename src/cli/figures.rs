//! Numbers and identities as people read them.
//!
//! Figures come tagged with who vouches for them; the tag is shown as a letter behind the number and explained once below the table.

use serde_json::Value;

use crate::model::{AgentId, NodeId, Timestamp, printable};

/// What stands where there is nothing to show.
pub(crate) const NOTHING: &str = "-";

/// What the letters behind figures mean.
pub(crate) const MARKS: &str = "c claimed by the agent, m measured by this node, a attested by others' receipts";

/// How much of a name or a word from outside is shown.
const WORD_CHARS_MAX: usize = 64;

/// `12 ms`, `1.5 s`.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{} ms", number(ms)),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms => format!("{} s", number(ms / 1_000.0)),
    }
}

/// `45 s`, `12 min`, `3 h 12 min`, `2 d 4 h`.
pub(crate) fn span(ms: u64) -> String {
    let minutes = ms / 60_000;
    match (minutes / 1_440, minutes / 60 % 24, minutes % 60) {
        (0, 0, 0) => format!("{} s", ms / 1_000),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// At most two decimals, none where they are zero.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `97 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{} %", number(share * 100.0))
}

/// A figure, tagged or bare, written by `write`; with its source's letter if it has one.
pub(crate) fn figure(value: &Value, write: fn(f64) -> String) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::Number(bare) => bare.as_f64().map_or_else(|| bare.to_string(), write),
        Value::Object(tagged) => tagged.get("value").map_or_else(|| NOTHING.to_owned(), |inner| figure(inner, write)) + &mark(value),
        Value::String(text) => word(text),
        Value::Bool(_) | Value::Array(_) => word(&value.to_string()),
    }
}

/// `0.001 USD/document`; nothing at all is free. Tagged figures get their letter.
pub(crate) fn money(value: &Value) -> String {
    let part = |name: &str| value.get(name).and_then(Value::as_str).map(word);
    match value {
        Value::Null => "free".to_owned(),
        // The directory calls the amount a value, as all its figures.
        Value::Object(fields) if fields.contains_key("currency") => {
            let amount = fields.get("amount").or_else(|| fields.get("value")).map(plain).unwrap_or_default();
            let currency = part("currency").map(|currency| format!(" {currency}")).unwrap_or_default();
            let unit = part("unit").map(|unit| format!("/{unit}")).unwrap_or_default();
            amount + &currency + &unit + &mark(value)
        }
        Value::Object(fields) => fields.get("value").map_or_else(|| NOTHING.to_owned(), money) + &mark(value),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => plain(value),
    }
}

/// A value in a line of text: a string bare, anything else as JSON.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| word(&value.to_string()), word)
}

/// A moment, given as milliseconds since 1970 or already as text.
pub(crate) fn moment(value: &Value) -> String {
    value.as_u64().map_or_else(|| plain(value), |ms| Timestamp::from_ms(ms).to_string())
}

fn mark(tagged: &Value) -> String {
    let letter = tagged.get("source").and_then(Value::as_str).and_then(|source| source.chars().next());
    letter.filter(char::is_ascii_alphabetic).map(|letter| format!(" {letter}")).unwrap_or_default()
}

/// A name or word from outside, safe to show.
pub(crate) fn word(text: &str) -> String {
    printable(text, WORD_CHARS_MAX)
}

/// An agent as people tell it apart: `extractor@pQrStUvW`.
pub(crate) fn agent(name: &str, id: &str) -> String {
    let prefix = id.parse::<AgentId>().map_or_else(|_| word(id), |id| id.prefix());
    if name.is_empty() { prefix } else { format!("{}@{prefix}", word(name)) }
}

/// A node as people tell it apart: the end of its id.
pub(crate) fn node(id: &str) -> String {
    id.parse::<NodeId>().map_or_else(|_| word(id), |id| format!("…{}", id.short()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_as_long_as_they_need_to_be() {
        assert_eq!([millis(0.4), millis(12.4), millis(1_500.0)], ["0.4 ms", "12 ms", "1.5 s"]);
        assert_eq!([span(45_900), span(720_000), span(11_520_000), span(187_200_000)], ["45 s", "12 min", "3 h 12 min", "2 d 4 h"]);
    }

    #[test]
    fn a_figure_carries_the_letter_of_its_source() {
        assert_eq!(figure(&json!({ "value": 12, "source": "measured" }), millis), "12 ms m");
        assert_eq!(figure(&json!({ "value": 0.97, "source": "claimed" }), percent), "97 % c");
        assert_eq!(figure(&json!(null), millis), NOTHING);
        assert_eq!(
            money(&json!({ "amount": "0.001", "currency": "USD", "unit": "document", "source": "claimed" })),
            "0.001 USD/document c"
        );
        assert_eq!(money(&json!({ "value": { "amount": "2", "currency": "EUR" }, "source": "claimed" })), "2 EUR c");
        assert_eq!(money(&json!(null)), "free");
    }

    #[test]
    fn an_agent_is_shown_with_the_beginning_of_its_key() {
        let id = AgentId::from_public_key([7; 32]);
        assert_eq!(agent("extractor", &id.to_string()), format!("extractor@{}", id.prefix()));
        assert_eq!(agent("bad\u{1b}", "x"), "bad\u{fffd}@x");
    }
}
