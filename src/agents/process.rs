//! Agents that are child processes speaking JSON lines (interface.md, "Agents").
//!
//! One long-lived child per slot of concurrency. A call is one line on its stdin; the answer is the line on its stdout that carries the
//! call's id. Lines that are no JSON, or answer no running call, are logged and passed over. A child that dies is started again with
//! growing pauses; while none of an agent's children lives, the agent is down. One that writes a line beyond any bound is killed. One that
//! never stops writing is not waited for to pause: after each of its lines the clock is looked at, and whether there is a call. A chunk of
//! a streamed answer (`{"id","chunk"}`) that nobody takes makes the child wait.
//!
//! A caller is answered at its deadline. But a deadline is the caller's choice, like a cancel, and says nothing about a program: were
//! children killed by it, whoever is in a hurry could keep an agent from ever coming up, and keep it down for everybody. So the child is
//! told that nobody waits, and judged later ([`ENOUGH`], [`CANCEL_GRACE`]); until then it keeps its place among the
//! agent's, as it would for a longer deadline. A child that was late even so is killed and replaced at once, and the agent stays; unless the child before it
//! was late as well, and nothing was answered in between.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::exchange::{Answer, Attached, Health, Invocation, Reply, cancelled, off_workers, request_line, stopped, timed_out};
use crate::model::{CapabilityName, ErrorCode, Failure, printable};

/// What a line may have beside the largest output.
const LINE_BYTES_SPARE: usize = 64 * 1024;
/// Bytes of a child's stderr that are taken for one line at most.
const LOG_BYTES_MAX: usize = 64 * 1024;
/// Longest line of a child's stderr that is logged.
const LOG_CHARS_MAX: usize = 500;
/// Pause before a child that died is started again; doubles up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(100);
/// Longest pause between starts.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A child that lived this long starts with the shortest pause again.
const STEADY: Duration = Duration::from_secs(10);
/// A child that follows a dead one counts as well after this long.
const PROBATION: Duration = Duration::from_secs(1);
/// A child has this long for a call, however soon its caller gives up; as long as callers think enough to blame an agent for
/// (`proto::invocation::evidence`). It is no shorter than [`STEADY`], so that no caller can make the pauses grow.
const ENOUGH: Duration = Duration::from_secs(10);
/// How long a child may take to answer a call for which nobody waits any more, from the word that tells it so.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// What is told of a child that was late.
const LATE: &str = "it did not answer in time and was killed";

/// Why a child is no more.
enum End {
    /// It did not answer in time and was killed.
    Late,
    /// It ended, or misbehaved; in words.
    Died(String),
}

/// How a child is started.
struct Recipe {
    name: String,
    command: Vec<String>,
    folder: PathBuf,
    pass_env: Vec<String>,
    output_bytes_max: usize,
}

struct Job {
    id: String,
    line: Vec<u8>,
    deadline: Instant,
    cancel: CancellationToken,
    chunks: Option<mpsc::Sender<Bytes>>,
    reply: oneshot::Sender<Result<Answer, Failure>>,
    /// What the call takes of the agent, held until its child is free.
    place: Box<dyn Send>,
}

/// The children of one agent.
pub(super) struct ProcessAgent {
    name: String,
    jobs: mpsc::Sender<Job>,
}

impl ProcessAgent {
    pub(super) fn start(attached: Attached<'_>, command: &[String], folder: &Path, pass_env: &[String], slots: usize) -> Self {
        let Attached { name, output_bytes_max, report, stop } = attached;
        let recipe = Arc::new(Recipe {
            name: name.to_owned(),
            command: command.to_vec(),
            folder: folder.to_path_buf(),
            pass_env: pass_env.to_vec(),
            output_bytes_max,
        });
        // The agent lets in no more calls than it has slots, so one place each is enough.
        let (jobs, queue) = mpsc::channel(slots.max(1));
        let queue = Arc::new(Mutex::new(queue));
        let living = Arc::new(Living { count: std::sync::Mutex::new(slots), report });
        for _ in 0..slots {
            tokio::spawn(keep_alive(Arc::clone(&recipe), Arc::clone(&queue), Arc::clone(&living), stop.clone()));
        }
        Self { name: name.to_owned(), jobs }
    }

    /// Has a child do one call. `place` is dropped when the child is free again, which may be after the end of the call.
    pub(super) async fn run(
        &self,
        invocation: &Invocation,
        capability: &CapabilityName,
        place: impl Send + 'static,
        cancel: &CancellationToken,
    ) -> Result<Answer, Failure> {
        let line = request_line(invocation, capability)?;
        let (reply, answer) = oneshot::channel();
        let chunks = invocation.chunks.clone();
        let (id, deadline, place) = (invocation.id.to_string(), invocation.deadline, Box::new(place));
        let job = Job { id, line, deadline, cancel: cancel.clone(), chunks, reply, place };
        self.jobs.send(job).await.map_err(|_| stopped(&self.name))?;
        let cancelling = async {
            cancel.cancelled().await;
            sleep(CANCEL_GRACE).await;
        };
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| stopped(&self.name))?,
            () = sleep_until(deadline) => Err(timed_out(&self.name)),
            () = cancelling => Err(cancelled()),
        }
    }
}

/// How many children of an agent live; when none does, the agent is down.
struct Living {
    count: std::sync::Mutex<usize>,
    report: watch::Sender<Health>,
}

impl Living {
    fn gained(&self) {
        let mut count = self.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *count += 1;
        self.report.send_if_modified(|health| std::mem::replace(health, Health::Up) != Health::Up);
    }

    fn none(&self) -> bool {
        *self.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner) == 0
    }

    fn lost(&self, reason: &str) {
        let mut count = self.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *count = count.saturating_sub(1);
        if *count == 0 {
            let _ = self.report.send(Health::Down(reason.to_owned()));
        }
    }
}

/// Runs one child after the other until the agent is detached.
async fn keep_alive(recipe: Arc<Recipe>, queue: Arc<Mutex<mpsc::Receiver<Job>>>, living: Arc<Living>, stop: CancellationToken) {
    let mut pause = RESTART_MIN;
    let mut counted = true;
    let mut forgives = true;
    loop {
        let started = Instant::now();
        let end = match spawn(&recipe) {
            Ok((child, pipes)) => {
                let line_bytes_max = recipe.output_bytes_max.saturating_add(LINE_BYTES_SPARE);
                let (counted, forgives) = (&mut counted, &mut forgives);
                let slot = Slot { name: &recipe.name, line_bytes_max, pipes, queue: &queue, living: &living, counted, forgives };
                slot.serve(child, &stop).await
            }
            Err(error) => {
                let program = recipe.command.first().map_or("", String::as_str);
                Some(End::Died(format!("`{program}` cannot be started: {error}")))
            }
        };
        let Some(end) = end else { return };
        if started.elapsed() >= STEADY {
            pause = RESTART_MIN;
        }
        let reason = match end {
            End::Late if std::mem::take(&mut forgives) => {
                tracing::warn!(agent = recipe.name, reason = LATE, "an agent's process is replaced");
                continue;
            }
            End::Late => LATE.to_owned(),
            End::Died(reason) => reason,
        };
        tracing::warn!(agent = recipe.name, reason, retry_in_ms = pause.as_millis(), "an agent's process ended");
        if std::mem::take(&mut counted) {
            living.lost(&reason);
        }
        let over = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(over) => break,
                () = stop.cancelled() => return,
                // While no child lives, calls that were on their way are better off elsewhere.
                Some(job) = next_job(&queue), if living.none() => refuse(&recipe.name, job, &reason),
            }
        }
        pause = pause.saturating_mul(2).min(RESTART_MAX);
    }
}

fn refuse(name: &str, job: Job, reason: &str) {
    let failure = Failure::new(ErrorCode::Unavailable, format!("agent `{name}` is down: {reason}"));
    let _ = job.reply.send(Err(failure));
}

struct Pipes {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    partial: Vec<u8>,
}

fn spawn(recipe: &Recipe) -> std::io::Result<(Child, Pipes)> {
    let missing = || std::io::Error::other("no command");
    let (program, arguments) = recipe.command.split_first().ok_or_else(missing)?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&recipe.folder).env_clear();
    for name in ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR"].into_iter().chain(recipe.pass_env.iter().map(String::as_str)) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // A group of its own keeps a terminal's Ctrl-C from killing agents before the node has drained.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        return Err(std::io::Error::other("no pipes"));
    };
    let name = recipe.name.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr.take(u64::MAX));
        let mut line = Vec::new();
        loop {
            // A line without end is logged by its beginning; a child whose stderr nobody reads would die of it.
            let more = read_line(&mut lines, &mut line, LOG_BYTES_MAX).await;
            if matches!(more, Ok(false)) || (more.is_err() && line.len() <= LOG_BYTES_MAX) {
                return;
            }
            tracing::info!(agent = name, stderr = printable(&String::from_utf8_lossy(&line), LOG_CHARS_MAX), "agent says");
            line.clear();
        }
    });
    Ok((child, Pipes { stdin, stdout: BufReader::new(stdout), partial: Vec::new() }))
}

/// Reads up to the end of a line, keeping what is there when the future is dropped. False at the end of the stream.
async fn read_line<R: tokio::io::AsyncBufRead + Unpin>(reader: &mut R, line: &mut Vec<u8>, bytes_max: usize) -> std::io::Result<bool> {
    loop {
        // What has been read already is not waited for, and whoever pours out lines must not keep a worker for itself.
        consume_budget().await;
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(false);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..end.unwrap_or(taken)]);
        reader.consume(taken);
        if line.len() > bytes_max {
            return Err(std::io::Error::other(format!("a line of more than {bytes_max} bytes")));
        }
        if end.is_some() {
            return Ok(true);
        }
    }
}

struct Slot<'a> {
    name: &'a str,
    line_bytes_max: usize,
    pipes: Pipes,
    queue: &'a Mutex<mpsc::Receiver<Job>>,
    living: &'a Living,
    counted: &'a mut bool,
    /// Whether the next child that is late is replaced at once.
    forgives: &'a mut bool,
}

impl Slot<'_> {
    /// Serves calls with one child until it dies. Returns why, or `None` if the agent was detached.
    async fn serve(mut self, mut child: Child, stop: &CancellationToken) -> Option<End> {
        let probation_ends = Instant::now() + PROBATION;
        loop {
            if !*self.counted && Instant::now() >= probation_ends {
                *self.counted = true;
                self.living.gained();
            }
            let job = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                line = read_line(&mut self.pipes.stdout, &mut self.pipes.partial, self.line_bytes_max) => match line {
                    Ok(true) => {
                        self.pass_over();
                        // Lines without a pause would keep every call waiting; a child that has just written one lives.
                        let job = if *self.counted { next_job(self.queue).now_or_never() } else { None };
                        match job {
                            Some(Some(job)) => job,
                            Some(None) => return None,
                            None => continue,
                        }
                    }
                    Ok(false) => return Some(End::Died(ended(&mut child).await)),
                    Err(error) => return Some(End::Died(error.to_string())),
                },
                () = sleep_until(probation_ends), if !*self.counted => continue,
                job = next_job(self.queue), if *self.counted => match job {
                    Some(job) => job,
                    None => return None,
                },
            };
            if let Some(end) = self.work(job, &mut child, stop).await {
                return Some(end);
            }
            if stop.is_cancelled() {
                return None;
            }
        }
    }

    fn pass_over(&mut self) {
        let shown = printable(&String::from_utf8_lossy(&self.pipes.partial), 120);
        tracing::debug!(agent = self.name, line = shown, "a line that answers no running call");
        self.pipes.partial.clear();
    }

    /// Has the child do one call. Returns why the child must go, if it must.
    async fn work(&mut self, job: Job, child: &mut Child, stop: &CancellationToken) -> Option<End> {
        let Job { id, line, deadline, cancel, mut chunks, reply, place } = job;
        // Whatever is said to a caller that has gone, it has heard the same already.
        let gone = || if cancel.is_cancelled() { cancelled() } else { timed_out(self.name) };
        // What nobody waits for any more need not be begun.
        let over = cancel.is_cancelled() || reply.is_closed() || deadline <= Instant::now();
        // Whoever has the answer may ask again at once, and must find the place free.
        let reply = |answer| {
            drop(place);
            let _ = reply.send(answer);
        };
        if over {
            reply(Err(gone()));
            return None;
        }
        let enough = Instant::now() + ENOUGH;
        let write = async {
            self.pipes.stdin.write_all(&line).await?;
            self.pipes.stdin.flush().await
        };
        let given_up = async {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = sleep_until(deadline) => {}
            }
            sleep_until(enough.max(Instant::now() + CANCEL_GRACE)).await;
        };
        let written = tokio::select! {
            written = write => written,
            // How fast it takes in a call is as little to be judged by a caller's haste as how fast it answers.
            () = given_up => {
                reply(Err(gone()));
                return Some(End::Late);
            }
            () = stop.cancelled() => {
                reply(Err(stopped(self.name)));
                return None;
            }
        };
        if let Err(error) = written {
            reply(Err(failed(self.name, &format!("its process broke off: {error}"))));
            return Some(End::Died(ended(child).await));
        }
        let mut until = deadline;
        let mut told = false;
        let mut chunk = None;
        loop {
            // Waiting for these alone is not enough: nothing else is looked at while there is always a line to read.
            if stop.is_cancelled() {
                reply(Err(stopped(self.name)));
                return None;
            }
            let now = Instant::now();
            if told && now >= until {
                reply(Err(gone()));
                return Some(End::Late);
            }
            if !told && (cancel.is_cancelled() || now >= until) {
                told = true;
                until = enough.max(now + CANCEL_GRACE);
                (chunk, chunks) = (None, None);
                let message = format!("{{\"cancel\":\"{id}\"}}\n");
                let _ = tokio::time::timeout(CANCEL_GRACE, self.pipes.stdin.write_all(message.as_bytes())).await;
            }
            tokio::select! {
                biased;
                // While a chunk waits for its reader nothing is read, so that the child comes to wait as well.
                line = read_line(&mut self.pipes.stdout, &mut self.pipes.partial, self.line_bytes_max), if chunk.is_none() => match line {
                    Ok(true) => match self.answer(&id) {
                        Some(Said::End(end)) => {
                            *self.forgives = true;
                            reply(if told { Err(gone()) } else { end });
                            return None;
                        }
                        Some(Said::Chunk(Ok(next))) => chunk = Some(next).filter(|_| chunks.is_some()),
                        Some(Said::Chunk(Err(failure))) => {
                            let reason = failure.message.clone();
                            reply(Err(failure));
                            return Some(End::Died(reason));
                        }
                        None => {}
                    },
                    Ok(false) => {
                        let reason = ended(child).await;
                        reply(Err(failed(self.name, &format!("its process ended during the call: {reason}"))));
                        return Some(End::Died(reason));
                    }
                    Err(error) => {
                        reply(Err(failed(self.name, &error.to_string()).retryable(false)));
                        return Some(End::Died(error.to_string()));
                    }
                },
                room = room(chunks.as_ref()), if chunk.is_some() => {
                    if let (Some(room), Some(chunk)) = (room, chunk.take()) {
                        room.send(chunk);
                    }
                }
                () = cancel.cancelled(), if !told => {}
                () = sleep_until(until) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Reads the line that has just arrived as a chunk or the end of call `id`.
    fn answer(&mut self, id: &str) -> Option<Said> {
        let line = &self.pipes.partial;
        let reply: Option<Reply> = off_workers(line.len(), || serde_json::from_slice(line).ok());
        let said = reply.filter(|reply| reply.id.as_deref() == Some(id)).and_then(|mut reply| match reply.take_chunk(self.name) {
            Some(chunk) => Some(Said::Chunk(chunk)),
            None => reply.end(self.name).map(Said::End),
        });
        match said {
            Some(said) => {
                self.pipes.partial.clear();
                Some(said)
            }
            None => {
                self.pass_over();
                None
            }
        }
    }
}

/// What a child said about the call that it works on.
enum Said {
    Chunk(Result<Bytes, Failure>),
    End(Result<Answer, Failure>),
}

/// Room for one more chunk; `None` if nobody reads any more.
async fn room(chunks: Option<&mpsc::Sender<Bytes>>) -> Option<mpsc::Permit<'_, Bytes>> {
    chunks?.reserve().await.ok()
}

async fn next_job(queue: &Mutex<mpsc::Receiver<Job>>) -> Option<Job> {
    queue.lock().await.recv().await
}

fn failed(name: &str, reason: &str) -> Failure {
    Failure::new(ErrorCode::AgentFailed, format!("agent `{name}`: {reason}"))
}

/// What became of a child whose output ended.
async fn ended(child: &mut Child) -> String {
    match tokio::time::timeout(Duration::from_millis(500), child.wait()).await {
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it closed its output".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InvocationId, Priority};

    /// Threat T4: a program that is late twice without answering in between is taken out.
    #[tokio::test(start_paused = true)]
    async fn only_an_answer_lets_the_next_late_child_be_forgiven() {
        let mut silent = Silent::start();
        for late in 1..=2 {
            assert_eq!(silent.call(b"1", 6 * STEADY).await, ErrorCode::Timeout);
            let judged = CANCEL_GRACE + RESTART_MIN;
            let down = tokio::time::timeout(judged, silent.health.wait_for(|health| *health != Health::Up)).await.is_ok();
            assert_eq!(down, late == 2, "the first is replaced at once");
        }
    }

    /// Threat T4: a caller that gives no time has its answer in time, and takes the agent from nobody. What was given to a child takes its
    /// place for as long as it is not judged.
    #[tokio::test(start_paused = true)]
    async fn a_child_is_not_judged_by_its_callers_haste() {
        let large = [b"[\"", "x".repeat(1024 * 1024).as_bytes(), b"\"]"].concat();
        for input in [&b"1"[..], &large] {
            let silent = Silent::start();
            let begun = Instant::now();
            assert_eq!(silent.call(input, HASTE).await, ErrorCode::Timeout);
            assert!(begun.elapsed() < 2 * HASTE, "its caller waits no longer: {:?}", begun.elapsed());
            let early = tokio::time::timeout(ENOUGH - 2 * HASTE, silent.is_free()).await;
            assert!(early.is_err(), "judged after {:?}", begun.elapsed());
            tokio::time::timeout(2 * HASTE, silent.is_free()).await.expect("a child that has had enough is replaced");
            assert!(!silent.health.has_changed().expect("it is attached"), "at once");
        }
    }

    /// How long somebody waits who gives no time.
    const HASTE: Duration = Duration::from_millis(20);

    /// An agent with one child, which reads nothing and says nothing.
    struct Silent {
        agent: ProcessAgent,
        health: watch::Receiver<Health>,
        stop: CancellationToken,
        place: Arc<()>,
    }

    impl Silent {
        fn start() -> Self {
            let (report, health) = watch::channel(Health::Up);
            let stop = CancellationToken::new();
            let attached = Attached { name: "silent", output_bytes_max: 1_000, report, stop: stop.clone() };
            let command = ["sleep", "3600"].map(str::to_owned);
            let agent = ProcessAgent::start(attached, &command, Path::new("/"), &[], 1);
            Self { agent, health, stop, place: Arc::default() }
        }

        /// Waits until no call takes its place.
        async fn is_free(&self) {
            while Arc::strong_count(&self.place) > 1 {
                sleep(HASTE / 2).await;
            }
        }

        /// How a call fails that waits so long.
        async fn call(&self, input: &[u8], patience: Duration) -> ErrorCode {
            let capability: CapabilityName = "test.silent".parse().expect("a valid name");
            let invocation = Invocation {
                id: InvocationId::from_random(1),
                capability: capability.clone(),
                version: None,
                input: Bytes::copy_from_slice(input),
                context: None,
                deadline: Instant::now() + patience,
                key: None,
                priority: Priority::Normal,
                confirm: None,
                begun: None,
                chunks: None,
            };
            let place = Arc::clone(&self.place);
            self.agent.run(&invocation, &capability, place, &CancellationToken::new()).await.expect_err("it never answers").code
        }
    }

    impl Drop for Silent {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }
}
