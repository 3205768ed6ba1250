//! "Could you do this, when, for how much": the question and its answer between nodes (AMP-7, AMP 3.2 capability negotiation).
//!
//! One [`Inquiry`] names agents of the node that is asked; one [`Offers`] answers for each of them with an offer or a refusal. Offers are
//! hints. Nobody signs them (the channel proves which node speaks), they reserve nothing and bind nobody: what a call costs follows from
//! the signed record, whether there is room shows when it comes. So an offer carries nothing that the caller would have to enforce later.
//!
//! Times are spans from now, since clocks are not compared. Amounts are exact decimals, written as text. What a later version adds is
//! passed over by this one; a bound that is broken makes the whole document malformed, which its sender pays for.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::{Document, Error, rule, short};
use crate::model::{AgentId, CapabilityName, CapabilityVersion, ErrorCode, Price, VersionRequirement, at_most};

/// Agents of one node that one inquiry may name: as many as anybody would choose among.
pub const AGENTS_ASKED_MAX: usize = 16;
/// The longest span that an inquiry or an offer may name, in milliseconds: a day, beyond which nothing here can be foreseen.
pub const SPAN_MS_MAX: u64 = 86_400_000;
/// The longest time for which an offer may call itself good, in milliseconds: loads change within seconds.
pub const VALID_MS_MAX: u64 = 60_000;
/// The most units or tokens that may be estimated: a million million, which times the highest price is still an exact decimal.
pub const UNITS_MAX: Decimal = Decimal::from_parts(3_567_587_328, 232, 0, false, 0);
/// The unit of a price that counts tokens.
const TOKEN: &str = "token";
/// How long a refusal's reason may be, in characters.
const REASON_CHARS_MAX: usize = 200;

/// What somebody would like to have done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inquiry {
    /// What is to be done: a capability or a heading above it.
    pub capability: CapabilityName,
    /// Which versions will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionRequirement>,
    /// Which of the node's agents are meant, 1 to 16.
    #[serde(deserialize_with = "at_most::<AGENTS_ASKED_MAX, _, _>")]
    pub agents: Vec<AgentId>,
    /// How many tokens the input probably has: what a price per token is multiplied with (AMP's `estimated_tokens`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// How many units of any other kind it probably takes; one if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<Decimal>,
    /// By when it must be done, in milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// What all of it may cost, in the currency of the agent's price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<Decimal>,
    /// Language that must be supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

impl Inquiry {
    /// How many units of `price` are estimated. A price per token counts tokens, every other one counts units.
    pub fn units_of(&self, price: Option<&Price>) -> Decimal {
        let tokens = self.tokens.map(Decimal::from).filter(|_| price.is_some_and(|price| price.unit == TOKEN));
        tokens.or(self.units).unwrap_or(Decimal::ONE)
    }
}

fn countable(units: Decimal) -> bool {
    units > Decimal::ZERO && units <= UNITS_MAX
}

impl Document for Inquiry {
    const KIND: &'static str = "inquiry";
    const BYTES_MAX: usize = 4 * 1024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        rule((1..=AGENTS_ASKED_MAX).contains(&self.agents.len()), kind, "agents", "has 1 to 16 entries")?;
        rule(self.tokens.is_none_or(|tokens| countable(tokens.into())), kind, "tokens", "is 1 to a million million")?;
        rule(self.units.is_none_or(countable), kind, "units", "is above 0 and at most a million million")?;
        rule(self.deadline_ms.is_none_or(|ms| (1..=SPAN_MS_MAX).contains(&ms)), kind, "deadline_ms", "is 1 ms to a day")?;
        rule(self.max_cost.is_none_or(|cost| cost >= Decimal::ZERO), kind, "max_cost", "is not negative")?;
        rule(self.language.as_deref().is_none_or(|language| short(language, 16)), kind, "language", "has at most 16 characters")
    }
}

/// What one agent says it could do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Who offers.
    pub agent: AgentId,
    /// Which of its capabilities is meant.
    pub capability: CapabilityName,
    /// In which version.
    pub version: CapabilityVersion,
    /// Calls that it could begin at once.
    pub free_slots: u32,
    /// Calls that wait already.
    pub queued: u32,
    /// When it would begin, in milliseconds from now; absent where nobody can say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_in_ms: Option<u64>,
    /// How long it would then take, in milliseconds; absent where nobody can say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_ms: Option<u64>,
    /// On how many runs at its node `takes_ms` rests; zero if its definition says so.
    #[serde(default)]
    pub runs: u32,
    /// What one unit costs; free without it. It is the price of the agent's record, or the offer is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// How many units that makes for this inquiry.
    pub units: Decimal,
    /// For how long it is worth asking nobody again, in milliseconds.
    pub valid_ms: u64,
}

impl Offer {
    /// What all of it costs.
    pub fn cost(&self) -> Option<Decimal> {
        self.price.as_ref().map(|price| price.times(self.units))
    }
}

/// Why one agent makes no offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Who does not.
    pub agent: AgentId,
    /// The code that a call would fail with.
    pub code: ErrorCode,
    /// One line for people.
    pub reason: String,
}

impl Refusal {
    /// A refusal with a reason that fits.
    pub fn new(agent: AgentId, code: ErrorCode, reason: impl AsRef<str>) -> Self {
        // One character is left for the mark of what was cut off.
        Self { agent, code, reason: crate::model::printable(reason.as_ref(), REASON_CHARS_MAX - 1) }
    }
}

/// The answer to an [`Inquiry`]: at most one offer or refusal for each agent that was named.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Offers {
    /// Who could do it.
    #[serde(deserialize_with = "at_most::<AGENTS_ASKED_MAX, _, _>")]
    pub offers: Vec<Offer>,
    /// Who could not, and why.
    #[serde(deserialize_with = "at_most::<AGENTS_ASKED_MAX, _, _>")]
    pub refusals: Vec<Refusal>,
}

impl Document for Offers {
    const KIND: &'static str = "offers";
    const BYTES_MAX: usize = 32 * 1024;

    fn check(&self) -> Result<(), Error> {
        let kind = Self::KIND;
        rule(self.offers.len() <= AGENTS_ASKED_MAX, kind, "offers", "has at most 16 entries")?;
        rule(self.refusals.len() <= AGENTS_ASKED_MAX, kind, "refusals", "has at most 16 entries")?;
        for offer in &self.offers {
            rule(offer.starts_in_ms.is_none_or(|ms| ms <= SPAN_MS_MAX), kind, "offers.starts_in_ms", "is at most a day")?;
            rule(offer.takes_ms.is_none_or(|ms| ms <= SPAN_MS_MAX), kind, "offers.takes_ms", "is at most a day")?;
            rule(countable(offer.units), kind, "offers.units", "is above 0 and at most a million million")?;
            rule((1..=VALID_MS_MAX).contains(&offer.valid_ms), kind, "offers.valid_ms", "is 1 ms to a minute")?;
        }
        let printable = self.refusals.iter().all(|refusal| short(&refusal.reason, REASON_CHARS_MAX));
        rule(printable, kind, "refusals.reason", "has at most 200 printable characters")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::directory::{Control, Reply};
    use crate::wire::{decode, encode};

    /// An inquiry that names one agent and nothing else.
    pub(crate) fn inquiry(capability: &str, agent: AgentId) -> Inquiry {
        Inquiry {
            capability: capability.parse().expect("a valid name"),
            version: None,
            agents: vec![agent],
            tokens: None,
            units: None,
            deadline_ms: None,
            max_cost: None,
            language: None,
        }
    }

    /// An offer in which nothing is wrong.
    pub(crate) fn offer(capability: &str, agent: AgentId) -> Offer {
        Offer {
            agent,
            capability: capability.parse().expect("a valid name"),
            version: "1.0".parse().expect("a valid version"),
            free_slots: 1,
            queued: 0,
            starts_in_ms: Some(0),
            takes_ms: Some(100),
            runs: 3,
            price: Some(price("0.001", "token")),
            units: Decimal::ONE,
            valid_ms: 5_000,
        }
    }

    pub(crate) fn price(amount: &str, unit: &str) -> Price {
        Price { amount: amount.parse().expect("a decimal"), currency: "USD".parse().expect("a currency"), unit: unit.to_owned() }
    }

    fn agent() -> AgentId {
        AgentId::from_public_key([7; 32])
    }

    fn answer(change: impl FnOnce(&mut Offer)) -> Reply {
        let mut offer = offer("echo", agent());
        change(&mut offer);
        Reply::Offers(Offers { offers: vec![offer], refusals: Vec::new() })
    }

    #[test]
    fn question_and_answer_survive_the_wire() {
        let mut asked = inquiry("text-analysis", agent());
        asked.units = Some(Decimal::new(15, 1));
        asked.max_cost = Some(Decimal::new(5, 3));
        let bytes = encode(&Control::Offers(asked.clone())).expect("fits");
        assert_eq!(decode(&bytes), Ok(Control::Offers(asked)));
        let reply = answer(|_| {});
        assert_eq!(decode(&encode(&reply).expect("fits")), Ok(reply));
    }

    /// AMP-7: tokens count where the price is per token, units everywhere else.
    #[test]
    fn the_estimate_is_counted_in_what_the_price_counts() {
        let mut asked = inquiry("echo", agent());
        assert_eq!(asked.units_of(Some(&price("1", "token"))), Decimal::ONE);
        (asked.tokens, asked.units) = (Some(1_000), Some(Decimal::TWO));
        assert_eq!(asked.units_of(Some(&price("1", "token"))), Decimal::ONE_THOUSAND);
        assert_eq!(asked.units_of(Some(&price("1", "document"))), Decimal::TWO);
        assert_eq!(asked.units_of(None), Decimal::TWO);
    }

    /// Threat T16: what no honest node offers is not read.
    #[test]
    fn absurd_offers_are_malformed() {
        let absurd: [fn(&mut Offer); 6] = [
            |offer| offer.starts_in_ms = Some(SPAN_MS_MAX + 1),
            |offer| offer.takes_ms = Some(u64::MAX),
            |offer| offer.units = Decimal::ZERO,
            |offer| offer.units = Decimal::NEGATIVE_ONE,
            |offer| offer.valid_ms = 0,
            |offer| offer.price = Some(price("-0.001", "token")),
        ];
        for change in absurd {
            let mut bytes = Vec::new();
            ciborium::into_writer(&answer(change), &mut bytes).expect("anything can be written");
            assert!(decode::<Reply>(&bytes).is_err());
        }
        let many = Reply::Offers(Offers { offers: vec![offer("echo", agent()); AGENTS_ASKED_MAX + 1], refusals: Vec::new() });
        assert!(encode(&many).is_err());
        let mut bytes = Vec::new();
        ciborium::into_writer(&many, &mut bytes).expect("anything can be written");
        let refused = decode::<Reply>(&bytes).expect_err("one offer too many");
        assert!(refused.to_string().contains("a list has more than 16 entries"), "read no further than that: {refused}");
    }

    #[test]
    fn inquiries_keep_to_their_bounds() {
        let broken: [fn(&mut Inquiry); 6] = [
            |asked| asked.agents.clear(),
            |asked| asked.units = Some(Decimal::ZERO),
            |asked| asked.units = Some(UNITS_MAX + Decimal::ONE),
            |asked| asked.deadline_ms = Some(0),
            |asked| asked.max_cost = Some(Decimal::NEGATIVE_ONE),
            |asked| asked.language = Some("x".repeat(17)),
        ];
        for change in broken {
            let mut asked = inquiry("echo", agent());
            change(&mut asked);
            assert!(encode(&Control::Offers(asked)).is_err());
        }
        assert_eq!(UNITS_MAX, Decimal::from(1_000_000_000_000_u64));
    }

    #[test]
    fn the_longest_answer_fits() {
        let offers = vec![offer(&"x".repeat(96), agent()); AGENTS_ASKED_MAX];
        let refusals = vec![Refusal::new(agent(), ErrorCode::Busy, "\u{1F600}".repeat(300)); AGENTS_ASKED_MAX];
        assert!(encode(&Offers { offers, refusals: refusals.clone() }).is_ok());
        assert!(refusals.iter().all(|refusal| refusal.reason.chars().count() <= REASON_CHARS_MAX));
    }
}
