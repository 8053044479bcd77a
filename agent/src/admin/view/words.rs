//! Ages and sizes, as short as tables have them.

use jiff::Timestamp;

use crate::config::Bytes;

/// How long it is from one to the other, in one unit: `45s`, `5m`, `3h`, `12d`, `2y`. What lies behind is `0s`.
#[must_use]
pub fn age(from: Timestamp, to: Timestamp) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / MINUTE),
        7_200..172_800 => format!("{}h", seconds / HOUR),
        172_800..63_072_000 => format!("{}d", seconds / DAY),
        _ => format!("{}y", seconds / (365 * DAY)),
    }
}

/// A size in one word: `3.0MiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    Bytes(bytes).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let start = Timestamp::UNIX_EPOCH;
        let after = |seconds: i64| age(start, Timestamp::from_second(seconds).unwrap());
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7_199, "119m"),
            (7_200, "2h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (30 * 86_400, "30d"),
            (800 * 86_400, "2y"),
        ] {
            assert_eq!(after(seconds), text);
        }
        assert_eq!(age(Timestamp::from_second(5).unwrap(), start), "0s");
    }

    #[test]
    fn sizes_are_one_word() {
        assert_eq!((size(0), size(3 << 20)), ("0B".to_owned(), "3.0MiB".to_owned()));
    }
}
