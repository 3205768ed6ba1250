use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rust_decimal::Decimal;

use super::*;
use crate::model::{Figure, Price, Source};
use crate::proto::directory::rank::{Candidate, Rejection, Weights};
use crate::proto::peers::trust::Outcome;
use crate::wire::directory::tests::{pulse, record};
use crate::wire::directory::{Capability, LIFETIME_MS_MAX, Wanted};
use crate::wire::{AgentKey, NodeKey, Signed};

// What is taken in.

#[test]
fn the_newest_sequence_wins() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));

    let verdict = state.on_record(record(&node(1), 1, 2, ms(0), &["acme.scan"]), at(0));

    assert_eq!(verdict, Verdict::Accept);
    assert_eq!(known(&state, "acme.scan"), [agent(1)]);
    assert_eq!(known(&state, "echo"), []);
}

#[test]
fn a_sequence_that_is_not_higher_never_replaces_one() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 5, ms(0), &["echo"]), at(0));

    for sequence in [0, 4, 5] {
        let verdict = state.on_record(record(&node(1), 1, sequence, ms(1), &["acme.scan"]), at(1));
        assert_eq!(verdict, Verdict::Ignore("known sequence"));
    }

    assert_eq!(state.entry(agent(1)).expect("known").record.sequence, 5);
    assert_eq!(known(&state, "acme.scan"), []);
}

#[test]
fn an_expired_record_is_ignored_and_blames_nobody() {
    let mut state = directory();
    let late = at(LIFETIME_MS_MAX / 1_000);
    assert_eq!(state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), late), Verdict::Ignore("expired"));
    assert!(state.is_empty());
}

#[test]
fn a_record_from_the_future_is_ignored_beyond_the_skew_of_clocks() {
    let mut state = directory();
    let skew = CLOCK_SKEW_MS_MAX;
    let ahead = record(&node(1), 1, 1, ms(0) + skew + 1, &["echo"]);
    assert_eq!(state.on_record(ahead, at(0)), Verdict::Ignore("issued in the future"));
    assert_eq!(state.on_record(record(&node(1), 1, 1, ms(0) + skew, &["echo"]), at(0)), Verdict::Accept);
}

#[test]
fn an_expired_agent_leaves_queries_routes_and_digest() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["text-analysis"]));
    state.changed_routes();
    state.drain();

    state.handle_tick(at(LIFETIME_MS_MAX / 1_000 - 1));
    assert_eq!(candidates(&state, "text-analysis"), [agent(1)]);
    state.handle_tick(at(LIFETIME_MS_MAX / 1_000));

    assert_eq!(candidates(&state, "text-analysis"), []);
    assert_eq!(candidates(&state, "text-processing"), []);
    let routes = state.changed_routes().expect("the routes changed");
    assert_eq!(routes.names().count(), 0);
    assert_eq!(*state.digest(), Digest::default());
    assert_eq!(state.drain(), [down(1)]);
}

/// Threat T6: four records of an agent at once, then one in thirty seconds.
#[test]
fn records_of_one_agent_come_in_a_burst_of_four_then_one_in_thirty_seconds() {
    let mut state = directory();
    let mut send = |sequence, second| state.on_record(record(&node(1), 1, sequence, ms(second), &["echo"]), at(second));
    let too_many = Verdict::Ignore("too many records of one agent");

    for sequence in 1..=4 {
        assert_eq!(send(sequence, 0), Verdict::Accept);
    }
    assert_eq!(send(5, 0), too_many);
    assert_eq!(send(5, 29), too_many);
    assert_eq!(send(5, 30), Verdict::Accept);
    assert_eq!(send(6, 30), too_many);
    assert_eq!(send(6, 60), Verdict::Accept);
}

#[test]
fn a_quiet_agent_may_send_a_whole_burst_again() {
    let mut state = directory();
    let mut send = |sequence, second| state.on_record(record(&node(1), 1, sequence, ms(second), &["echo"]), at(second));
    for sequence in 1..=4 {
        send(sequence, 0);
    }
    for sequence in 5..=8 {
        assert_eq!(send(sequence, 120), Verdict::Accept);
    }
    assert_ne!(send(9, 120), Verdict::Accept);
}

#[test]
fn one_node_hosts_sixty_four_agents_at_most() {
    let mut state = directory();
    for seed in 1..=64 {
        assert_eq!(state.on_record(record(&node(1), seed, 1, ms(0), &["echo"]), at(0)), Verdict::Accept);
    }

    let beyond = state.on_record(record(&node(1), 65, 1, ms(0), &["echo"]), at(0));
    let renewed = state.on_record(record(&node(1), 64, 2, ms(0), &["echo"]), at(0));

    assert_eq!(beyond, Verdict::Ignore("too many agents on one node"));
    assert_eq!(renewed, Verdict::Accept);
    assert_eq!(state.hosted_len(node(1).id()), AGENTS_PER_NODE_MAX);
}

#[test]
fn a_full_directory_ignores_newcomers_but_renews_known_agents() {
    let mut state = State::new(Config { records_max: 2, ..Config::new(node(HERE).id()) });
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    state.on_record(record(&node(2), 2, 1, ms(0), &["echo"]), at(0));

    assert_eq!(state.on_record(record(&node(3), 3, 1, ms(0), &["echo"]), at(0)), Verdict::Ignore("directory full"));
    assert_eq!(state.on_record(record(&node(1), 1, 2, ms(0), &["echo"]), at(0)), Verdict::Accept);
    assert_eq!(state.len(), 2);
}

#[test]
fn what_claims_to_come_from_this_node_is_ignored() {
    let mut state = directory();
    let own_record = record(&node(HERE), 1, 1, ms(0), &["echo"]);
    let own_pulse = pulse(&node(HERE), 1, ms(0), &[(1, true)]);
    assert_eq!(state.on_record(own_record, at(0)), Verdict::Ignore("own record"));
    assert_eq!(state.on_pulse(own_pulse, at(0)), Verdict::Ignore("own pulse"));
    assert!(state.is_empty());
}

#[test]
fn only_this_nodes_records_and_agents_are_its_own() {
    let mut state = directory();
    state.handle_own_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    assert!(state.is_empty());
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    state.handle_own_removed(agent(1));
    assert_eq!(state.len(), 1);
}

#[test]
fn an_agent_of_this_node_is_up_at_once_and_gone_when_removed() {
    let mut state = directory();

    state.handle_own_record(record(&node(HERE), 1, 1, ms(0), &["echo"]), at(0));
    assert_eq!(state.drain(), [up(1)]);
    assert_eq!(candidates(&state, "echo"), [agent(1)]);

    state.handle_own_removed(agent(1));
    assert_eq!(state.drain(), [down(1)]);
    assert!(state.is_empty());
}

#[test]
fn pulses_are_screened_like_records() {
    let mut state = directory();
    assert_eq!(
        state.on_pulse(pulse(&node(1), 1, ms(0), &[(1, true)]), at(0)),
        Verdict::Ignore("no agent of this node is known"),
        "nobody would be told"
    );
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));

    assert_eq!(state.on_pulse(pulse(&node(1), 5, ms(0), &[(1, true)]), at(0)), Verdict::Accept);
    for sequence in [4, 5] {
        assert_eq!(state.on_pulse(pulse(&node(1), sequence, ms(1), &[]), at(1)), Verdict::Ignore("known sequence"));
    }
    assert_eq!(state.on_pulse(pulse(&node(1), 6, ms(62), &[]), at(0)), Verdict::Ignore("issued in the future"));
    assert_eq!(state.on_pulse(pulse(&node(1), 6, ms(0), &[]), at(300)), Verdict::Ignore("expired"));
}

// Which nodes can be reached.

#[test]
fn a_new_host_is_dialled_once() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    assert_eq!(state.drain(), [dial(1)]);

    state.on_record(record(&node(1), 1, 2, ms(0), &["echo"]), at(0));
    state.on_record(record(&node(1), 2, 1, ms(0), &["echo"]), at(0));
    state.handle_tick(at(100));

    assert_eq!(state.drain(), []);
}

#[test]
fn a_host_is_no_candidate_until_it_is_connected() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    assert_eq!(rejections(&state, &asking(&["echo"])), [(agent(1), Rejection::Unreachable)]);
    assert_eq!((state.unproven_len(), state.unproven_hosts(&asking(&["custom"]))), (1, BTreeSet::from([node(1).id()])));
    state.drain();

    state.on_connected(node(1).id());

    assert_eq!(candidates(&state, "echo"), [agent(1)]);
    assert_eq!(state.drain(), [up(1)]);
    assert_eq!(state.unproven_len(), 0);
}

#[test]
fn a_record_of_a_node_that_is_connected_already_is_a_candidate_without_a_dial() {
    let mut state = directory();
    state.on_connected(node(1).id());
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    assert_eq!(state.drain(), [up(1)]);
    assert_eq!(candidates(&state, "echo"), [agent(1)]);
}

/// AOP-4: a dead node leaves routing with its connection.
#[test]
fn a_broken_connection_takes_the_agents_out_at_once() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    reachable(&mut state, record(&node(1), 2, 1, ms(0), &["echo"]));
    state.drain();

    state.on_disconnected(node(1).id(), false, at(1));

    assert_eq!(candidates(&state, "echo"), []);
    assert_eq!(rejections(&state, &asking(&["echo"])).len(), 2);
    assert_eq!(sorted(state.drain()), sorted(vec![down(1), down(2)]));
}

#[test]
fn a_node_closed_in_order_stays_a_candidate_and_is_not_dialled() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    state.drain();

    state.on_disconnected(node(1).id(), true, at(1));
    state.handle_tick(at(100));

    assert_eq!(candidates(&state, "echo"), [agent(1)]);
    assert_eq!(state.entry(agent(1)).expect("known").reach, Reach::Proven);
    assert_eq!(state.drain(), []);
}

#[test]
fn a_node_closed_in_order_that_cannot_be_dialled_again_is_out() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    state.on_disconnected(node(1).id(), true, at(1));
    state.drain();

    state.on_dial_failed(node(1).id(), at(2));

    assert_eq!(candidates(&state, "echo"), []);
    assert_eq!(state.drain(), [down(1)]);
}

#[test]
fn a_node_that_cannot_be_dialled_is_tried_again_with_growing_pauses() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    state.drain();

    let mut now = at(0);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        state.on_dial_failed(node(1).id(), now);
        let failed = now;
        while state.drain() != [dial(1)] {
            now = now.plus(Duration::from_millis(500));
            state.handle_tick(now);
        }
        pauses.push((now.mono - failed.mono).as_secs());
    }

    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_node_whose_connection_broke_is_dialled_soon_and_again_with_the_first_pause() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    state.on_disconnected(node(1).id(), false, at(10));
    state.drain();

    state.handle_tick(at(10).plus(Duration::from_millis(249)));
    assert_eq!(state.drain(), []);
    state.handle_tick(at(10).plus(Duration::from_millis(250)));
    assert_eq!(state.drain(), [dial(1)]);

    state.on_dial_failed(node(1).id(), at(11));
    state.handle_tick(at(12));
    assert_eq!(state.drain(), [dial(1)]);
}

#[test]
fn a_connection_makes_the_pauses_short_again() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    for second in 0..3 {
        state.on_dial_failed(node(1).id(), at(second));
    }
    state.on_connected(node(1).id());
    state.on_disconnected(node(1).id(), true, at(3));
    state.drain();

    state.on_dial_failed(node(1).id(), at(4));
    state.drain();
    state.handle_tick(at(5));

    assert_eq!(state.drain(), [dial(1)]);
}

#[test]
fn a_failed_dial_says_nothing_against_a_connection_that_stands() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    state.drain();
    state.on_dial_failed(node(1).id(), at(1));
    state.handle_tick(at(100));
    assert_eq!(candidates(&state, "echo"), [agent(1)]);
    assert_eq!(state.drain(), []);
}

#[test]
fn an_agent_that_moved_is_judged_by_its_new_node() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    state.drain();

    state.on_record(record(&node(2), 1, 2, ms(1), &["echo"]), at(1));

    assert_eq!(sorted(state.drain()), sorted(vec![dial(2), down(1)]));
    assert_eq!((state.hosted_len(node(1).id()), state.hosted_len(node(2).id())), (0, 1));
}

#[test]
fn a_node_whose_last_agent_moved_away_is_forgotten() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(0));
    state.on_record(record(&node(2), 1, 2, ms(1), &["echo"]), at(1));
    assert_eq!(state.unproven_len(), 1);
    assert_eq!(state.on_pulse(pulse(&node(1), 1, ms(1), &[]), at(1)), Verdict::Ignore("no agent of this node is known"));
}

// What nodes say of their agents.

#[test]
fn a_pulse_withdraws_an_agent_and_a_later_one_brings_it_back() {
    let mut state = two_agents_on_one_node();

    state.on_pulse(pulse(&node(1), 1, ms(1), &[(1, false), (2, true)]), at(1));
    assert_eq!(rejections(&state, &asking(&["echo"])), [(agent(1), Rejection::Unavailable)]);
    assert_eq!(state.drain(), [down(1)]);

    state.on_pulse(pulse(&node(1), 2, ms(2), &[(1, true), (2, true)]), at(2));
    assert_eq!(rejections(&state, &asking(&["echo"])), []);
    assert_eq!(state.drain(), [up(1)]);
}

#[test]
fn a_leaving_node_takes_all_its_agents_with_it() {
    let mut state = two_agents_on_one_node();
    state.on_pulse(leaving(&node(1), 1, ms(1), &[(1, true), (2, true)]), at(1));
    assert_eq!(candidates(&state, "echo"), []);
    assert_eq!(sorted(state.drain()), sorted(vec![down(1), down(2)]));
}

#[test]
fn an_agent_that_is_missing_from_the_pulse_has_been_removed() {
    let mut state = two_agents_on_one_node();
    state.on_pulse(pulse(&node(1), 1, ms(1), &[(2, true)]), at(1));
    assert_eq!(rejections(&state, &asking(&["echo"])), [(agent(1), Rejection::Unavailable)]);
}

#[test]
fn a_record_that_is_younger_than_the_pulse_is_not_missed_in_it() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(5), &["echo"]));
    state.on_pulse(pulse(&node(1), 1, ms(4), &[]), at(5));
    assert_eq!(candidates(&state, "echo"), [agent(1)]);
}

#[test]
fn a_pulse_that_is_older_than_the_record_withdraws_nobody() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(5), &["echo"]));
    state.on_pulse(pulse(&node(1), 1, ms(4), &[(1, false)]), at(5));
    assert_eq!(candidates(&state, "echo"), [agent(1)]);
}

#[test]
fn a_younger_record_brings_a_withdrawn_agent_back() {
    let mut state = two_agents_on_one_node();
    state.on_pulse(pulse(&node(1), 1, ms(5), &[(1, false), (2, true)]), at(5));
    state.drain();

    state.on_record(record(&node(1), 1, 2, ms(6), &["echo"]), at(6));

    assert_eq!(candidates(&state, "echo").len(), 2);
    assert_eq!(state.drain(), [up(1)]);
}

#[test]
fn a_record_that_the_pulse_knew_of_does_not_bring_a_withdrawn_agent_back() {
    let mut state = two_agents_on_one_node();
    state.on_pulse(pulse(&node(1), 1, ms(5), &[(1, false), (2, true)]), at(5));
    state.on_record(record(&node(1), 1, 2, ms(4), &["echo"]), at(6));
    assert_eq!(candidates(&state, "echo"), [agent(2)]);
}

#[test]
fn an_agent_whose_record_comes_after_the_pulse_that_withdrew_it_is_away() {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 2, 1, ms(0), &["echo"]));
    state.on_pulse(pulse(&node(1), 1, ms(5), &[(1, false), (2, true)]), at(5));

    state.on_record(record(&node(1), 1, 1, ms(0), &["echo"]), at(6));

    assert_eq!(rejections(&state, &asking(&["echo"])), [(agent(1), Rejection::Unavailable)]);
}

#[test]
fn a_pulse_tells_how_busy_an_agent_is() {
    let mut state = two_agents_on_one_node();
    let mut said = (*pulse(&node(1), 1, ms(1), &[(1, true), (2, true)])).clone();
    said.agents[0].in_flight = 3;
    said.agents[0].queued = 4;
    state.on_pulse(Signed::sign(said, &node(1), None).expect("a valid pulse"), at(1));
    let entry = state.entry(agent(1)).expect("known");
    assert_eq!((entry.in_flight, entry.queued), (3, 4));
}

// What this node saw itself.

#[test]
fn a_silent_node_is_out_until_its_suspicion_ends() {
    let mut state = two_agents_on_one_node();

    state.on_node_silent(node(1).id(), at(1));
    let suspects = BTreeMap::from([(agent(1), Rejection::Suspect), (agent(2), Rejection::Suspect)]);
    assert_eq!(reasons(ask(&state, &asking(&["echo"]))), suspects);
    assert_eq!(sorted(state.drain()), sorted(vec![down(1), down(2)]));

    state.handle_tick(at(10));
    assert_eq!(candidates(&state, "echo"), []);
    state.handle_tick(at(11));
    assert_eq!(candidates(&state, "echo").len(), 2);
    assert_eq!(sorted(state.drain()), sorted(vec![up(1), up(2)]));
}

#[test]
fn a_silent_node_is_back_when_it_connects_again() {
    let mut state = two_agents_on_one_node();
    state.on_node_silent(node(1).id(), at(1));
    state.on_disconnected(node(1).id(), false, at(1));
    state.drain();

    state.on_connected(node(1).id());

    assert_eq!(candidates(&state, "echo").len(), 2);
    assert_eq!(sorted(state.drain()), sorted(vec![up(1), up(2)]));
}

#[test]
fn the_suspicion_of_a_node_ends_while_it_hosts_nobody() {
    let mut state = directory();
    state.on_connected(node(1).id());
    state.on_node_silent(node(1).id(), at(0));
    state.handle_tick(at(10));
    state.on_record(record(&node(1), 1, 1, ms(10), &["echo"]), at(10));
    assert_eq!(candidates(&state, "echo"), [agent(1)]);
}

#[test]
fn a_success_ends_the_suspicion_of_an_agent() {
    let mut state = two_agents_on_one_node();
    state.on_agent_down(agent(1), at(1));
    assert_eq!(rejections(&state, &asking(&["echo"])), [(agent(1), Rejection::Suspect)]);
    assert_eq!(state.drain(), [down(1)]);
    state.on_success(agent(1));
    assert_eq!(state.drain(), [up(1)]);
}

#[test]
fn the_suspicion_of_an_agent_ends_by_itself() {
    let mut state = two_agents_on_one_node();
    state.on_agent_down(agent(1), at(1));
    state.drain();
    state.handle_tick(at(11));
    assert_eq!(state.drain(), [up(1)]);
}

#[test]
fn an_agent_that_its_node_calls_down_is_suspect_at_once() {
    let mut state = two_agents_on_one_node();
    state.on_agent_down(agent(1), at(1));
    assert_eq!(rejections(&state, &asking(&["echo"])), [(agent(1), Rejection::Suspect)]);
    assert_eq!(state.drain(), [down(1)]);
}

#[test]
fn a_pulse_or_record_that_shows_a_suspect_agent_clears_it() {
    for by_pulse in [true, false] {
        let mut state = two_agents_on_one_node();
        state.on_agent_down(agent(1), at(1));
        state.drain();
        if by_pulse {
            state.on_pulse(pulse(&node(1), 1, ms(2), &[(1, true), (2, true)]), at(2));
        } else {
            state.on_record(record(&node(1), 1, 2, ms(2), &["echo"]), at(2));
        }
        assert_eq!(state.drain(), [up(1)]);
    }
}

#[test]
fn what_happens_to_strangers_changes_nothing() {
    let mut state = directory();
    state.on_success(agent(1));
    state.on_agent_down(agent(1), at(0));
    state.on_node_silent(node(1).id(), at(0));
    state.on_dial_failed(node(1).id(), at(0));
    state.on_disconnected(node(1).id(), false, at(0));
    state.handle_own_removed(agent(1));
    state.handle_tick(at(100));
    assert_eq!(state.drain(), []);
    assert!(state.changed_routes().is_none());
}

// Comparing directories.

#[test]
fn a_newcomer_pulls_more_than_one_answer_holds() {
    let (mut full, mut empty) = (directory(), directory());
    let count = DIFFERENCES_MAX + 104;
    for record in crowd(count) {
        assert_eq!(full.on_record(record, at(0)), Verdict::Accept);
    }

    let (held, more) = full.differences(empty.digest());
    assert_eq!((held.len(), more), (DIFFERENCES_MAX, true));
    fetch(&mut empty, &full, &held);
    let (held, more) = full.differences(empty.digest());
    assert!(!more);
    fetch(&mut empty, &full, &held);

    assert_eq!(empty.len(), count);
    assert_eq!(empty.digest(), full.digest());
    assert_eq!(full.differences(empty.digest()), (Vec::new(), false));
}

#[test]
fn only_missing_and_older_records_are_fetched() {
    let mut state = directory();
    state.on_record(record(&node(1), 1, 5, ms(0), &["echo"]), at(0));
    state.on_record(record(&node(1), 2, 5, ms(0), &["echo"]), at(0));
    let held = [(agent(1), 5), (agent(2), 6), (agent(3), 1)];
    assert_eq!(state.missing(&held), [agent(2), agent(3)]);
}

#[test]
fn documents_come_with_the_latest_pulse_of_their_nodes() {
    let mut state = two_agents_on_one_node();
    let withdrawal = pulse(&node(1), 1, ms(1), &[(2, true)]);
    state.on_pulse(withdrawal.clone(), at(1));

    let (records, pulses) = state.documents(&[agent(1), agent(2), agent(9)]);

    assert_eq!(records.iter().map(|record| record.agent).collect::<Vec<_>>(), [agent(1), agent(2)]);
    assert_eq!(pulses.iter().map(|pulse| pulse.bytes()).collect::<Vec<_>>(), [withdrawal.bytes()]);
}

// Queries.

/// AMP-5: a query by name, and by what stands above it.
#[test]
fn names_find_themselves_and_ancestors_find_what_is_under_them() {
    let state = offering(vec![
        record(&node(HERE), 1, 1, ms(0), &["text-analysis.sentiment"]),
        record(&node(HERE), 2, 1, ms(0), &["text-analysis"]),
        record(&node(HERE), 3, 1, ms(0), &["acme.scan"]),
    ]);

    let matches = |name: &str| -> Vec<(AgentId, f64)> {
        let answer = ask(&state, &asking(&[name]));
        answer.candidates.iter().map(|candidate| (candidate.agent(), candidate.terms.r#match)).collect()
    };

    assert_eq!(matches("text-analysis.sentiment"), [(agent(1), 1.0)]);
    assert_eq!(matches("text-analysis"), [(agent(2), 1.0), (agent(1), 0.9)]);
    assert_eq!(matches("text-processing"), [(agent(2), 0.9), (agent(1), 0.9 * 0.9)]);
    assert_eq!(matches("acme"), [(agent(3), 0.9)]);
    assert_eq!(matches("custom"), []);
    assert_eq!(matches("text"), []);
}

#[test]
fn a_query_for_several_names_finds_whoever_offers_any() {
    let state = offering(vec![
        record(&node(HERE), 1, 1, ms(0), &["echo", "acme.scan"]),
        record(&node(HERE), 2, 1, ms(0), &["acme.scan"]),
        record(&node(HERE), 3, 1, ms(0), &["summarization"]),
    ]);
    let found = ask(&state, &asking(&["echo", "acme.scan"]));
    assert_eq!(found.candidates.iter().map(Candidate::agent).collect::<BTreeSet<_>>(), BTreeSet::from([agent(1), agent(2)]));
    assert_eq!(found.candidates.len(), 2);
}

#[test]
fn free_text_is_looked_for_in_names_and_descriptions() {
    let invoices = with(1, &["acme.scan"], |offered| offered.description = "Reads Invoices and receipts".to_owned());
    let state = offering(vec![invoices, record(&node(HERE), 2, 1, ms(0), &["echo"])]);
    let text = |text: &str| Query { capabilities: Vec::new(), text: Some(text.to_owned()), ..asking(&[]) };

    let fit = |query: &Query| -> Vec<(AgentId, f64)> {
        ask(&state, query).candidates.iter().map(|candidate| (candidate.agent(), candidate.terms.r#match)).collect()
    };

    assert_eq!(fit(&text("invoices")), [(agent(1), 1.0)]);
    assert_eq!(fit(&text("scan, photographs!")), [(agent(1), 0.5)]);
    assert_eq!(fit(&text("ECHO")), [(agent(2), 1.0)]);
    assert_eq!(fit(&text("weather")), []);
    assert_eq!(fit(&text("?!")), []);
}

/// MAOP-2: what an agent is best at can be searched for; what it says of its own worth puts it before nobody (threat T16).
#[test]
fn specializations_are_searched_and_a_claimed_score_counts_for_nothing() {
    let modest = with(1, &["acme.scan"], |offered| offered.claims.specializations = vec!["Invoices".to_owned()]);
    let boaster = with(2, &["acme.scan"], |offered| {
        offered.claims.score = Some(1.0);
        offered.claims.limitations = vec!["no invoices".to_owned()];
    });
    let state = offering(vec![modest, boaster]);
    let text = Query { capabilities: Vec::new(), text: Some("invoices".to_owned()), ..asking(&[]) };
    assert_eq!(ask(&state, &text).candidates.iter().map(Candidate::agent).collect::<Vec<_>>(), [agent(1)]);

    let scores: BTreeSet<u64> = ask(&state, &asking(&["acme.scan"])).candidates.iter().map(|found| found.score.to_bits()).collect();
    assert_eq!(scores.len(), 1, "the claim changes no score");
}

#[test]
fn text_beside_names_must_fit_too() {
    let invoices = with(1, &["acme.scan"], |offered| offered.description = "reads invoices".to_owned());
    let passports = with(2, &["acme.scan"], |offered| offered.description = "reads passports".to_owned());
    let state = offering(vec![invoices, passports]);
    let query = Query { text: Some("invoices please".to_owned()), ..asking(&["acme.scan"]) };
    let answer = ask(&state, &query);
    assert_eq!(answer.candidates.len(), 1);
    assert_eq!((answer.candidates[0].agent(), answer.candidates[0].terms.r#match), (agent(1), 0.75));
}

/// AMP-14: the newest version that will do is meant.
#[test]
fn a_version_requirement_chooses_among_versions() {
    let mut body = (*record(&node(HERE), 1, 1, ms(0), &["echo", "acme.scan"])).clone();
    body.capabilities[1] = Capability { version: "2.0".parse().expect("valid"), ..body.capabilities[0].clone() };
    let state = offering(vec![signed(body, HERE, 1)]);
    let meant = |version: Option<&str>| {
        let query = Query { version: version.map(|version| version.parse().expect("valid")), ..asking(&["echo"]) };
        let answer = ask(&state, &query);
        let versions: Vec<String> = answer.candidates.iter().filter_map(Candidate::capability).map(|c| c.version.to_string()).collect();
        (versions, answer.rejected.into_iter().map(|rejected| rejected.reason).collect::<Vec<_>>())
    };

    assert_eq!(meant(None), (vec!["2.0".to_owned()], vec![]));
    assert_eq!(meant(Some("^1.0")), (vec!["1.0".to_owned()], vec![]));
    assert_eq!(meant(Some("3")), (vec![], vec![Rejection::Version]));
}

/// AMP-5: max_latency_ms.
#[test]
fn max_latency_tests_measured_before_claimed_and_lets_the_unknown_pass() {
    let slow_by_word = with(1, &["echo"], |offered| offered.constraints.response_time_ms = Some(500));
    let slow_by_deed = with(2, &["echo"], |offered| offered.constraints.response_time_ms = Some(1));
    let state = offering(vec![slow_by_word, slow_by_deed, with(3, &["echo"], |_| ())]);
    let mut ledger = Ledger::new(10);
    ledger.handle_outcome(agent(2), &name("echo"), Outcome::Success { latency_ms: 300.0 }, Duration::ZERO);

    let mut query = asking(&["echo"]);
    query.constraints.max_latency_ms = Some(100.0);
    let answer = state.query(&query, &ledger, Duration::ZERO);

    assert_eq!(answer.candidates.iter().map(Candidate::agent).collect::<Vec<_>>(), [agent(3)]);
    assert_eq!(reasons(answer), BTreeMap::from([(agent(1), Rejection::Latency(500.0)), (agent(2), Rejection::Latency(300.0))]));
}

/// AMP-5: min_success_rate.
#[test]
fn min_success_rate_rejects_with_the_measured_rate_and_lets_strangers_pass() {
    let state = offering(vec![with(1, &["echo"], |_| ()), with(2, &["echo"], |_| ()), with(3, &["echo"], |_| ())]);
    let mut ledger = Ledger::new(10);
    fail(&mut ledger, 1, 20);
    succeed(&mut ledger, 2, 20);

    let mut query = asking(&["echo"]);
    query.constraints.min_success_rate = Some(0.9);
    let answer = state.query(&query, &ledger, Duration::ZERO);

    assert_eq!(answer.candidates.len(), 2);
    assert_eq!(reasons(answer), BTreeMap::from([(agent(1), Rejection::SuccessRate(0.0))]));
}

#[test]
fn one_failure_does_not_outlaw_a_sole_provider_by_its_success_rate() {
    let state = offering(vec![with(1, &["echo"], |_| ())]);
    let mut ledger = Ledger::new(10);
    fail(&mut ledger, 1, 1);
    let mut query = asking(&["echo"]);
    query.constraints.min_success_rate = Some(0.5);
    assert_eq!(state.query(&query, &ledger, Duration::ZERO).candidates.len(), 1);
}

/// AITP-5: min_trust tests the upper bound, so that one failure does not outlaw a sole provider.
#[test]
fn min_trust_tests_the_upper_bound() {
    let state = offering(vec![with(1, &["echo"], |_| ()), with(2, &["echo"], |_| ())]);
    let mut ledger = Ledger::new(10);
    fail(&mut ledger, 1, 1);
    fail(&mut ledger, 2, 20);
    let high = |seed| ledger.estimate(agent(seed), &name("echo"), Duration::ZERO).high;

    let mut query = asking(&["echo"]);
    query.constraints.min_trust = Some(50.0);
    let answer = state.query(&query, &ledger, Duration::ZERO);

    assert_eq!(answer.candidates.iter().map(Candidate::agent).collect::<Vec<_>>(), [agent(1)]);
    assert!(answer.candidates[0].estimate.trust < 50.0 && high(1) > 50.0);
    assert_eq!(reasons(answer), BTreeMap::from([(agent(2), Rejection::Trust(high(2)))]));
}

#[test]
fn max_cost_rejects_dearer_agents_with_their_price() {
    let state = offering(vec![priced(1, "2"), priced(2, "1"), with(3, &["echo"], |_| ())]);
    let mut query = asking(&["echo"]);
    query.constraints.max_cost = Some(Decimal::ONE);
    let answer = ask(&state, &query);
    assert_eq!(answer.candidates.iter().map(Candidate::agent).collect::<Vec<_>>(), [agent(3), agent(2)]);
    assert_eq!(reasons(answer), BTreeMap::from([(agent(1), Rejection::Cost(Decimal::TWO))]));
}

#[test]
fn a_language_must_be_supported_unless_any_is() {
    let english = with(1, &["echo"], |offered| offered.constraints.supported_languages = vec!["en".to_owned()]);
    let state = offering(vec![english, with(2, &["echo"], |_| ())]);
    let speaking = |language: &str| {
        let mut query = asking(&["echo"]);
        query.constraints.language = Some(language.to_owned());
        let answer = ask(&state, &query);
        (answer.candidates.len(), reasons(answer))
    };

    assert_eq!(speaking("EN"), (2, BTreeMap::new()));
    assert_eq!(speaking("de"), (1, BTreeMap::from([(agent(1), Rejection::Language)])));
}

#[test]
fn reasons_are_worded_for_people() {
    let reasons = [Rejection::Unreachable, Rejection::Latency(512.4), Rejection::Trust(11.6), Rejection::Cost(Decimal::TWO)];
    assert_eq!(
        reasons.map(|reason| reason.to_string()),
        [
            "its node cannot be reached from here",
            "latency of 512 ms is above max_latency_ms",
            "trust of at most 12 is below min_trust",
            "price of 2 is above max_cost"
        ]
    );
}

#[test]
fn an_answer_lists_a_bounded_number_of_rejections() {
    let mut state = directory();
    for record in crowd(100) {
        state.on_record(record, at(0));
    }
    assert_eq!(ask(&state, &asking(&["echo"])).rejected.len(), 64);
}

// Scores.

/// AITP-5: score = 0.3 match + 0.3 trust/100 + 0.2 (1 - latency/1000 ms) + 0.2 (1 - cost/max_cost).
#[test]
fn scores_are_the_weighted_sum_of_four_terms() {
    let claims = priced(1, "1");
    let known = with(2, &["echo.twice"], |offered| offered.constraints.response_time_ms = Some(10));
    let state = offering(vec![claims, known]);
    let mut ledger = Ledger::new(10);
    for _ in 0..8 {
        ledger.handle_outcome(agent(2), &name("echo.twice"), Outcome::Success { latency_ms: 250.0 }, Duration::ZERO);
    }

    let mut query = asking(&["echo"]);
    query.constraints.max_cost = Some(Decimal::from(4));
    let answer = state.query(&query, &ledger, Duration::ZERO);

    // Known: nine tenths of a match, only successes, 250 ms measured, free.
    let trust = ledger.estimate(agent(2), &name("echo.twice"), Duration::ZERO).trust / 100.0;
    assert!((0.85..0.9).contains(&trust), "{trust}");
    assert_close(answer.candidates[0].score, 0.3 * 0.9 + 0.3 * trust + 0.2 * 0.75 + 0.2 * 1.0);
    assert_eq!(answer.candidates[0].latency_ms, Some(Figure::measured(250.0)));
    // Claims: a full match, half trusted as a stranger, no latency known, a quarter of the highest price.
    assert_close(answer.candidates[1].score, 0.3 * 1.0 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.75);
    assert_eq!(answer.candidates[1].latency_ms, None);
}

#[test]
fn a_latency_that_only_the_agent_vouches_for_is_tagged_as_claimed() {
    let state = offering(vec![with(1, &["echo"], |offered| offered.constraints.response_time_ms = Some(200))]);
    let answer = ask(&state, &asking(&["echo"]));
    let figure = answer.candidates[0].latency_ms.expect("claimed");
    assert_eq!((figure.value, figure.source), (200.0, Source::Claimed));
    assert_close(answer.candidates[0].terms.latency, 0.8);
}

#[test]
fn without_a_bound_the_dearest_candidate_sets_the_scale_of_cost() {
    let state = offering(vec![priced(1, "4"), priced(2, "1"), with(3, &["echo"], |_| ())]);
    let answer = ask(&state, &asking(&["echo"]));
    let costs: Vec<(AgentId, f64)> = answer.candidates.iter().map(|c| (c.agent(), c.terms.cost)).collect();
    assert_eq!(costs, [(agent(3), 1.0), (agent(2), 0.75), (agent(1), 0.0)]);
}

#[test]
fn absurd_claims_stay_within_their_term() {
    let absurd = with(1, &["echo"], |offered| {
        offered.constraints.response_time_ms = Some(u64::MAX);
        offered.price = Some(price("1000000"));
    });
    let tempting = with(2, &["echo"], |offered| offered.constraints.response_time_ms = Some(0));
    let state = offering(vec![absurd, tempting]);

    let answer = ask(&state, &asking(&["echo"]));

    assert_eq!(answer.candidates.iter().map(Candidate::agent).collect::<Vec<_>>(), [agent(2), agent(1)]);
    assert_close(answer.candidates[0].score, 0.3 + 0.15 + 0.2 + 0.2);
    assert_close(answer.candidates[1].score, 0.3 + 0.15);
}

#[test]
fn weights_are_of_any_scale() {
    let state = offering(vec![priced(1, "4"), with(2, &["echo"], |_| ())]);
    let mut answer = ask(&state, &asking(&["echo"]));
    let only_match = Weights { r#match: 7.0, trust: 0.0, latency: 0.0, cost: 0.0 };
    rank::order(&mut answer.candidates, &only_match, None);
    assert_eq!(answer.candidates.iter().map(|candidate| candidate.score).collect::<Vec<_>>(), [1.0, 1.0]);
    let nothing = Weights { r#match: 0.0, trust: 0.0, latency: 0.0, cost: 0.0 };
    rank::order(&mut answer.candidates, &nothing, None);
    assert_eq!(answer.candidates.iter().map(|candidate| candidate.score).collect::<Vec<_>>(), [0.0, 0.0]);
}

proptest! {
    #![proptest_config(cases(128))]

    /// AITP-5: whatever is claimed and weighed, scores are 0 to 1 and the order is one and the same.
    #[test]
    fn scores_are_numbers_and_their_order_is_total(
        claims in prop::collection::vec((any::<Option<u64>>(), 0_u32..5, 0_u8..4, 0_u8..4), 1..6),
        weights in prop::array::uniform4(prop_oneof![Just(0.0), Just(f64::MIN_POSITIVE), 0.0..1e9_f64]),
        max_cost in prop::option::of(0_u32..5),
        rotation in 0_usize..6,
    ) {
        let mut ledger = Ledger::new(100);
        let mut records = Vec::new();
        for (index, (latency, cost, successes, failures)) in claims.iter().enumerate() {
            let seed = u8::try_from(index).expect("few") + 1;
            records.push(with(seed, &["echo"], |offered| {
                offered.constraints.response_time_ms = *latency;
                offered.price = (*cost > 0).then(|| price(&cost.to_string()));
            }));
            succeed(&mut ledger, seed, u32::from(*successes));
            fail(&mut ledger, seed, u32::from(*failures));
        }
        let [r#match, trust, latency, cost] = weights;
        let weights = Weights { r#match, trust, latency, cost };
        let max_cost = max_cost.map(Decimal::from);
        let mut candidates = offering(records).query(&asking(&["echo"]), &ledger, Duration::ZERO).candidates;
        let mut turned = candidates.clone();
        let middle = rotation % turned.len();
        turned.rotate_left(middle);

        rank::order(&mut candidates, &weights, max_cost);
        rank::order(&mut turned, &weights, max_cost);

        prop_assert!(candidates.iter().all(|candidate| (0.0..=1.0).contains(&candidate.score)));
        let before = |a: &Candidate, b: &Candidate| a.standing < b.standing || (a.standing == b.standing && a.score >= b.score);
        prop_assert!(candidates.windows(2).all(|pair| before(&pair[0], &pair[1])));
        prop_assert!(candidates.iter().all(|c| c.score <= c.plausible && c.plausible <= c.promised + 1e-9 && c.promised <= 1.0));
        let ids = |candidates: &[Candidate]| candidates.iter().map(Candidate::agent).collect::<Vec<_>>();
        prop_assert_eq!(ids(&candidates), ids(&turned));
    }

    #[test]
    fn two_directories_that_pull_from_each_other_become_equal(
        held in prop::collection::vec((1_u8..40, 1_u64..4, 0_u8..3), 0..40),
        away in prop::collection::vec((1_u8..5, 1_u64..4, 0_u8..3, 1_u8..40), 0..6),
    ) {
        let (mut a, mut b) = (directory(), directory());
        let sides = |side: u8| (side != 1, side != 0);
        for (seed, sequence, side) in held {
            let record = record(&node(1 + seed % 4), seed, sequence, ms(sequence), &["echo"]);
            let (in_a, in_b) = sides(side);
            if in_a { a.on_record(record.clone(), at(10)); }
            if in_b { b.on_record(record, at(10)); }
        }
        for (host, sequence, side, missing) in away {
            let said: Vec<(u8, bool)> = (1..40).filter(|seed| *seed != missing).map(|seed| (seed, seed % 3 != 0)).collect();
            let pulse = pulse(&node(host), sequence, ms(sequence), &said);
            let (in_a, in_b) = sides(side);
            if in_a { a.on_pulse(pulse.clone(), at(10)); }
            if in_b { b.on_pulse(pulse, at(10)); }
        }

        pull(&mut a, &b);
        pull(&mut b, &a);

        prop_assert!(a.digest() == b.digest());
        let held = |state: &State| state.entries().map(|entry| (entry.record.agent, entry.record.sequence)).collect::<Vec<_>>();
        prop_assert_eq!(held(&a), held(&b));
        prop_assert_eq!(a.differences(b.digest()), (Vec::new(), false));
    }

    /// AMP-5: whatever happens, the directory answers as a naive list of everything would.
    #[test]
    fn the_directory_agrees_with_a_naive_list(ops in prop::collection::vec(op(), 1..60)) {
        let mut state = State::new(Config { record_pause: Duration::ZERO, ..Config::new(node(HERE).id()) });
        let mut list = List::new();
        let mut routes = Routes::default();
        let mut now = at(0);
        for op in ops {
            let before = list.up();
            apply(&op, &mut state, &mut list, &mut now);
            list.forget_idle_nodes();
            let after = list.up();

            let events: Vec<Output> = state.drain().into_iter().filter(|output| matches!(output, Output::Event(_))).collect();
            let mut expected: Vec<Output> = after.difference(&before).map(|seed| up(*seed)).collect();
            expected.extend(before.difference(&after).map(|seed| down(*seed)));
            prop_assert_eq!(sorted(events), sorted(expected), "events of {:?}", op);

            routes = state.changed_routes().unwrap_or(routes);
            prop_assert_eq!(state.len(), list.agents.len());
            prop_assert_eq!(state.unproven_len(), list.nodes.iter().filter(|node| node.reach == Reach::Unproven).count());
            for asked in NAMES.iter().chain(&["text-processing", "acme", "custom"]) {
                let (candidates, rejected) = list.answer(asked);
                let query = asking(&[asked]);
                let answer = ask(&state, &query);
                let routed = routes.rank(&query, None, &Rules::default(), &Ledger::new(1), now.mono);
                let scored = |answer: &Answer| answer.candidates.iter().map(|c| (c.agent(), c.score)).collect::<Vec<_>>();
                prop_assert_eq!(scored(&answer), scored(&routed));
                prop_assert_eq!(&answer.rejected, &routed.rejected);
                prop_assert_eq!(answer.candidates.iter().map(Candidate::agent).collect::<BTreeSet<_>>(), candidates, "{} after {:?}", asked, op);
                prop_assert_eq!(reasons(answer), rejected, "{} after {:?}", asked, op);
            }
        }
        let mut rebuilt = State::new(Config::new(node(OBSERVER).id()));
        for known in &list.agents {
            rebuilt.on_record(known.record.clone(), now);
        }
        prop_assert!(state.digest() == rebuilt.digest());
    }
}

// The naive list: everything that was taken in, looked through from the beginning for each question.

const NAMES: [&str; 4] = ["text-analysis", "text-analysis.sentiment", "acme.scan", "echo"];
const AGENTS: u8 = 6;

#[derive(Debug, Clone)]
enum Op {
    Record { host: u8, seed: u8, sequence: u64, age_s: i64, names: u8 },
    Pulse { host: u8, sequence: u64, age_s: i64, leaving: bool, listed: u8, available: u8 },
    Removed { seed: u8 },
    Connected { host: u8 },
    Disconnected { host: u8, in_order: bool },
    DialFailed { host: u8 },
    Silent { host: u8 },
    Success { seed: u8 },
    Down { seed: u8 },
    Passed { seconds: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let host = || prop_oneof![1 => Just(HERE), 5 => 1_u8..4];
    let peer = || 1_u8..4;
    let seed = || 1..=AGENTS;
    let age = || prop_oneof![4 => -1_i64..20, 1 => Just(-60), 1 => Just(-61), 1 => 290_i64..302];
    prop_oneof![
        6 => (host(), seed(), 1_u64..8, age(), 1_u8..16)
            .prop_map(|(host, seed, sequence, age_s, names)| Op::Record { host, seed, sequence, age_s, names }),
        4 => (host(), 1_u64..8, age(), prop::bool::weighted(0.1), any::<u8>(), any::<u8>())
            .prop_map(|(host, sequence, age_s, leaving, listed, available)| Op::Pulse { host, sequence, age_s, leaving, listed, available }),
        1 => seed().prop_map(|seed| Op::Removed { seed }),
        4 => peer().prop_map(|host| Op::Connected { host }),
        2 => (peer(), any::<bool>()).prop_map(|(host, in_order)| Op::Disconnected { host, in_order }),
        1 => peer().prop_map(|host| Op::DialFailed { host }),
        1 => peer().prop_map(|host| Op::Silent { host }),
        1 => seed().prop_map(|seed| Op::Success { seed }),
        3 => seed().prop_map(|seed| Op::Down { seed }),
        3 => prop::sample::select(vec![0_u64, 1, 9, 10, 11, 100, 290]).prop_map(|seconds| Op::Passed { seconds }),
    ]
}

struct Listed {
    seed: u8,
    host: u8,
    record: Verified<Record>,
    suspect_until: Option<Duration>,
}

struct ListedNode {
    host: u8,
    reach: Reach,
    suspect_until: Option<Duration>,
    pulse: Option<Verified<Pulse>>,
}

struct List {
    agents: Vec<Listed>,
    nodes: Vec<ListedNode>,
}

impl List {
    fn new() -> Self {
        Self { agents: Vec::new(), nodes: vec![ListedNode { host: HERE, reach: Reach::Here, suspect_until: None, pulse: None }] }
    }

    fn node(&mut self, host: u8) -> Option<&mut ListedNode> {
        self.nodes.iter_mut().find(|node| node.host == host)
    }

    fn node_or_new(&mut self, host: u8) -> &mut ListedNode {
        if self.node(host).is_none() {
            self.nodes.push(ListedNode { host, reach: Reach::Unproven, suspect_until: None, pulse: None });
        }
        self.node(host).expect("just made")
    }

    fn agent(&mut self, seed: u8) -> Option<&mut Listed> {
        self.agents.iter_mut().find(|agent| agent.seed == seed)
    }

    fn forget_idle_nodes(&mut self) {
        let hosting: BTreeSet<u8> = self.agents.iter().map(|agent| agent.host).collect();
        self.nodes.retain(|node| hosting.contains(&node.host) || matches!(node.reach, Reach::Here | Reach::Connected));
    }

    fn why_not(&self, agent: &Listed) -> Option<Rejection> {
        let node = self.nodes.iter().find(|node| node.host == agent.host).expect("a node for each agent");
        let away = node.pulse.as_ref().is_some_and(|pulse| {
            let said = pulse.agents.iter().find(|said| said.agent == agent.record.agent);
            pulse.issued_at >= agent.record.issued_at && (pulse.leaving || !said.is_some_and(|said| said.available))
        });
        if away {
            Some(Rejection::Unavailable)
        } else if agent.suspect_until.is_some() || node.suspect_until.is_some() {
            Some(Rejection::Suspect)
        } else if matches!(node.reach, Reach::Unproven | Reach::Lost) {
            Some(Rejection::Unreachable)
        } else {
            None
        }
    }

    fn up(&self) -> BTreeSet<u8> {
        self.agents.iter().filter(|agent| self.why_not(agent).is_none()).map(|agent| agent.seed).collect()
    }

    fn answer(&self, asked: &str) -> (BTreeSet<AgentId>, BTreeMap<AgentId, Rejection>) {
        let (mut candidates, mut rejected) = (BTreeSet::new(), BTreeMap::new());
        for agent in &self.agents {
            if agent.record.capabilities.iter().any(|offered| offered.id.is_under(&name(asked))) {
                match self.why_not(agent) {
                    None => drop(candidates.insert(agent.record.agent)),
                    Some(reason) => drop(rejected.insert(agent.record.agent, reason)),
                }
            }
        }
        (candidates, rejected)
    }

    fn take_record(&mut self, host: u8, seed: u8, record: Verified<Record>) {
        self.agents.retain(|agent| agent.seed != seed);
        self.agents.push(Listed { seed, host, record, suspect_until: None });
        self.node_or_new(host);
    }

    fn take_pulse(&mut self, host: u8, pulse: Verified<Pulse>) {
        for agent in self.agents.iter_mut().filter(|agent| agent.host == host) {
            let said = pulse.agents.iter().find(|said| said.agent == agent.record.agent);
            if said.is_some_and(|said| said.available) && !pulse.leaving {
                agent.suspect_until = None;
            }
        }
        if let Some(node) = self.node(host) {
            node.pulse = Some(pulse);
        }
    }
}

fn timely_in_the_list(issued_at: Timestamp, expires_at: Timestamp, now: Now) -> bool {
    expires_at > now.wall && issued_at.as_ms() <= now.wall.as_ms() + CLOCK_SKEW_MS_MAX
}

fn apply(op: &Op, state: &mut State, list: &mut List, now: &mut Now) {
    let suspicion = now.mono + Duration::from_secs(10);
    let issued_ms = |age_s: i64| now.wall.as_ms().saturating_add_signed(-age_s * 1_000);
    match *op {
        Op::Record { host, seed, sequence, age_s, names } => {
            let names: Vec<&str> = NAMES.iter().enumerate().filter(|(at, _)| names & (1 << at) != 0).map(|(_, name)| *name).collect();
            // This node signs by its own clock.
            let age_s = if host == HERE { age_s.clamp(0, 20) } else { age_s };
            let record = record(&node(host), seed, sequence, issued_ms(age_s), &names);
            if host == HERE {
                state.handle_own_record(record.clone(), *now);
                list.take_record(host, seed, record);
                return;
            }
            let newer = list.agent(seed).is_none_or(|known| known.record.sequence < sequence);
            let good = newer && timely_in_the_list(record.issued_at, record.expires_at, *now);
            assert_eq!(state.on_record(record.clone(), *now) == Verdict::Accept, good);
            if good {
                list.take_record(host, seed, record);
            }
        }
        Op::Pulse { host, sequence, age_s, leaving: goes, listed, available } => {
            let said: Vec<(u8, bool)> =
                (1..=AGENTS).filter(|seed| listed & (1 << seed) != 0).map(|seed| (seed, available & (1 << seed) != 0)).collect();
            let pulse = if goes { leaving } else { pulse }(&node(host), sequence, issued_ms(age_s), &said);
            if host == HERE {
                state.handle_own_pulse(pulse.clone());
                list.take_pulse(host, pulse);
                return;
            }
            let newer = list.node(host).is_some_and(|node| node.pulse.as_ref().is_none_or(|known| known.sequence < sequence));
            let good = newer && timely_in_the_list(pulse.issued_at, pulse.expires_at, *now);
            assert_eq!(state.on_pulse(pulse.clone(), *now) == Verdict::Accept, good);
            if good {
                list.take_pulse(host, pulse);
            }
        }
        Op::Removed { seed } => {
            state.handle_own_removed(agent(seed));
            list.agents.retain(|agent| agent.seed != seed || agent.host != HERE);
        }
        Op::Connected { host } => {
            state.on_connected(node(host).id());
            let node = list.node_or_new(host);
            (node.reach, node.suspect_until) = (Reach::Connected, None);
            for agent in list.agents.iter_mut().filter(|agent| agent.host == host) {
                agent.suspect_until = None;
            }
        }
        Op::Disconnected { host, in_order } => {
            if let Some(known) = list.node(host).filter(|node| node.reach == Reach::Connected) {
                known.reach = if in_order { Reach::Proven } else { Reach::Lost };
                state.on_disconnected(node(host).id(), in_order, *now);
            }
        }
        Op::DialFailed { host } => {
            state.on_dial_failed(node(host).id(), *now);
            if let Some(node) = list.node(host).filter(|node| node.reach != Reach::Connected) {
                node.reach = Reach::Lost;
            }
        }
        Op::Silent { host } => {
            state.on_node_silent(node(host).id(), *now);
            if let Some(node) = list.node(host) {
                node.suspect_until = Some(suspicion);
            }
        }
        Op::Success { seed } => {
            state.on_success(agent(seed));
            if let Some(agent) = list.agent(seed) {
                agent.suspect_until = None;
            }
        }
        Op::Down { seed } => {
            state.on_agent_down(agent(seed), *now);
            if let Some(agent) = list.agent(seed) {
                agent.suspect_until = Some(suspicion);
            }
        }
        Op::Passed { seconds } => {
            *now = now.plus(Duration::from_secs(seconds));
            state.handle_tick(*now);
            list.agents.retain(|agent| agent.record.expires_at > now.wall);
            for agent in list.agents.iter_mut().filter(|agent| agent.suspect_until.is_some_and(|until| until <= now.mono)) {
                agent.suspect_until = None;
            }
            for node in list.nodes.iter_mut().filter(|node| node.suspect_until.is_some_and(|until| until <= now.mono)) {
                node.suspect_until = None;
            }
        }
    }
}

// Builders and matchers.

/// This node.
const HERE: u8 = 200;
/// A node that hosts nothing.
const OBSERVER: u8 = 201;
/// Where the wall clock stands when the process begins.
const WALL_MS: u64 = 1_700_000_000_000;

fn node(seed: u8) -> NodeKey {
    NodeKey::new(libp2p_identity::Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes"))
}

fn agent(seed: u8) -> AgentId {
    AgentKey::from_seed(&[seed; 32]).id()
}

fn at(second: u64) -> Now {
    Now { mono: Duration::ZERO, wall: Timestamp::from_ms(WALL_MS) }.plus(Duration::from_secs(second))
}

fn ms(second: u64) -> u64 {
    at(second).wall.as_ms()
}

fn name(text: &str) -> CapabilityName {
    text.parse().expect("a valid name")
}

fn directory() -> State {
    State::new(Config::new(node(HERE).id()))
}

fn offering(records: Vec<Verified<Record>>) -> State {
    let mut state = directory();
    for record in records {
        state.handle_own_record(record, at(0));
    }
    state
}

fn reachable(state: &mut State, record: Verified<Record>) {
    let node = record.node;
    assert_eq!(state.on_record(record, at(0)), Verdict::Accept);
    state.on_connected(node);
}

fn two_agents_on_one_node() -> State {
    let mut state = directory();
    reachable(&mut state, record(&node(1), 1, 1, ms(0), &["echo"]));
    reachable(&mut state, record(&node(1), 2, 1, ms(0), &["echo"]));
    state.drain();
    state
}

fn signed(body: Record, host: u8, seed: u8) -> Verified<Record> {
    Signed::sign(body, &node(host), Some(&AgentKey::from_seed(&[seed; 32]))).expect("a valid record")
}

fn with(seed: u8, names: &[&str], change: impl FnOnce(&mut Capability)) -> Verified<Record> {
    let mut body = (*record(&node(HERE), seed, 1, ms(0), names)).clone();
    change(&mut body.capabilities[0]);
    signed(body, HERE, seed)
}

fn price(amount: &str) -> Price {
    Price { amount: amount.parse().expect("a decimal"), currency: "USD".parse().expect("a currency"), unit: "request".to_owned() }
}

fn priced(seed: u8, amount: &str) -> Verified<Record> {
    with(seed, &["echo"], |offered| offered.price = Some(price(amount)))
}

fn crowd(count: usize) -> impl Iterator<Item = Verified<Record>> {
    let mut host = node(1);
    let body = (*record(&host, 1, 1, ms(0), &["echo"])).clone();
    (0..count).map(move |number| {
        if number % AGENTS_PER_NODE_MAX == 0 {
            host = node(1 + u8::try_from(number / AGENTS_PER_NODE_MAX).expect("few nodes"));
        }
        let key = AgentKey::from_seed(blake3::hash(&number.to_be_bytes()).as_bytes());
        let body = Record { agent: key.id(), node: host.id(), ..body.clone() };
        Signed::sign(body, &host, Some(&key)).expect("a valid record")
    })
}

fn leaving(node: &NodeKey, sequence: u64, issued_ms: u64, agents: &[(u8, bool)]) -> Verified<Pulse> {
    let body = Pulse { leaving: true, ..(*pulse(node, sequence, issued_ms, agents)).clone() };
    Signed::sign(body, node, None).expect("a valid pulse")
}

fn asking(names: &[&str]) -> Query {
    let capabilities = names.iter().map(|text| name(text)).collect();
    Query { capabilities, text: None, version: None, constraints: Wanted::default(), limit: 10 }
}

fn ask(state: &State, query: &Query) -> Answer {
    state.query(query, &Ledger::new(1), Duration::ZERO)
}

fn candidates(state: &State, name: &str) -> Vec<AgentId> {
    ask(state, &asking(&[name])).candidates.iter().map(Candidate::agent).collect()
}

fn known(state: &State, name: &str) -> Vec<AgentId> {
    let answer = ask(state, &asking(&[name]));
    answer.candidates.iter().map(Candidate::agent).chain(answer.rejected.iter().map(|rejected| rejected.agent)).collect()
}

fn rejections(state: &State, query: &Query) -> Vec<(AgentId, Rejection)> {
    ask(state, query).rejected.into_iter().map(|rejected| (rejected.agent, rejected.reason)).collect()
}

fn reasons(answer: Answer) -> BTreeMap<AgentId, Rejection> {
    answer.rejected.into_iter().map(|rejected| (rejected.agent, rejected.reason)).collect()
}

fn dial(seed: u8) -> Output {
    Output::Dial { node: node(seed).id(), addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()] }
}

fn up(seed: u8) -> Output {
    Output::Event(Event::AgentUp(agent(seed), "tester".to_owned()))
}

fn down(seed: u8) -> Output {
    Output::Event(Event::AgentDown(agent(seed), "tester".to_owned()))
}

fn sorted(mut outputs: Vec<Output>) -> Vec<Output> {
    outputs.sort_by_key(|output| format!("{output:?}"));
    outputs
}

fn succeed(ledger: &mut Ledger, seed: u8, times: u32) {
    for _ in 0..times {
        ledger.handle_outcome(agent(seed), &name("echo"), Outcome::Success { latency_ms: 10.0 }, Duration::ZERO);
    }
}

fn fail(ledger: &mut Ledger, seed: u8, times: u32) {
    for _ in 0..times {
        ledger.handle_outcome(agent(seed), &name("echo"), Outcome::Failure, Duration::ZERO);
    }
}

fn fetch(to: &mut State, from: &State, held: &[(AgentId, u64)]) {
    let (records, pulses) = from.documents(&to.missing(held));
    for record in records {
        assert_eq!(to.on_record((*record).clone(), at(10)), Verdict::Accept);
    }
    for pulse in pulses {
        to.on_pulse((*pulse).clone(), at(10));
    }
}

fn pull(to: &mut State, from: &State) {
    let (held, more) = from.differences(to.digest());
    assert!(!more, "all fit into one answer");
    fetch(to, from, &held);
}

fn assert_close(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-9, "{left} is not {right}");
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::with_cases(count) }
}
