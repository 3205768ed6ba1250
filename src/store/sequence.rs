//! The sequence numbers of records, which must never repeat or fall (threats T7, T12).
//!
//! Two records of one agent with the same number and different content prove a cheat to whoever sees both, and a lower number than
//! before is ignored everywhere. So a number is durable before it is handed out. Numbers follow the wall clock, which keeps them rising even
//! if the file is lost, and step by one where the clock stands still or was set back (fault F15).

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::{
    Error, agent_folder,
    files::{self, MODE_SECRET},
    lines::checksum,
};

/// How large the file may be; it holds one line.
const FILE_BYTES_MAX: u64 = 128;

/// The high-water marks of a data directory. Made by [`super::DataDir::sequences`]; calls block on the disk.
#[derive(Debug, Clone)]
pub struct Sequences {
    folder: PathBuf,
}

impl Sequences {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The next number for the agent called `name` when the wall clock shows `wall_ms` milliseconds since 1970: the larger of that and
    /// one more than the last. Durable when this returns; a number lost to a crash is never given again. One caller at a time per agent.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file does not read or the numbers are used up, [`Error::Name`] or [`Error::Io`]; no number is then used.
    pub fn next(&self, name: &str, wall_ms: u64) -> Result<u64, Error> {
        self.reserve(name, wall_ms, 0).map(|numbers| *numbers.start())
    }

    /// Like [`Sequences::next`], with `ahead` more numbers behind the first: whoever keeps them needs the disk again only after the last.
    /// Those that are not used are lost, which does no harm.
    ///
    /// # Errors
    /// As [`Sequences::next`].
    pub fn reserve(&self, name: &str, wall_ms: u64, ahead: u64) -> Result<RangeInclusive<u64>, Error> {
        let folder = agent_folder(&self.folder, name)?;
        let path = folder.join("sequence");
        let damaged = |reason: &str| Error::Damaged { path: path.clone(), reason: reason.to_owned() };
        let next = match files::read_bounded(&path, FILE_BYTES_MAX)? {
            Some(bytes) => {
                let last = decode(&bytes).map_err(damaged)?;
                let after = last.checked_add(1).ok_or_else(|| damaged("the numbers are used up; move the agent's folder away"))?;
                after.max(wall_ms)
            }
            None => wall_ms,
        };
        files::create_folder(&folder)?;
        let last = next.checked_add(ahead).ok_or_else(|| damaged("the numbers are used up; move the agent's folder away"))?;
        files::write_durable(&path, encode(last).as_bytes(), MODE_SECRET)?;
        Ok(next..=last)
    }
}

/// One line: the format's version, the number, a checksum of both.
fn encode(number: u64) -> String {
    let body = format!("1 {number}");
    format!("{body} {}\n", checksum(&body))
}

fn decode(bytes: &[u8]) -> Result<u64, &'static str> {
    let reason = "torn or not a sequence number; if the clock is right, remove the file and numbers go on from the clock";
    let text = std::str::from_utf8(bytes).map_err(|_| reason)?;
    let (body, sum) = text.strip_suffix('\n').and_then(|line| line.rsplit_once(' ')).ok_or(reason)?;
    if checksum(body) != sum {
        return Err(reason);
    }
    match body.split_once(' ') {
        Some(("1", number)) => number.parse().map_err(|_| reason),
        Some(_) => Err("written in another format; run the release that wrote it"),
        None => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn numbers_follow_the_clock_and_never_fall_behind_it() {
        let folder = tempfile::tempdir().expect("folder");
        let sequences = Sequences::new(folder.path());
        let next = |wall_ms| sequences.next("a", wall_ms).expect("a number");
        assert_eq!([next(1_000), next(1_000), next(5_000)], [1_000, 1_001, 5_000]);
        assert_eq!(sequences.next("b", 7).expect("a number"), 7, "each agent counts alone");
    }

    #[test]
    fn numbers_rise_across_a_restart_with_a_clock_set_back() {
        let folder = tempfile::tempdir().expect("folder");
        let before = Sequences::new(folder.path()).next("a", 9_000).expect("a number");
        let after = Sequences::new(folder.path()).next("a", 10).expect("a number");
        assert_eq!((before, after), (9_000, 9_001));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("folder");
        let sequences = Sequences::new(folder.path());
        sequences.next("a", 5).expect("a number");
        let path = folder.path().join("agents/a/sequence");
        let whole = fs::read_to_string(&path).expect("reads");
        for text in ["", "5", &whole.replace('5', "4"), &whole[..whole.len() - 2]] {
            fs::write(&path, text).expect("writes");
            let error = sequences.next("a", 6).expect_err("damaged");
            assert!(error.to_string().contains("agents/a/sequence"), "{error}");
        }
    }

    #[test]
    fn the_last_number_is_not_given_twice() {
        let folder = tempfile::tempdir().expect("folder");
        let sequences = Sequences::new(folder.path());
        assert_eq!(sequences.next("a", u64::MAX).expect("a number"), u64::MAX);
        assert!(sequences.next("a", 1).is_err());
    }
}
