use std::{collections::BTreeMap, fs, path::PathBuf};

use super::*;
use crate::model::Adapter;

#[test]
fn every_example_parses_and_validates() {
    for (name, text) in EXAMPLES {
        let config = Config::parse(text, name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.node.data_dir.ends_with(name), "{name} keeps its files apart");
        assert_eq!(example(&format!("{name}.toml")), Some(text));
    }
    assert_eq!(example("nowhere"), None);
}

#[test]
fn every_file_of_the_folder_is_an_example() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/node-config");
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
            assert!(example(name).is_some(), "{name}");
        }
    }
}

#[test]
fn an_empty_file_is_the_defaults_with_a_name() {
    let config = Config::parse("", "x.toml").expect("valid");
    assert!(config.node.name.as_deref().is_some_and(|name| !name.is_empty()));
    assert_eq!((config.mesh, config.limits, config.api), (Mesh::default(), Limits::default(), Api::default()));
}

#[test]
fn a_slip_in_a_key_is_named_with_its_line_and_the_nearest_key() {
    let error = faults_of("[node]\nname = \"a\"\n[mesh]\nlissten = []\n");
    assert_eq!(error, ["mesh.lissten: unknown key, did you mean mesh.listen? (line 4 of x.toml)"]);
}

#[test]
fn unknown_sections_are_named() {
    assert_eq!(faults_of("[mseh]\n"), ["mseh: unknown section, did you mean mesh? (line 1 of x.toml)"]);
    assert_eq!(faults_of("[[agents]]\nname = 'a'\n"), ["agents: unknown section, did you mean [[agent]]? (line 1 of x.toml)"]);
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = "[mesh]\nlisten = 'x'\njoin = ['nowhere']\n[mesh.limits]\nper_peer_max = 0\n[routing]\nexploration = 0.9\nmin_trust = nan\n[api]\nlisten = '0.0.0.0:7480'\n[limits]\nattempts_max = 1.5";
    let faults = faults_of(text);
    assert_eq!(faults.len(), 7, "{faults:#?}");
    let fault = |start: &str| faults.iter().find(|fault| fault.starts_with(start)).unwrap_or_else(|| panic!("{start}: {faults:#?}"));
    assert_eq!(
        fault("mesh.limits"),
        "mesh.limits.per_peer_max: `0` is not allowed: expected a whole number between 1 and 64 (line 5 of x.toml)"
    );
    assert!(fault("routing.exploration").contains("`0.9` is not allowed: expected a number between 0 and 0.5"));
    assert!(fault("mesh.listen").contains("expected a list"), "{}", fault("mesh.listen"));
    assert!(fault("api.listen").contains("SSH tunnel") && fault("api.listen").contains("TLS"));
}

#[test]
fn pins_are_the_ids_of_a_handful_of_nodes() {
    let faults = faults_of("[routing]\npinned = ['somebody']\n");
    assert!(faults[0].starts_with("routing.pinned: `somebody` is not allowed: expected the id of a node"), "{faults:?}");
    let id = libp2p_identity::Keypair::generate_ed25519().public().to_peer_id();
    let pinned = |count: usize| format!("[routing]\npinned = [{}]\n", vec![format!("'{id}'"); count].join(", "));
    assert!(Config::parse(&pinned(16), "x.toml").is_ok());
    assert!(faults_of(&pinned(17))[0].contains("at most 16"));
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_line() {
    let faults = faults_of("[node]\nname = \n");
    assert!(faults[0].starts_with("not TOML: ") && faults[0].contains("line 2 of x.toml"), "{faults:?}");
}

#[test]
fn unknown_keys_inside_agents_are_named() {
    let agent = "[[agent]]\nname = 'a'\n[agent.adapter]\ntype = 'process'\ncomand = ['x']\n[[agent.capability]]\nid = 'x'\nprise = 1\ninput_schema = { anything = 1 }\n";
    let faults = faults_of(agent);
    assert_eq!(
        faults,
        [
            "agent[0].adapter.comand: unknown key, did you mean agent[0].adapter.command? (line 5 of x.toml)",
            "agent[0].capability[0].prise: unknown key, did you mean agent[0].capability[0].price? (line 8 of x.toml)",
        ]
    );
}

/// MAOP-2: the names of resources are the author's own; the fields around them are not.
#[test]
fn claims_are_read_from_a_file() {
    let claims = "score = 0.9\nspecializations = [\"invoices\"]\nresource_requirements = { gpu = true, \"any thing\" = 2.5 }\n";
    let text = format!(
        "[[agent]]\nname = \"a\"\nadapter = {{ type = \"builtin\", kind = \"echo\" }}\n[[agent.capability]]\nid = \"echo\"\n{claims}"
    );
    let config = Config::parse(&text, "x.toml").expect("valid");
    let read = config.agents[0].capabilities[0].claims();
    assert_eq!((read.score, read.specializations.len(), read.resource_requirements.len()), (Some(0.9), 1, 2));
    let error = Config::parse(&text.replace("specializations", "specialisations"), "x.toml").expect_err("a slip").to_string();
    assert!(error.contains("did you mean agent[0].capability[0].specializations?"), "{error}");
}

#[test]
fn an_agents_values_are_refused_with_their_line() {
    let capability = "[[agent]]\nname = 'a'\nadapter = { type = 'builtin', kind = 'echo' }\n[[agent.capability]]\nid = 'Not A Name'\n";
    let faults = faults_of(capability);
    assert!(faults[0].starts_with("agent[0].capability[0].id: ") && faults[0].contains("not a capability name"), "{faults:?}");
    assert!(faults[0].contains("line 5 of"), "{faults:?}");

    let kind = faults_of("[[agent]]\nname = 'a'\nadapter = { type = 'proces' }\n");
    assert!(kind[0].contains("did you mean process?"), "{kind:?}");

    let name = faults_of("[[agent]]\nname = '../a'\nadapter = { type = 'builtin', kind = 'echo' }\n");
    assert!(name[0].starts_with("agent[0].name: `../a` is not allowed"), "{name:?}");
}

#[test]
fn two_agents_cannot_share_a_name() {
    let agent = "[[agent]]\nname = 'a'\nadapter = { type = 'builtin', kind = 'echo' }\n";
    assert!(faults_of(&agent.repeat(2))[0].contains("no other agent"));
}

#[test]
fn flags_outrank_the_environment_which_outranks_the_file() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("node.toml");
    fs::write(&path, "[node]\nname = 'file'\ndata_dir = 'data'\n[mesh]\njoin = ['/ip4/192.0.2.1/tcp/1']\n[limits]\nattempts_max = 2\n")
        .expect("writes");
    let load =
        |env: &[(&str, &str)], flags: Flags| Config::load(Sources { file: Some(path.clone()), env: env_of(env), flags }).expect("valid");

    let file = load(&[], Flags::default());
    assert_eq!((file.node.name.as_deref(), file.limits.attempts_max), (Some("file"), 2));
    assert_eq!(file.node.data_dir, folder.path().join("data"), "relative to the file");
    assert_eq!(file.token_file(), folder.path().join("data/api-token"));

    let env = [("MESHWORK_NODE__NAME", "42"), ("MESHWORK_LIMITS__ATTEMPTS_MAX", "3"), ("MESHWORK_DATA_DIR", "/elsewhere")];
    let both = load(&env, Flags::default());
    assert_eq!((both.node.name.as_deref(), both.limits.attempts_max), (Some("42"), 3), "a number is also a name");
    assert_eq!(both.node.data_dir, PathBuf::from("/elsewhere"));

    let all = load(&env, Flags { name: Some("flag".to_owned()), join: vec!["/ip4/192.0.2.2/tcp/2".to_owned()], ..Flags::default() });
    assert_eq!((all.node.name.as_deref(), all.mesh.join), (Some("flag"), vec!["/ip4/192.0.2.2/tcp/2".to_owned()]));
}

#[test]
fn the_environment_writes_lists_and_nested_keys_as_toml() {
    let env = [("MESHWORK_MESH__LISTEN", "[\"/ip4/127.0.0.1/tcp/0\"]"), ("MESHWORK_MESH__LIMITS__PER_PEER_MAX", "8"), ("HOME", "/home/x")];
    let config = Config::load(Sources { env: env_of(&env), ..Sources::default() }).expect("valid");
    assert_eq!((config.mesh.listen.len(), config.mesh.limits.per_peer_max), (1, 8));
    assert_eq!(config.node.data_dir, PathBuf::from("/home/x/.local/share/meshwork"));
}

#[test]
fn unknown_environment_names_are_errors_and_client_variables_are_not() {
    let faults =
        env_faults(&[("MESHWORK_MESH__LISSTEN", "[]"), ("MESHWORK_API", "http://x"), ("MESHWORK_TOKEN", "t"), ("MESHWORK_LOG", "y")]);
    assert_eq!(faults, ["mesh.lissten: unknown key, did you mean MESHWORK_MESH__LISTEN? (environment MESHWORK_MESH__LISSTEN)"]);
    let section = env_faults(&[("MESHWORK_ROUTNG__MIN_TRUST", "3")]);
    assert!(section[0].contains("did you mean MESHWORK_ROUTING__MIN_TRUST?"), "{section:?}");
}

#[test]
fn without_a_home_the_data_directory_must_be_named() {
    let error = Config::load(Sources::default()).expect_err("nowhere to put files");
    assert!(error.to_string().contains("node.data_dir"), "{error}");
}

#[test]
fn a_client_only_node_neither_listens_nor_hosts() {
    let config = Config::parse("[mesh]\nclient_only = true\n", "x.toml").expect("valid");
    assert!(config.mesh.listen.is_empty());
    let agent = "[mesh]\nclient_only = true\n[[agent]]\nname = 'a'\nadapter = { type = 'builtin', kind = 'echo' }\n";
    assert!(faults_of(agent)[0].contains("cannot host agents"));
    assert!(faults_of("[mesh]\nclient_only = true\nlisten = ['/ip4/127.0.0.1/tcp/1']\n")[0].contains("does not listen"));
    assert!(faults_of("[mesh]\nlisten = []\n")[0].contains("mesh.client_only"));
}

#[test]
fn addresses_are_those_of_tcp_and_quic() {
    let peer = libp2p_identity::Keypair::generate_ed25519().public().to_peer_id();
    for good in [
        format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}"),
        format!("/dns/a.example/udp/1/quic-v1/p2p/{peer}"),
        "/ip6/2001:db8::1/tcp/1".to_owned(),
    ] {
        assert_eq!(faults_of(&format!("[mesh]\njoin = ['{good}']\n")), [""; 0], "{good}");
    }
    for bad in ["/ip4/0.0.0.0/tcp/1", "/ip4/192.0.2.1/tcp/0", "/ip4/192.0.2.1/udp/1", "192.0.2.1:7481", "/memory/1"] {
        assert_eq!(faults_of(&format!("[mesh]\njoin = ['{bad}']\n")).len(), 1, "{bad}");
    }
    assert_eq!(faults_of("[mesh]\nlisten = ['/dns/a.example/tcp/1']\n").len(), 1);
}

#[test]
fn the_api_allows_named_hosts_and_origins_only() {
    let good =
        "[api]\nlisten = '[::1]:0'\nallowed_hosts = ['mesh.example.org', 'a:80', '[::1]:80']\nallowed_origins = ['https://a.example']\n";
    assert_eq!(faults_of(good), [""; 0]);
    for bad in ["allowed_origins = ['*']", "allowed_origins = ['https://a/b']", "allowed_hosts = ['https://a']", "listen = 'localhost:1'"] {
        assert_eq!(faults_of(&format!("[api]\n{bad}\n")).len(), 1, "{bad}");
    }
}

#[test]
fn a_mistyped_log_level_is_refused() {
    for good in ["info", "WARN", "info,meshwork::mesh=debug", "off", "meshwork", "info,[span{field=1,x=2}]=trace"] {
        assert_eq!(faults_of(&format!("[telemetry]\nlog = '{good}'\n")), [""; 0], "{good}");
    }
    for bad in ["inof", "meshwork=loud", "", "info,,warn"] {
        assert_eq!(faults_of(&format!("[telemetry]\nlog = '{bad}'\n")).len(), 1, "{bad}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert!(faults_of("[limits]\ncall_timeout_ms_default = 700000\n")[0].contains("call_timeout_ms_max"));
    let weights = "[routing]\nweight_match = 0\nweight_trust = 0\nweight_latency = 0.0\nweight_cost = 0\n";
    assert!(faults_of(weights)[0].contains("all 0"));
    assert!(faults_of("[node]\nname = ''\n")[0].contains("printable"));
    assert!(faults_of("[node]\ndata_dir = '~/x'\n")[0].contains("home directory"));
}

/// MAOP-10: whatever may be called with can be sent to the API.
#[test]
fn the_largest_payload_fits_into_a_request() {
    let limits = |payload: u64, body: u64| format!("[limits]\npayload_bytes_max = {payload}\nhttp_body_bytes_max = {body}\n");
    for (payload, spare) in [(256, 65_536), (67_108_864, 1_048_576)] {
        assert!(Config::parse(&limits(payload, payload + spare), "x.toml").is_ok(), "{payload}");
    }
    let faults = faults_of(&limits(16_777_216, 16_777_216));
    let told =
        "limits.http_body_bytes_max: `16777216` is not allowed: expected at least 16842752: limits.payload_bytes_max, which is 16777216";
    assert!(faults.len() == 1 && faults[0].starts_with(told), "{faults:?}");
    let faults = faults_of("[limits]\npayload_bytes_max = 16777216\n");
    assert!(faults[0].contains("line 2 of x.toml"), "the key that was written is named: {faults:?}");
}

#[test]
fn a_files_relative_paths_are_taken_from_its_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("node.toml");
    let text = "[node]\ndata_dir = 'd'\n[[agent]]\nname = 'a'\nadapter = { type = 'process', command = ['x'], working_dir = 'w' }\n";
    fs::write(&path, text).expect("writes");
    let config = Config::load(Sources { file: Some(path), ..Sources::default() }).expect("valid");
    let Adapter::Process { working_dir, .. } = &config.agents[0].adapter else { panic!("a process") };
    assert_eq!(working_dir.as_deref(), folder.path().join("w").to_str());
}

#[test]
fn a_file_that_is_missing_or_too_large_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("node.toml");
    let load = || Config::load(Sources { file: Some(path.clone()), ..Sources::default() }).expect_err("refused");
    assert!(matches!(load(), Error::Read { .. }));
    fs::write(&path, "#".repeat(1_048_577)).expect("writes");
    assert!(matches!(load(), Error::TooLarge { .. }));
}

fn faults_of(text: &str) -> Vec<String> {
    shown(Config::parse(text, "x.toml"))
}

fn env_faults(env: &[(&str, &str)]) -> Vec<String> {
    let mut env = env_of(env);
    env.insert("HOME".to_owned(), "/home/x".to_owned());
    shown(Config::load(Sources { env, ..Sources::default() }))
}

fn shown(result: Result<Config, Error>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(error) => error.faults().iter().map(ToString::to_string).collect(),
    }
}

fn env_of(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
