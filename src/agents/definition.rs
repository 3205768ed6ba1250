//! Checks a definition, so that what runs and what is advertised keeps to the rules (threats T21, T26).

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::builtin;
use super::schema::{self, Schema};
use crate::model::{Adapter, CapabilityDefinition, Definition, ErrorCode, Failure};
use crate::wire::directory::{CAPABILITIES_MAX, Capability, SchemaHash};

/// Calls an agent may work on at once.
const CONCURRENCY_MAX: u32 = 1_024;
/// The highest rate, per second, that a limit may name.
const RATE_MAX: f64 = 1_000_000.0;
/// Calls that may wait for an agent.
const QUEUE_MAX: u32 = 16_384;
/// Arguments of a command.
const COMMAND_MAX: usize = 64;

/// One fault of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The field, as `capability[0].input_schema`.
    pub path: String,
    /// What is wrong with it and what would do.
    pub message: String,
}

/// What an agent offers, ready for calls.
#[derive(Debug, Clone)]
pub struct Offered {
    /// The definition.
    pub definition: CapabilityDefinition,
    /// Checks inputs; `None` where anything will do.
    pub input: Option<Schema>,
    /// Checks outputs; `None` where anything will do.
    pub output: Option<Schema>,
    /// What is advertised of it.
    pub advertised: Capability,
}

/// A definition that keeps to every rule.
#[derive(Debug, Clone)]
pub struct Checked {
    /// As it was written, with a builtin's capabilities filled in.
    pub definition: Definition,
    /// Its capabilities.
    pub offered: Arc<[Offered]>,
}

/// The failure that tells a person about the faults of a definition.
pub fn failure(faults: &[Fault]) -> Failure {
    let message = match faults {
        [fault] => format!("{}: {}", fault.path, fault.message),
        [fault, rest @ ..] => format!("{}: {} (and {} more)", fault.path, fault.message, rest.len()),
        [] => "it breaks a rule".to_owned(),
    };
    let listed = faults.iter().take(32).map(|fault| serde_json::json!({"path": fault.path, "message": fault.message}));
    let failure = Failure::new(ErrorCode::InvalidRequest, format!("the definition cannot be accepted: {message}"));
    let failure = if faults.len() > 1 { failure.with("faults", listed.collect::<Vec<_>>()) } else { failure };
    match faults.first() {
        Some(first) => failure.with("path", first.path.clone()),
        None => failure,
    }
}

/// Checks a definition.
///
/// # Errors
/// Every fault that was found.
pub fn check(mut definition: Definition) -> Result<Checked, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut fault = |path: &str, message: String| faults.push(Fault { path: path.to_owned(), message });
    let name = &definition.name;
    let name_ok = (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !name_ok || name.starts_with('.') {
        fault("name", "has 1 to 64 letters, digits, `-`, `_` or `.`, and does not begin with a dot".to_owned());
    }
    if !printable(&definition.version, 32) {
        fault("version", "has at most 32 printable characters".to_owned());
    }
    if !printable(&definition.description, 512) {
        fault("description", "has at most 512 printable characters".to_owned());
    }
    if !(1..=CONCURRENCY_MAX).contains(&definition.concurrency) {
        fault("concurrency", format!("is 1 to {CONCURRENCY_MAX}"));
    }
    if definition.queue_len_max() > QUEUE_MAX {
        fault("queue", format!("is at most {QUEUE_MAX}"));
    }
    if let Some(limit) = definition.rate_limit {
        if !(0.001..=RATE_MAX).contains(&limit.per_s) {
            fault("rate_limit.per_s", format!("is 0.001 to {RATE_MAX}"));
        }
        if !(1.0..=RATE_MAX).contains(&limit.burst().into()) {
            fault("rate_limit.burst", format!("is 1 to {RATE_MAX}"));
        }
    }
    check_adapter(&mut definition, &mut fault);
    let count = definition.capabilities.len();
    let unknown_builtin = matches!(&definition.adapter, Adapter::Builtin { kind, .. } if builtin::find(kind).is_none());
    if !(1..=CAPABILITIES_MAX).contains(&count) && !unknown_builtin {
        fault("capability", format!("has 1 to {CAPABILITIES_MAX} entries, not {count}"));
    }
    let mut offered = Vec::new();
    for (index, capability) in definition.capabilities.iter().take(CAPABILITIES_MAX).enumerate() {
        let repeated =
            definition.capabilities.iter().take(index).any(|other| other.id == capability.id && other.version == capability.version);
        if repeated {
            fault(&format!("capability[{index}].id"), format!("`{}` {} is there twice", capability.id, capability.version));
        }
        offered.extend(check_capability(capability, &mut |path, message| fault(&format!("capability[{index}].{path}"), message)));
    }
    if faults.is_empty() { Ok(Checked { definition, offered: offered.into() }) } else { Err(faults) }
}

fn check_adapter(definition: &mut Definition, fault: &mut dyn FnMut(&str, String)) {
    match &definition.adapter {
        Adapter::Process { command, pass_env, .. } => {
            if command.is_empty() || command.len() > COMMAND_MAX || command.first().is_some_and(String::is_empty) {
                fault("adapter.command", format!("names a program and at most {} arguments", COMMAND_MAX - 1));
            }
            if command.iter().any(|argument| argument.contains('\0')) {
                fault("adapter.command", "has no zero bytes".to_owned());
            }
            if pass_env.len() > 64 || pass_env.iter().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
                fault("adapter.pass_env", "has at most 64 names of environment variables".to_owned());
            }
        }
        Adapter::Http { endpoint, health, token_file, token_env, allow_private } => {
            check_url("adapter.endpoint", endpoint, *allow_private, fault);
            if token_file.is_some() && token_env.is_some() {
                fault("adapter.token_env", "stands beside token_file; give one of them".to_owned());
            }
            if let Some(health) = health {
                check_url("adapter.health.url", &health.url, *allow_private, fault);
                if !(100..=60_000).contains(&health.interval_ms) {
                    fault("adapter.health.interval_ms", "is 100 to 60000".to_owned());
                }
                if !(50..=10_000).contains(&health.timeout_ms) {
                    fault("adapter.health.timeout_ms", "is 50 to 10000".to_owned());
                }
            }
        }
        Adapter::Task {} => super::task::fill_in(&mut definition.capabilities, &mut definition.description, fault),
        Adapter::Builtin { kind, .. } => match builtin::find(kind) {
            None => {
                let known: Vec<&str> = builtin::all().iter().map(|builtin| builtin.name).collect();
                fault("adapter.kind", format!("`{}` is none of {}", crate::model::printable(kind, 64), known.join(", ")));
            }
            Some(builtin) => fill_in(definition, builtin, fault),
        },
    }
}

/// Gives a builtin agent its own capabilities; a definition may only choose among them, price and bound them.
fn fill_in(definition: &mut Definition, builtin: &builtin::Builtin, fault: &mut dyn FnMut(&str, String)) {
    let offers = (builtin.capabilities)();
    if definition.description.is_empty() {
        builtin.description.clone_into(&mut definition.description);
    }
    if definition.capabilities.is_empty() {
        for offer in &offers {
            let (Ok(id), Ok(version)) = (offer.id.parse(), offer.version.parse()) else { continue };
            definition.capabilities.push(CapabilityDefinition {
                id,
                version,
                description: offer.description.to_owned(),
                input_schema: offer.input_schema.clone(),
                output_schema: offer.output_schema.clone(),
                price: None,
                constraints: Default::default(),
                idempotent: true,
                score: None,
                specializations: Vec::new(),
                limitations: Vec::new(),
                resource_requirements: Default::default(),
            });
        }
        return;
    }
    for (index, capability) in definition.capabilities.iter_mut().enumerate() {
        let Some(offer) = offers.iter().find(|offer| offer.id == capability.id.as_str()) else {
            let known: Vec<&str> = offers.iter().map(|offer| offer.id).collect();
            fault(&format!("capability[{index}].id"), format!("builtin `{}` offers only {}", builtin.name, known.join(", ")));
            continue;
        };
        capability.input_schema = offer.input_schema.clone();
        capability.output_schema = offer.output_schema.clone();
        capability.idempotent = true;
        if capability.description.is_empty() {
            offer.description.clone_into(&mut capability.description);
        }
    }
}

fn check_capability(capability: &CapabilityDefinition, fault: &mut dyn FnMut(&str, String)) -> Option<Offered> {
    if capability.id.is_heading() {
        fault("id", format!("`{}` is a heading of the taxonomy; offer one of the names under it, or one of your own", capability.id));
    }
    if !printable(&capability.description, 512) {
        fault("description", "has at most 512 printable characters".to_owned());
    }
    let constraints = &capability.constraints;
    let language_ok =
        |language: &String| (2..=16).contains(&language.len()) && language.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if constraints.supported_languages.len() > 64 || !constraints.supported_languages.iter().all(language_ok) {
        fault("constraints.supported_languages", "has at most 64 language tags such as en".to_owned());
    }
    if constraints.max_input_length == Some(0) {
        fault("constraints.max_input_length", "is at least 1".to_owned());
    }
    if constraints.response_time_ms.is_some_and(|ms| ms > 86_400_000) {
        fault("constraints.response_time_ms", "is at most a day".to_owned());
    }
    if let Err((path, rule)) = capability.claims().check() {
        fault(&path, rule.to_owned());
    }
    let mut compile = |field: &str, text: &Value| match Schema::compile(text) {
        Ok(schema) => Some(schema),
        Err(error) => {
            fault(field, error.to_string());
            None
        }
    };
    let input = compile("input_schema", &capability.input_schema)?;
    let output = compile("output_schema", &capability.output_schema)?;
    let advertised = Capability {
        id: capability.id.clone(),
        version: capability.version.clone(),
        description: capability.description.clone(),
        input_schema: schema_hash(&capability.input_schema),
        output_schema: schema_hash(&capability.output_schema),
        price: capability.price.clone(),
        constraints: capability.constraints.clone(),
        idempotent: capability.idempotent,
        claims: capability.claims(),
    };
    let unless_any = |schema: Schema, text: &Value| (!accepts_anything(text)).then_some(schema);
    Some(Offered {
        input: unless_any(input, &capability.input_schema),
        output: unless_any(output, &capability.output_schema),
        advertised,
        definition: capability.clone(),
    })
}

/// The hash by which a record names a schema; zero where any value will do, so that nobody asks for it.
pub fn schema_hash(schema: &Value) -> SchemaHash {
    SchemaHash::new(if accepts_anything(schema) { [0; 32] } else { schema::hash(schema) })
}

/// The hash of a schema that any value matches.
pub const ANYTHING: SchemaHash = SchemaHash::new([0; 32]);

fn accepts_anything(schema: &Value) -> bool {
    match schema {
        Value::Bool(anything) => *anything,
        Value::Object(fields) => fields.keys().all(|key| matches!(key.as_str(), "$schema" | "title" | "description" | "$comment")),
        Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => false,
    }
}

fn printable(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}

fn check_url(path: &str, text: &str, allow_private: bool, fault: &mut dyn FnMut(&str, String)) {
    let url = match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        Ok(_) | Err(_) => return fault(path, "is an http or https URL".to_owned()),
    };
    if !url.username().is_empty() || url.password().is_some() {
        fault(path, "holds no credentials; use token_file or token_env".to_owned());
    }
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let inward = host.parse().map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |ip| !is_public(ip));
    if inward && !allow_private {
        fault(path, "points to this machine or a private network; set adapter.allow_private = true if that is meant".to_owned());
    }
}

/// Whether an address is on the public internet (threat T25).
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let reserved = a == 0 || a >= 240 || (a == 198 && (b == 18 || b == 19)) || (a == 192 && b == 0);
            !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_documentation() || shared || reserved)
        }
        IpAddr::V6(ip) => {
            let first = ip.segments()[0];
            let global = (first & 0xe000) == 0x2000;
            global && first != 0x2002 && !(first == 0x2001 && ip.segments()[1] < 0x200) && !(first == 0x2001 && ip.segments()[1] == 0xdb8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(text: &str) -> Result<Checked, Vec<Fault>> {
        check(serde_json::from_str(text).expect("reads as a definition"))
    }

    fn paths(text: &str) -> Vec<String> {
        definition(text).expect_err("has faults").into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn a_builtin_offers_all_it_has_unless_told_otherwise() {
        let checked = definition(r#"{"name":"e","adapter":{"type":"builtin","kind":"echo"}}"#).expect("valid");
        assert_eq!(checked.offered.len(), 1);
        assert_eq!(checked.offered[0].advertised.input_schema, ANYTHING);
        assert!(checked.offered[0].definition.idempotent);
    }

    /// AMP-2: every fault is named by its field.
    #[test]
    fn faults_are_named_by_their_fields() {
        let text = r#"{"name":"a b","concurrency":0,"adapter":{"type":"process","command":[]},
            "capability":[{"id":"text-processing"},{"id":"x","input_schema":{"$ref":"https://example.org/schema"}},{"id":"x","constraints":{"max_input_length":0}}]}"#;
        let expected = [
            "name",
            "concurrency",
            "adapter.command",
            "capability[0].id",
            "capability[1].input_schema",
            "capability[2].id",
            "capability[2].constraints.max_input_length",
        ];
        assert_eq!(paths(text), expected);
    }

    /// MEAP-3: the limits of an agent are within bounds that a limiter can keep.
    #[test]
    fn rate_limits_are_checked() {
        let limited = |limit: &str| format!(r#"{{"name":"e","adapter":{{"type":"builtin","kind":"echo"}},"rate_limit":{limit}}}"#);
        assert_eq!(definition(&limited(r#"{"per_s":2.5}"#)).expect("valid").definition.rate_limit.map(|limit| limit.burst()), Some(3));
        assert_eq!(paths(&limited(r#"{"per_s":0}"#)), ["rate_limit.per_s"]);
        assert_eq!(paths(&limited(r#"{"per_s":1,"burst":0}"#)), ["rate_limit.burst"]);
    }

    /// MAOP-2: the fields of an advertisement are checked like all others, and advertised as they were written.
    #[test]
    fn claims_are_checked_and_advertised() {
        let text = r#"{"name":"a","adapter":{"type":"process","command":["x"]},"capability":[{"id":"x",
            "score":0.5,"specializations":["invoices"],"limitations":["no handwriting"],"resource_requirements":{"gpu":true}}]}"#;
        let checked = definition(text).expect("valid");
        assert_eq!(checked.offered[0].advertised.claims, checked.definition.capabilities[0].claims());
        assert_eq!(checked.offered[0].advertised.claims.score, Some(0.5));
        assert_eq!(paths(&text.replace("0.5", "1.5")), ["capability[0].score"]);
        assert_eq!(paths(&text.replace("no handwriting", "")), ["capability[0].limitations[0]"]);
    }

    /// Threat T25: an endpoint on a private network must be meant.
    #[test]
    fn inward_endpoints_need_permission() {
        for url in [
            "http://127.0.0.1/x",
            "http://[::1]/",
            "http://10.0.0.1/",
            "http://169.254.169.254/",
            "http://localhost:80/",
            "http://[::ffff:10.0.0.1]/",
        ] {
            let text = format!(r#"{{"name":"h","adapter":{{"type":"http","endpoint":"{url}"}},"capability":[{{"id":"x"}}]}}"#);
            assert_eq!(paths(&text), ["adapter.endpoint"], "{url}");
        }
        let allowed =
            r#"{"name":"h","adapter":{"type":"http","endpoint":"http://127.0.0.1/","allow_private":true},"capability":[{"id":"x"}]}"#;
        assert!(definition(allowed).is_ok());
        assert_eq!(
            paths(r#"{"name":"h","adapter":{"type":"http","endpoint":"file:///etc/passwd"},"capability":[{"id":"x"}]}"#),
            ["adapter.endpoint"]
        );
    }

    #[test]
    fn public_addresses_are_told_from_private_ones() {
        for ip in ["8.8.8.8", "2606:4700::1111"] {
            assert!(is_public(ip.parse().expect("an address")), "{ip}");
        }
        for ip in ["100.64.0.1", "0.0.0.0", "255.255.255.255", "fe80::1", "fd00::1", "::", "2001:db8::1", "64:ff9b::7f00:1"] {
            assert!(!is_public(ip.parse().expect("an address")), "{ip}");
        }
    }
}
