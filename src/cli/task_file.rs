//! Reads the file of a task: YAML or JSON, as its name says, or as it begins where the name says nothing.
//!
//! What YAML can do beyond JSON is not read: no anchors and aliases (with them a page of text stands for gigabytes), no merges, no tags, no
//! includes, no second document; `yes` and `no` are texts. So a task means the same in both. A key that stands twice is refused in both,
//! as one of its values would go unseen.
//!
//! Left to others: what a task is. The node reads the document and tells each fault with its place.

use std::fmt;
use std::fs::File;
use std::io::Read;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};

use super::CliError;
use crate::model::printable;

/// The largest file, in bytes.
const BYTES_MAX: u64 = 6 * 1024 * 1024;

/// How much of what a reader of YAML says is told, in characters.
const MESSAGE_CHARS_MAX: usize = 300;

/// The document in the file at `path`, or on stdin for `-`.
///
/// # Errors
/// The file cannot be read, is too large, or is not what it should be; with the place in it.
pub(crate) fn read(path: &str) -> Result<Value, CliError> {
    let (text, shown) = match path {
        "-" => (bounded(std::io::stdin().lock()), "stdin".to_owned()),
        _ => (File::open(path).and_then(bounded), printable(path, 200)),
    };
    let text = text.map_err(|error| CliError::usage(format!("failed to read {shown}: {error}")))?;
    let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let is_json = match ending.as_deref() {
        Some("json") => true,
        Some("yaml" | "yml") => false,
        Some(_) | None => text.trim_start().starts_with('{'),
    };
    let read = if is_json { json(&text) } else { yaml(&text) };
    let kind = if is_json { "JSON" } else { "YAML" };
    read.map_err(|message| CliError::usage(format!("what stands in {shown} is not {kind} that describes a task: {message}")))
}

/// The document that this YAML describes.
///
/// # Errors
/// It cannot be read.
pub(crate) fn from_yaml(text: &str) -> Result<Value, CliError> {
    yaml(text).map_err(CliError::internal)
}

fn bounded(file: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= BYTES_MAX) {
        Ok(text)
    } else {
        Err(std::io::Error::other(format!("it is larger than {BYTES_MAX} bytes")))
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str::<Strict>(text).map(|Strict(value)| value).map_err(|error| error.to_string())
}

fn yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_anchors: 0, max_aliases: 0, max_documents: 1 },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let read = serde_saphyr::from_str_with_options::<Strict>(text, options);
    read.map(|Strict(value)| value).map_err(|error| printable(&error.to_string(), MESSAGE_CHARS_MAX))
}

/// A value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(entry)) = entries.next_element()? {
            list.push(entry);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{}` stands twice", printable(&key, 80))));
            }
            let Strict(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::agents::{builtin, schema::Schema};
    use crate::cli::error::Exit;
    use crate::model::Timestamp;
    use crate::proto::task::definition::{Defaults, Definition, Subtask};
    use crate::proto::task::{result, types};

    const TASKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node-config/tasks");

    fn from(name: &str, text: &str) -> Result<Value, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        read(path.to_str().expect("a path")).map_err(|error| {
            assert_eq!(error.exit(), Exit::Usage);
            error.message().unwrap_or_default().to_owned()
        })
    }

    #[test]
    fn a_task_means_the_same_in_yaml_and_in_json() {
        let yaml = "name: Größe # why\nmetadata: {cost_limit: 10.50, tags: [yes, 'a']}\ngoal: |\n  one\n  - two\nsubtasks:\n- subtask_id: a\n  input: {text: \"${parent.input.x}\"}\n";
        let json = json!({
            "name": "Größe", "metadata": {"cost_limit": 10.5, "tags": ["yes", "a"]}, "goal": "one\n- two\n",
            "subtasks": [{"subtask_id": "a", "input": {"text": "${parent.input.x}"}}],
        });
        assert_eq!(from("task.yaml", yaml), Ok(json.clone()));
        assert_eq!(from("task.json", &json.to_string()), Ok(json.clone()));
        assert_eq!(from("task", yaml), Ok(json.clone()));
        assert_eq!(from("task", &json.to_string()), Ok(json));
        assert_eq!(
            from("t.yml", "a: ~\nb: 010\nc: 1_0\nd: -3\ne: null\n"),
            Ok(json!({"a": null, "b": "010", "c": "1_0", "d": -3, "e": null}))
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        for (name, text) in [("t.yaml", "a: 1\nb:\n  c: 1\n  c: 2\n"), ("t.json", r#"{"a": {"c": 1, "c": 2}}"#)] {
            let message = from(name, text).expect_err("twice");
            assert!(message.contains('c') && message.contains("line") || message.contains("twice"), "{message}");
        }
    }

    #[test]
    fn what_yaml_has_beyond_json_is_refused() {
        for text in [
            "a: &x 1\nb: *x\n",
            "a: &x {b: 1}\nc:\n  <<: {d: 1}\n",
            "a: !include /etc/passwd\n",
            "a: !python/object x\n",
            "a: .nan\n",
            "a: .inf\n",
            "a: 1\n---\nb: 2\n",
            "{a: 1",
            "a: [1\n",
            "b:\n\ta: 1\n",
        ] {
            let message = from("t.yaml", text).expect_err(text);
            assert!(message.contains("is not YAML that describes a task"), "{message}");
        }
    }

    #[test]
    fn hostile_files_are_refused_at_once() {
        let started = Instant::now();
        let laughs: String = (1..30).map(|level| format!("a{level}: &a{level} [{}]\n", format!("*a{},", level - 1).repeat(9))).collect();
        assert!(from("t.yaml", &format!("a0: &a0 ha\n{laughs}")).is_err());
        assert!(from("t.yaml", &"[".repeat(100_000)).is_err());
        assert!(from("t.json", &"[".repeat(100_000)).is_err());
        assert!(from("t.yaml", &"- ".repeat(100_000)).is_err());
        let large = from("t.yaml", &"x".repeat(6 * 1024 * 1024 + 1)).expect_err("too large");
        assert!(large.contains("larger than 6291456 bytes"), "{large}");
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!(read("/nowhere/at/all.yaml").expect_err("no file").exit(), Exit::Usage);
    }

    #[test]
    fn a_fault_of_the_text_is_told_with_its_line() {
        let message = from("t.yaml", "name: x\nmetadata: {tags: [a}\n").expect_err("a fault");
        assert!(message.contains("line 2"), "{message}");
        assert!(from("t.json", "{\n\"a\": }").expect_err("a fault").contains("line 2"));
    }

    /// The tasks that come with the program, by the names of their files.
    fn tasks() -> BTreeMap<String, Definition> {
        // Their deadlines, if any, lie ahead of this.
        let now = Timestamp::from_ms(1_700_000_000_000);
        let files = std::fs::read_dir(TASKS).expect("the folder is readable").map(|entry| entry.expect("an entry").path());
        let read = |path: std::path::PathBuf| {
            let document = read(path.to_str().expect("a path")).expect("a document");
            let faults = |faults| panic!("{}: {faults:?}", path.display());
            let definition = Definition::read(&document, &Defaults::default(), now).unwrap_or_else(faults);
            (path.file_stem().expect("a name").to_string_lossy().into_owned(), definition)
        };
        files.map(read).collect()
    }

    fn offer(subtask: &Subtask) -> Option<builtin::Offer> {
        let offers = builtin::all().iter().flat_map(|agent| (agent.capabilities)());
        offers.into_iter().find(|offer| offer.id == subtask.capability.as_str())
    }

    /// AITP-1, AITP-3: every task that comes with the program is valid, its schemas compile, its parameters fit, no types clash.
    #[test]
    fn every_task_that_comes_with_the_program_is_valid() {
        let tasks = tasks();
        assert!(tasks.len() >= 4 && tasks.contains_key("research-paper"), "{:?}", tasks.keys());
        for (name, task) in &tasks {
            let input = Schema::compile(&task.input).expect(name);
            assert_eq!(input.check(&Value::Object(task.parameters.clone())), Ok(()), "{name}");
            Schema::compile(&task.output).expect(name);
            let schemas: BTreeMap<&str, (Value, Value)> = task
                .subtasks
                .iter()
                .map(|subtask| {
                    let offer = offer(subtask).unwrap_or_else(|| panic!("{name}: no builtin agent offers {}", subtask.capability));
                    (subtask.id.as_str(), (offer.input_schema, offer.output_schema))
                })
                .collect();
            let found = types::clashes(task, &|subtask| schemas.get(subtask.id.as_str()).map(|(input, output)| (input, output)));
            assert_eq!(found, [], "{name}");
        }
    }

    /// AITP-3: the draft's own example, and the others, give what they promise when their steps are done one after the other.
    #[test]
    fn every_task_that_comes_with_the_program_can_be_done() {
        for (name, task) in tasks().into_iter().filter(|(_, task)| !task.subtasks.is_empty()) {
            let mut outputs: Vec<Option<Value>> = vec![None; task.subtasks.len()];
            for place in task.order() {
                let subtask = &task.subtasks[place];
                let input = subtask.input.render(&task.parameters, &|place| outputs[place].as_ref()).expect(&name);
                let offer = offer(subtask).expect(&name);
                assert_eq!(Schema::compile(&offer.input_schema).expect(&name).check(&input), Ok(()), "{name}: {}", subtask.id);
                let agent = builtin::all().iter().find(|agent| (agent.capabilities)().contains(&offer)).expect(&name);
                let output = (agent.run)(offer.id, &input, &builtin::Settings::default()).expect(&name).value;
                outputs[place] = Some(result::map_output(subtask, output).expect(&name));
            }
            let result = result::compose(&task, &|place| outputs[place].as_ref());
            assert_eq!(Schema::compile(&task.output).expect(&name).check(&result), Ok(()), "{name}: {result}");
            if name == "research-paper" {
                let joined = &result["result"];
                assert!(joined["raw_text"].as_str().expect("a text").len() > 1_000, "{result}");
                assert!(joined["nlp_results"]["statistics"]["words"].as_u64() > Some(100), "{result}");
            }
        }
    }
}
