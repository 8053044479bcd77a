use crate::config::Percent;

/// By how much the disk's use is brought below its bound, in percent of the disk, so that not every commit evicts.
const DISK_SLACK_PERCENT: u8 = 5;
/// The same for `max_bytes`, in percent of it.
const BYTES_LOW_PERCENT: u64 = 95;
/// How much is evicted for a disk that is full though no bound is passed, in bytes.
const FULL_STEP: u64 = 64 << 20;

/// What the store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of blobs, arriving ones included; `None` for no such bound.
    pub max_bytes: Option<u64>,
    /// How full the disk may be, by whomever.
    pub max_disk_percent: Percent,
}

/// What the store holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blobs held.
    pub blobs: u64,
    /// Bytes of the blobs held that dropping them would free.
    pub bytes: u64,
    /// Bytes of the blobs held that containerd has too: dropping them frees nothing, and so they count for no bound.
    pub shared_bytes: u64,
    /// Bytes on disk of what is arriving, or once was.
    pub ingest_bytes: u64,
    /// Bytes that what is arriving now will have when it is whole.
    pub reserved_bytes: u64,
    /// The disk; `None` where it can't be asked.
    pub disk: Option<DiskUse>,
    /// Whether a write failed for lack of space moments ago.
    pub full: bool,
}

/// A disk as `df` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes used and available together (what is reserved for root is neither).
    pub size: u64,
    /// Bytes used, by whomever.
    pub used: u64,
}

/// What must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// How many bytes, to be below the low mark.
    pub bytes: u64,
    /// Which bound is passed.
    pub reason: Reason,
}

/// What a blob can be dropped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `cache.max_bytes`
    MaxBytes,
    /// `cache.max_disk_percent`
    MaxDiskPercent,
    /// A write failed for lack of space.
    Full,
    /// Nothing has used its images for so long that they expired.
    Expired,
    /// It belongs to no image that is known.
    Unused,
    /// containerd gave its image up while the disk was above its mark: the space is to be free at once.
    Released,
}

impl Reason {
    /// Whether only bytes that are freed now are any good. A blob that containerd has too frees none, and stays.
    #[must_use]
    pub const fn is_for_space(self) -> bool {
        matches!(self, Self::MaxBytes | Self::MaxDiskPercent | Self::Full)
    }
}

impl Bounds {
    /// Whether a blob of `size` bytes could be kept if everything that is not arriving just now went for it. One that
    /// couldn't is served and not stored.
    #[must_use]
    pub fn admit(&self, size: u64, usage: &Usage) -> bool {
        let arriving = usage.reserved_bytes.saturating_add(size);
        let fits_bytes = self.max_bytes.is_none_or(|max| arriving <= max);
        let fits_disk = usage.disk.is_none_or(|disk| {
            let others = disk.used.saturating_sub(usage.bytes.saturating_add(usage.ingest_bytes));
            others.saturating_add(arriving) <= self.disk_mark(disk)
        });
        fits_bytes && fits_disk
    }

    /// How much of the disk may be used, by whomever, in bytes.
    pub(super) fn disk_mark(&self, disk: DiskUse) -> u64 {
        percent_of(disk.size, self.max_disk_percent.value())
    }

    /// What must go, if a bound is passed.
    #[must_use]
    pub fn excess(&self, usage: &Usage) -> Option<Excess> {
        let arriving = usage.reserved_bytes.max(usage.ingest_bytes);
        let held = usage.bytes.saturating_add(arriving);
        let by_bytes = self.max_bytes.filter(|max| held > *max).map(|max| {
            // Exact for any size that a disk can have.
            let low = (u128::from(max) * u128::from(BYTES_LOW_PERCENT) / 100) as u64;
            Excess { bytes: held - low, reason: Reason::MaxBytes }
        });
        let high = self.max_disk_percent.value();
        let by_disk = usage.disk.filter(|disk| disk.used > self.disk_mark(*disk)).map(|disk| {
            let low = percent_of(disk.size, high.saturating_sub(DISK_SLACK_PERCENT));
            Excess { bytes: disk.used - low, reason: Reason::MaxDiskPercent }
        });
        let by_full = usage.full.then_some(Excess { bytes: FULL_STEP, reason: Reason::Full });
        [by_bytes, by_disk, by_full].into_iter().flatten().max_by_key(|excess| excess.bytes)
    }
}

fn percent_of(size: u64, percent: u8) -> u64 {
    // At most `size`, since a percentage here is at most 100.
    (u128::from(size) * u128::from(percent) / 100) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(max_bytes: Option<u64>, percent: u8) -> Bounds {
        Bounds { max_bytes, max_disk_percent: Percent::new(percent).unwrap() }
    }

    #[test]
    fn a_blob_larger_than_everything_is_not_admitted() {
        let usage = Usage { bytes: 900, reserved_bytes: 100, ..Usage::default() };
        assert!(bounds(Some(1000), 75).admit(900, &usage), "what is held can go");
        assert!(!bounds(Some(1000), 75).admit(901, &usage), "what is arriving can't");
        assert!(bounds(None, 75).admit(u64::MAX, &usage));
        let disk = DiskUse { size: 1000, used: 900 };
        let usage = Usage { bytes: 500, disk: Some(disk), ..Usage::default() };
        assert!(bounds(None, 75).admit(350, &usage));
        assert!(!bounds(None, 75).admit(351, &usage), "400 of the disk are not ours to free");
    }

    #[test]
    fn marks() {
        let usage = Usage { bytes: 900, reserved_bytes: 100, ..Usage::default() };
        assert_eq!(bounds(Some(1000), 75).excess(&usage), None);
        let usage = Usage { bytes: 901, ..usage };
        let by_bytes = Excess { bytes: 51, reason: Reason::MaxBytes };
        assert_eq!(bounds(Some(1000), 75).excess(&usage), Some(by_bytes));
        let usage = Usage { disk: Some(DiskUse { size: 1000, used: 750 }), ..Usage::default() };
        assert_eq!(bounds(None, 75).excess(&usage), None);
        let usage = Usage { disk: Some(DiskUse { size: 1000, used: 751 }), ..Usage::default() };
        let by_disk = Excess { bytes: 51, reason: Reason::MaxDiskPercent };
        assert_eq!(bounds(None, 75).excess(&usage), Some(by_disk));
        let full = Usage { full: true, ..Usage::default() };
        assert_eq!(bounds(None, 100).excess(&full).map(|excess| excess.reason), Some(Reason::Full));
    }

    proptest! {
        #[test]
        fn what_goes_brings_everything_below_the_marks(
            max in 1u64..1 << 50, percent in 1u8..=100, bytes in 0u64..1 << 50, size in 0u64..1 << 50, other in 0u64..1 << 50,
        ) {
            let bounds = bounds(Some(max), percent);
            let disk = DiskUse { size, used: (bytes + other).min(size) };
            let mut usage = Usage { bytes, disk: Some(disk), ..Usage::default() };
            if let Some(excess) = bounds.excess(&usage) {
                usage.bytes = usage.bytes.saturating_sub(excess.bytes);
                usage.disk = Some(DiskUse { used: disk.used.saturating_sub(excess.bytes), ..disk });
                prop_assert_eq!(bounds.excess(&usage), None);
            }
        }
    }
}
