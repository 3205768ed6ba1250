//! What a node has learnt and would learn again: good peers, who is banned until when, receipts, and what is in the journal. Kept in sled.
//!
//! The index only makes a restart quicker (a rejoin without bootstrap nodes, bans and receipts that outlive a restart, a journal of which little
//! need be read: [`filed`]), so its loss is never a fault of the node: one that is damaged, of a foreign format or of a later release is
//! moved aside to `index.damaged-N`, of which two are kept, and begun anew. A single value that fails its checksum is dropped, where others stand
//! for themselves.
//!
//! *Calls block.* sled reads and writes files in the calling thread and may wait for its own writers; keep these calls out of event loops.
//! *Nothing here is durable.* sled writes behind, every half second, and does not reach the platter; a value may be missing after a crash.
//! *Left unused on purpose*: subscriptions, which can hold writers up, and the asynchronous flush, which can hang.
//!
//! A value is one version byte, 16 bytes of BLAKE3 over tree, key and body, and the body, which is JSON but for what the layer above files. A
//! release that does not know a tree leaves it alone.

mod filed;

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use filed::{Changes, Checkpoint};

use self::filed::Filed;
use super::{Error, files::fail};
use crate::model::{self, NodeId};

/// How long sled may take to let go of an index that was just closed.
const LOCK_MAX: Duration = Duration::from_secs(2);

/// How much memory sled may use for pages, in bytes. Its own default is a gigabyte; all that is kept here fits into a few megabytes.
const CACHE_BYTES_MAX: u64 = 8 * 1_048_576;

/// How many good peers are kept: enough to find some alive after a long absence.
const PEERS_MAX: usize = 256;

/// How many bans are kept, so that an attacker with many keys cannot fill the disk.
const BANS_MAX: usize = 10_000;

/// How many receipts are kept: this node's own and those of every pin, with room to spare.
const RECEIPTS_MAX: usize = 4_096;

/// How large a receipt may be, in bytes.
const RECEIPT_BYTES_MAX: usize = 2_048;

/// How many addresses of a peer are kept, and how long one may be, in bytes.
const ADDRESSES_MAX: usize = 8;
const ADDRESS_BYTES_MAX: usize = 256;

/// How many damaged indexes are kept for whoever wants to know what happened.
const DAMAGED_KEPT_MAX: usize = 2;

/// The version of values.
const VERSION: u8 = 1;

/// How long the checksum of a value is, in bytes.
const CHECKSUM_BYTES: usize = 16;

/// What marks a sled database as ours, and its layout.
const FORMAT: (&[u8], &[u8]) = (b"format", b"meshwork-index 1");

/// A peer that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoodPeer {
    /// Multiaddrs that it was reached at, best first; the first 8 of at most 256 bytes are kept.
    pub addresses: Vec<String>,
    /// When it was last seen, in milliseconds since 1970.
    pub last_seen_ms: u64,
    /// How often a connection to it succeeded.
    pub successes: u32,
}

/// A peer that is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
    /// How many points its conduct had cost it when this was written.
    pub points: f64,
}

/// A signed receipt. The index does not read it; whoever takes it out verifies it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptReceipt {
    /// Whose word on what it is; a later one with the same subject replaces it.
    pub subject: String,
    /// The end of its window, in milliseconds since 1970.
    pub ends_ms: u64,
    /// Until when it is valid, in milliseconds since 1970.
    pub until_ms: u64,
    /// The document as it was signed.
    pub bytes: Vec<u8>,
}

/// The same as it stands in the tree, under its subject.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Receipt {
    ends_ms: u64,
    until_ms: u64,
    base64: String,
}

/// The open index. Clones share it; the last one dropped closes it, which blocks until sled has written.
#[derive(Debug, Clone)]
pub struct Index {
    path: PathBuf,
    db: sled::Db,
    peers: Bounded,
    bans: Bounded,
    receipts: Bounded,
    filed: Filed,
    /// What was wrong with what was found, if that was begun anew.
    begun_anew: Option<Arc<str>>,
}

impl Index {
    /// What [`super::DataDir::index`] does.
    pub(super) fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join("index");
        let began = Instant::now();
        let mut opened = Self::try_open(&path);
        // The data directory's own lock keeps other processes out; what is met here is sled letting go of an index just closed.
        while opened.as_ref().is_err_and(Trouble::is_locked) && began.elapsed() < LOCK_MAX {
            std::thread::park_timeout(Duration::from_millis(10));
            opened = Self::try_open(&path);
        }
        match opened {
            Ok(index) => Ok(index),
            Err(Trouble::Refused(error)) => Err(error),
            Err(Trouble::Damaged(reason)) => {
                let aside = move_aside(data_dir, &path)?;
                tracing::warn!(
                    reason = %model::printable(&reason, 300),
                    moved_to = %aside.display(),
                    "the index is damaged: begun anew, peers and bans are learnt again"
                );
                let opened = Self::try_open(&path).map_err(|trouble| match trouble {
                    Trouble::Refused(error) => error,
                    Trouble::Damaged(reason) => Error::Damaged { path, reason },
                })?;
                let told = format!(
                    "the index was damaged ({}) and is begun anew; the old one is {}",
                    model::printable(&reason, 300),
                    aside.display()
                );
                Ok(Self { begun_anew: Some(told.into()), ..opened })
            }
        }
    }

    fn try_open(path: &Path) -> Result<Self, Trouble> {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
            return Err(Trouble::Damaged("not a folder".to_owned()));
        }
        // sled asserts some of what it reads instead of reporting it.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| Self::open_sled(path)));
        opened.unwrap_or_else(|_| Err(Trouble::Damaged("sled stopped while reading it".to_owned())))
    }

    fn open_sled(path: &Path) -> Result<Self, Trouble> {
        let trouble = |source| Trouble::from_sled(source, path);
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES_MAX).mode(sled::Mode::LowSpace).open().map_err(trouble)?;
        let (key, ours) = FORMAT;
        match db.get(key).map_err(trouble)? {
            Some(found) if *found == *ours => {}
            Some(found) => return Err(Trouble::Damaged(format!("its format is `{}`", String::from_utf8_lossy(&found)))),
            None if db.is_empty() && db.tree_names().len() <= 1 => drop(db.insert(key, ours).map_err(trouble)?),
            None => return Err(Trouble::Damaged("it does not state its format".to_owned())),
        }
        let open = |name| Bounded::open(&db, name).map_err(trouble);
        let (peers, bans, receipts) = (open("peers")?, open("bans")?, open("receipts")?);
        let (filed, why) = Filed::open(&db).map_err(trouble)?;
        let begun_anew =
            why.map(|why| format!("what the index knew of the journal was damaged ({why}): all of the journal was read").into());
        let index = Self { path: path.to_owned(), db, peers, bans, receipts, filed, begun_anew };
        // Reading everything shows damage here, where it can be mended.
        let _: BTreeMap<NodeId, GoodPeer> = index.peers.all().map_err(trouble)?;
        let _: BTreeMap<NodeId, Ban> = index.bans.all().map_err(trouble)?;
        let _: BTreeMap<String, Receipt> = index.receipts.all().map_err(trouble)?;
        Ok(index)
    }

    /// Keeps a peer that was reached. At most 256 are kept; the one that was not seen for longest gives way. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn put_peer(&self, node: &NodeId, peer: &GoodPeer) -> Result<(), Error> {
        let addresses = peer.addresses.iter().filter(|address| address.len() <= ADDRESS_BYTES_MAX).take(ADDRESSES_MAX).cloned().collect();
        let peer = GoodPeer { addresses, ..*peer };
        let age = |peer: &GoodPeer| peer.last_seen_ms;
        self.peers.put(node, &peer, PEERS_MAX, PEERS_MAX, age).map_err(|source| self.error(source))
    }

    /// The peers that are kept, latest seen first. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn peers(&self) -> Result<Vec<(NodeId, GoodPeer)>, Error> {
        let all: BTreeMap<NodeId, GoodPeer> = self.peers.all().map_err(|source| self.error(source))?;
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.last_seen_ms));
        Ok(all)
    }

    /// Keeps a ban. At most 10,000 are kept; those that end first give way, some hundreds at a time. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn put_ban(&self, node: &NodeId, ban: &Ban) -> Result<(), Error> {
        // Counting out the first to end reads all of them, so room is made for many.
        let kept = BANS_MAX - BANS_MAX / 16;
        self.bans.put(node, ban, BANS_MAX, kept, |ban: &Ban| ban.until_ms).map_err(|source| self.error(source))
    }

    /// Lifts a ban. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn remove_ban(&self, node: &NodeId) -> Result<(), Error> {
        self.bans.remove(node).map_err(|source| self.error(source))
    }

    /// The bans that still hold when the wall clock shows `now_ms` milliseconds since 1970; the others are forgotten. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn bans(&self, now_ms: u64) -> Result<BTreeMap<NodeId, Ban>, Error> {
        let mut all: BTreeMap<NodeId, Ban> = self.bans.all().map_err(|source| self.error(source))?;
        let over: Vec<NodeId> = all.iter().filter(|(_, ban)| ban.until_ms <= now_ms).map(|(node, _)| *node).collect();
        for node in over {
            self.remove_ban(&node)?;
            all.remove(&node);
        }
        Ok(all)
    }

    /// Keeps a receipt in place of the last one on its subject. At most 4,096 are kept; those of the earliest windows give way, some
    /// hundreds at a time. One that is larger than any receipt is passed over. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn put_receipt(&self, receipt: &KeptReceipt) -> Result<(), Error> {
        if receipt.bytes.len() > RECEIPT_BYTES_MAX {
            return Ok(());
        }
        let (ends_ms, until_ms) = (receipt.ends_ms, receipt.until_ms);
        let stored = Receipt { ends_ms, until_ms, base64: BASE64_STANDARD.encode(&receipt.bytes) };
        let kept = RECEIPTS_MAX - RECEIPTS_MAX / 16;
        let age = |receipt: &Receipt| receipt.ends_ms;
        self.receipts.put(&receipt.subject, &stored, RECEIPTS_MAX, kept, age).map_err(|source| self.error(source))
    }

    /// The receipts that are still valid when the wall clock shows `now_ms` milliseconds since 1970; the others are forgotten. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn receipts(&self, now_ms: u64) -> Result<Vec<KeptReceipt>, Error> {
        let all: BTreeMap<String, Receipt> = self.receipts.all().map_err(|source| self.error(source))?;
        let mut valid = Vec::new();
        for (subject, Receipt { ends_ms, until_ms, base64 }) in all {
            match BASE64_STANDARD.decode(base64) {
                Ok(bytes) if until_ms > now_ms => valid.push(KeptReceipt { subject, ends_ms, until_ms, bytes }),
                Ok(_) | Err(_) => self.receipts.remove(&subject).map_err(|source| self.error(source))?,
            }
        }
        Ok(valid)
    }

    /// What was wrong with what was found, for people, if it was begun anew.
    pub fn begun_anew(&self) -> Option<&str> {
        self.begun_anew.as_deref()
    }

    /// Changes what is filed of the journal, with the checkpoint that fits then; all of it or nothing. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn file(&self, changes: &Changes, checkpoint: &Checkpoint) -> Result<(), Error> {
        self.guarded(|filed| filed.apply(changes, checkpoint))
    }

    /// Forgets all that is filed. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn unfile(&self) -> Result<(), Error> {
        self.guarded(Filed::clear)
    }

    /// What part of the journal the values that are filed stand for, if there are any. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, Error> {
        self.guarded(Filed::checkpoint)
    }

    /// The value that is filed under a key. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn filed(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.guarded(|filed| filed.get(key))
    }

    /// Shows what is filed under keys with this beginning, in their order. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn visit_filed(&self, prefix: &[u8], visit: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
        self.guarded(|filed| filed.visit(prefix, visit))
    }

    /// sled asserts some of what it reads instead of reporting it, and that is no reason for the caller to break off.
    fn guarded<T>(&self, work: impl FnOnce(&Filed) -> sled::Result<T>) -> Result<T, Error> {
        let stopped = |_| Err(sled::Error::ReportableBug("sled stopped while reading it".to_owned()));
        panic::catch_unwind(AssertUnwindSafe(|| work(&self.filed))).unwrap_or_else(stopped).map_err(|source| self.error(source))
    }

    /// Has sled write what it holds back, as far as the operating system. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`].
    pub fn flush(&self) -> Result<(), Error> {
        self.db.flush().map(|_| ()).map_err(|source| self.error(source))
    }

    fn error(&self, source: sled::Error) -> Error {
        Error::Index { path: self.path.clone(), source }
    }
}

/// Why an index did not open.
enum Trouble {
    /// Its content is at fault.
    Damaged(String),
    /// The disk or its rights are.
    Refused(Error),
}

impl Trouble {
    fn is_locked(&self) -> bool {
        matches!(self, Self::Refused(Error::Index { source, .. }) if source.to_string().contains("could not acquire lock"))
    }

    fn from_sled(source: sled::Error, path: &Path) -> Self {
        let refused = match &source {
            // What sled makes up itself about content carries no number of the operating system, except its complaint about the lock.
            sled::Error::Io(io) => io.raw_os_error().is_some() || io.to_string().contains("could not acquire lock"),
            sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_)
            | sled::Error::Corruption { .. } => false,
        };
        if refused { Self::Refused(Error::Index { path: path.to_owned(), source }) } else { Self::Damaged(source.to_string()) }
    }
}

/// Renames the index to the next free `index.damaged-N` and removes all but the latest two of those.
fn move_aside(data_dir: &Path, path: &Path) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(data_dir).map_err(fail("list", data_dir))?;
    let number_of = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("index.damaged-")?.parse::<u64>().ok();
    let mut numbers: Vec<u64> = entries.filter_map(|entry| number_of(entry.ok()?)).collect();
    numbers.sort_unstable();
    let name = |number: u64| data_dir.join(format!("index.damaged-{number}"));
    let aside = name(numbers.last().map_or(1, |last| last.saturating_add(1)));
    fs::rename(path, &aside).map_err(fail("move aside", path))?;
    let old = (numbers.len() + 1).saturating_sub(DAMAGED_KEPT_MAX);
    for number in numbers.into_iter().take(old) {
        // Litter at worst: the next move tries again.
        let _ = fs::remove_dir_all(name(number)).or_else(|_| fs::remove_file(name(number)));
    }
    Ok(aside)
}

/// A tree of values by a key with a text of its own, with a count, since counting in sled reads the whole tree.
#[derive(Debug, Clone)]
struct Bounded {
    name: &'static str,
    tree: sled::Tree,
    count: Arc<AtomicUsize>,
}

impl Bounded {
    fn open(db: &sled::Db, name: &'static str) -> sled::Result<Self> {
        let tree = db.open_tree(name)?;
        let count = Arc::new(AtomicUsize::new(tree.len()));
        Ok(Self { name, tree, count })
    }

    /// Inserts, and if there are then more than `count_max`, removes those with the smallest `age` until `count_kept` are left.
    fn put<K: Display + FromStr + Ord + Clone, V: Serialize + DeserializeOwned>(
        &self,
        key: &K,
        value: &V,
        count_max: usize,
        count_kept: usize,
        age: impl Fn(&V) -> u64,
    ) -> sled::Result<()> {
        let text = key.to_string();
        let bytes = self.encode(text.as_bytes(), value)?;
        if self.tree.insert(text.as_bytes(), bytes)?.is_some() || self.count.fetch_add(1, Ordering::Relaxed) < count_max {
            return Ok(());
        }
        let all: BTreeMap<K, V> = self.all()?;
        // The newcomer stays whatever its age, or a clock set back would keep every new peer out.
        let mut by_age: Vec<(u64, K)> =
            all.iter().filter(|(other, _)| *other != key).map(|(other, value)| (age(value), other.clone())).collect();
        by_age.sort_unstable();
        for (_, other) in by_age.iter().take(all.len().saturating_sub(count_kept)) {
            self.remove(other)?;
        }
        Ok(())
    }

    fn remove(&self, key: &impl Display) -> sled::Result<()> {
        self.remove_key(key.to_string().as_bytes())
    }

    fn remove_key(&self, key: &[u8]) -> sled::Result<()> {
        if self.tree.remove(key)?.is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Every sound value; the others are dropped.
    fn all<K: FromStr + Ord, V: DeserializeOwned>(&self) -> sled::Result<BTreeMap<K, V>> {
        let mut sound = BTreeMap::new();
        let mut unsound = Vec::new();
        for entry in &self.tree {
            let (key, bytes) = entry?;
            let read = std::str::from_utf8(&key).ok().and_then(|text| text.parse::<K>().ok());
            match read.zip(self.decode(&key, &bytes)) {
                Some((read, value)) => drop(sound.insert(read, value)),
                None => unsound.push(key),
            }
        }
        for key in &unsound {
            self.remove_key(key)?;
        }
        if !unsound.is_empty() {
            tracing::warn!(tree = self.name, count = unsound.len(), "values of the index do not read and are dropped");
        }
        Ok(sound)
    }

    fn encode<V: Serialize>(&self, key: &[u8], value: &V) -> sled::Result<Vec<u8>> {
        let body = serde_json::to_vec(value).map_err(|error| sled::Error::Unsupported(error.to_string()))?;
        Ok(seal(self.name, key, &body))
    }

    fn decode<V: DeserializeOwned>(&self, key: &[u8], bytes: &[u8]) -> Option<V> {
        serde_json::from_slice(unseal(self.name, key, bytes)?).ok()
    }
}

/// A value as it stands in a tree.
fn seal(tree: &str, key: &[u8], body: &[u8]) -> Vec<u8> {
    [&[VERSION][..], &checksum(tree, key, body), body].concat()
}

/// The body of a value, if it is what was written there.
fn unseal<'a>(tree: &str, key: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, body) = bytes.strip_prefix(&[VERSION])?.split_at_checked(CHECKSUM_BYTES)?;
    (sum == checksum(tree, key, body)).then_some(body)
}

/// Over tree and key as well, so that a value that ended up in another's place is noticed.
fn checksum(tree: &str, key: &[u8], body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    for part in [tree.as_bytes(), key, body] {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    let mut sum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_and_bans_survive_a_restart() {
        let folder = tempfile::tempdir().expect("folder");
        let (a, b) = (node(), node());
        let index = Index::open(folder.path()).expect("opens");
        index.put_peer(&a, &peer(1)).expect("keeps");
        index.put_peer(&b, &peer(2)).expect("keeps");
        index.put_ban(&a, &Ban { until_ms: 50, points: 1.5 }).expect("keeps");
        index.put_ban(&b, &Ban { until_ms: 90, points: 2.0 }).expect("keeps");
        drop(index);
        let index = Index::open(folder.path()).expect("opens again");
        assert_eq!(index.peers().expect("reads"), [(b, peer(2)), (a, peer(1))]);
        assert_eq!(index.bans(50).expect("reads").into_keys().collect::<Vec<_>>(), [b], "the other is over");
        index.remove_ban(&b).expect("lifts");
        assert!(index.bans(0).expect("reads").is_empty());
        index.flush().expect("writes");
    }

    #[test]
    fn the_peer_not_seen_for_longest_gives_way() {
        let folder = tempfile::tempdir().expect("folder");
        let index = Index::open(folder.path()).expect("opens");
        for age in 0..PEERS_MAX as u64 + 3 {
            index.put_peer(&node(), &peer(age)).expect("keeps");
        }
        let kept = index.peers().expect("reads");
        assert_eq!((kept.len(), kept.last().map(|(_, peer)| peer.last_seen_ms)), (PEERS_MAX, Some(3)));
        let late = node();
        index.put_peer(&late, &peer(0)).expect("keeps");
        assert!(index.peers().expect("reads").iter().any(|(node, _)| *node == late), "a newcomer stays even with a clock set back");
    }

    #[test]
    fn what_a_peer_says_of_its_addresses_is_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let index = Index::open(folder.path()).expect("opens");
        let mut addresses = vec!["x".repeat(ADDRESS_BYTES_MAX + 1)];
        addresses.extend((0..20).map(|number| number.to_string()));
        index.put_peer(&node(), &GoodPeer { addresses, ..peer(1) }).expect("keeps");
        let (_, kept) = index.peers().expect("reads").remove(0);
        assert_eq!((kept.addresses.len(), kept.addresses[0].as_str()), (ADDRESSES_MAX, "0"));
    }

    #[test]
    fn a_value_that_fails_its_checksum_is_dropped_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let (a, b) = (node(), node());
        let index = Index::open(folder.path()).expect("opens");
        index.put_peer(&a, &peer(1)).expect("keeps");
        index.put_peer(&b, &peer(2)).expect("keeps");
        let stored = index.peers.tree.get(b.to_string()).expect("reads").expect("there");
        // Sound by itself, but another node's.
        index.peers.tree.insert(a.to_string().as_bytes(), stored).expect("writes");
        assert_eq!(index.peers().expect("reads"), [(b, peer(2))]);
        assert_eq!(index.peers.tree.len(), 1);
    }

    #[test]
    fn a_corrupted_index_is_moved_aside_and_begun_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let files = ["conf", "db"];
        for round in 1..=4_usize {
            let index = Index::open(folder.path()).expect("always opens");
            assert!(index.peers().expect("reads").is_empty(), "begun anew");
            index.put_peer(&node(), &peer(1)).expect("keeps");
            drop(index);
            let path = folder.path().join("index").join(files[round % 2]);
            let length = fs::metadata(&path).expect("there").len();
            fs::write(&path, vec![0xa5; usize::try_from(length).expect("small")]).expect("corrupts");
        }
        Index::open(folder.path()).expect("opens");
        assert_eq!(damaged_in(folder.path()).len(), DAMAGED_KEPT_MAX);
    }

    #[test]
    fn a_foreign_database_is_moved_aside() {
        let folder = tempfile::tempdir().expect("folder");
        let foreign = sled::Config::new().path(folder.path().join("index")).open().expect("opens");
        foreign.insert("somebody", "else").expect("writes");
        drop(foreign);
        assert!(Index::open(folder.path()).expect("opens").peers().expect("reads").is_empty());
        assert_eq!(damaged_in(folder.path()), ["index.damaged-1"]);
    }

    #[test]
    fn a_file_in_the_place_of_the_index_is_moved_aside() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("index"), "not a database").expect("writes");
        Index::open(folder.path()).expect("opens");
        assert_eq!(damaged_in(folder.path()), ["index.damaged-1"]);
    }

    #[test]
    fn bans_make_room_for_many_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let index = Index::open(folder.path()).expect("opens");
        let put = |until_ms| index.bans.put(&node(), &Ban { until_ms, points: 1.0 }, 16, 12, |ban: &Ban| ban.until_ms).expect("keeps");
        (0..=16).for_each(put);
        let kept = index.bans(0).expect("reads");
        assert_eq!(kept.values().map(|ban| ban.until_ms).min(), Some(5));
        assert_eq!(kept.len(), 12);
    }

    fn receipt(subject: &str, ends_ms: u64) -> KeptReceipt {
        KeptReceipt { subject: subject.to_owned(), ends_ms, until_ms: ends_ms + 100, bytes: vec![1, 2, 3] }
    }

    #[test]
    fn receipts_survive_a_restart_while_they_are_valid() {
        let folder = tempfile::tempdir().expect("folder");
        let index = Index::open(folder.path()).expect("opens");
        for kept in [receipt("a on x", 10), receipt("b on x", 20), receipt("a on x", 30)] {
            index.put_receipt(&kept).expect("keeps");
        }
        index.put_receipt(&KeptReceipt { bytes: vec![0; RECEIPT_BYTES_MAX + 1], ..receipt("too large", 40) }).expect("passes over");
        drop(index);
        let index = Index::open(folder.path()).expect("opens again");
        assert_eq!(index.receipts(0).expect("reads"), [receipt("a on x", 30), receipt("b on x", 20)]);
        assert_eq!(index.receipts(120).expect("reads"), [receipt("a on x", 30)], "the other is over");
        assert_eq!(index.receipts(0).expect("reads").len(), 1, "and forgotten");
    }

    #[test]
    fn a_receipt_that_fails_its_checksum_is_dropped_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let index = Index::open(folder.path()).expect("opens");
        index.put_receipt(&receipt("a on x", 10)).expect("keeps");
        index.put_receipt(&receipt("b on x", 10)).expect("keeps");
        let mut stored = index.receipts.tree.get("b on x").expect("reads").expect("there").to_vec();
        *stored.last_mut().expect("bytes") ^= 1;
        index.receipts.tree.insert("b on x", stored).expect("writes");
        drop(index);
        let index = Index::open(folder.path()).expect("opens again");
        assert_eq!(index.receipts(0).expect("reads"), [receipt("a on x", 10)]);
        assert_eq!(index.receipts.tree.len(), 1);
    }

    #[test]
    fn receipts_of_the_earliest_windows_give_way() {
        let folder = tempfile::tempdir().expect("folder");
        let index = Index::open(folder.path()).expect("opens");
        for number in 0..=RECEIPTS_MAX as u64 {
            index.put_receipt(&receipt(&format!("{number} on x"), number)).expect("keeps");
        }
        let kept = index.receipts(0).expect("reads");
        assert_eq!(kept.len(), RECEIPTS_MAX - RECEIPTS_MAX / 16);
        assert_eq!(kept.iter().map(|kept| kept.ends_ms).max(), Some(RECEIPTS_MAX as u64));
    }

    fn damaged_in(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).expect("lists").map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("index.damaged-")).collect()
    }

    fn node() -> NodeId {
        NodeId::from(libp2p_identity::Keypair::generate_ed25519().public().to_peer_id())
    }

    fn peer(last_seen_ms: u64) -> GoodPeer {
        GoodPeer { addresses: vec!["/ip4/192.0.2.1/tcp/7481".to_owned()], last_seen_ms, successes: 1 }
    }
}
