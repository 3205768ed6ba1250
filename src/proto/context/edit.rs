//! What people ask for, as items: single operations, or a merge patch on the whole context object (RFC 7396).
//!
//! Faults are named by their place in what was asked for. What would be decided against the asker without a word is refused here instead: a
//! counter cannot be added to where a text stands. That is a courtesy to local clients; what others wrote has passed elsewhere, and folds to
//! something in any case.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::fold::Kind;
use super::replica::Replica;
use crate::model::{
    AGENT_MEMORY, CONTEXT_DEPTH_MAX, ErrorCode, Failure, PATH_BYTES_MAX, Path, Principal, SHARED_MEMORY, json_kind, nearest, printable,
};
use crate::wire::context::{ITEMS_MAX, Item};

/// How many items one request may have; they are written as several operations.
pub const EDITS_MAX: usize = 10_000;

const VERBS: [&str; 4] = ["set", "del", "inc", "append"];

fn fault(path: &str, message: impl AsRef<str>) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, message).with("path", path)
}

fn suggest(failure: Failure, near: Option<&str>) -> Failure {
    match near {
        Some(near) => failure.with("suggestion", near),
        None => failure,
    }
}

/// The items of a list such as `[{"op": "set", "path": "/shared_memory/a", "value": 1}]`.
///
/// # Errors
/// `INVALID_REQUEST` with the place of the first fault.
pub fn operations(list: &Value) -> Result<Vec<Item>, Failure> {
    operations_at(list, "/ops")
}

/// The items of such a list that stands at `place`.
///
/// # Errors
/// As [`operations`].
pub fn operations_at(list: &Value, place: &str) -> Result<Vec<Item>, Failure> {
    let Some(list) = list.as_array() else { return Err(fault(place, "expected a list of operations")) };
    if list.is_empty() || list.len() > EDITS_MAX {
        return Err(fault(place, format!("expected 1 to {EDITS_MAX} operations, found {}", list.len())));
    }
    list.iter().enumerate().map(|(at, entry)| operation(entry, &format!("{place}/{at}"))).collect()
}

fn operation(entry: &Value, place: &str) -> Result<Item, Failure> {
    let Some(fields) = entry.as_object() else { return Err(fault(place, "expected an object with op, path and value")) };
    let known = ["op", "path", "value", "by"];
    if let Some(unknown) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        let failure = fault(&format!("{place}/{}", printable(unknown, 40)), "unknown field");
        return Err(suggest(failure, nearest(unknown, known)));
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).ok_or_else(|| fault(&format!("{place}/{name}"), "expected a text"));
    let (verb, path) = (text("op")?, text("path")?);
    let path: Path = path.parse().map_err(|error: crate::model::ParseError| fault(&format!("{place}/path"), error.to_string()))?;
    let only = |allowed: Option<&str>| match ["value", "by"].into_iter().find(|name| fields.contains_key(*name) && Some(*name) != allowed) {
        Some(name) => Err(fault(&format!("{place}/{name}"), format!("`{verb}` takes no `{name}`"))),
        None => Ok(()),
    };
    let value = || fields.get("value").cloned().ok_or_else(|| fault(&format!("{place}/value"), format!("`{verb}` needs a value")));
    match verb {
        "set" => only(Some("value")).and_then(|()| Ok(Item::Set(path, value()?))),
        "append" => only(Some("value")).and_then(|()| Ok(Item::Append(path, value()?))),
        "del" => only(None).map(|()| Item::Del(path)),
        "inc" => {
            only(Some("by"))?;
            let by = fields.get("by").map_or(Some(1), Value::as_i64);
            Ok(Item::Inc(path, by.ok_or_else(|| fault(&format!("{place}/by"), "expected a whole number of 64 bits"))?))
        }
        other => {
            let message = format!("`{}` is not an operation: expected {}", printable(other, 40), VERBS.join(", "));
            let failure = fault(&format!("{place}/op"), message);
            Err(suggest(failure, nearest(other, VERBS)))
        }
    }
}

/// The items of a merge patch (RFC 7396) on the context object: `null` removes a member, an object is merged, anything else is set.
///
/// # Errors
/// `INVALID_REQUEST` with the place of the first fault.
pub fn merge_patch(patch: &Value) -> Result<Vec<Item>, Failure> {
    let Some(fields) = patch.as_object() else { return Err(fault("", "a merge patch on a context is an object")) };
    let mut items = Vec::new();
    for (name, value) in fields {
        match (name.as_str(), value) {
            (SHARED_MEMORY, Value::Object(fields)) => merge(&Path::shared(), fields, &mut items)?,
            (SHARED_MEMORY, Value::Null) => items.push(Item::Del(Path::shared())),
            (AGENT_MEMORY, Value::Object(agents)) => {
                for (agent, value) in agents {
                    let place = format!("/{AGENT_MEMORY}/{}", agent.replace('~', "~0").replace('/', "~1"));
                    let path: Path = place.parse().map_err(|error: crate::model::ParseError| fault(&place, error.to_string()))?;
                    match value {
                        Value::Object(fields) => merge(&path, fields, &mut items)?,
                        Value::Null => items.push(Item::Del(path)),
                        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                            return Err(fault(&place, "the memory of an agent is an object"));
                        }
                    }
                }
            }
            (SHARED_MEMORY | AGENT_MEMORY, _) => return Err(fault(&format!("/{name}"), "expected an object")),
            (other, _) => {
                let message = format!("only {SHARED_MEMORY} and {AGENT_MEMORY} can be changed so; access is changed with PUT .../access");
                return Err(fault(&format!("/{}", printable(other, 40)), message));
            }
        }
    }
    if items.is_empty() {
        return Err(fault("", "the merge patch changes nothing"));
    }
    if items.len() > EDITS_MAX {
        return Err(fault("", format!("the merge patch changes {} places, at most {EDITS_MAX} are allowed", items.len())));
    }
    Ok(items)
}

fn merge(place: &Path, fields: &Map<String, Value>, items: &mut Vec<Item>) -> Result<(), Failure> {
    for (name, value) in fields {
        let path = place
            .child(name)
            .map_err(|_| fault(&place.to_string(), format!("a path has at most {CONTEXT_DEPTH_MAX} names and {PATH_BYTES_MAX} bytes")))?;
        match value.as_object().filter(|fields| !fields.is_empty()) {
            Some(fields) => merge(&path, fields, items)?,
            None if value.is_null() => items.push(Item::Del(path)),
            None => items.push(Item::Set(path, value.clone())),
        }
    }
    Ok(())
}

/// Checks that each item finds what it needs where it goes, as the context is now and after those before it.
///
/// # Errors
/// `CONFLICT` with the path and what stands there.
pub fn check(replica: &Replica, writer: Principal, items: &[Item]) -> Result<(), Failure> {
    // Places that items before have changed, in an order in which all below a place follow it.
    let mut touched: BTreeSet<&[String]> = BTreeSet::new();
    for item in items {
        let place = item.path().segments();
        let is_below = (1..=place.len()).any(|depth| place.get(..depth).is_some_and(|above| touched.contains(above)));
        let is_above = touched.range(place..).next().is_some_and(|next| next.starts_with(place));
        // What an item before it put there is what it meets.
        let meets = matches!(item, Item::Inc(..) | Item::Append(..)) && !is_below && !is_above;
        // A long list is not made anew for each that is appended to it.
        let found = if meets && !is_taken(item, replica.kind(item.path(), writer)) { replica.get(item.path(), writer) } else { None };
        touched.insert(place);
        let conflict = match (item, &found) {
            (Item::Inc(..), Some(found)) if !found.is_number() => Some("a counter"),
            (Item::Append(..), Some(found)) if !found.is_array() => Some("a list"),
            _ => None,
        };
        if let (Some(wanted), Some(found)) = (conflict, &found) {
            let message = format!("{} holds {}, not {wanted}", item.path(), json_kind(found));
            return Err(Failure::new(ErrorCode::Conflict, message).with("path", item.path().to_string()));
        }
    }
    Ok(())
}

/// Whether a place that is known to be of this kind takes what an item adds.
fn is_taken(item: &Item, kind: Option<Kind>) -> bool {
    matches!((item, kind), (Item::Inc(..), Some(Kind::Nothing | Kind::Number)) | (Item::Append(..), Some(Kind::Nothing | Kind::List)))
}

/// Items in portions, each of which is one operation: all of one memory, few enough, and small enough to be sealed into one.
pub fn portions(items: Vec<Item>, bytes_max: usize) -> Vec<Vec<Item>> {
    let mut portions: Vec<Vec<Item>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = size(&item);
        let fits = portions.last().is_some_and(|portion| {
            let is_alike = portion.first().is_some_and(|first| first.path().private_to() == item.path().private_to());
            is_alike && portion.len() < ITEMS_MAX && bytes + size <= bytes_max
        });
        match portions.last_mut().filter(|_| fits) {
            Some(portion) => {
                portion.push(item);
                bytes += size;
            }
            None => {
                portions.push(vec![item]);
                bytes = size;
            }
        }
    }
    portions
}

/// How many bytes an item takes, or a few more.
pub fn size(item: &Item) -> usize {
    let value = match item {
        Item::Set(_, value) | Item::Append(_, value) => value.to_string().len(),
        Item::Del(_) | Item::Inc(..) => 10,
    };
    item.path().to_string().len() + value + 16
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{all_write, context, path, set, who};
    use super::*;

    #[test]
    fn operations_are_read_as_they_are_written() {
        let list = json!([
            {"op": "set", "path": "/shared_memory/a", "value": {"b": 1}},
            {"op": "inc", "path": "/shared_memory/n"},
            {"op": "inc", "path": "/shared_memory/n", "by": -2},
            {"op": "append", "path": "/shared_memory/l", "value": null},
            {"op": "del", "path": "/shared_memory/a"},
        ]);
        let expected = vec![
            set("/a", json!({"b": 1})),
            Item::Inc(path("/n"), 1),
            Item::Inc(path("/n"), -2),
            Item::Append(path("/l"), json!(null)),
            Item::Del(path("/a")),
        ];
        assert_eq!(operations(&list), Ok(expected));
    }

    #[test]
    fn a_fault_in_operations_is_named_by_its_place() {
        let good = json!({"op": "del", "path": "/shared_memory/a"});
        for (entry, place) in [
            (json!(1), "/ops/1"),
            (json!({"op": "sett", "path": "/shared_memory/a"}), "/ops/1/op"),
            (json!({"op": "set", "path": "a", "value": 1}), "/ops/1/path"),
            (json!({"op": "set", "path": "/shared_memory/a"}), "/ops/1/value"),
            (json!({"op": "del", "path": "/shared_memory/a", "value": 1}), "/ops/1/value"),
            (json!({"op": "inc", "path": "/shared_memory/a", "by": 1.5}), "/ops/1/by"),
            (json!({"op": "inc", "path": "/shared_memory/a", "value": 1}), "/ops/1/value"),
            (json!({"op": "del", "path": "/shared_memory/a", "vale": 1}), "/ops/1/vale"),
        ] {
            let failure = operations(&json!([good, entry])).expect_err(place);
            assert_eq!((failure.code, &failure.details["path"]), (ErrorCode::InvalidRequest, &json!(place)));
        }
        assert!(operations(&json!([])).is_err() && operations(&json!({})).is_err());
        assert!(operations(&json!(vec![good.clone(); EDITS_MAX])).is_ok());
        assert!(operations(&json!(vec![good; EDITS_MAX + 1])).is_err());
    }

    /// AMP-9: an update is a merge patch on the object that people see.
    #[test]
    fn a_merge_patch_sets_merges_and_removes() {
        let patch = json!({"shared_memory": {"a": {"b": 1, "c": null, "d": {}}, "e": [1], "f/g": "x"}});
        let expected = vec![set("/a/b", 1), Item::Del(path("/a/c")), set("/a/d", json!({})), set("/e", json!([1])), set("/f~1g", "x")];
        assert_eq!(merge_patch(&patch), Ok(expected));
        let agent = who(2);
        let private = json!({"agent_memory": {agent.to_string(): {"x": 1}}});
        assert_eq!(merge_patch(&private).expect("a patch")[0].path().private_to(), Some(agent));
        for (patch, place) in [
            (json!([]), ""),
            (json!({}), ""),
            (json!({"expires_at": "2027-01-01T00:00:00Z"}), "/expires_at"),
            (json!({"shared_memory": 1}), "/shared_memory"),
            (json!({"agent_memory": {"extractor": {}}}), "/agent_memory/extractor"),
        ] {
            assert_eq!(merge_patch(&patch).expect_err(place).details["path"], json!(place));
        }
    }

    #[test]
    fn a_counter_is_not_added_to_a_text() {
        let mut node = context(&all_write([]));
        node.write(1, [set("/text", "x"), set("/n", 1), set("/l", json!([]))]);
        let check = |items: &[Item]| check(&node.replica, who(1), items);
        assert!(check(&[Item::Inc(path("/n"), 1), Item::Inc(path("/new"), 1), Item::Append(path("/l"), json!(1))]).is_ok());
        assert_eq!(check(&[Item::Inc(path("/text"), 1)]).expect_err("a text").code, ErrorCode::Conflict);
        assert_eq!(check(&[Item::Append(path("/n"), json!(1))]).expect_err("a number").code, ErrorCode::Conflict);
        assert!(check(&[set("/text", 1), Item::Inc(path("/text"), 1)]).is_ok(), "it is a number by then");
        assert!(check(&[Item::Del(path("")), Item::Inc(path("/text"), 1)]).is_ok(), "so is what is not there any more");
        assert!(check(&[set("/text/a", 1), Item::Inc(path("/text"), 1)]).is_ok(), "and what was changed below");
        let beside = [set("/tex", 1), set("/text2", 1), set("/other/text", 1), Item::Inc(path("/text"), 1)];
        assert_eq!(check(&beside).expect_err("others").details["path"], json!("/shared_memory/text"));
    }

    /// Compared in pairs these would take a minute.
    #[test]
    fn as_many_edits_as_one_may_make_are_checked() {
        let node = context(&all_write([]));
        let names = "a/".repeat(CONTEXT_DEPTH_MAX - 3);
        let items: Vec<Item> = (0..EDITS_MAX).map(|at| Item::Inc(path(&format!("/{names}{at}")), 1)).collect();
        assert_eq!(check(&node.replica, who(1), &items), Ok(()));
    }

    #[test]
    fn items_are_portioned_by_number_size_and_memory() {
        let mine: Path = format!("/agent_memory/{}/x", who(2)).parse().expect("a path");
        let mut items: Vec<Item> = (0..ITEMS_MAX + 1).map(|at| set("/n", at)).collect();
        items.push(Item::Del(mine));
        items.extend([set("/l", "x".repeat(600)), set("/l", "x".repeat(600))]);
        let lengths: Vec<usize> = portions(items, 20_000).iter().map(Vec::len).collect();
        assert_eq!(lengths, [ITEMS_MAX, 1, 1, 2]);
        let large = portions(vec![set("/l", "x".repeat(600)), set("/l", "x".repeat(600))], 1_000);
        assert_eq!(large.len(), 2);
    }
}
