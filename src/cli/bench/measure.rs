//! What is measured of a span, of a process and of a disk, and the row that it makes.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::cli::CliError;

/// A span as a histogram counts it.
pub(super) fn tenths(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX) / 100
}

/// Tenths of a microsecond up to a minute, three digits.
pub(super) fn histogram() -> Result<Histogram<u64>, CliError> {
    Histogram::new_with_max(600_000_000, 3).map_err(|error| CliError::internal(error.to_string()))
}

/// A quantile in microseconds.
pub(super) fn us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    f64::from(u32::try_from(histogram.value_at_quantile(quantile)).unwrap_or(u32::MAX)) / 10.0
}

/// How often something was done in `took`, and how long it took.
pub(super) fn row(what: &str, setting: Value, histogram: &Histogram<u64>, took: Duration) -> Value {
    let us = |quantile| us(histogram, quantile);
    let count = u32::try_from(histogram.len()).unwrap_or(u32::MAX);
    json!({
        "what": what,
        "setting": setting,
        "count": histogram.len(),
        "per_second": (f64::from(count) / took.as_secs_f64()).round(),
        "p50_us": us(0.5),
        "p90_us": us(0.9),
        "p99_us": us(0.99),
        "p999_us": us(0.999),
        "max_us": us(1.0),
    })
}

/// Resident memory of a process, in bytes.
pub(super) fn resident(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kib.checked_mul(1_024)
}

/// Processor time that a process has used, by all of its threads, to the hundredth of a second.
pub(super) fn processor_time(pid: &str) -> Option<Duration> {
    processor_time_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn processor_time_in(stat: &str) -> Option<Duration> {
    // The program's name may hold anything, a parenthesis too; what follows the last one are numbers. Linux shows processes a clock of
    // 100 ticks a second, whatever its own is.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()?.checked_add(fields.next()?.ok()?)?;
    Some(Duration::from_millis(ticks.checked_mul(10)?))
}

/// Where nodes keep their data, and how fast that place is: durable work is no faster.
#[derive(Debug, serde::Serialize)]
pub(super) struct Disk {
    path: String,
    filesystem: Option<String>,
    device: Option<String>,
    fdatasync_p50_us: f64,
    fdatasync_p99_us: f64,
}

/// Blocks that are written to learn how fast a disk is, and how large each is.
const BLOCKS: usize = 200;
const BLOCK_BYTES: usize = 4_096;
/// How long that may take.
const DISK_MAX: Duration = Duration::from_secs(2);

impl Disk {
    /// Looks at the disk below `folder`. Blocks.
    pub(super) fn of(folder: &Path) -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::internal(format!("cannot measure the disk of {}: {error}", folder.display()));
        let path = folder.canonicalize().map_err(failed)?;
        let mut flushes = histogram()?;
        time_flushes(&path, &mut flushes).map_err(failed)?;
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let (device, filesystem) = mount_of(&mounts, &path).unzip();
        let (fdatasync_p50_us, fdatasync_p99_us) = (us(&flushes, 0.5), us(&flushes, 0.99));
        Ok(Self { path: path.display().to_string(), filesystem, device, fdatasync_p50_us, fdatasync_p99_us })
    }
}

/// How long it takes to write a block into a file that has its length already, and to flush it: what a journal does.
fn time_flushes(folder: &Path, histogram: &mut Histogram<u64>) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;

    let path = folder.join("flushes");
    let file = std::fs::File::create_new(&path)?;
    std::fs::remove_file(&path)?;
    file.write_all_at(&vec![0; BLOCKS * BLOCK_BYTES], 0)?;
    file.sync_all()?;
    let until = Instant::now() + DISK_MAX;
    for block in (0_u64..).step_by(BLOCK_BYTES).take(BLOCKS).take_while(|_| Instant::now() < until) {
        let began = Instant::now();
        file.write_all_at(&[1; BLOCK_BYTES], block)?;
        file.sync_data()?;
        histogram.saturating_record(tenths(began.elapsed()));
    }
    Ok(())
}

/// The device and file system of `path`, by a list of mounts as the system shows it.
fn mount_of(mounts: &str, path: &Path) -> Option<(String, String)> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, Path::new(words.next()?), words.next()?))
    });
    // A later mount hides an earlier one at the same place.
    let found = mounts.filter(|(_, place, _)| path.starts_with(place)).max_by_key(|(_, place, _)| place.components().count())?;
    Some((found.0.to_owned(), found.2.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_on_the_innermost_of_the_mounts_above_it() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/x xfs rw 0 0\n/dev/c /tmp/x btrfs rw 0 0\n";
        let found = |path: &str| mount_of(mounts, Path::new(path)).map(|(device, filesystem)| format!("{filesystem} {device}"));
        assert_eq!(found("/home/me").as_deref(), Some("ext4 /dev/a"));
        assert_eq!(found("/tmp/xy").as_deref(), Some("tmpfs tmpfs"));
        assert_eq!(found("/tmp/x/y").as_deref(), Some("btrfs /dev/c"));
        assert_eq!(mount_of("", Path::new("/")), None);
    }

    #[test]
    fn processor_time_counts_what_the_program_and_the_system_did_for_it() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194304 500 0 0 0 250 50 0 0 20 0 9 0 100 1 1";
        assert_eq!(processor_time_in(stat), Some(Duration::from_secs(3)));
        assert_eq!(processor_time_in("17 (x) S 1"), None);
    }

    #[test]
    fn a_disk_is_measured_where_the_data_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::of(folder.path()).expect("a disk");
        assert!(disk.fdatasync_p50_us > 0.0 && disk.fdatasync_p99_us >= disk.fdatasync_p50_us, "{disk:?}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "nothing is left behind");
    }
}
