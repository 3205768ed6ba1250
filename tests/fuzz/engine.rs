//! The engine: which input comes next, what is remembered, what happens when one fails.
//!
//! Everything follows from the seed, the corpus and the target. An input that gets a new kind of answer joins the pool, and one in the
//! pool that led to it is mutated further; the kind of an answer is its text without the numbers and words that vary, which every decoder
//! has and no instrumentation is needed for.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::mutate::Mutator;

/// Inputs per target where `FUZZ_INPUTS` does not say.
const INPUTS_DEFAULT: u64 = 20_000;
/// Inputs that are mutated; beyond it a new one takes the place of any other.
const POOL_MAX: usize = 2_048;
/// Kinds of answer that are told apart; a decoder with more of them says something in its errors that varies.
const KINDS_MAX: usize = 100_000;
/// An input larger than this does not go into the corpus unless it fails: nobody could read it there.
const CORPUS_BYTES_MAX: usize = 1_024;
/// Inputs that one run adds to the corpus, the smallest of those that were answered in a new way.
const GROWN_MAX: usize = 48;

/// A decoder, and what must hold of it.
pub(crate) struct Target {
    /// Names its corpus.
    pub(crate) name: &'static str,
    /// Inputs that are a little larger than any it accepts are made now and then.
    pub(crate) bytes_max: usize,
    /// Well-formed messages.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Says what the decoder makes of an input, or which property does not hold.
    pub(crate) check: fn(&[u8]) -> Result<String, String>,
}

/// Checks the corpus, then as many mutations as are asked for.
pub(crate) fn run(target: &Target) {
    let inputs = setting("FUZZ_INPUTS").unwrap_or(INPUTS_DEFAULT);
    let seed = setting("FUZZ_SEED").unwrap_or_default();
    let grow = setting("FUZZ_GROW").unwrap_or_default() > 0;
    let began = Instant::now();
    let mut kinds = BTreeSet::new();
    let mut pool = Vec::new();
    let mut grown = Vec::new();
    for input in corpus(target).into_iter().chain((target.seeds)()) {
        kinds.insert(answer(target, &input, seed));
        pool.push(input);
    }
    let mut rng = SmallRng::seed_from_u64(seed ^ hash(target.name));
    let mutator = Mutator::new(&pool, target.bytes_max);
    for _ in 0..inputs {
        let at = rng.random_range(0..pool.len());
        let other = rng.random_range(0..pool.len());
        let input = mutator.mutate(&pool[at], &pool[other], &mut rng);
        let kind = answer(target, &input, seed);
        if kinds.len() >= KINDS_MAX || !kinds.insert(kind) {
            continue;
        }
        grown.push(input.clone());
        if pool.len() < POOL_MAX {
            pool.push(input);
        } else {
            pool[other] = input;
        }
    }
    if grow {
        grown.sort_by_key(Vec::len);
        for input in grown.iter().filter(|input| input.len() <= CORPUS_BYTES_MAX).take(GROWN_MAX) {
            append(target, input, None);
        }
    }
    let took = began.elapsed().as_secs_f64();
    let text = format!(
        "{}: {inputs} inputs in {took:.1} s, {:.0} per second, {} kinds of answer, {} inputs in the pool\n",
        target.name,
        f64::from(u32::try_from(inputs).unwrap_or(u32::MAX)) / took,
        kinds.len(),
        pool.len()
    );
    // Nobody who went away needs to know.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The kind of answer that an input gets. Ends the test if a property does not hold.
fn answer(target: &Target, input: &[u8], seed: u64) -> u64 {
    let checked = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    let fault = match checked {
        Ok(Ok(kind)) => return hash(&shape(&kind)),
        Ok(Err(fault)) => fault,
        Err(_) => "the decoder panicked, as said above".to_owned(),
    };
    append(target, input, Some(&fault));
    panic!("{}: {fault}\nthe input is the last line of {}; seed {seed}", target.name, file(target).display());
}

/// A text up to what it quotes, in which every number is the same: the rest varies without end.
fn shape(text: &str) -> String {
    let said = text.split(['`', '\\']).next().unwrap_or_default();
    let mut shape = String::with_capacity(said.len());
    for character in said.chars() {
        let character = if character.is_ascii_digit() { '0' } else { character };
        if !(character == '0' && shape.ends_with('0')) {
            shape.push(character);
        }
    }
    shape
}

fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

fn file(target: &Target) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fuzz", "corpus", &format!("{}.hex", target.name)].iter().collect()
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let file = file(target);
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| unhex(line).unwrap_or_else(|| panic!("{}: not hexadecimal: {line}", file.display()))).collect()
}

fn append(target: &Target, input: &[u8], fault: Option<&str>) {
    let mut lines = fault.map(|fault| format!("# {}\n", fault.replace(char::is_control, " "))).unwrap_or_default();
    lines.extend(input.iter().map(|byte| format!("{byte:02x}")));
    lines.push('\n');
    let opened = fs::OpenOptions::new().append(true).open(file(target));
    // Where nothing may be written the seed must do.
    let _ = opened.and_then(|mut file| file.write_all(lines.as_bytes()));
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if text.len().is_multiple_of(2) { pairs.collect() } else { None }
}
