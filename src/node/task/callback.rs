//! Completion callbacks: a task that has ended is told of by POST to where its author asked (AMP 3 `completion_callback`, threat T25).
//!
//! Whoever may submit a task would otherwise make this node post wherever it can reach. So nothing is called back unless `task.callback_allow`
//! names the place: same scheme, host and port, and a path below that of the entry. That is looked at when the task is submitted and again
//! before each attempt. A name is resolved once per attempt, only its public addresses are used, and the connection goes to one of those and
//! nowhere else; an address of this machine or a private network is reached only where the entry itself is that address. Redirects are not
//! followed, no proxy is asked, nothing secret is sent, and of the answer nothing but its status is read.
//!
//! At least once: an attempt that fails is repeated with growing pauses until an hour after the task's end, also by the next start of the
//! node, since it is kept in the journal whether it came to an end. The header `Idempotency-Key` is the task's id.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::archive::Place;
use super::door::{self, Command};
use super::read::Reader;
use crate::agents::definition::is_public;
use crate::model::{ErrorCode, Failure, TaskId, printable};
use crate::node::shared::Shared;

/// For how long after the end of a task it is tried.
const TRIED_MAX: Duration = Duration::from_secs(3_600);
/// The first pause after an attempt that failed; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest of those.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// How long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(20);
/// Of that, how long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Attempts that run at once.
const AT_ONCE_MAX: usize = 16;
/// The largest result that is posted; of a larger one it is told where to read it.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Refuses a task that asks for a callback to where none may go.
pub(super) fn check(allowed: &[String], callback: Option<&str>) -> Result<(), Failure> {
    let Some(text) = callback else { return Ok(()) };
    permitted(allowed, text).map(drop).map_err(|why| {
        let shown = printable(text, 200);
        let failure = Failure::new(ErrorCode::InvalidRequest, format!("completion_callback `{shown}` is not used: {why}"));
        failure.with("path", "/completion_callback").with("suggestion", "the owner of the node allows places in task.callback_allow")
    })
}

/// The place that a text names, if an entry allows it.
fn permitted(allowed: &[String], text: &str) -> Result<Url, String> {
    let url = place(text)?;
    let path = url.path().to_ascii_lowercase();
    if path.contains("%2f") || path.contains("%5c") {
        return Err("its path holds an escaped slash, which servers read in two ways".to_owned());
    }
    let below = |entry: &Url| {
        let (whole, stem) = (entry.path(), entry.path().trim_end_matches('/'));
        url.path() == whole || url.path().strip_prefix(stem).is_some_and(|rest| rest.starts_with('/'))
    };
    let same = |entry: &Url| {
        let known = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port_or_known_default());
        known(entry) == known(&url)
    };
    if allowed.is_empty() {
        return Err("callbacks are off on this node".to_owned());
    }
    let fits = allowed.iter().filter_map(|entry| place(entry).ok()).any(|entry| same(&entry) && below(&entry));
    if fits { Ok(url) } else { Err("no entry of task.callback_allow covers it".to_owned()) }
}

/// Reads the URL of a callback, or of an entry of the list of those that are allowed.
fn place(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("it is no URL: {error}"))?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
        return Err("it is no https or http URL".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("it holds credentials or a fragment".to_owned());
    }
    Ok(url)
}

/// The address that a URL names without the help of a name.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Callbacks under way. They end with the value.
#[derive(Debug)]
pub(super) struct Callbacks {
    running: JoinSet<()>,
    places: Arc<Semaphore>,
}

impl Default for Callbacks {
    fn default() -> Self {
        Self { running: JoinSet::new(), places: Arc::new(Semaphore::new(AT_ONCE_MAX)) }
    }
}

impl Callbacks {
    /// Begins to tell of a task that ended that long ago, unless it is too late for that.
    pub(super) fn begin(&mut self, shared: &Arc<Shared>, reader: &Reader, place: (TaskId, Place), url: String, age: Duration) {
        while self.running.try_join_next().is_some() {}
        let left = TRIED_MAX.saturating_sub(age);
        if left.is_zero() {
            return;
        }
        let (shared, reader, places) = (Arc::clone(shared), reader.clone(), Arc::clone(&self.places));
        let (task, place) = place;
        self.running.spawn(Callback { shared, reader, places, task, place, url, left }.run());
    }
}

/// A task that has ended, and where to tell of it.
struct Callback {
    shared: Arc<Shared>,
    reader: Reader,
    places: Arc<Semaphore>,
    task: TaskId,
    place: Place,
    url: String,
    /// How long it is still tried.
    left: Duration,
}

impl Callback {
    /// Tells of it, and tells the book what came of that.
    async fn run(self) {
        let until = tokio::time::Instant::now() + self.left;
        let (mut pause, mut delivered) = (PAUSE, false);
        while tokio::time::Instant::now() < until {
            let outcome = {
                let Ok(_place) = self.places.acquire().await else { return };
                self.attempt().await
            };
            match outcome {
                Ok(()) => {
                    delivered = true;
                    break;
                }
                Err(why) => tracing::info!(task = %self.task, why, "a callback was not taken"),
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSE_MAX);
        }
        if !delivered {
            tracing::warn!(task = %self.task, "a callback was given up");
        }
        let _ = self.shared.tasks.send(Command::CalledBack { task: self.task, delivered }).await;
    }

    async fn attempt(&self) -> Result<(), String> {
        let url = permitted(&self.shared.config.task.callback_allow, &self.url)?;
        let body = self.body().await?;
        tokio::time::timeout(ATTEMPT_MAX, post(url, &self.task.to_string(), body))
            .await
            .unwrap_or_else(|_| Err("it took too long".to_owned()))
    }

    async fn body(&self) -> Result<Bytes, String> {
        let (reader, place) = (self.reader.clone(), self.place.clone());
        let read = tokio::task::spawn_blocking(move || door::result_document(&reader, &place)).await;
        let result = read.map_err(|_| "this node is stopping".to_owned())?.map_err(|failure| failure.message)?;
        if result.get().len() <= BODY_BYTES_MAX {
            return Ok(result.get().to_owned().into());
        }
        let mut document: Value = serde_json::from_str(result.get()).map_err(|error| error.to_string())?;
        let place = format!("/aitp/tasks/{}/result", self.task);
        let words = ["task_id", "status", "outcome", "reason", "cost", "currency", "execution_time_ms"];
        let mut short = json!({ "result_path": place, "result_bytes": result.get().len() });
        for word in words {
            short[word] = document[word].take();
        }
        Ok(short.to_string().into())
    }
}

/// One POST, to an address that was looked at.
async fn post(url: Url, task: &str, body: Bytes) -> Result<(), String> {
    let (host, port) = (url.host_str().unwrap_or_default().to_owned(), url.port_or_known_default().unwrap_or(443));
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .user_agent(concat!("meshwork/", env!("CARGO_PKG_VERSION")));
    let client = match literal(&url) {
        // The entry that allows it is this very address.
        Some(_) => client,
        None => {
            let found = tokio::net::lookup_host((host.as_str(), port)).await.map_err(|error| format!("{host}: {error}"))?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).take(ADDRESSES_MAX).collect();
            if public.is_empty() {
                return Err(format!("{host} is a name for private addresses only"));
            }
            client.resolve_to_addrs(&host, &public)
        }
    };
    let client = client.build().map_err(|error| error.to_string())?;
    let request = client.post(url).header(CONTENT_TYPE, "application/json").header("Idempotency-Key", task).body(body);
    let response = request.send().await.map_err(|error| error.without_url().to_string())?;
    // Its body is not read.
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(format!("HTTP {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(entry: &str, url: &str) -> bool {
        permitted(&[entry.to_owned()], url).is_ok()
    }

    /// Threat T25: an entry covers its own scheme, host, port and what lies below its path.
    #[test]
    fn an_entry_covers_what_lies_below_it_and_nothing_beside() {
        let entry = "https://hooks.example.org/done";
        for url in [entry, "https://hooks.example.org/done/", "https://HOOKS.example.org:443/done/a?x=1"] {
            assert!(allows(entry, url), "{url}");
        }
        for url in [
            "http://hooks.example.org/done",
            "https://hooks.example.org:8443/done",
            "https://hooks.example.org/doner",
            "https://hooks.example.org/done/../other",
            "https://hooks.example.org/done/%2e%2e/other",
            "https://hooks.example.org/done/..%2fother",
            "https://hooks.example.org.evil.example/done",
            "https://hooks.example.org@evil.example/done",
            "https://user:word@hooks.example.org/done",
            "https://hooks.example.org/done#x",
            "ftp://hooks.example.org/done",
            "file:///done",
            "done",
        ] {
            assert!(!allows(entry, url), "{url}");
        }
        assert!(allows("https://example.org", "https://example.org/any/path"));
        assert!(check(&[], None).is_ok());
        assert_eq!(check(&[], Some(entry)).expect_err("off by default").details["path"], "/completion_callback");
    }

    /// Threat T25: a name that leads to this machine is refused, in whatever form; an address only if it is the entry itself.
    #[tokio::test]
    async fn a_name_for_this_machine_is_not_posted_to() {
        let refused = post(place("http://localhost:1/x").expect("a URL"), "t", Bytes::new()).await;
        assert!(refused.is_err_and(|why| why.contains("private addresses only")));
        for url in
            ["http://127.0.0.1/x", "http://[::ffff:127.0.0.1]/x", "http://0x7f.1/x", "http://2130706433/x", "http://169.254.169.254/x"]
        {
            assert!(!allows("http://localhost/x", url) && !allows("https://hooks.example.org/", url), "{url}");
            assert!(literal(&place(url).expect("a URL")).is_some_and(|ip| !is_public(ip)), "{url}");
        }
        assert!(allows("http://127.0.0.1:9/", "http://127.0.0.1:9/x") && !allows("http://127.0.0.1:9/", "http://[::ffff:127.0.0.1]:9/x"));
    }
}
