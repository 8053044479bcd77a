use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// One run of the kernel. What was written in this one is in the page cache still, fsynced or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Boot(u64);

impl Boot {
    /// This run. Where the kernel doesn't say, a number that never comes again: then nothing unsynced is trusted.
    pub(super) fn current() -> Self {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let first = id.as_deref().map(|text| text.bytes().filter(u8::is_ascii_hexdigit).take(16).collect::<Vec<_>>());
        let number = first.and_then(|hex| u64::from_str_radix(str::from_utf8(&hex).ok()?, 16).ok());
        Self(number.unwrap_or_else(rand::random))
    }

    #[cfg(test)]
    pub(super) const fn numbered(number: u64) -> Self {
        Self(number)
    }
}

/// Milliseconds since 1970, by the wall clock; 0 for a clock before that. A pull uses several blobs a second, and which
/// of them came last decides which goes first.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
