//! Offers: what an agent's node says to "could you do this, when, for how much", and what the asker makes of the answers (AMP-7).
//!
//! On the agent's side [`decide`] turns what the node knows of the agent (slots, queue, measured runs, price) into an offer or a refusal.
//! An agent is expected to begin when the calls before it are done, each as long as runs took here until now; where nothing was measured
//! the definition's own word stands in, and where there is none the offer does not say. Nothing is reserved: the next call may be faster.
//!
//! On the asker's side [`fault`] finds what no honest node answers, which its sender pays for, and [`order`] puts the best first. What
//! an offer promises is its author's word (threat T16): where this node has measured the agent itself, the slower of the two counts,
//! and the word of a stranger is worth half at most; and the proven come before strangers as in routing. So nobody is first by promising.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use crate::model::{AgentId, CapabilityName, ErrorCode};
use crate::proto::directory::rank::{Standing, Weights};
use crate::wire::directory::{Capability, Record};
use crate::wire::offer::{Inquiry, Offer, Offers, Refusal, SPAN_MS_MAX};

/// For how long an offer is good, in milliseconds: as long as nodes keep their loads to themselves between pulses.
const VALID_MS: u64 = 5_000;
/// How much one run changes what the next is expected to take.
const RUN_WEIGHT: f64 = 0.2;
/// The term of a stranger's promise, at most.
const PROMISE_MAX: f64 = 0.5;

/// How long runs of one agent and capability took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// What the next is expected to take, in milliseconds.
    pub mean_ms: f64,
    /// How many runs that rests on.
    pub runs: u32,
}

/// How long runs took on this node, by agent and capability. Bounded: who ran least makes room.
#[derive(Debug)]
pub struct Timings {
    timings_by_agent: BTreeMap<(AgentId, CapabilityName), Timing>,
    entries_max: usize,
}

impl Timings {
    /// An empty table of at most `entries_max` pairs of agent and capability.
    pub fn new(entries_max: usize) -> Self {
        Self { timings_by_agent: BTreeMap::new(), entries_max: entries_max.max(1) }
    }

    /// A run ended well after `took`.
    pub fn handle_run(&mut self, agent: AgentId, capability: &CapabilityName, took: Duration) {
        let key = (agent, capability.clone());
        if !self.timings_by_agent.contains_key(&key) && self.timings_by_agent.len() >= self.entries_max {
            let least = self.timings_by_agent.iter().min_by_key(|(_, timing)| timing.runs).map(|(key, _)| key.clone());
            least.and_then(|least| self.timings_by_agent.remove(&least));
        }
        let ms = took.as_secs_f64() * 1_000.0;
        let timing = self.timings_by_agent.entry(key).or_insert(Timing { mean_ms: ms, runs: 0 });
        timing.mean_ms += RUN_WEIGHT * (ms - timing.mean_ms);
        timing.runs = timing.runs.saturating_add(1);
    }

    /// What is known of one agent and capability.
    pub fn get(&self, agent: AgentId, capability: &CapabilityName) -> Option<Timing> {
        self.timings_by_agent.get(&(agent, capability.clone())).copied()
    }
}

/// One agent of the node that is asked, as it is now.
#[derive(Debug, Clone)]
pub struct Hosted<'a> {
    /// Who.
    pub agent: AgentId,
    /// What it offers.
    pub capabilities: Vec<&'a Capability>,
    /// Whether it takes calls.
    pub up: bool,
    /// How many it works on at once.
    pub slots: u32,
    /// How many it works on now.
    pub in_flight: u32,
    /// How many wait.
    pub queued: u32,
    /// How many may wait.
    pub queue_max: u32,
}

impl<'a> Hosted<'a> {
    /// The capability that is meant: the very one before those below it, then the newest version that will do.
    pub fn meant(&self, inquiry: &Inquiry) -> Option<&'a Capability> {
        let version_ok = |offered: &Capability| inquiry.version.as_ref().is_none_or(|wanted| wanted.accepts(&offered.version));
        let fits = self.capabilities.iter().filter(|offered| offered.id.is_under(&inquiry.capability) && version_ok(offered));
        fits.max_by_key(|offered| (offered.id == inquiry.capability, &offered.version)).copied()
    }
}

/// What one agent answers, or why it does not offer.
///
/// # Errors
/// The refusal, with the code that a call would meet.
pub fn decide(inquiry: &Inquiry, hosted: &Hosted<'_>, timings: &Timings) -> Result<Offer, Refusal> {
    let refuse = |code, reason: String| Err(Refusal::new(hosted.agent, code, reason));
    if !hosted.up {
        return refuse(ErrorCode::Unavailable, "it is down".to_owned());
    }
    let Some(meant) = hosted.meant(inquiry) else {
        return refuse(ErrorCode::CapabilityNotFound, format!("it does not offer `{}` in a version that fits", inquiry.capability));
    };
    if let Some(language) = inquiry.language.as_deref().filter(|language| !speaks(meant, language)) {
        return refuse(ErrorCode::InvalidRequest, format!("it does not support the language `{language}`"));
    }
    let free_slots = hosted.slots.saturating_sub(hosted.in_flight);
    if free_slots == 0 && hosted.queued >= hosted.queue_max {
        return refuse(ErrorCode::Busy, format!("it works on {} calls and {} more wait", hosted.in_flight, hosted.queued));
    }
    let timing = timings.get(hosted.agent, &meant.id);
    let measured_ms = timing.map(|timing| whole_ms(timing.mean_ms));
    let takes_ms = measured_ms.or(meant.constraints.response_time_ms).map(|ms| ms.min(SPAN_MS_MAX));
    let starts_in_ms = if free_slots > 0 { Some(0) } else { takes_ms.map(|takes| starts_in_ms(hosted, takes)) };
    let units = inquiry.units_of(meant.price.as_ref());
    let offer = Offer {
        agent: hosted.agent,
        capability: meant.id.clone(),
        version: meant.version.clone(),
        free_slots,
        queued: hosted.queued,
        starts_in_ms,
        takes_ms,
        runs: timing.map_or(0, |timing| timing.runs),
        price: meant.price.clone(),
        units,
        valid_ms: VALID_MS,
    };
    if let (Some(max), Some(cost)) = (inquiry.max_cost, offer.cost())
        && cost > max
    {
        return refuse(ErrorCode::OverBudget, format!("it costs {}, at most {} is offered", cost.normalize(), max.normalize()));
    }
    if let Some(deadline_ms) = inquiry.deadline_ms
        && earliest_ms(&offer) > deadline_ms
    {
        return refuse(ErrorCode::Timeout, format!("it would be done in {} ms, not within {deadline_ms} ms", earliest_ms(&offer)));
    }
    Ok(offer)
}

/// When it would be done if whatever it does not say took no time.
fn earliest_ms(offer: &Offer) -> u64 {
    offer.starts_in_ms.unwrap_or_default().saturating_add(offer.takes_ms.unwrap_or_default())
}

/// With every slot taken, one comes free each `takes / slots`; those who wait go first.
fn starts_in_ms(hosted: &Hosted<'_>, takes_ms: u64) -> u64 {
    let before = u64::from(hosted.queued).saturating_add(1);
    takes_ms.saturating_mul(before).div_ceil(u64::from(hosted.slots.max(1))).min(SPAN_MS_MAX)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a day before")]
fn whole_ms(ms: f64) -> u64 {
    ms.ceil().clamp(0.0, 86_400_000.0) as u64
}

/// As a call compares them: `en-GB` is English.
fn speaks(capability: &Capability, language: &str) -> bool {
    let primary = |tag: &str| tag.split('-').next().unwrap_or_default().to_ascii_lowercase();
    let known = &capability.constraints.supported_languages;
    known.is_empty() || known.iter().any(|tag| primary(tag) == primary(language))
}

/// What is wrong with an answer to `inquiry`, beyond what its bytes show: things that no honest node says.
pub fn fault(inquiry: &Inquiry, answer: &Offers) -> Option<&'static str> {
    let spoken: Vec<AgentId> =
        answer.offers.iter().map(|offer| offer.agent).chain(answer.refusals.iter().map(|refusal| refusal.agent)).collect();
    if spoken.iter().any(|agent| !inquiry.agents.contains(agent)) {
        return Some("an offer for an agent that was not asked");
    }
    if spoken.iter().collect::<BTreeSet<_>>().len() < spoken.len() {
        return Some("two offers for one agent");
    }
    answer.offers.iter().find_map(|offer| {
        let fits =
            offer.capability.is_under(&inquiry.capability) && inquiry.version.as_ref().is_none_or(|wanted| wanted.accepts(&offer.version));
        if !fits {
            return Some("an offer of something else");
        }
        if offer.units != inquiry.units_of(offer.price.as_ref()) {
            return Some("an offer for other units");
        }
        let dear = inquiry.max_cost.zip(offer.cost()).is_some_and(|(max, cost)| cost > max);
        let late = inquiry.deadline_ms.is_some_and(|deadline_ms| earliest_ms(offer) > deadline_ms);
        (dear || late).then_some("an offer beyond what was asked")
    })
}

/// What the asker knows of an agent by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// How sure it is that the agent is worth calling.
    pub standing: Standing,
    /// How well what it offers fits what was asked, 0 to 1.
    pub fit: f64,
    /// Trust, 0 to 1.
    pub trust: f64,
    /// How long calls took, as measured here, in milliseconds.
    pub measured_ms: Option<f64>,
}

/// An offer beside what the asker knows of its agent.
#[derive(Debug, Clone)]
pub struct Bid {
    /// What the asker knows.
    pub known: Known,
    /// What is offered.
    pub offer: Offer,
    /// How good that is, 0 to 1; filled in by [`order`].
    pub score: f64,
}

impl Bid {
    /// A bid, unless the offer names another price than the signed record that a call is billed by.
    ///
    /// # Errors
    /// The refusal that stands for it.
    pub fn new(record: &Record, known: Known, offer: Offer) -> Result<Self, Refusal> {
        let same = |capability: &&Capability| capability.id == offer.capability && capability.version == offer.version;
        if record.capabilities.iter().find(same).is_some_and(|recorded| recorded.price == offer.price) {
            return Ok(Self { known, offer, score: 0.0 });
        }
        Err(Refusal::new(offer.agent, ErrorCode::Conflict, "its offer names another price than its signed record"))
    }

    /// When it would be done, in milliseconds from now, as far as anybody can say: what this node measured outranks a quicker promise.
    pub fn completes_in_ms(&self) -> Option<f64> {
        let promised = self.offer.takes_ms.and_then(|ms| ms.to_f64());
        let takes = match (promised, self.known.measured_ms) {
            (Some(promised), Some(measured)) => Some(promised.max(measured)),
            (promised, measured) => promised.or(measured),
        };
        Some(self.offer.starts_in_ms?.to_f64()? + takes?)
    }
}

/// Scores the bids with the weights of routing and puts the best first: as in routing, standing comes before score. Equals stay in the
/// order of their ids. `span_ms` is the time in
/// which it must be done; what takes as long is worth nothing.
pub fn order(bids: &mut [Bid], weights: &Weights, max_cost: Option<Decimal>, span_ms: u64) {
    // Amounts of different currencies cannot be compared, so each has a dearest of its own.
    let mut dearest_by_currency = BTreeMap::new();
    for bid in bids.iter() {
        if let (Some(price), Some(cost)) = (&bid.offer.price, bid.offer.cost()) {
            let dearest = dearest_by_currency.entry(price.currency).or_insert(cost);
            *dearest = cost.max(*dearest);
        }
    }
    let span = span_ms.max(1).to_f64().unwrap_or(f64::MAX);
    let sum = (weights.r#match + weights.trust + weights.latency + weights.cost).max(f64::MIN_POSITIVE);
    for bid in bids.iter_mut() {
        let within = bid.completes_in_ms().map_or(0.0, |ms| (1.0 - ms / span).clamp(0.0, 1.0));
        let time = if bid.known.measured_ms.is_some() { within } else { within.min(PROMISE_MAX) };
        let ceiling = bid.offer.price.as_ref().and_then(|price| max_cost.or_else(|| dearest_by_currency.get(&price.currency).copied()));
        let share = bid.offer.cost().zip(ceiling).and_then(|(cost, ceiling)| cost.checked_div(ceiling)?.to_f64());
        let cost = share.map_or(1.0, |share| (1.0 - share).clamp(0.0, 1.0));
        let known = &bid.known;
        let score = weights.r#match * known.fit + weights.trust * known.trust + weights.latency * time + weights.cost * cost;
        bid.score = (score / sum).clamp(0.0, 1.0);
    }
    bids.sort_by(|a, b| {
        let by_standing = a.known.standing.cmp(&b.known.standing);
        by_standing.then_with(|| b.score.total_cmp(&a.score)).then_with(|| a.offer.agent.cmp(&b.offer.agent))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CapabilityVersion;
    use crate::wire::directory::tests::{node_key, record};
    use crate::wire::offer::tests::{inquiry, offer, price};
    use crate::wire::{AgentKey, encode};

    fn id(number: u8) -> AgentId {
        AgentKey::from_seed(&[number; 32]).id()
    }

    fn capability(id: &str) -> Capability {
        record(&node_key(), 1, 1, 1_000, &[id]).capabilities[0].clone()
    }

    /// An agent with two slots and room for four more calls.
    fn idle<'a>(capability: &'a Capability) -> Hosted<'a> {
        Hosted { agent: id(1), capabilities: vec![capability], up: true, slots: 2, in_flight: 0, queued: 0, queue_max: 4 }
    }

    fn timings(ms: u64) -> Timings {
        let mut timings = Timings::new(8);
        timings.handle_run(id(1), &"echo".parse().expect("valid"), Duration::from_millis(ms));
        timings
    }

    fn unmeasured() -> Timings {
        Timings::new(8)
    }

    /// AMP-7: free slots, the measured time and the price of what is estimated.
    #[test]
    fn an_idle_agent_offers_to_begin_at_once() {
        let mut echo = capability("echo");
        echo.price = Some(price("0.002", "token"));
        let mut asked = inquiry("echo", id(1));
        (asked.tokens, asked.deadline_ms) = (Some(1_500), Some(1_000));

        let offer = decide(&asked, &idle(&echo), &timings(40)).expect("an offer");

        assert_eq!((offer.free_slots, offer.starts_in_ms, offer.takes_ms, offer.runs), (2, Some(0), Some(40), 1));
        assert_eq!(offer.cost().map(|cost| cost.normalize().to_string()).as_deref(), Some("3"));
        assert_eq!(fault(&asked, &Offers { offers: vec![offer], refusals: Vec::new() }), None);
    }

    #[test]
    fn a_busy_agent_begins_when_those_before_are_done() {
        let echo = capability("echo");
        let mut hosted = idle(&echo);
        (hosted.in_flight, hosted.queued) = (2, 3);
        let offer = decide(&inquiry("echo", id(1)), &hosted, &timings(100)).expect("an offer");
        // Four go first or are this one, two at a time.
        assert_eq!((offer.free_slots, offer.queued, offer.starts_in_ms), (0, 3, Some(200)));
        let unknown = decide(&inquiry("echo", id(1)), &hosted, &unmeasured()).expect("an offer");
        assert_eq!((unknown.starts_in_ms, unknown.takes_ms, unknown.runs), (None, None, 0), "nobody can say");
    }

    #[test]
    fn the_definitions_word_stands_in_until_something_is_measured() {
        let mut echo = capability("echo");
        echo.constraints.response_time_ms = Some(10);
        let offer = |timings: Timings| decide(&inquiry("echo", id(1)), &idle(&echo), &timings).expect("an offer");
        assert_eq!((offer(unmeasured()).takes_ms, offer(unmeasured()).runs), (Some(10), 0));
        assert_eq!((offer(timings(700)).takes_ms, offer(timings(700)).runs), (Some(700), 1));
    }

    /// AMP-7: a refusal says why, with the code that the call would meet.
    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let mut echo = capability("echo");
        echo.price = Some(price("2", "document"));
        echo.constraints.supported_languages = vec!["en".to_owned()];
        type Change = fn(&mut Inquiry, &mut Hosted<'_>);
        let cases: [(Change, ErrorCode); 7] = [
            (|_, hosted| hosted.up = false, ErrorCode::Unavailable),
            (|asked, _| asked.capability = "other".parse().expect("valid"), ErrorCode::CapabilityNotFound),
            (|asked, _| asked.version = Some("^7".parse().expect("valid")), ErrorCode::CapabilityNotFound),
            (|asked, _| asked.language = Some("de".to_owned()), ErrorCode::InvalidRequest),
            (|_, hosted| (hosted.in_flight, hosted.queued) = (2, 4), ErrorCode::Busy),
            (|asked, _| (asked.units, asked.max_cost) = (Some(Decimal::TEN), Some(Decimal::new(199, 1))), ErrorCode::OverBudget),
            (|asked, _| asked.deadline_ms = Some(39), ErrorCode::Timeout),
        ];
        for (change, code) in cases {
            let (mut asked, mut hosted) = (inquiry("echo", id(1)), idle(&echo));
            (asked.language, asked.deadline_ms) = (Some("en-GB".to_owned()), Some(40));
            assert!(decide(&asked, &hosted, &timings(40)).is_ok());
            change(&mut asked, &mut hosted);
            let refusal = decide(&asked, &hosted, &timings(40)).expect_err("it cannot be");
            assert_eq!((refusal.code, refusal.reason.is_empty()), (code, false), "{refusal:?}");
        }
    }

    #[test]
    fn a_heading_means_the_newest_capability_below_it() {
        let (old, new) = (capability("text-analysis"), capability("text-analysis"));
        let new = Capability { version: "2.1".parse::<CapabilityVersion>().expect("valid"), ..new };
        let hosted = Hosted { capabilities: vec![&new, &old], ..idle(&old) };
        let offer = decide(&inquiry("text-processing", id(1)), &hosted, &unmeasured()).expect("an offer");
        assert_eq!((offer.capability.as_str(), offer.version.to_string().as_str()), ("text-analysis", "2.1"));
    }

    #[test]
    fn timings_follow_the_runs_and_keep_to_their_bound() {
        let name = |text: &str| text.parse::<CapabilityName>().expect("valid");
        let mut timings = Timings::new(2);
        for _ in 0..50 {
            timings.handle_run(id(1), &name("a"), Duration::from_millis(10));
        }
        timings.handle_run(id(2), &name("b"), Duration::from_secs(1));
        timings.handle_run(id(3), &name("c"), Duration::from_secs(1));
        assert_eq!(timings.get(id(2), &name("b")), None, "who ran least makes room");
        for _ in 0..50 {
            timings.handle_run(id(1), &name("a"), Duration::from_millis(200));
        }
        let timing = timings.get(id(1), &name("a")).expect("kept");
        assert!((190.0..=200.0).contains(&timing.mean_ms) && timing.runs == 100, "{timing:?}");
    }

    /// Threat T16: whatever no honest node says blames its sender.
    #[test]
    fn answers_to_another_question_are_faults() {
        let mut asked = inquiry("echo", id(1));
        (asked.deadline_ms, asked.max_cost) = (Some(1_000), Some(Decimal::ONE));
        let answer = |offer: Offer| Offers { offers: vec![offer], refusals: Vec::new() };
        let good = offer("echo", id(1));
        assert_eq!(fault(&asked, &answer(good.clone())), None);
        let lies: [fn(&mut Offer); 6] = [
            |offer| offer.agent = id(9),
            |offer| offer.capability = "other".parse().expect("valid"),
            |offer| offer.units = Decimal::TWO,
            |offer| offer.price = Some(price("2", "token")),
            |offer| offer.takes_ms = Some(1_001),
            |offer| (offer.starts_in_ms, offer.takes_ms) = (Some(1_001), None),
        ];
        for lie in lies {
            let mut offer = good.clone();
            lie(&mut offer);
            assert!(fault(&asked, &answer(offer)).is_some());
        }
        let refusal = Refusal::new(id(1), ErrorCode::Busy, "twice");
        assert!(fault(&asked, &Offers { offers: vec![good], refusals: vec![refusal.clone()] }).is_some());
        assert_eq!(fault(&asked, &Offers { offers: Vec::new(), refusals: vec![refusal] }), None);
    }

    #[test]
    fn an_offer_below_the_signed_price_is_no_offer() {
        let record = record(&node_key(), 1, 1, 1_000, &["echo"]);
        let known = Known { standing: Standing::Unproven, fit: 1.0, trust: 0.5, measured_ms: None };
        let (free, priced) = (Offer { price: None, ..offer("echo", id(1)) }, offer("echo", id(1)));
        assert!(Bid::new(&record, known, free).is_ok());
        assert_eq!(Bid::new(&record, known, priced).expect_err("the record says free").code, ErrorCode::Conflict);
    }

    fn bid(number: u8, trust: f64, measured_ms: Option<f64>, promised_ms: u64) -> Bid {
        let offer = Offer { price: None, takes_ms: Some(promised_ms), ..offer("echo", id(number)) };
        Bid { known: Known { standing: Standing::Unproven, fit: 1.0, trust, measured_ms }, offer, score: 0.0 }
    }

    /// Threat T16: a promise is worth half of a measurement at most.
    #[test]
    fn nobody_is_first_by_promising() {
        let mut bids = [bid(1, 0.5, None, 1), bid(2, 0.5, Some(400.0), 400), bid(3, 0.5, Some(900.0), 1)];
        order(&mut bids, &Weights::default(), None, 1_000);
        let agents: Vec<AgentId> = bids.iter().map(|bid| bid.offer.agent).collect();
        assert_eq!(agents, [id(2), id(1), id(3)], "measured and quick, then a stranger, then a known liar");
        bids[2].known.standing = Standing::Proven;
        order(&mut bids, &Weights::default(), None, 1_000);
        assert_eq!(bids[0].offer.agent, id(3), "who is slow and proven, before those of whom nobody knows anything");
    }

    #[test]
    fn the_cheaper_of_equals_is_first_and_currencies_are_not_mixed() {
        let priced = |number: u8, amount: &str, currency: &str| {
            let mut bid = bid(number, 0.5, None, 10);
            let price = crate::model::Price { currency: currency.parse().expect("a currency"), ..price(amount, "token") };
            bid.offer.price = Some(price);
            bid
        };
        let mut bids = [priced(1, "5", "USD"), priced(2, "1", "USD"), priced(3, "1", "JPY")];
        order(&mut bids, &Weights::default(), None, 1_000);
        assert_eq!(bids[0].offer.agent, id(2));
        assert_eq!(bids.iter().find(|bid| bid.offer.agent == id(3)).map(|bid| bid.score), Some(bids[2].score), "the dearest of its kind");
    }

    proptest::proptest! {
        /// AMP-7: an offer keeps to what was asked, fits on the wire, and is taken by the one who asked.
        #[test]
        fn whatever_is_offered_can_be_taken(
            slots in 1_u32..100, in_flight in 0_u32..200, queued in 0_u32..u32::MAX, took_ms in 0_u64..1_000_000_000,
            tokens in proptest::option::of(1_u64..1_000_000_000_000), deadline_ms in proptest::option::of(1_u64..=SPAN_MS_MAX),
            max_cost in proptest::option::of(0_u32..1_000), amount in 0_u32..1_000_000, claimed in proptest::option::of(0_u64..u64::MAX),
        ) {
            let mut echo = capability("echo");
            echo.price = Some(price(&format!("0.{amount:06}"), "token"));
            echo.constraints.response_time_ms = claimed;
            let hosted = Hosted { slots, in_flight, queued, queue_max: u32::MAX, ..idle(&echo) };
            let mut asked = inquiry("echo", id(1));
            (asked.tokens, asked.deadline_ms, asked.max_cost) = (tokens, deadline_ms, max_cost.map(Decimal::from));
            let timings = if claimed.is_some() { unmeasured() } else { timings(took_ms) };

            let mut answer = Offers::default();
            match decide(&asked, &hosted, &timings) {
                Ok(offer) => answer.offers.push(offer),
                Err(refusal) => answer.refusals.push(refusal),
            }

            proptest::prop_assert!(encode(&answer).is_ok());
            proptest::prop_assert_eq!(fault(&asked, &answer), None);
        }

        #[test]
        fn scores_are_shares_and_the_order_is_total(measured in proptest::collection::vec(proptest::option::of(0.0_f64..1e12), 0..20), span_ms in 0_u64..=SPAN_MS_MAX) {
            let mut bids: Vec<Bid> = (1..).zip(&measured).map(|(number, ms)| bid(number, 0.5, *ms, 7)).collect();
            order(&mut bids, &Weights::default(), None, span_ms);
            proptest::prop_assert!(bids.iter().all(|bid| (0.0..=1.0).contains(&bid.score)));
            proptest::prop_assert!(bids.windows(2).all(|pair| pair[0].score >= pair[1].score));
        }
    }
}
