//! What the index knows of the journal, so that a start need not read all of it: values of the layer above by keys of its own, and the
//! checkpoint that says which segments they stand for.
//!
//! *All or nothing.* A batch is applied as a whole and brings the checkpoint that fits it, with the number of the values and the XOR of their
//! keys' hashes. What does not fit that, or its own checksum, costs all of them: the tree is emptied and the journal read from its beginning.
//! *Never ahead of the journal.* A checkpoint names the segments that it is about by their seeds, and how far the journal had come. Beside another
//! journal, or an older copy of the same one, it does not fit. An index that is older than the journal does: what came later is read. So does one of
//! a journal that has lost segments but for the last that it knew: what it still tells is then told by nobody else.
//!
//! How many values there are is for the layer above, which bounds what it keeps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{seal, unseal};
use crate::store::journal::{Index, Journal, SegmentId};

/// The tree.
const NAME: &str = "journal";

/// Where the checkpoint is: no key of a value is this.
const CHECKPOINT: &[u8] = b"!";

/// What a batch changes: values by key, and `None` for those that go.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// How much of a journal the values stand for: all that is before a segment and still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The first segment that must be read, and the last there was.
    watermark: Segment,
    last: Segment,
    /// The index after the last entry that was committed.
    end: u64,
}

/// A segment, and the seed that it alone has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    first: u64,
    seed: u32,
}

impl Checkpoint {
    /// For this journal as it is, from which all before `watermark` is filed; `None` if it has no such segment.
    pub fn new(journal: &Journal, watermark: SegmentId) -> Option<Self> {
        let segment = |id: SegmentId| Some(Segment { first: id.0, seed: journal.seed(id)? });
        // Before the segments are looked at: what is committed lies in one of them.
        let end = journal.committed().borrow().end.0;
        let (_, last) = journal.segments()?;
        Some(Self { watermark: segment(watermark)?, last: segment(last)?, end })
    }

    /// The first segment that must be read.
    pub fn watermark(&self) -> SegmentId {
        SegmentId(self.watermark.first)
    }

    /// Whether this journal is the one that it was made for, and has not lost its end since.
    ///
    /// # Errors
    /// What does not fit, as a fragment for people.
    pub fn fits(&self, journal: &Journal) -> Result<(), String> {
        for Segment { first, seed } in [self.watermark, self.last] {
            if journal.seed(SegmentId(first)).is_some_and(|found| found != seed) {
                return Err(format!("{} is of another journal", SegmentId(first).file_name()));
            }
        }
        if journal.seed(SegmentId(self.last.first)).is_none() {
            return Err(format!("{}, the last segment that it knows of, is not there", SegmentId(self.last.first).file_name()));
        }
        if journal.committed().borrow().end < Index(self.end) {
            return Err(format!("the journal ends before entry {}, which it knows of", self.end));
        }
        Ok(())
    }
}

/// The checkpoint as it is stored, with what the tree must hold.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    checkpoint: Checkpoint,
    sum: Sum,
}

/// How many values there are, and the XOR of the hashes of their keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sum {
    count: u64,
    hashes: [u64; 2],
}

impl Sum {
    fn add(&mut self, key: &[u8]) {
        self.count = self.count.saturating_add(1);
        self.toggle(key);
    }

    fn take(&mut self, key: &[u8]) {
        self.count = self.count.saturating_sub(1);
        self.toggle(key);
    }

    fn toggle(&mut self, key: &[u8]) {
        let mut bytes = [0; 16];
        blake3::Hasher::new().update(key).finalize_xof().fill(&mut bytes);
        let (first, second) = bytes.split_at(8);
        for (hash, half) in self.hashes.iter_mut().zip([first, second]) {
            *hash ^= half.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
        }
    }
}

/// The tree of them.
#[derive(Debug, Clone)]
pub(super) struct Filed {
    tree: sled::Tree,
    /// What the tree holds, under a lock that makes batches follow one another.
    sum: Arc<Mutex<Sum>>,
}

impl Filed {
    /// Opens the tree and reads all of it. What does not fit is emptied; the text then says why.
    pub(super) fn open(db: &sled::Db) -> sled::Result<(Self, Option<String>)> {
        let tree = db.open_tree(NAME)?;
        let (sum, why) = match check(&tree)? {
            Ok(sum) => return Ok((Self { tree, sum: Arc::new(Mutex::new(sum)) }, None)),
            Err(why) => (Arc::default(), why),
        };
        drop(tree);
        db.drop_tree(NAME)?;
        Ok((Self { tree: db.open_tree(NAME)?, sum }, Some(why)))
    }

    /// Applies a batch, all of it or nothing.
    pub(super) fn apply(&self, changes: &Changes, checkpoint: &Checkpoint) -> sled::Result<()> {
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut next, mut batch) = (*sum, sled::Batch::default());
        for (key, body) in changes {
            match (self.tree.contains_key(key)?, body) {
                (true, Some(_)) | (false, None) => {}
                (false, Some(_)) => next.add(key),
                (true, None) => next.take(key),
            }
            match body {
                Some(body) => batch.insert(key.as_slice(), seal(NAME, key, body)),
                None => batch.remove(key.as_slice()),
            }
        }
        let stored = serde_json::to_vec(&Stored { checkpoint: *checkpoint, sum: next });
        let stored = stored.map_err(|error| sled::Error::Unsupported(error.to_string()))?;
        batch.insert(CHECKPOINT, seal(NAME, CHECKPOINT, &stored));
        self.tree.apply_batch(batch)?;
        *sum = next;
        Ok(())
    }

    /// Empties it.
    pub(super) fn clear(&self) -> sled::Result<()> {
        let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        // First, so that what a crash leaves of the rest fits nothing.
        self.tree.remove(CHECKPOINT)?;
        self.tree.clear()?;
        *sum = Sum::default();
        Ok(())
    }

    pub(super) fn checkpoint(&self) -> sled::Result<Option<Checkpoint>> {
        Ok(stored(&self.tree)?.map(|stored| stored.checkpoint))
    }

    pub(super) fn get(&self, key: &[u8]) -> sled::Result<Option<Vec<u8>>> {
        let Some(bytes) = self.tree.get(key)? else { return Ok(None) };
        unseal(NAME, key, &bytes).map(|body| Some(body.to_vec())).ok_or_else(|| damaged("a value fails its checksum"))
    }

    /// Shows all values whose keys begin with `prefix`, in the order of the keys.
    pub(super) fn visit(&self, prefix: &[u8], mut visit: impl FnMut(&[u8], &[u8])) -> sled::Result<()> {
        for entry in self.tree.scan_prefix(prefix) {
            let (key, bytes) = entry?;
            if *key == *CHECKPOINT {
                continue;
            }
            visit(&key, unseal(NAME, &key, &bytes).ok_or_else(|| damaged("a value fails its checksum"))?);
        }
        Ok(())
    }
}

fn damaged(what: &str) -> sled::Error {
    sled::Error::Unsupported(what.to_owned())
}

fn stored(tree: &sled::Tree) -> sled::Result<Option<Stored>> {
    let Some(bytes) = tree.get(CHECKPOINT)? else { return Ok(None) };
    let stored = unseal(NAME, CHECKPOINT, &bytes).and_then(|body| serde_json::from_slice(body).ok());
    stored.map(Some).ok_or_else(|| damaged("the checkpoint does not read"))
}

/// Reads everything: what the tree holds, or why that is nothing to go by.
fn check(tree: &sled::Tree) -> sled::Result<Result<Sum, String>> {
    let expected = match stored(tree) {
        Ok(stored) => stored.map(|stored| stored.sum),
        Err(sled::Error::Unsupported(why)) => return Ok(Err(why)),
        Err(other) => return Err(other),
    };
    let mut sum = Sum::default();
    for entry in tree {
        let (key, bytes) = entry?;
        if *key == *CHECKPOINT {
            continue;
        }
        if unseal(NAME, &key, &bytes).is_none() {
            return Ok(Err("a value fails its checksum".to_owned()));
        }
        sum.add(&key);
    }
    let fits = sum == expected.unwrap_or_default();
    let told = || format!("it holds {} values, and not those that its checkpoint tells of", sum.count);
    Ok(if fits { Ok(sum) } else { Err(told()) })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use bytes::Bytes;

    use super::*;
    use crate::store::{self, DataDir, journal};

    /// Room for a few entries in a segment.
    const CONFIG: journal::Config = journal::Config { segment_bytes: 65_536, queue_entries_max: 1_024, queue_bytes_max: 1_048_576 };

    /// The journal of this folder, with so many more entries of which seven fit a segment.
    fn journal(folder: &Path, more: usize) -> Journal {
        let (journal, replay) = DataDir::open(folder).expect("a data directory").journal(CONFIG).expect("a journal");
        replay.run(|_| {}).expect("it reads");
        for _ in 0..more {
            let ticket = journal.append(vec![Bytes::from(vec![7; 8_500])]).expect("room");
            futures::executor::block_on(journal.wait(&ticket)).expect("kept");
        }
        journal
    }

    fn open(folder: &Path) -> store::Index {
        store::Index::open(folder).expect("an index")
    }

    fn changes(values: &[(&str, Option<&str>)]) -> Changes {
        values.iter().map(|(key, body)| (key.as_bytes().to_vec(), body.map(|body| body.as_bytes().to_vec()))).collect()
    }

    fn all(index: &store::Index) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        index.visit_filed(b"", |key, body| all.push((text(key), text(body)))).expect("it reads");
        all
    }

    /// An index with three values, closed again, and the checkpoint that came with them.
    fn filed(folder: &Path) -> Checkpoint {
        let journal = journal(folder, 20);
        let (_, last) = journal.segments().expect("segments");
        let checkpoint = Checkpoint::new(&journal, last).expect("a checkpoint");
        open(folder).file(&changes(&[("a", Some("1")), ("b", Some("2")), ("c", Some("3"))]), &checkpoint).expect("filed");
        journal.close();
        checkpoint
    }

    #[test]
    fn what_was_filed_is_there_after_a_restart_with_its_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        let checkpoint = filed(folder.path());
        let index = open(folder.path());
        index.file(&changes(&[("a", Some("4")), ("b", None), ("x", None), ("d", Some("5"))]), &checkpoint).expect("filed");
        drop(index);
        let index = open(folder.path());
        assert_eq!(index.begun_anew(), None);
        let expected = [("a", "4"), ("c", "3"), ("d", "5")].map(|(key, body)| (key.to_owned(), body.to_owned()));
        assert_eq!((all(&index), index.checkpoint().expect("it reads")), (expected.to_vec(), Some(checkpoint)));
        assert_eq!(index.filed(b"c").expect("it reads").as_deref(), Some(&b"3"[..]));
        assert_eq!(checkpoint.fits(&journal(folder.path(), 0)), Ok(()));
        index.unfile().expect("emptied");
        assert_eq!((all(&index).len(), index.checkpoint().expect("it reads")), (0, None));
    }

    #[test]
    fn what_does_not_fit_its_checkpoint_costs_all_values_and_nothing_else() {
        let changed = |tree: &sled::Tree| drop(tree.insert("a", seal(NAME, b"c", b"3")).expect("writes"));
        let missing = |tree: &sled::Tree| drop(tree.remove("b").expect("writes"));
        let too_many = |tree: &sled::Tree| drop(tree.insert("d", seal(NAME, b"d", b"4")).expect("writes"));
        let exchanged = |tree: &sled::Tree| {
            missing(tree);
            too_many(tree);
        };
        let without = |tree: &sled::Tree| drop(tree.remove(CHECKPOINT).expect("writes"));
        let garbled = |tree: &sled::Tree| drop(tree.insert(CHECKPOINT, &b"?"[..]).expect("writes"));
        type Way<'a> = (&'a str, &'a dyn Fn(&sled::Tree));
        let ways: [Way<'_>; 6] = [
            ("changed", &changed),
            ("missing", &missing),
            ("too many", &too_many),
            ("exchanged", &exchanged),
            ("without", &without),
            ("garbled", &garbled),
        ];
        for (what, damage) in ways {
            let folder = tempfile::tempdir().expect("a folder");
            let checkpoint = filed(folder.path());
            let index = open(folder.path());
            let peer = store::GoodPeer { addresses: Vec::new(), last_seen_ms: 1, successes: 1 };
            let node = crate::model::NodeId::from(libp2p_identity::Keypair::generate_ed25519().public().to_peer_id());
            index.put_peer(&node, &peer).expect("keeps");
            damage(&index.filed.tree);
            drop(index);
            let index = open(folder.path());
            assert!(index.begun_anew().is_some_and(|told| told.contains("all of the journal was read")), "{what}");
            assert_eq!((all(&index).len(), index.checkpoint().expect("it reads")), (0, None), "{what}");
            assert_eq!(index.peers().expect("reads").len(), 1, "{what}: the rest stays");
            index.file(&changes(&[("e", Some("5"))]), &checkpoint).expect("filed");
            drop(index);
            assert_eq!(open(folder.path()).begun_anew(), None, "{what}: it is sound again");
        }
    }

    #[test]
    fn a_checkpoint_fits_its_own_journal_alone_and_not_an_older_copy_of_it() {
        let (own, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        journal(own.path(), 15).close();
        let copy = tempfile::tempdir().expect("a folder");
        fs::create_dir(copy.path().join("journal")).expect("a folder");
        for file in fs::read_dir(own.path().join("journal")).expect("the journal").map(|file| file.expect("a file")) {
            fs::copy(file.path(), copy.path().join("journal").join(file.file_name())).expect("copied");
        }
        let later = journal(own.path(), 2);
        let (first, last) = later.segments().expect("segments");
        let [whole, part] = [first, last].map(|watermark| Checkpoint::new(&later, watermark).expect("a checkpoint"));
        assert_eq!((whole.fits(&later), part.fits(&later)), (Ok(()), Ok(())));
        assert!(whole.fits(&journal(other.path(), 30)).is_err_and(|why| why.contains("another journal")));
        let older = journal(copy.path(), 0);
        assert!(whole.fits(&older).is_err_and(|why| why.contains("ends before entry 17")), "{:?}", whole.fits(&older));
        later.forget_before(last).expect("forgotten");
        assert_eq!((part.fits(&later), whole.fits(&later)), (Ok(()), Ok(())), "its last segment is the journal's");
        older.close();
        let lost = journal(copy.path(), 20);
        let gone = copy.path().join("journal").join(lost.segments().expect("segments").1.file_name());
        let last = Checkpoint::new(&lost, first).expect("a checkpoint");
        lost.close();
        fs::remove_file(gone).expect("it goes");
        assert!(last.fits(&journal(copy.path(), 0)).is_err_and(|why| why.contains("is not there")));
    }
}
