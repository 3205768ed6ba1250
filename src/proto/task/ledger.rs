//! What a task has cost, may cost, and holds back for calls under way (AITP 7).
//!
//! What an attempt will probably cost is *reserved* before it is sent and settled when it ends, so that steps which run side by side
//! cannot spend the same money twice. Amounts are exact decimals of one currency. Invariants: what has been spent is the sum of the lines in
//! that currency; what is reserved and spent never exceeds the budget by a reservation; only an agent that bills more than was estimated can
//! exceed it, and then the task learns so. Which attempt is billed what is decided in `transitions::settle`.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use super::definition::Budget;
use crate::model::{AgentId, Currency};
use crate::wire::task::{Charge, Fence};

/// The unit of a bill that tells what a task within this one has spent.
pub const SPENT_UNIT: &str = "spent";

/// What stands for an attempt in the bill of whoever decomposed the goal, which is the work of no subtask.
pub(super) const PLAN: Fence = Fence { subtask: u32::MAX, attempt: 1 };

/// One line: what an attempt was billed.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Which attempt.
    pub fence: Fence,
    /// Who did it.
    pub agent: AgentId,
    /// What it is billed.
    pub charge: Charge,
    /// Whether its result came too late to be used.
    pub duplicate: bool,
    /// Whether nobody said what it cost: it was lost with all that it had been given, and may have spent that.
    pub assumed: bool,
}

/// Whether a reservation fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// It does.
    Covered,
    /// Not while others hold theirs; it may once they have settled for less.
    Later,
    /// It never will.
    Never,
}

/// The accounts of one task.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    budget: Option<Budget>,
    lines: Vec<Line>,
    spent: Decimal,
    reserved_by_subtask: BTreeMap<u32, Decimal>,
}

impl Ledger {
    /// Nothing spent yet.
    pub fn new(budget: Option<Budget>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// What may be spent in all.
    pub fn budget(&self) -> Option<Budget> {
        self.budget
    }

    /// Everything billed, in the order in which it came.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// What has been billed in all.
    pub fn spent(&self) -> Decimal {
        self.spent
    }

    /// What is left; below zero where agents billed more than was estimated.
    pub fn remaining(&self) -> Option<Decimal> {
        self.budget.map(|budget| budget.amount.saturating_sub(self.spent))
    }

    /// What one more attempt may cost now, with what others hold back left to them; `None` without a budget.
    pub fn free(&self) -> Option<Decimal> {
        let reserved: Decimal = self.reserved_by_subtask.values().fold(Decimal::ZERO, |sum, amount| sum.saturating_add(*amount));
        self.remaining().map(|remaining| remaining.saturating_sub(reserved))
    }

    /// Whether an attempt that probably costs `amount` may be sent.
    pub fn cover(&self, amount: Decimal) -> Cover {
        match (self.free(), self.remaining()) {
            // Who overdrew the budget did not make dear what costs nothing.
            _ if amount.is_zero() => Cover::Covered,
            (Some(free), _) if amount <= free => Cover::Covered,
            (Some(_), Some(remaining)) if amount <= remaining => Cover::Later,
            (Some(_), _) => Cover::Never,
            (None, _) => Cover::Covered,
        }
    }

    /// Holds back `amount` for a subtask, in place of what was held back for it before.
    pub(super) fn reserve(&mut self, subtask: u32, amount: Decimal) {
        if amount.is_zero() {
            self.reserved_by_subtask.remove(&subtask);
        } else {
            self.reserved_by_subtask.insert(subtask, amount);
        }
    }

    /// Gives back what was held back for a subtask, and tells how much that was.
    pub(super) fn release(&mut self, subtask: u32) -> Decimal {
        self.reserved_by_subtask.remove(&subtask).unwrap_or_default()
    }

    /// What is held back for a subtask.
    pub(super) fn reserved(&self, subtask: u32) -> Decimal {
        self.reserved_by_subtask.get(&subtask).copied().unwrap_or_default()
    }

    /// What amounts are in: the budget's currency, or that of the first bill where there is no budget.
    pub fn currency(&self) -> Option<Currency> {
        let billed = || self.lines.first().map(|line| line.charge.currency);
        self.budget.map(|budget| budget.currency).or_else(billed)
    }

    /// Bills an attempt. What is in another currency stands in its line and is not added up: nobody knows what it is worth.
    pub(super) fn bill(&mut self, line: Line) {
        if self.currency().is_none_or(|currency| currency == line.charge.currency) {
            self.spent = self.spent.saturating_add(line.charge.total);
        }
        self.lines.push(line);
    }

    /// Takes lines back that turned out otherwise, and gives them.
    pub(super) fn take_back(&mut self, is_meant: impl Fn(&Line) -> bool) -> Vec<Line> {
        if !self.lines.iter().any(&is_meant) {
            return Vec::new();
        }
        let (taken, kept) = std::mem::take(&mut self.lines).into_iter().partition(|line| is_meant(line));
        self.spent = Decimal::ZERO;
        let kept: Vec<Line> = kept;
        kept.into_iter().for_each(|line| self.bill(line));
        taken
    }

    /// What the lines of each subtask come to.
    pub fn spent_by_subtask(&self) -> BTreeMap<u32, Decimal> {
        let mut spent_by_subtask = BTreeMap::<u32, Decimal>::new();
        let currency = self.currency();
        for line in self.lines.iter().filter(|line| currency == Some(line.charge.currency)) {
            let spent = spent_by_subtask.entry(line.fence.subtask).or_default();
            *spent = spent.saturating_add(line.charge.total);
        }
        spent_by_subtask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dec(text: &str) -> Decimal {
        text.parse().expect("a number")
    }

    fn ledger(budget: &str) -> Ledger {
        Ledger::new(Some(Budget { amount: dec(budget), currency: "USD".parse().expect("a currency") }))
    }

    fn line(subtask: u32, total: &str) -> Line {
        let charge = Charge {
            units: Decimal::ONE,
            unit: "request".to_owned(),
            price: dec(total),
            currency: "USD".parse().expect("a currency"),
            total: dec(total),
        };
        Line { fence: Fence { subtask, attempt: 1 }, agent: AgentId::from_public_key([1; 32]), charge, duplicate: false, assumed: false }
    }

    /// AITP-10: the draft's own ledger, to the last digit.
    #[test]
    fn what_is_billed_is_added_up_exactly() {
        let mut ledger = ledger("10.00");
        ledger.bill(line(0, "0.001"));
        ledger.bill(line(1, "0.05000"));
        assert_eq!((ledger.spent(), ledger.remaining()), (dec("0.051"), Some(dec("9.949"))));
    }

    /// AITP-10: steps side by side cannot overspend together.
    #[test]
    fn what_is_reserved_cannot_be_reserved_again() {
        let mut ledger = ledger("1");
        assert_eq!(ledger.cover(dec("0.6")), Cover::Covered);
        ledger.reserve(0, dec("0.6"));
        assert_eq!(
            (ledger.cover(dec("0.4")), ledger.cover(dec("0.5")), ledger.cover(dec("1.1"))),
            (Cover::Covered, Cover::Later, Cover::Never)
        );
        ledger.release(0);
        ledger.bill(line(0, "0.1"));
        assert_eq!(ledger.cover(dec("0.5")), Cover::Covered);
        assert_eq!(ledger.cover(dec("0.95")), Cover::Never);
    }

    #[test]
    fn a_line_that_is_taken_back_is_not_spent() {
        let mut ledger = ledger("1");
        ["0.1", "0.2", "0.3"].iter().zip(0..).for_each(|(total, subtask)| ledger.bill(line(subtask, total)));
        let taken = ledger.take_back(|line| line.fence.subtask == 1);
        assert_eq!((taken.len(), ledger.lines().len(), ledger.spent()), (1, 2, dec("0.4")));
        assert_eq!(ledger.spent_by_subtask(), BTreeMap::from([(0, dec("0.1")), (2, dec("0.3"))]));
    }

    #[test]
    fn without_a_budget_everything_is_covered() {
        let mut ledger = Ledger::default();
        ledger.bill(line(0, "1000000"));
        assert_eq!((ledger.cover(dec("1000000")), ledger.free()), (Cover::Covered, None));
    }
}
