//! Who does it best: filter, score and order candidates (AITP-5, design.md section 5).
//!
//! score = 0.3 match + 0.3 trust/100 + 0.2 (1 - latency/1000 ms) + 0.2 (1 - cost/max_cost), each term clamped to 0..1, so that nobody
//! can push another below zero or above one by an absurd claim. Measured figures come before claimed ones; where nothing is known the
//! term is a neutral half. `min_trust` tests the upper end of the confidence interval. The same ranking answers `find` and routes calls.

use std::fmt;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::state::{Availability, Entry, Reach};
use crate::model::{AgentId, CapabilityName, Figure};
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
    /// It, or its node, failed moments ago.
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
    /// It already failed within this call.
    Tried,
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
            Self::Tried => f.write_str("it already failed in this call"),
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
    pub entry: Entry,
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
    pub(super) fn reject(&mut self, entry: &Entry, reason: Rejection) {
        if self.rejected.len() < REJECTED_MAX {
            self.rejected.push(Rejected { agent: entry.record.agent, name: entry.record.name.clone(), reason });
        }
    }
}

/// How well `capability` fits `query`, 0 to 1: the name itself, a name under what was asked, or words of the text. `None`: not at all.
pub fn fit(capability: &Capability, query: &Query) -> Option<f64> {
    let by_name = query.capabilities.iter().filter_map(|asked| fit_name(&capability.id, asked)).max_by(f64::total_cmp);
    let by_text = query.text.as_deref().map(|text| fit_text(capability, text)).filter(|fit| *fit > 0.0);
    match (query.capabilities.is_empty(), query.text.is_some()) {
        (false, false) => by_name,
        (true, _) => by_text,
        (false, true) => by_name.zip(by_text).map(|(name, text)| (name + text) / 2.0),
    }
}

fn fit_name(offered: &CapabilityName, asked: &CapabilityName) -> Option<f64> {
    if offered == asked {
        return Some(1.0);
    }
    let steps = offered.ancestors().iter().position(|above| above == asked)?;
    Some(0.9_f64.powi(i32::try_from(steps).unwrap_or(i32::MAX).saturating_add(1)))
}

fn fit_text(capability: &Capability, text: &str) -> f64 {
    let offered = format!("{} {}", capability.id, capability.description).to_lowercase();
    let lowered = text.to_lowercase();
    let words: Vec<&str> = lowered.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 1).collect();
    if words.is_empty() {
        return 0.0;
    }
    let found = words.iter().filter(|word| offered.contains(*word)).count();
    ratio(found, words.len())
}

#[expect(clippy::cast_precision_loss, reason = "counts of words are small")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// Judges one capability of one agent against `query`; the cost term is filled in by [`order`], which knows the dearest candidate.
///
/// # Errors
/// The reason why this agent will not do.
pub fn judge(entry: &Entry, capability: usize, fit: f64, query: &Query, estimate: Estimate) -> Result<Candidate, Rejection> {
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
    let latency_ms = estimate.latency_ms.map(Figure::measured).or(claimed);
    let candidate = Candidate {
        entry: entry.clone(),
        capability,
        score: 0.0,
        terms: Terms {
            r#match: fit.clamp(0.0, 1.0),
            trust: (estimate.trust / 100.0).clamp(0.0, 1.0),
            latency: latency_ms.map_or(NEUTRAL, |figure| (1.0 - figure.value / LATENCY_MS_WORST).clamp(0.0, 1.0)),
            cost: 1.0,
        },
        estimate,
        latency_ms,
    };
    constrain(&candidate, offered, &query.constraints)?;
    Ok(candidate)
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

/// Fills in cost and score and puts the best first; equals stay in the order of their ids.
pub fn order(candidates: &mut [Candidate], weights: &Weights, max_cost: Option<Decimal>) {
    let dearest = candidates.iter().map(Candidate::price).max().unwrap_or_default();
    let ceiling = max_cost.unwrap_or(dearest);
    let sum = (weights.r#match + weights.trust + weights.latency + weights.cost).max(f64::MIN_POSITIVE);
    for candidate in candidates.iter_mut() {
        let share = candidate.price().checked_div(ceiling).and_then(|share| share.to_f64());
        candidate.terms.cost = share.map_or(1.0, |share| (1.0 - share).clamp(0.0, 1.0));
        let terms = &candidate.terms;
        let score =
            weights.r#match * terms.r#match + weights.trust * terms.trust + weights.latency * terms.latency + weights.cost * terms.cost;
        candidate.score = (score / sum).clamp(0.0, 1.0);
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.agent().cmp(&b.agent())));
}
