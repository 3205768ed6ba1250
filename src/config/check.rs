//! What single values cannot show: whether a text is an address, whether it is safe to listen there, and which settings exclude each other.

use std::{net::SocketAddr, path::Path};

use multiaddr::{Multiaddr, Protocol};

use super::{Config, Mesh, Place, error::Faults, load::NAME_CHARS_MAX};
use crate::model;

/// How many addresses a node may listen on, and how many it may tell others.
const ADDRESSES_MAX: usize = 16;

/// How many nodes may be named to join through.
const JOIN_MAX: usize = 64;

/// How many nodes may be pinned: as many as count at all.
const PINNED_MAX: usize = 16;

/// How many hosts and how many origins may be allowed.
const ALLOWED_MAX: usize = 32;

/// How long a host name may be, in bytes: what the domain name system allows.
const HOST_BYTES_MAX: usize = 253;

/// How long the log directives may be, in bytes.
const LOG_BYTES_MAX: usize = 1_024;

/// What the body of an API request may have around the input of its call, in bytes: names, a key, constraints.
const ENVELOPE_BYTES: u64 = 65_536;

/// Where a key was written.
type PlaceOf<'a> = dyn Fn(&str) -> Option<Place> + 'a;

/// Notes every fault of `config`.
pub(super) fn check(config: &Config, place: &PlaceOf<'_>, faults: &mut Faults) {
    let name = config.node.name.as_deref().unwrap_or_default();
    let length_ok = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    if !length_ok || name.trim().is_empty() || model::printable(name, NAME_CHARS_MAX) != name {
        faults.add_value("node.name", name, "1 to 64 printable characters", place("node.name"));
    }
    path("node.data_dir", &config.node.data_dir, place, faults);
    if let Some(file) = &config.api.token_file {
        path("api.token_file", file, place, faults);
    }
    addresses(&config.mesh, place, faults);
    client_only(config, place, faults);
    api(config, place, faults);
    log(&config.telemetry.log, place, faults);

    let routing = &config.routing;
    if routing.weight_match + routing.weight_trust + routing.weight_latency + routing.weight_cost <= 0.0 {
        let problem = "the four weights are all 0, so no agent would score above another";
        faults.add("routing.weight_match", problem, Some("give at least one weight".to_owned()), place("routing.weight_match"));
    }
    let key = "routing.pinned";
    if routing.pinned.len() > PINNED_MAX {
        faults.add_value(key, format!("{} nodes", routing.pinned.len()), &format!("at most {PINNED_MAX}"), place(key));
    }
    for text in routing.pinned.iter().filter(|text| text.parse::<model::NodeId>().is_err()) {
        faults.add_value(key, text, "the id of a node such as 12D3KooW..., as `meshwork status` shows it", place(key));
    }
    let key = "task.callback_allow";
    if config.task.callback_allow.len() > ALLOWED_MAX {
        faults.add_value(key, format!("{} places", config.task.callback_allow.len()), &format!("at most {ALLOWED_MAX}"), place(key));
    }
    let is_place = |text: &str| {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
        !host.is_empty() && !host.contains(['@', '?', '#', '*', '\\']) && !text.contains(char::is_whitespace)
    };
    for text in config.task.callback_allow.iter().filter(|text| !is_place(text)) {
        faults.add_value(key, text, "the beginning of a URL, such as https://hooks.example.org/done", place(key));
    }
    let limits = &config.limits;
    if limits.announced_per_peer_bytes_max < u64::from(limits.payload_bytes_max) {
        let allowed = format!("at least limits.payload_bytes_max, which is {}", limits.payload_bytes_max);
        let key = "limits.announced_per_peer_bytes_max";
        faults.add_value(key, limits.announced_per_peer_bytes_max, &allowed, place(key).or_else(|| place("limits.payload_bytes_max")));
    }
    // Clients call through the API, where an input stands as it is written, with the rest of the request around it.
    let body_bytes_min = u64::from(limits.payload_bytes_max).saturating_add(ENVELOPE_BYTES);
    if limits.http_body_bytes_max < body_bytes_min {
        let allowed = format!(
            "at least {body_bytes_min}: limits.payload_bytes_max, which is {}, and {ENVELOPE_BYTES} for the request around the input",
            limits.payload_bytes_max
        );
        let key = "limits.http_body_bytes_max";
        faults.add_value(key, limits.http_body_bytes_max, &allowed, place(key).or_else(|| place("limits.payload_bytes_max")));
    }
    if limits.call_timeout_ms_default > limits.call_timeout_ms_max {
        let allowed = format!("at most limits.call_timeout_ms_max, which is {}", limits.call_timeout_ms_max);
        let key = "limits.call_timeout_ms_default";
        faults.add_value(key, limits.call_timeout_ms_default, &allowed, place(key).or_else(|| place("limits.call_timeout_ms_max")));
    }
    if config.agents.len() > limits.agents_max as usize {
        let allowed = format!("at most {} agents, as limits.agents_max says", limits.agents_max);
        faults.add_value("agent", format!("{} tables", config.agents.len()), &allowed, place("limits.agents_max"));
    }
}

fn path(key: &str, path: &Path, place: &PlaceOf<'_>, faults: &mut Faults) {
    if path.as_os_str().is_empty() {
        faults.add_value(key, "", "a path", place(key));
    } else if path.starts_with("~") || path.to_string_lossy().starts_with('~') {
        faults.add_value(key, path.display(), "a full path: `~` means the home directory only to a shell", place(key));
    }
}

fn addresses(mesh: &Mesh, place: &PlaceOf<'_>, faults: &mut Faults) {
    let lists = [
        ("mesh.listen", &mesh.listen, ADDRESSES_MAX, listen_fault as fn(&str) -> Option<&'static str>),
        ("mesh.join", &mesh.join, JOIN_MAX, peer_fault),
        ("mesh.external", &mesh.external, ADDRESSES_MAX, peer_fault),
    ];
    for (key, list, count_max, fault) in lists {
        if list.len() > count_max {
            faults.add_value(key, format!("{} addresses", list.len()), &format!("at most {count_max}"), place(key));
        }
        for address in list {
            if let Some(allowed) = fault(address) {
                faults.add_value(key, address, allowed, place(key));
            }
        }
    }
    if mesh.listen.is_empty() && !mesh.client_only {
        let hint = "set mesh.client_only = true for a node that only asks".to_owned();
        faults.add("mesh.listen", "a node that hosts must listen somewhere", Some(hint), place("mesh.listen"));
    }
}

/// The names of an address's parts: `["ip4", "udp", "quic-v1"]`.
fn parts(address: &Multiaddr) -> Vec<&'static str> {
    address.protocol_stack().collect()
}

/// What is allowed instead of `text` as an address to listen on; `None` if it is right.
fn listen_fault(text: &str) -> Option<&'static str> {
    let allowed = Some("an address such as /ip4/0.0.0.0/tcp/7481 or /ip6/::/udp/7481/quic-v1");
    let Ok(address) = text.parse::<Multiaddr>() else { return allowed };
    let known = matches!(*parts(&address), ["ip4" | "ip6", "tcp"] | ["ip4" | "ip6", "udp", "quic-v1"]);
    if known { None } else { allowed }
}

/// What is allowed instead of `text` as an address of a node; `None` if it is right.
fn peer_fault(text: &str) -> Option<&'static str> {
    let allowed = Some("an address such as /ip4/192.0.2.1/tcp/7481/p2p/12D3... or /dns/example.org/udp/7481/quic-v1/p2p/12D3...");
    let Ok(address) = text.parse::<Multiaddr>() else { return allowed };
    let parts = parts(&address);
    let transport = parts.strip_suffix(&["p2p"]).unwrap_or(&parts);
    let known = matches!(
        *transport,
        ["ip4" | "ip6" | "dns" | "dns4" | "dns6", "tcp"] | ["ip4" | "ip6" | "dns" | "dns4" | "dns6", "udp", "quic-v1"] | ["dnsaddr"]
    );
    if !known {
        return allowed;
    }
    let ports_ok = !address.iter().any(|part| matches!(part, Protocol::Tcp(0) | Protocol::Udp(0)));
    let host_ok = !address.ip_addr().is_some_and(|ip| ip.is_unspecified() || ip.is_multicast());
    if ports_ok && host_ok { None } else { Some("an address that others can dial: a host of its own and a port other than 0") }
}

fn client_only(config: &Config, place: &PlaceOf<'_>, faults: &mut Faults) {
    let mesh = &config.mesh;
    if !mesh.client_only {
        return;
    }
    for (key, list) in [("mesh.listen", &mesh.listen), ("mesh.external", &mesh.external)] {
        if !list.is_empty() {
            let hint = format!("leave {key} out or set mesh.client_only = false");
            faults.add(key, "a client-only node does not listen", Some(hint), place(key));
        }
    }
    if !config.agents.is_empty() {
        let problem = "a client-only node cannot host agents, because nodes that cannot be dialled are not found";
        let hint = "remove the [[agent]] tables or set mesh.client_only = false".to_owned();
        faults.add("mesh.client_only", problem, Some(hint), place("mesh.client_only"));
    }
}

fn api(config: &Config, place: &PlaceOf<'_>, faults: &mut Faults) {
    let (api, key) = (&config.api, "api.listen");
    match api.listen.parse::<SocketAddr>() {
        Err(_) => faults.add_value(key, &api.listen, "an address and port such as 127.0.0.1:7480", place(key)),
        Ok(address) if !address.ip().is_loopback() => {
            let allowed = "a loopback address such as 127.0.0.1:7480, because the API speaks plain HTTP and whoever reads its token may \
                           command the node; to reach api.listen from elsewhere use an SSH tunnel (ssh -L 7480:127.0.0.1:7480 HOST) or a \
                           reverse proxy that adds TLS";
            faults.add_value(key, &api.listen, allowed, place(key));
        }
        Ok(_) => {}
    }
    let lists = [
        ("api.allowed_hosts", &api.allowed_hosts, host_ok as fn(&str) -> bool, "a host name such as mesh.example.org, without a scheme"),
        (
            "api.allowed_origins",
            &api.allowed_origins,
            origin_ok,
            "an origin such as https://mesh.example.org or http://localhost:3000, no path, no `*`",
        ),
    ];
    for (key, list, ok, allowed) in lists {
        if list.len() > ALLOWED_MAX {
            faults.add_value(key, format!("{} entries", list.len()), &format!("at most {ALLOWED_MAX}"), place(key));
        }
        for entry in list.iter().filter(|entry| !ok(entry)) {
            faults.add_value(key, entry, allowed, place(key));
        }
    }
}

/// Whether this is `HOST` or `HOST:PORT`.
fn host_ok(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && (!host.contains(':') || host.ends_with(']')) => (host, Some(port)),
        Some(_) | None => (text, None),
    };
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name_ok = match inside {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')),
    };
    !host.is_empty() && host.len() <= HOST_BYTES_MAX && name_ok && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn origin_ok(text: &str) -> bool {
    text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).is_some_and(host_ok)
}

/// The words that a log level can be.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks what a person gets wrong in log directives; the subscriber reads them for good.
fn log(directives: &str, place: &PlaceOf<'_>, faults: &mut Faults) {
    let key = "telemetry.log";
    let allowed = "a level (off, error, warn, info, debug, trace) or directives such as info,meshwork::mesh=debug";
    if directives.trim().is_empty() || directives.len() > LOG_BYTES_MAX || directives.chars().any(char::is_control) {
        return faults.add_value(key, directives, allowed, place(key));
    }
    // Braces hold field filters, which may contain commas and equals signs of their own.
    if directives.contains(['[', '{']) {
        return;
    }
    for directive in directives.split(',').map(str::trim) {
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (target, Some(level.to_lowercase())),
            None => (directive, None),
        };
        let target_ok = target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.'));
        let level_ok = level.as_deref().is_none_or(|level| LEVELS.contains(&level));
        // A bare word is a target to the subscriber, so a mistyped level would silence everything without a sound.
        let word = target.to_lowercase();
        let mistyped = level.is_none() && !LEVELS.contains(&word.as_str()) && model::nearest(&word, LEVELS).is_some();
        if target.is_empty() || !target_ok || !level_ok || mistyped {
            faults.add_value(key, directive, allowed, place(key));
        }
    }
}
