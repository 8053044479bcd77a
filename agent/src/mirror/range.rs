use std::ops::Range;

/// What a Range header asks for (RFC 9110, section 14). One range of bytes; anything else is as if it weren't there,
/// which the RFC allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeAsked {
    /// No range, or none that we understand.
    Whole,
    /// `bytes=N-`
    From(u64),
    /// `bytes=N-M`, both included; `N <= M`.
    FromTo(u64, u64),
    /// `bytes=-N`: the last N.
    Last(u64),
}

/// What of a blob goes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: 200.
    Whole,
    /// 206.
    Some(Range<u64>),
    /// 416.
    Unsatisfiable,
}

impl RangeAsked {
    pub(super) fn parse(header: Option<&str>) -> Self {
        header.and_then(Self::parse_header).unwrap_or(Self::Whole)
    }

    fn parse_header(header: &str) -> Option<Self> {
        let (unit, range) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        match (number(first), number(last)) {
            (Some(first), None) if last.is_empty() => Some(Self::From(first)),
            (Some(first), Some(last)) if first <= last => Some(Self::FromTo(first, last)),
            (None, Some(last)) if first.is_empty() => Some(Self::Last(last)),
            _ => None,
        }
    }

    /// The first byte that will be wanted; `u64::MAX` where the blob's length decides it.
    pub(super) const fn start(self) -> u64 {
        match self {
            Self::Whole => 0,
            Self::From(first) | Self::FromTo(first, _) => first,
            Self::Last(_) => u64::MAX,
        }
    }

    /// What is asked for, where it says itself where it ends, and so doesn't ask for the end of the blob.
    pub(super) fn closed(self) -> Option<Range<u64>> {
        match self {
            Self::FromTo(first, last) => Some(first..last.saturating_add(1)),
            Self::Whole | Self::From(_) | Self::Last(_) => None,
        }
    }

    /// Of a blob of `size` bytes.
    pub(super) fn of(self, size: u64) -> Part {
        match self {
            Self::Whole => Part::Whole,
            Self::From(first) if first < size => Part::Some(first..size),
            Self::FromTo(first, last) if first < size => Part::Some(first..last.saturating_add(1).min(size)),
            Self::Last(count) if count > 0 && size > 0 => Part::Some(size.saturating_sub(count)..size),
            _ => Part::Unsatisfiable,
        }
    }
}

/// Digits alone: no sign, no space. A number beyond 64 bits lies beyond every blob.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_the_rfc_says() {
        for (header, of_ten) in [
            ("bytes=0-", Part::Some(0..10)),
            ("bytes=3-", Part::Some(3..10)),
            ("bytes=3-5", Part::Some(3..6)),
            ("bytes=3-100", Part::Some(3..10)),
            ("bytes=9-9", Part::Some(9..10)),
            ("bytes=-4", Part::Some(6..10)),
            ("bytes=-100", Part::Some(0..10)),
            ("Bytes=0-0", Part::Some(0..1)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=10-20", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=0-99999999999999999999999", Part::Some(0..10)),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=5-3", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1", Part::Whole),
            ("bytes=-", Part::Whole),
            ("items=0-1", Part::Whole),
            ("", Part::Whole),
        ] {
            assert_eq!(RangeAsked::parse(Some(header)).of(10), of_ten, "{header}");
        }
        assert_eq!(RangeAsked::parse(None).of(10), Part::Whole);
        assert_eq!(RangeAsked::From(0).of(0), Part::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_lies_within(header in "(bytes=)?[0-9]{0,4}-?[0-9]{0,4}[,-]?", size in 0_u64..3000) {
            if let Part::Some(range) = RangeAsked::parse(Some(&header)).of(size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn never_panics(header in "\\PC*", size: u64) {
            let _ = RangeAsked::parse(Some(&header)).of(size);
        }
    }
}
