//! One attached agent: who may have it work, how many wait, whether it is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::builtin;
use super::definition::{Checked, Offered};
use super::exchange::{Answer, Attached, Confirm, Health, Invocation, cancelled, off_workers, stopped, timed_out};
use super::http::HttpAgent;
use super::process::ProcessAgent;
use super::schema::{Fault, Schema};
use super::slots::{Permit, Place, Slots};
use super::task::{self, RunTasks};
use crate::model::{Adapter, AgentId, CapabilityName, ErrorCode, Failure, Priority};
use crate::wire::AgentKey;

/// What came of a call.
#[derive(Debug, Clone)]
pub struct Output {
    /// The output, as JSON text.
    pub payload: Bytes,
    /// Units of work to be paid for; one where the agent does not say.
    pub units: Option<Decimal>,
    /// What it wants to be written to the context that it was given, as JSON text.
    pub context_ops: Option<Bytes>,
    /// How long the agent worked.
    pub took: Duration,
}

/// Why a call came to no good end.
#[derive(Debug, Clone, PartialEq)]
pub struct Failed {
    /// Why.
    pub failure: Failure,
    /// Whether the agent may have begun.
    pub begun: bool,
}

enum Backend {
    Process(ProcessAgent),
    Http(HttpAgent),
    Builtin(&'static builtin::Builtin, Arc<builtin::Settings>),
    Task(Arc<dyn RunTasks>),
}

/// An agent that is attached to this node.
pub struct Agent {
    key: Arc<AgentKey>,
    checked: Checked,
    backend: Backend,
    slots: Slots,
    in_flight: Arc<AtomicU32>,
    queued: Arc<AtomicU32>,
    health: watch::Receiver<Health>,
    stopped: CancellationToken,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("name", &self.checked.definition.name).field("id", &self.id()).finish_non_exhaustive()
    }
}

/// Counts a call while it waits or runs.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A slot that is taken. It goes with the work: work that nobody waits for any more still takes its slot.
struct Working {
    _permit: Permit,
    _counted: Counted,
}

impl Agent {
    /// Attaches an agent: starts its processes or its health checks. `data_dir` is where processes run unless told otherwise, and
    /// `output_bytes_max` bounds what is read of an answer; `tasks` is who runs the tasks of an agent that does nothing else.
    pub fn start(
        key: Arc<AgentKey>,
        checked: Checked,
        data_dir: &std::path::Path,
        output_bytes_max: usize,
        tasks: Arc<dyn RunTasks>,
    ) -> Self {
        let stopped = CancellationToken::new();
        let (report, health) = watch::channel(Health::Up);
        let definition = &checked.definition;
        let slots = usize::try_from(definition.concurrency).unwrap_or(1);
        let attached = Attached { name: &definition.name, output_bytes_max, report, stop: stopped.clone() };
        let backend = match &definition.adapter {
            Adapter::Process { command, working_dir, pass_env } => {
                let folder = working_dir.as_deref().map_or(data_dir, std::path::Path::new);
                Backend::Process(ProcessAgent::start(attached, command, folder, pass_env, slots))
            }
            Adapter::Http { endpoint, health, token_file, token_env, allow_private } => {
                let token = super::http::Token::new(token_file.clone(), token_env.clone());
                Backend::Http(HttpAgent::start(attached, endpoint, health.clone(), token, *allow_private))
            }
            Adapter::Task {} => Backend::Task(tasks),
            Adapter::Builtin { kind, allow_files } => match builtin::find(kind) {
                Some(builtin) => {
                    let file_allow = allow_files.iter().map(Into::into).collect();
                    Backend::Builtin(builtin, Arc::new(builtin::Settings { file_allow, ..Default::default() }))
                }
                // `definition::check` refuses unknown kinds, so this agent could only come from a later version's store.
                None => {
                    let _ = attached.report.send(Health::Down(format!("this build has no builtin agent `{kind}`")));
                    Backend::Builtin(&builtin::echo::AGENT, Arc::default())
                }
            },
        };
        Self { key, checked, backend, slots: Slots::new(slots), in_flight: Arc::default(), queued: Arc::default(), health, stopped }
    }

    /// Its id.
    pub fn id(&self) -> AgentId {
        self.key.id()
    }

    /// The key that signs its records.
    pub fn key(&self) -> &AgentKey {
        &self.key
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.checked.definition.name
    }

    /// What its owner wrote.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// Whether it can be called.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Follows whether it can be called.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Calls that it works on, and calls that wait.
    pub fn load(&self) -> (u32, u32) {
        (self.in_flight.load(Ordering::Relaxed), self.queued.load(Ordering::Relaxed))
    }

    /// Detaches it: its processes end, its health is no longer checked, calls that run are failed.
    pub fn stop(&self) {
        self.stopped.cancel();
    }

    /// The capability that a call means: its name, in the newest version that will do.
    fn offered(&self, invocation: &Invocation) -> Option<&Offered> {
        let fits = |offered: &&Offered| {
            let capability = &offered.definition;
            let version = invocation.version.as_ref().is_none_or(|wanted| wanted.accepts(&capability.version));
            version && capability.id.is_under(&invocation.capability)
        };
        self.checked.offered.iter().filter(fits).max_by(|a, b| {
            let exact = |offered: &Offered| offered.definition.id == invocation.capability;
            exact(a).cmp(&exact(b)).then_with(|| a.definition.version.cmp(&b.definition.version))
        })
    }

    /// Has the agent do one call.
    ///
    /// # Errors
    /// Whatever keeps the call from a good end, and whether the agent may have begun by then.
    pub async fn invoke(&self, mut invocation: Invocation, cancel: &CancellationToken) -> Result<Output, Failed> {
        let mut begun = false;
        let result = self.invoke_inner(&mut invocation, cancel, &mut begun).await;
        result.map_err(|failure| Failed { failure, begun })
    }

    async fn invoke_inner(&self, invocation: &mut Invocation, cancel: &CancellationToken, begun: &mut bool) -> Result<Output, Failure> {
        self.check_up()?;
        let offered = self.offered(invocation).ok_or_else(|| {
            let message = format!("agent `{}` does not offer `{}` in a version that fits", self.name(), invocation.capability);
            Failure::new(ErrorCode::CapabilityNotFound, message)
        })?;
        // Bytes that go on unread must still be JSON, and an agent that takes anything gets nothing else.
        let input = off_workers(cost(offered.input.as_ref(), &invocation.input), || self.read_input(offered, &invocation.input))?;
        // A place that is kept for a caller who has yet to say its word can as well wait for the disk; any other is for who can begin.
        if invocation.confirm.is_none()
            && let Some(begun) = invocation.begun.take()
        {
            begun.await.map_err(unkept)?;
        }
        let line_max = usize::try_from(self.checked.definition.queue_len_max()).unwrap_or(usize::MAX);
        let permit = match self.slots.take(invocation.priority, line_max).map_err(|_| self.busy(invocation.priority))? {
            Place::Free(permit) => permit,
            Place::Waiting(place) => {
                let _waiting = Counted::new(&self.queued);
                let permit = Box::pin(self.wait_for_slot(place, invocation, cancel)).await?;
                // Whoever worked before may have taken the agent down; who only stood in line may still go elsewhere.
                self.check_up()?;
                permit
            }
        };
        if let Some(confirm) = invocation.confirm.take() {
            let kept = invocation.begun.take();
            Box::pin(self.confirm(confirm, kept, invocation, cancel)).await?;
            self.check_up()?;
        }
        *begun = true;
        let working = Working { _permit: permit, _counted: Counted::new(&self.in_flight) };
        let started = Instant::now();
        let answer = self.run(invocation, offered, input, working, cancel).await;
        let took = started.elapsed();
        let answer = answer?;
        let checked = off_workers(cost(offered.output.as_ref(), &answer.output), || check_output(self.name(), offered, &answer.output));
        // The work was done all the same, and may have to be paid for.
        let checked = checked.and_then(|()| check_ops(self.name(), invocation, &answer));
        checked.map_err(|failure| failure.with("units", answer.units.map(|units| units.to_string())))?;
        Ok(Output { payload: answer.output, units: answer.units, context_ops: answer.context_ops, took })
    }

    fn read_input(&self, offered: &Offered, text: &[u8]) -> Result<Input, Failure> {
        if self.reads_input(offered) {
            let value = read_json(text)?;
            check_input(offered, &value)?;
            return Ok(Input::Read(value));
        }
        read_json::<&RawValue>(text)?;
        check_depth(text)?;
        Ok(Input::Unread)
    }

    /// Whether anybody on this side looks into the input: a schema, a constraint, or a builtin agent other than `echo`.
    fn reads_input(&self, offered: &Offered) -> bool {
        let constraints = &offered.definition.constraints;
        let constrained = offered.input.is_some() || constraints.max_input_length.is_some() || !constraints.supported_languages.is_empty();
        let reads = match &self.backend {
            Backend::Builtin(builtin, _) => builtin.name != builtin::echo::AGENT.name,
            Backend::Task(_) => true,
            Backend::Process(_) | Backend::Http(_) => false,
        };
        constrained || reads
    }

    /// Waits for the caller's word and for the disk's, both at the same time.
    async fn confirm(
        &self,
        confirm: Confirm,
        begun: Option<oneshot::Receiver<()>>,
        invocation: &Invocation,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let _ = confirm.ready.send(());
        let words = async {
            confirm.go.await.map_err(|_| cancelled())?;
            match begun {
                Some(begun) => begun.await.map_err(unkept),
                None => Ok(()),
            }
        };
        tokio::select! {
            may = words => may,
            () = cancel.cancelled() => Err(cancelled()),
            () = self.stopped.cancelled() => Err(stopped(self.name())),
            () = tokio::time::sleep_until(invocation.deadline) => Err(timed_out(self.name())),
        }
    }

    fn check_up(&self) -> Result<(), Failure> {
        match &*self.health.borrow() {
            Health::Up => Ok(()),
            Health::Down(reason) => Err(Failure::new(ErrorCode::Unavailable, format!("agent `{}` is down: {reason}", self.name()))),
        }
    }

    fn busy(&self, priority: Priority) -> Failure {
        let definition = &self.checked.definition;
        let queue_max = definition.queue_len_max();
        let message = if queue_max == 0 {
            format!("agent `{}` works on {} calls, and none may wait (queue 0)", self.name(), definition.concurrency)
        } else {
            let places = usize::try_from(queue_max).unwrap_or(usize::MAX);
            priority.refused(&format!("of agent `{}`", self.name()), places, "wait") + " (its queue)"
        };
        Failure::new(ErrorCode::Busy, message).with("limit", queue_max).with("retry_after_ms", 100)
    }

    async fn wait_for_slot(
        &self,
        place: oneshot::Receiver<Result<Permit, super::slots::Full>>,
        invocation: &Invocation,
        cancel: &CancellationToken,
    ) -> Result<Permit, Failure> {
        tokio::select! {
            permit = place => permit.map_err(|_| stopped(self.name()))?.map_err(|_| self.busy(invocation.priority)),
            () = cancel.cancelled() => Err(cancelled()),
            () = self.stopped.cancelled() => Err(stopped(self.name())),
            () = tokio::time::sleep_until(invocation.deadline) => {
                Err(Failure::new(ErrorCode::Timeout, format!("no slot of agent `{}` came free in time", self.name())))
            }
        }
    }

    async fn run(
        &self,
        invocation: &Invocation,
        offered: &Offered,
        input: Input,
        working: Working,
        cancel: &CancellationToken,
    ) -> Result<Answer, Failure> {
        let capability = &offered.definition.id;
        match &self.backend {
            Backend::Process(process) => Box::pin(process.run(invocation, capability, working, cancel)).await,
            Backend::Http(http) => Box::pin(http.run(invocation, capability, cancel)).await,
            Backend::Task(runner) => {
                let input = match input {
                    Input::Read(value) => value,
                    Input::Unread => read_json(&invocation.input)?,
                };
                let currency = offered.definition.price.as_ref().map(|price| price.currency);
                let _working = working;
                Box::pin(task::run(self.name(), runner, invocation, input, currency, &self.stopped, cancel)).await
            }
            Backend::Builtin(builtin, settings) => match input {
                // Only `echo` gives back what nobody has read.
                Input::Unread => Ok(Answer::plain(invocation.input.clone(), None)),
                Input::Read(value) => {
                    let (name, deadline) = (capability.clone(), invocation.deadline);
                    Box::pin(run_builtin(builtin, settings, name, value, working, deadline, cancel)).await
                }
            },
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// The input of a call, as far as somebody has looked into it.
enum Input {
    Read(Value),
    Unread,
}

/// Levels of arrays and objects in an input that goes on unread: what a reader further on may choke on (threat T27).
const DEPTH_MAX: usize = 128;

fn unkept(_: oneshot::error::RecvError) -> Failure {
    Failure::new(ErrorCode::Unavailable, "the journal of the agent's node has stopped, and nothing begins that it does not know of")
}

/// Refuses JSON that is nested too deeply; the text is known to be JSON.
fn check_depth(text: &[u8]) -> Result<(), Failure> {
    // Nothing is nested more deeply than it has openings, and those are found much faster.
    if memchr::memchr2_iter(b'{', b'[', text).nth(DEPTH_MAX).is_none() {
        return Ok(());
    }
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => {
                depth += 1;
                if depth > DEPTH_MAX {
                    let failure = Failure::new(ErrorCode::InvalidRequest, "the input is nested too deeply").with("limit", DEPTH_MAX);
                    return Err(failure.with("path", "/"));
                }
            }
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

fn read_json<'a, T: serde::Deserialize<'a>>(text: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(text)
        .map_err(|error| Failure::new(ErrorCode::InvalidRequest, format!("the input is not JSON: {error}")).with("path", "/"))
}

async fn run_builtin(
    builtin: &'static builtin::Builtin,
    settings: &Arc<builtin::Settings>,
    capability: CapabilityName,
    input: Value,
    working: Working,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<Answer, Failure> {
    let settings = Arc::clone(settings);
    let work = tokio::task::spawn_blocking(move || {
        let _working = working;
        let output = (builtin.run)(capability.as_str(), &input, &settings)?;
        let text = serde_json::to_vec(&output.value).map_err(|error| builtin::Failure::Failed(error.to_string()))?;
        Ok((text, output.units))
    });
    let result = tokio::select! {
        done = work => done.map_err(|_| Failure::new(ErrorCode::AgentFailed, format!("builtin agent `{}` broke off", builtin.name)))?,
        () = cancel.cancelled() => return Err(cancelled()),
        () = tokio::time::sleep_until(deadline) => return Err(timed_out(builtin.name)),
    };
    match result {
        Ok((text, units)) => Ok(Answer::plain(text.into(), units)),
        Err(builtin::Failure::BadInput { path, message }) => Err(Failure::new(ErrorCode::InvalidSchema, message).with("path", path)),
        Err(builtin::Failure::Forbidden(message)) => Err(Failure::new(ErrorCode::AccessDenied, message)),
        Err(builtin::Failure::Failed(message)) => Err(Failure::new(ErrorCode::AgentFailed, message).retryable(false)),
    }
}

/// The failure for a value that does not match its schema.
pub fn schema_failure(what: &str, faults: &[Fault]) -> Failure {
    let listed: Vec<Value> = faults.iter().map(|fault| serde_json::json!({"path": fault.path, "message": fault.message})).collect();
    let (path, first) = faults.first().map(|fault| (fault.path.as_str(), fault.message.as_str())).unwrap_or_default();
    let failure = Failure::new(ErrorCode::InvalidSchema, format!("the {what} does not match its schema: {first} at {path}"));
    let failure = failure.with("path", path);
    if listed.len() > 1 { failure.with("faults", listed) } else { failure }
}

fn check_input(offered: &Offered, input: &Value) -> Result<(), Failure> {
    if let Some(schema) = &offered.input {
        schema.check(input).map_err(|faults| schema_failure("input", &faults))?;
    }
    let constraints = &offered.definition.constraints;
    if let Some(max) = constraints.max_input_length {
        let length = text_length(input);
        if length > max {
            let message = format!("the input holds {length} characters, `{}` takes at most {max}", offered.definition.id);
            return Err(Failure::new(ErrorCode::PayloadTooLarge, message).with("limit", max).with("path", "/"));
        }
    }
    let language = input.get("language").and_then(Value::as_str);
    let primary = |tag: &str| tag.split('-').next().unwrap_or_default().to_ascii_lowercase();
    let known = &constraints.supported_languages;
    if let Some(language) = language.filter(|language| !known.is_empty() && !known.iter().any(|tag| primary(tag) == primary(language))) {
        let message = format!("`{}` supports {}, not `{}`", offered.definition.id, known.join(", "), crate::model::printable(language, 20));
        return Err(Failure::new(ErrorCode::InvalidRequest, message).with("path", "/language").with("supported_languages", known.clone()));
    }
    Ok(())
}

/// What looking into a text comes to.
fn cost(schema: Option<&Schema>, text: &[u8]) -> usize {
    schema.map_or(text.len(), |schema| schema.cost(text.len()))
}

fn check_output(name: &str, offered: &Offered, output: &[u8]) -> Result<(), Failure> {
    let Some(schema) = &offered.output else { return Ok(()) };
    let output: Value = serde_json::from_slice(output)
        .map_err(|error| Failure::new(ErrorCode::AgentFailed, format!("the output of agent `{name}` is not JSON: {error}")))?;
    schema.check(&output).map_err(|faults| schema_failure(&format!("output of agent `{name}`"), &faults).retryable(true))
}

/// Nothing is lost without a word: whoever was given no context has none to write to.
fn check_ops(name: &str, invocation: &Invocation, answer: &Answer) -> Result<(), Failure> {
    if answer.context_ops.is_none() || invocation.context.is_some() {
        return Ok(());
    }
    let message = format!("agent `{name}` answered with context_ops, and was given no context");
    Err(Failure::new(ErrorCode::InvalidSchema, message).with("path", "/context_ops").retryable(true))
}

/// Characters in all strings of a value (AMP's `max_input_length`).
fn text_length(value: &Value) -> u64 {
    match value {
        Value::String(text) => u64::try_from(text.chars().count()).unwrap_or(u64::MAX),
        Value::Array(items) => items.iter().map(text_length).sum(),
        Value::Object(fields) => fields.values().map(text_length).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}
