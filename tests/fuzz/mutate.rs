//! Mutations: of bytes, of CBOR heads, and of the values that the bytes stand for.
//!
//! Bytes break a decoder's assumptions about where things are, heads those about how many there are, values those about what they mean:
//! flipping bits alone would hardly ever get past the first length.

use ciborium::Value;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// Numbers at which decoders change their mind: widths of heads, signs, bounds of the documents.
const NUMBERS: [u64; 26] = [
    0,
    1,
    2,
    8,
    9,
    16,
    17,
    23,
    24,
    32,
    33,
    63,
    64,
    65,
    255,
    256,
    257,
    300_000,
    300_001,
    65_535,
    65_536,
    u32::MAX as u64,
    u32::MAX as u64 + 1,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX,
];
/// Floating-point numbers that are none, or hardly.
const FLOATS: [f64; 9] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.5, 1.0, 100.0, f64::MIN_POSITIVE, f64::MAX];
/// Texts that parsers stumble over.
const TEXTS: [&str; 20] = [
    "",
    " ",
    "\0",
    "\u{1b}[31m",
    "\u{202e}",
    "\u{fffd}",
    "é",
    "a.b.c.d.e.f.g",
    "text-processing",
    "custom",
    "-1",
    "1e400",
    "79228162514264337593543950336",
    "0.0000000000000000000000000000001",
    ">=1, <2",
    "1.0.0-a+b",
    "did:key:z6Mk",
    "12D3KooW",
    "USD",
    "NaN",
];
/// Lengths around the bounds of texts and lists.
const LENGTHS: [usize; 12] = [0, 1, 15, 16, 17, 31, 33, 64, 65, 129, 257, 513];
/// Repetitions that make an input large stop here.
const REPEAT_MAX: usize = 4_200;
/// How deep values are looked into.
const DEPTH_MAX: usize = 24;

/// Makes inputs of inputs.
pub(crate) struct Mutator {
    /// Values that occur in the seeds, to be put where they do not belong.
    dictionary: Vec<Value>,
    bytes_max: usize,
}

impl Mutator {
    /// A mutator for a decoder that reads `bytes_max` bytes at most.
    pub(crate) fn new(pool: &[Vec<u8>], bytes_max: usize) -> Self {
        let mut dictionary: Vec<Value> = NUMBERS.map(Value::from).to_vec();
        dictionary.extend(NUMBERS.iter().filter_map(|number| Some(Value::from(-i64::try_from(*number).ok()?))));
        dictionary.extend(FLOATS.map(Value::from));
        dictionary.extend(TEXTS.map(Value::from));
        dictionary.extend([Value::Null, Value::Bool(true), Value::Bool(false), Value::Array(Vec::new()), Value::Map(Vec::new())]);
        for input in pool {
            if let Some(value) = parse(input) {
                gather(&value, &mut dictionary, 0);
            }
        }
        Self { dictionary, bytes_max }
    }

    /// One to four mutations of `input`; some take from `other`.
    pub(crate) fn mutate(&self, input: &[u8], other: &[u8], rng: &mut SmallRng) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..rng.random_range(1..=4) {
            match rng.random_range(0..10) {
                0..5 => bytes = self.in_value(&bytes, other, rng),
                5..7 => in_head(&mut bytes, rng),
                _ => in_bytes(&mut bytes, other, rng),
            }
        }
        if rng.random_ratio(1, 2_000) {
            // The bound itself, from both sides.
            let fill = bytes.last().copied().unwrap_or_default();
            bytes.resize(self.bytes_max.saturating_add(rng.random_range(0..=4)).saturating_sub(2), fill);
        }
        bytes.truncate(self.bytes_max.saturating_add(2));
        bytes
    }

    fn in_value(&self, bytes: &[u8], other: &[u8], rng: &mut SmallRng) -> Vec<u8> {
        let Some(mut value) = parse(bytes) else {
            let mut bytes = bytes.to_vec();
            in_bytes(&mut bytes, other, rng);
            return bytes;
        };
        let donor = parse(other);
        let steps = rng.random_range(0..count(&value).max(1));
        self.at(&mut value, steps, donor.as_ref(), rng);
        write(&value)
    }

    /// Changes the value that is the `steps`th, counted from the outside.
    fn at(&self, value: &mut Value, steps: usize, donor: Option<&Value>, rng: &mut SmallRng) {
        let mut left = steps;
        if let Some(found) = nth(value, &mut left, 0) {
            self.change(found, donor, rng);
        }
    }

    fn change(&self, value: &mut Value, donor: Option<&Value>, rng: &mut SmallRng) {
        match rng.random_range(0..12) {
            0 => *value = self.word(rng),
            1 => {
                if let Some(donor) = donor {
                    let mut left = rng.random_range(0..count(donor));
                    let mut donor = donor.clone();
                    if let Some(found) = nth(&mut donor, &mut left, 0) {
                        *value = found.clone();
                    }
                }
            }
            2 => *value = Value::Tag(rng.random_range(0..40), Box::new(value.clone())),
            3 => {
                for _ in 0..rng.random_range(1..40) {
                    *value = Value::Array(vec![std::mem::replace(value, Value::Null)]);
                }
            }
            _ => self.within(value, rng),
        }
    }

    /// A change that keeps the type.
    fn within(&self, value: &mut Value, rng: &mut SmallRng) {
        match value {
            Value::Array(items) => match rng.random_range(0..5) {
                0 if !items.is_empty() => drop(items.remove(rng.random_range(0..items.len()))),
                1 => items.insert(rng.random_range(0..=items.len()), self.word(rng)),
                2 => items.reverse(),
                _ => {
                    // One entry again and again, up to and past the bound of the list.
                    let item = items.choose(rng).cloned().unwrap_or_else(|| self.word(rng));
                    let wanted = if rng.random_ratio(1, 200) { REPEAT_MAX } else { LENGTHS.choose(rng).copied().unwrap_or(1) };
                    items.resize(wanted.max(items.len().saturating_add(1)), item);
                }
            },
            Value::Map(entries) => match rng.random_range(0..4) {
                0 if !entries.is_empty() => drop(entries.remove(rng.random_range(0..entries.len()))),
                1 => entries.insert(rng.random_range(0..=entries.len()), (self.word(rng), self.word(rng))),
                2 if !entries.is_empty() => entries.push(entries[rng.random_range(0..entries.len())].clone()),
                _ => entries.reverse(),
            },
            Value::Text(text) => match rng.random_range(0..4) {
                0 => *text = TEXTS.choose(rng).copied().unwrap_or_default().to_owned(),
                1 => text.push_str(TEXTS.choose(rng).copied().unwrap_or_default()),
                2 => *text = ["a", "é", "\u{7}", "😀", "0"].choose(rng).copied().unwrap_or("a").repeat(*LENGTHS.choose(rng).unwrap_or(&1)),
                _ => {
                    text.pop();
                }
            },
            Value::Bytes(bytes) => match rng.random_range(0..5) {
                0 => bytes.resize(LENGTHS.choose(rng).copied().unwrap_or(1), 0),
                1 => bytes.resize([0, 32, 63, 64, 65, 2_048, 2_047][rng.random_range(0..7)], 0xff),
                2 => bytes.truncate(rng.random_range(0..=bytes.len())),
                3 => in_head(bytes, rng),
                // A document inside a document.
                _ => *bytes = self.in_value(&bytes.clone(), &[], rng),
            },
            Value::Integer(_) => *value = Value::from(*NUMBERS.choose(rng).unwrap_or(&0)),
            Value::Float(_) => *value = Value::from(*FLOATS.choose(rng).unwrap_or(&0.0)),
            Value::Tag(_, inner) => *value = (**inner).clone(),
            Value::Bool(truth) => *truth = !*truth,
            Value::Null => *value = self.word(rng),
            _ => {}
        }
    }

    fn word(&self, rng: &mut SmallRng) -> Value {
        self.dictionary.choose(rng).cloned().unwrap_or(Value::Null)
    }
}

fn parse(bytes: &[u8]) -> Option<Value> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX).ok()?;
    rest.is_empty().then_some(value)
}

fn write(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("a value is CBOR");
    bytes
}

fn gather(value: &Value, into: &mut Vec<Value>, depth: usize) {
    into.push(value.clone());
    for child in children(value).into_iter().filter(|_| depth < DEPTH_MAX) {
        gather(child, into, depth + 1);
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Map(entries) => entries.iter().flat_map(|(key, value)| [key, value]).collect(),
        Value::Tag(_, inner) => vec![inner],
        Value::Integer(_) | Value::Bytes(_) | Value::Float(_) | Value::Text(_) | Value::Bool(_) | Value::Null | _ => Vec::new(),
    }
}

fn count(value: &Value) -> usize {
    1 + children(value).into_iter().map(count).sum::<usize>()
}

fn nth<'a>(value: &'a mut Value, left: &mut usize, depth: usize) -> Option<&'a mut Value> {
    if *left == 0 || depth > DEPTH_MAX {
        return Some(value);
    }
    *left -= 1;
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Map(entries) => entries.iter_mut().flat_map(|(key, value)| [key, value]).collect(),
        Value::Tag(_, inner) => vec![inner],
        Value::Integer(_) | Value::Bytes(_) | Value::Float(_) | Value::Text(_) | Value::Bool(_) | Value::Null | _ => Vec::new(),
    };
    for child in children {
        let size = count(child);
        if *left < size {
            return nth(child, left, depth + 1);
        }
        *left -= size;
    }
    None
}

/// Changes one byte as if it were the head of an item: its type, its width, its length.
fn in_head(bytes: &mut Vec<u8>, rng: &mut SmallRng) {
    if bytes.is_empty() {
        return;
    }
    // Heads are dense at the front, and one there moves all that follows.
    let span = if rng.random_bool(0.5) { bytes.len().min(16) } else { bytes.len() };
    let at = rng.random_range(0..span);
    let (major, minor) = (bytes[at] & 0xe0, bytes[at] & 0x1f);
    match rng.random_range(0..6) {
        0 => bytes[at] = major | (minor.wrapping_add(1) & 0x1f),
        1 => bytes[at] = major | (minor.wrapping_sub(1) & 0x1f),
        2 => bytes[at] = (rng.random_range(0..8_u8) << 5) | minor,
        // The same number in a wider head, which strict readers refuse and others must not misread.
        3 if minor < 24 => drop(bytes.splice(at..=at, wide(major, u64::from(minor), rng))),
        4 => {
            bytes[at] = major | 0x1f;
            if rng.random_bool(0.5) {
                bytes.push(0xff);
            }
        }
        _ => drop(bytes.splice(at..=at, wide(major, *NUMBERS.choose(rng).unwrap_or(&0), rng))),
    }
}

fn wide(major: u8, number: u64, rng: &mut SmallRng) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    match rng.random_range(0..4) {
        0 => vec![major | 24, bytes[7]],
        1 => [&[major | 25], &bytes[6..]].concat(),
        2 => [&[major | 26], &bytes[4..]].concat(),
        _ => [&[major | 27], &bytes[..]].concat(),
    }
}

fn in_bytes(bytes: &mut Vec<u8>, other: &[u8], rng: &mut SmallRng) {
    let len = bytes.len();
    let range = |len: usize, rng: &mut SmallRng| {
        let start = rng.random_range(0..=len);
        start..rng.random_range(start..=len.min(start + 64))
    };
    match rng.random_range(0..8) {
        0 | 1 if len > 0 => bytes[rng.random_range(0..len)] ^= 1 << rng.random_range(0..8),
        2 if len > 0 => bytes[rng.random_range(0..len)] = rng.random(),
        3 => bytes.truncate(rng.random_range(0..=len)),
        4 => drop(bytes.drain(range(len, rng))),
        5 => {
            let piece = bytes[range(len, rng)].to_vec();
            let at = rng.random_range(0..=len);
            drop(bytes.splice(at..at, piece));
        }
        6 => {
            let piece = other[range(other.len(), rng)].to_vec();
            let place = range(len, rng);
            drop(bytes.splice(place, piece));
        }
        _ => bytes.insert(rng.random_range(0..=len), rng.random()),
    }
}
