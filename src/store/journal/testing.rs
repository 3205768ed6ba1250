//! A disk in memory that can lose what was not flushed, fill up, fail and be tampered with.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::disk::{Disk, Medium};

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    /// What the names were since they were last flushed, oldest first.
    names_since: Vec<BTreeMap<String, usize>>,
    knobs: Knobs,
    flushes: usize,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Knobs {
    /// No file can be made any more.
    pub(super) full: bool,
    /// Writing in place fails like this.
    pub(super) write_fails: Option<io::ErrorKind>,
    /// Flushes fail.
    pub(super) flush_fails: bool,
    /// After so many changes and flushes the power is cut.
    pub(super) changes_left: Option<usize>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Writes since the last flush, each within a sector.
    since: Vec<(usize, Vec<u8>)>,
}

impl Memory {
    pub(super) fn set(&self, knobs: Knobs) {
        self.lock().knobs = knobs;
    }

    pub(super) fn flushes(&self) -> usize {
        self.lock().flushes
    }

    /// What a file holds.
    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.lock();
        state.files[state.names[name]].now.clone()
    }

    /// Changes what a file holds behind the journal's back.
    pub(super) fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let id = state.names[name];
        let content = &mut state.files[id];
        change(&mut content.now);
        *content = Content { now: content.now.clone(), flushed: content.now.clone(), since: Vec::new() };
    }

    /// Another disk with the same content, all of it flushed.
    pub(super) fn copy(&self) -> Self {
        let state = self.lock();
        let files = state.files.iter().map(|file| Content { flushed: file.now.clone(), since: Vec::new(), now: file.now.clone() });
        Self::of(files.collect(), state.names.clone())
    }

    /// What is there after the power was cut: all that was flushed, and of the rest what luck gives.
    pub(super) fn after_power_cut(&self, seed: u64) -> Self {
        let state = self.lock();
        let mut rng = SmallRng::seed_from_u64(seed);
        let files = state.files.iter().map(|file| {
            let mut now = file.flushed.clone();
            let (share, prefix) = (rng.random_range(0..=10), rng.random_bool(0.3));
            for (offset, bytes) in &file.since {
                let kept = rng.random_range(0..10) < share;
                if !kept && prefix {
                    break;
                }
                if kept {
                    now[*offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
            Content { flushed: now.clone(), since: Vec::new(), now }
        });
        let files = files.collect();
        let names = state.names_since.iter().chain([&state.names]).nth(rng.random_range(0..=state.names_since.len()));
        Self::of(files, names.cloned().unwrap_or_default())
    }

    fn of(files: Vec<Content>, names: BTreeMap<String, usize>) -> Self {
        Self(Arc::new(Mutex::new(State { files, names, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the disk")
    }
}

impl State {
    /// Counts a change; an error if the power is off.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.knobs.changes_left {
            Some(0) => Err(io::Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn rename_all(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        self.names_since.push(self.names.clone());
        change(&mut self.names);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.change()?;
        self.flushes += 1;
        if self.knobs.flush_fails { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }
}

impl Disk for Memory {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("journal").join(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Medium>> {
        let id = *self.lock().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Open { disk: self.clone(), id }))
    }

    fn allocate(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn Medium>> {
        let mut state = self.lock();
        state.change()?;
        let id = match state.names.get(name) {
            Some(id) => *id,
            None if state.knobs.full => return Err(io::ErrorKind::StorageFull.into()),
            None => {
                state.files.push(Content::default());
                let id = state.files.len() - 1;
                state.rename_all(|names| {
                    names.insert(name.to_owned(), id);
                });
                id
            }
        };
        let content = &mut state.files[id];
        content.now.resize(bytes as usize, 0);
        *content = Content { now: content.now.clone(), flushed: content.now.clone(), since: Vec::new() };
        Ok(Arc::new(Open { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        let id = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.rename_all(|names| {
            names.remove(from);
            names.insert(to.to_owned(), id);
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        state.rename_all(|names| {
            names.remove(name);
        });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.flush()?;
        state.names_since.clear();
        Ok(())
    }
}

#[derive(Debug)]
struct Open {
    disk: Memory,
    id: usize,
}

impl Medium for Open {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[self.id].now.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.lock();
        let from = state.files[self.id].now.get(offset as usize..).unwrap_or_default();
        let length = from.len().min(bytes.len());
        bytes[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        if let Some(kind) = state.knobs.write_fails {
            return Err(kind.into());
        }
        let powered = state.change();
        let content = &mut state.files[self.id];
        let mut at = offset as usize;
        if content.now.len() < at + bytes.len() {
            content.now.resize(at + bytes.len(), 0);
            content.flushed.resize(at + bytes.len(), 0);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES));
            content.now[at..at + part.len()].copy_from_slice(part);
            content.since.push((at, part.to_owned()));
            at += part.len();
            rest = after;
        }
        powered
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.flush()?;
        let content = &mut state.files[self.id];
        content.flushed = content.now.clone();
        content.since.clear();
        Ok(())
    }
}
