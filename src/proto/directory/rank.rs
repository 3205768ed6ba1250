//! Who does it best: filter, score and order candidates (AITP-5, design.md section 5).
//!
//! score = 0.3 match + 0.3 trust/100 + 0.2 (1 - latency/1000 ms) + 0.2 (1 - cost/max_cost), each term clamped to 0..1, so that nobody
//! can push another below zero or above one by an absurd claim. Measured figures come before claimed ones; where nothing is known the
//! term is a neutral half. A query's `min_trust` tests the upper end of the confidence interval. The same ranking answers `find` and
//! routes calls.
//!
//! Half of a score is the agent's own word, and words are cheap (threats T16, T17): so whoever is surely trusted ([`Standing::Proven`])
//! comes before whoever may be, and whoever is surely not comes last, whatever they promise. Within a standing the highest score wins.
//! [`Ranking`] is such an order with what a call needs of it worked out beforehand: the near-equals of the first, and who may be explored.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::state::{Availability, Entry, Reach};
use crate::model::{AgentId, CapabilityName, ErrorCode, Figure};
use crate::proto::peers::trust::Estimate;
use crate::wire::directory::{Capability, Query, Wanted};

/// How much each term of the score counts; any scale, since the score is divided by the sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// How well the capability fits what was asked.
    pub r#match: f64,
    /// First-hand trust.
    pub trust: f64,
    /// Latency.
    pub latency: f64,
    /// Price.
    pub cost: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { r#match: 0.3, trust: 0.3, latency: 0.2, cost: 0.2 }
    }
}

impl Weights {
    fn sum(&self, terms: &Terms) -> f64 {
        let whole = (self.r#match + self.trust + self.latency + self.cost).max(f64::MIN_POSITIVE);
        let sum = self.r#match * terms.r#match + self.trust * terms.trust + self.latency * terms.latency + self.cost * terms.cost;
        (sum / whole).clamp(0.0, 1.0)
    }
}

/// What a node ranks by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// How the terms of a score count.
    pub weights: Weights,
    /// The trust, 0 to 100, that divides the proven from the doubted.
    pub min_trust: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { weights: Weights::default(), min_trust: 50.0 }
    }
}

/// How sure this node is that an agent is worth calling. The order is that of a ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Even the lower end of what is believed reaches the least trust: three calls that ended well are enough.
    Proven,
    /// Too little is known, or it is neither good nor bad.
    Unproven,
    /// Even the upper end falls short of the least trust. Asked when nobody else is there, or to see whether it has recovered.
    Doubted,
}

impl Standing {
    /// Of an agent of which this is believed.
    pub fn of(estimate: &Estimate, min_trust: f64) -> Self {
        if estimate.high < min_trust {
            Self::Doubted
        } else if estimate.low >= min_trust {
            Self::Proven
        } else {
            Self::Unproven
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proven => "proven",
            Self::Unproven => "unproven",
            Self::Doubted => "doubted",
        })
    }
}

/// Calls up to which an unproven agent is a newcomer. Three good ones prove an agent, so one that is not after five was found wanting.
const NEWCOMER_CALLS: f64 = 5.0;

/// Scores within this distance of the best are equals; among them calls are balanced.
const NEAR: f64 = 0.02;

/// Latency at which its term reaches zero.
const LATENCY_MS_WORST: f64 = 1_000.0;
/// The term of what nobody knows.
const NEUTRAL: f64 = 0.5;

/// Why an agent is left out of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Rejection {
    /// Its node says that it takes no calls.
    Unavailable,
    /// It was down, or its node silent, moments ago.
    Suspect,
    /// Its node has not been reached from here.
    Unreachable,
    /// None of its versions will do.
    Version,
    /// It would probably take too long.
    Latency(f64),
    /// It succeeds too rarely.
    SuccessRate(f64),
    /// It is trusted too little, even at the upper end of the interval.
    Trust(f64),
    /// It asks too high a price.
    Cost(Decimal),
    /// It does not support the language.
    Language,
    /// Its input schema refuses the input that was shown; this is the first fault.
    Schema(String),
    /// Its breaker is open, for this long.
    Breaker(Duration),
    /// Its breaker is half-open, and the one call that may show whether the agent is well again is under way.
    Probed,
    /// It waits for this call, which has come from it.
    Waiting,
}

impl Rejection {
    /// Whether the agent would do, and only waiting stands between it and the call.
    pub fn is_for_a_time(&self) -> bool {
        match self {
            Self::Unavailable | Self::Suspect | Self::Unreachable | Self::Breaker(_) | Self::Probed => true,
            Self::Version
            | Self::Latency(_)
            | Self::SuccessRate(_)
            | Self::Trust(_)
            | Self::Cost(_)
            | Self::Language
            | Self::Schema(_)
            | Self::Waiting => false,
        }
    }

    /// With which code a call fails that finds nobody else.
    pub fn code(&self) -> ErrorCode {
        if self.is_for_a_time() { ErrorCode::Unavailable } else { ErrorCode::CapabilityNotFound }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => f.write_str("its node reports it unavailable"),
            Self::Suspect => f.write_str("it or its node failed moments ago"),
            Self::Unreachable => f.write_str("its node cannot be reached from here"),
            Self::Version => f.write_str("no version fits"),
            Self::Latency(ms) => write!(f, "latency of {ms:.0} ms is above max_latency_ms"),
            Self::SuccessRate(rate) => write!(f, "success rate of {rate:.2} is below min_success_rate"),
            Self::Trust(high) => write!(f, "trust of at most {high:.0} is below min_trust"),
            Self::Cost(price) => write!(f, "price of {price} is above max_cost"),
            Self::Language => f.write_str("it does not support the language"),
            Self::Schema(fault) => write!(f, "its input schema refuses the input: {fault}"),
            Self::Breaker(left) => write!(f, "its breaker is open for another {:.1} s", left.as_secs_f64()),
            Self::Probed => f.write_str("its breaker is half-open and one call is trying it"),
            Self::Waiting => f.write_str("it waits for this call itself"),
        }
    }
}

/// The four terms of a score, each 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// How well the capability fits.
    pub r#match: f64,
    /// Trust.
    pub trust: f64,
    /// Latency.
    pub latency: f64,
    /// Price.
    pub cost: f64,
}

/// One agent that will do, with the figures that speak for it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What is known of it.
    pub entry: Arc<Entry>,
    /// Which of its capabilities was meant: an index into the record's.
    pub capability: usize,
    /// The score, 0 to 1.
    pub score: f64,
    /// Its terms.
    pub terms: Terms,
    /// What this node believes of it.
    pub estimate: Estimate,
    /// Expected latency in milliseconds, if anybody says.
    pub latency_ms: Option<Figure<f64>>,
    /// How sure this node is of it.
    pub standing: Standing,
    /// The score that the upper end of its trust would give it.
    pub plausible: f64,
    /// The score that it would have if it were trusted fully and kept its word.
    pub promised: f64,
}

impl Candidate {
    /// The agent.
    pub fn agent(&self) -> AgentId {
        self.entry.record.agent
    }

    /// The capability that was meant.
    pub fn capability(&self) -> Option<&Capability> {
        self.entry.record.capabilities.get(self.capability)
    }

    /// Latency that it claims, in milliseconds.
    pub fn claimed_ms(&self) -> Option<f64> {
        self.capability()?.constraints.response_time_ms?.to_f64()
    }

    /// Price per unit; zero where it is free.
    pub fn price(&self) -> Decimal {
        self.capability().and_then(|capability| capability.price.as_ref()).map_or(Decimal::ZERO, |price| price.amount)
    }
}

/// An agent that offers what was asked for, but will not do.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    /// The agent.
    pub agent: AgentId,
    /// What people call it.
    pub name: String,
    /// Why not.
    pub reason: Rejection,
}

/// The answer to a query, best first.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// Who will do.
    pub candidates: Vec<Candidate>,
    /// Who offers it but will not do, and why; bounded.
    pub rejected: Vec<Rejected>,
}

/// How many rejections an answer lists.
const REJECTED_MAX: usize = 64;

impl Answer {
    /// Adds one more agent that will not do, if there is room.
    pub fn reject(&mut self, entry: &Entry, reason: Rejection) {
        if self.rejected.len() < REJECTED_MAX {
            self.rejected.push(Rejected { agent: entry.record.agent, name: entry.record.name.clone(), reason });
        }
    }
}

/// A query as capabilities are held against it: its text is taken apart once and not once for each of them.
#[derive(Debug)]
pub struct Asked<'q> {
    /// The query.
    pub query: &'q Query,
    /// The words of its text, in lower case.
    words: Vec<String>,
}

impl<'q> Asked<'q> {
    /// Takes `query` apart.
    pub fn new(query: &'q Query) -> Self {
        let lowered = query.text.as_deref().map(str::to_lowercase).unwrap_or_default();
        let words = lowered.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 1);
        Self { query, words: words.map(str::to_owned).collect() }
    }

    /// How well `capability` fits, 0 to 1: the name itself, a name under what was asked, or words of the text. `None`: not at all.
    pub fn fit(&self, capability: &Capability) -> Option<f64> {
        let by_name = || self.query.capabilities.iter().filter_map(|asked| fit_name(&capability.id, asked)).max_by(f64::total_cmp);
        match (self.query.capabilities.is_empty(), self.query.text.is_some()) {
            (false, false) => by_name(),
            (true, _) => self.fit_text(capability),
            (false, true) => by_name().zip(self.fit_text(capability)).map(|(name, text)| (name + text) / 2.0),
        }
    }

    /// The share of the words that occur somewhere in what the capability says of itself.
    fn fit_text(&self, capability: &Capability) -> Option<f64> {
        let described = std::iter::once(&capability.description).chain(&capability.claims.specializations);
        let mut missing: Vec<&String> = self.words.iter().filter(|word| !capability.id.as_str().contains(word.as_str())).collect();
        for text in described.filter(|text| !text.is_empty()) {
            if missing.is_empty() {
                break;
            }
            let lowered = text.to_lowercase();
            missing.retain(|word| !lowered.contains(word.as_str()));
        }
        let found = self.words.len().saturating_sub(missing.len());
        (found > 0).then(|| ratio(found, self.words.len()))
    }
}

fn fit_name(offered: &CapabilityName, asked: &CapabilityName) -> Option<f64> {
    if offered == asked {
        return Some(1.0);
    }
    let steps = offered.ancestors().iter().position(|above| above == asked)?;
    Some(0.9_f64.powi(i32::try_from(steps).unwrap_or(i32::MAX).saturating_add(1)))
}

#[expect(clippy::cast_precision_loss, reason = "counts of words are small")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// Judges one capability of one agent against `query`; cost and scores are filled in by [`order`], which knows the dearest candidate.
///
/// # Errors
/// The reason why this agent will not do.
pub fn judge(
    entry: &Arc<Entry>,
    capability: usize,
    fit: f64,
    query: &Query,
    estimate: Estimate,
    rules: &Rules,
) -> Result<Candidate, Rejection> {
    let Some(offered) = entry.record.capabilities.get(capability) else { return Err(Rejection::Version) };
    match (entry.availability, entry.reach) {
        (Availability::Unavailable, _) => return Err(Rejection::Unavailable),
        (Availability::Suspect, _) => return Err(Rejection::Suspect),
        (Availability::Available, Reach::Unproven | Reach::Lost) => return Err(Rejection::Unreachable),
        (Availability::Available, Reach::Here | Reach::Connected | Reach::Proven) => {}
    }
    if query.version.as_ref().is_some_and(|wanted| !wanted.accepts(&offered.version)) {
        return Err(Rejection::Version);
    }
    let claimed = offered.constraints.response_time_ms.and_then(|ms| ms.to_f64()).map(Figure::claimed);
    let latency_ms = estimate.latency_figure().or(claimed);
    let candidate = Candidate {
        entry: Arc::clone(entry),
        capability,
        score: 0.0,
        terms: Terms {
            r#match: fit.clamp(0.0, 1.0),
            trust: (estimate.trust / 100.0).clamp(0.0, 1.0),
            latency: latency_ms.map_or(NEUTRAL, |figure| quickness(figure.value)),
            cost: 1.0,
        },
        estimate,
        latency_ms,
        standing: Standing::of(&estimate, rules.min_trust),
        plausible: 0.0,
        promised: 0.0,
    };
    constrain(&candidate, offered, &query.constraints)?;
    Ok(candidate)
}

fn quickness(latency_ms: f64) -> f64 {
    (1.0 - latency_ms / LATENCY_MS_WORST).clamp(0.0, 1.0)
}

fn constrain(candidate: &Candidate, offered: &Capability, wanted: &Wanted) -> Result<(), Rejection> {
    if let (Some(max), Some(figure)) = (wanted.max_latency_ms, candidate.latency_ms)
        && figure.value > max
    {
        return Err(Rejection::Latency(figure.value));
    }
    if let (Some(min), Some(rate)) = (wanted.min_success_rate, candidate.estimate.success_rate()) {
        // The upper end of the interval, as with trust: one failure does not outlaw a sole provider.
        if candidate.estimate.high / 100.0 < min {
            return Err(Rejection::SuccessRate(rate));
        }
    }
    if wanted.min_trust.is_some_and(|min| candidate.estimate.high < min) {
        return Err(Rejection::Trust(candidate.estimate.high));
    }
    if wanted.max_cost.is_some_and(|max| candidate.price() > max) {
        return Err(Rejection::Cost(candidate.price()));
    }
    let languages = &offered.constraints.supported_languages;
    let speaks = |language: &String| languages.is_empty() || languages.iter().any(|known| known.eq_ignore_ascii_case(language));
    if !wanted.language.as_ref().is_none_or(speaks) {
        return Err(Rejection::Language);
    }
    Ok(())
}

/// Fills in costs and scores and puts the best first: by standing, then by score; equals stay in the order of their ids.
pub fn order(candidates: &mut [Candidate], weights: &Weights, max_cost: Option<Decimal>) {
    let dearest = candidates.iter().map(Candidate::price).max().unwrap_or_default();
    let ceiling = max_cost.unwrap_or(dearest);
    for candidate in candidates.iter_mut() {
        let share = candidate.price().checked_div(ceiling).and_then(|share| share.to_f64());
        candidate.terms.cost = share.map_or(1.0, |share| (1.0 - share).clamp(0.0, 1.0));
        let terms = candidate.terms;
        candidate.score = weights.sum(&terms);
        candidate.plausible = weights.sum(&Terms { trust: candidate.estimate.high / 100.0, ..terms });
        let latency = candidate.claimed_ms().map_or(terms.latency, |claimed| terms.latency.max(quickness(claimed)));
        candidate.promised = weights.sum(&Terms { trust: 1.0, latency, ..terms });
    }
    candidates
        .sort_by(|a, b| a.standing.cmp(&b.standing).then_with(|| b.score.total_cmp(&a.score)).then_with(|| a.agent().cmp(&b.agent())));
}

/// An answer with what calls need of it worked out, so that a call looks at a few candidates however many there are.
#[derive(Debug, Clone, Default)]
pub struct Ranking {
    answer: Answer,
    equals: Vec<usize>,
    newcomers: Vec<usize>,
    fallen: Vec<usize>,
}

impl Ranking {
    /// Works out near-equals and explorable candidates of an answer in order.
    pub fn new(answer: Answer) -> Self {
        let mut ranking = Self { answer, ..Self::default() };
        let Some(first) = ranking.answer.candidates.first() else { return ranking };
        let (best, standing) = (first.score, first.standing);
        for (index, candidate) in ranking.answer.candidates.iter().enumerate() {
            if candidate.is_near(standing, best) {
                ranking.equals.push(index);
            }
            // Whoever could not be as good as the best even by its own word is not worth a try.
            let worth_a_try = best - candidate.promised <= NEAR;
            let calls = candidate.estimate.successes + candidate.estimate.failures;
            match candidate.standing {
                _ if !worth_a_try => {}
                Standing::Unproven if calls < NEWCOMER_CALLS => ranking.newcomers.push(index),
                Standing::Unproven | Standing::Doubted if index > 0 => ranking.fallen.push(index),
                Standing::Proven | Standing::Unproven | Standing::Doubted => {}
            }
        }
        ranking
    }

    /// The answer.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// All candidates, best first.
    pub fn candidates(&self) -> &[Candidate] {
        &self.answer.candidates
    }

    /// The near-equals of the first candidate, itself among them, as indexes.
    pub fn equals(&self) -> &[usize] {
        &self.equals
    }

    /// Of whom too little is known although they may be as good as the first, as indexes.
    pub fn newcomers(&self) -> &[usize] {
        &self.newcomers
    }

    /// Who was found wanting but may have recovered, as indexes.
    pub fn fallen(&self) -> &[usize] {
        &self.fallen
    }
}

impl Candidate {
    /// Whether it is as good as one of this standing and score, as far as anybody can tell: what its trust may reach counts, since
    /// otherwise whoever was called first would be called for ever.
    pub fn is_near(&self, standing: Standing, score: f64) -> bool {
        self.standing == standing && score - self.plausible <= NEAR
    }
}
