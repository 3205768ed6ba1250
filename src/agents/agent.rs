//! One attached agent: who may have it work, how many wait, whether it is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::builtin;
use super::definition::{Checked, Offered};
use super::exchange::{Answer, Health, Invocation, cancelled, stopped, timed_out};
use super::http::HttpAgent;
use super::process::ProcessAgent;
use super::schema::Fault;
use crate::model::{Adapter, AgentId, CapabilityName, ErrorCode, Failure};
use crate::wire::AgentKey;

/// What came of a call.
#[derive(Debug, Clone)]
pub struct Output {
    /// The output, as JSON text.
    pub payload: Bytes,
    /// Units of work to be paid for; one where the agent does not say.
    pub units: Option<Decimal>,
    /// How long the agent worked.
    pub took: Duration,
}

enum Backend {
    Process(ProcessAgent),
    Http(HttpAgent),
    Builtin(&'static builtin::Builtin, Arc<builtin::Settings>),
}

/// An agent that is attached to this node.
pub struct Agent {
    key: Arc<AgentKey>,
    checked: Checked,
    backend: Backend,
    slots: Arc<Semaphore>,
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
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Agent {
    /// Attaches an agent: starts its processes or its health checks. `data_dir` is where processes run unless told otherwise.
    pub fn start(key: Arc<AgentKey>, checked: Checked, data_dir: &std::path::Path) -> Self {
        let stopped = CancellationToken::new();
        let (report, health) = watch::channel(Health::Up);
        let definition = &checked.definition;
        let slots = usize::try_from(definition.concurrency).unwrap_or(1);
        let backend = match &definition.adapter {
            Adapter::Process { command, working_dir, pass_env } => {
                let folder = working_dir.as_deref().map_or(data_dir, std::path::Path::new);
                Backend::Process(ProcessAgent::start(&definition.name, command, folder, pass_env, slots, report, stopped.clone()))
            }
            Adapter::Http { endpoint, health, token_file, token_env, allow_private } => {
                let token = super::http::Token::new(token_file.clone(), token_env.clone());
                Backend::Http(HttpAgent::start(&definition.name, endpoint, health.clone(), token, *allow_private, report, stopped.clone()))
            }
            Adapter::Builtin { kind, allow_files } => match builtin::find(kind) {
                Some(builtin) => {
                    let file_allow = allow_files.iter().map(Into::into).collect();
                    Backend::Builtin(builtin, Arc::new(builtin::Settings { file_allow, ..Default::default() }))
                }
                // `definition::check` refuses unknown kinds, so this agent could only come from a later version's store.
                None => {
                    let _ = report.send(Health::Down(format!("this build has no builtin agent `{kind}`")));
                    Backend::Builtin(&builtin::echo::AGENT, Arc::default())
                }
            },
        };
        Self {
            key,
            checked,
            backend,
            slots: Arc::new(Semaphore::new(slots)),
            in_flight: Arc::default(),
            queued: Arc::default(),
            health,
            stopped,
        }
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

    /// Has the agent do one call. `accepted` is told once the call has its place, from which on it may have effects.
    ///
    /// # Errors
    /// Whatever keeps the call from a good end. Nothing was done if `accepted` was not told.
    pub async fn invoke(
        &self,
        invocation: Invocation,
        accepted: Option<oneshot::Sender<()>>,
        cancel: &CancellationToken,
    ) -> Result<Output, Failure> {
        self.check_up()?;
        let offered = self.offered(&invocation).ok_or_else(|| {
            let message = format!("agent `{}` does not offer `{}` in a version that fits", self.name(), invocation.capability);
            Failure::new(ErrorCode::CapabilityNotFound, message)
        })?;
        // Bytes that go on unread must still be JSON, and an agent that takes anything gets nothing else.
        let input: Value = serde_json::from_slice(&invocation.input)
            .map_err(|error| Failure::new(ErrorCode::InvalidRequest, format!("the input is not JSON: {error}")).with("path", "/"))?;
        check_input(offered, &input)?;
        let permit = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = self.wait_in_line()?;
                let permit = self.wait_for_slot(&invocation, cancel).await?;
                // Whoever worked before may have taken the agent down; who only stood in line may still go elsewhere.
                self.check_up()?;
                permit
            }
        };
        tell(accepted);
        let working = Working { _permit: permit, _counted: Counted::new(&self.in_flight) };
        let started = Instant::now();
        let answer = self.run(&invocation, offered, input, working, cancel).await;
        let took = started.elapsed();
        let answer = answer?;
        check_output(self.name(), offered, &answer.output)?;
        let payload = serde_json::to_vec(&answer.output).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))?;
        Ok(Output { payload: payload.into(), units: answer.units, took })
    }

    fn check_up(&self) -> Result<(), Failure> {
        match &*self.health.borrow() {
            Health::Up => Ok(()),
            Health::Down(reason) => Err(Failure::new(ErrorCode::Unavailable, format!("agent `{}` is down: {reason}", self.name()))),
        }
    }

    fn wait_in_line(&self) -> Result<Counted, Failure> {
        let queue_max = self.checked.definition.queue_len_max();
        let waiting = Counted::new(&self.queued);
        let before = self.queued.load(Ordering::Relaxed);
        if before > queue_max {
            let message =
                format!("agent `{}` works on {} calls and {queue_max} more wait", self.name(), self.checked.definition.concurrency);
            return Err(Failure::new(ErrorCode::Busy, message).with("limit", queue_max).with("retry_after_ms", 100));
        }
        Ok(waiting)
    }

    async fn wait_for_slot(&self, invocation: &Invocation, cancel: &CancellationToken) -> Result<OwnedSemaphorePermit, Failure> {
        tokio::select! {
            permit = Arc::clone(&self.slots).acquire_owned() => permit.map_err(|_| stopped(self.name())),
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
        input: Value,
        working: Working,
        cancel: &CancellationToken,
    ) -> Result<Answer, Failure> {
        let capability = offered.definition.id.clone();
        match &self.backend {
            Backend::Process(process) => process.run(invocation, &capability, cancel).await,
            Backend::Http(http) => http.run(invocation, &capability, cancel).await,
            Backend::Builtin(builtin, settings) => {
                run_builtin(builtin, settings, capability, input, working, invocation.deadline, cancel).await
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

fn tell(accepted: Option<oneshot::Sender<()>>) {
    if let Some(accepted) = accepted {
        let _ = accepted.send(());
    }
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
    let quick = builtin.name == builtin::echo::AGENT.name;
    let result = if quick {
        (builtin.run)(capability.as_str(), &input, &settings)
    } else {
        let work = tokio::task::spawn_blocking(move || {
            let _working = working;
            (builtin.run)(capability.as_str(), &input, &settings)
        });
        tokio::select! {
            done = work => done.map_err(|_| Failure::new(ErrorCode::AgentFailed, format!("builtin agent `{}` broke off", builtin.name)))?,
            () = cancel.cancelled() => return Err(cancelled()),
            () = tokio::time::sleep_until(deadline) => return Err(timed_out(builtin.name)),
        }
    };
    match result {
        Ok(output) => Ok(Answer { output: output.value, units: output.units }),
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

fn check_output(name: &str, offered: &Offered, output: &Value) -> Result<(), Failure> {
    let Some(schema) = &offered.output else { return Ok(()) };
    schema.check(output).map_err(|faults| schema_failure(&format!("output of agent `{name}`"), &faults).retryable(true))
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
