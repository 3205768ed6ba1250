//! Whole nodes, as processes on this machine, seen through what a person or a script sees: the program and its API.
//!
//! One file per journey. Each test starts the nodes that it needs on ports that the system picks, so all may run at once.

#[path = "../support/mod.rs"]
mod support;

mod agents;
mod api_safety;
mod bad_agents;
mod bad_input;
mod bad_peers;
mod bench;
mod cancel;
mod cli;
mod contexts;
mod contexts_bounds;
mod contexts_branch;
mod contexts_checkpoint;
mod contexts_hostile;
mod contexts_partition;
mod contexts_sync;
mod contexts_task;
mod delegation;
mod directory;
mod faults;
mod hostile;
mod invocation;
mod join;
mod keys;
mod large;
mod launch;
mod node_config;
mod offers;
mod outbox;
mod overload;
mod priorities;
mod rate;
mod readme;
mod receipts;
mod recovery_copies;
mod recovery_damage;
mod recovery_disk;
mod recovery_executor;
mod recovery_index;
mod recovery_kill;
mod recovery_leftovers;
mod recovery_load;
mod recovery_plan;
mod routing;
mod streaming;
mod task_bad_input;
mod task_callbacks;
mod task_cli;
mod task_faults;
mod task_limits;
mod task_offers;
mod task_retries;
mod task_sizes;
mod task_types;
mod tasks;
mod turns;
