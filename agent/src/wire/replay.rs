/// How far behind the newest counter a datagram may come: networks reorder.
const WIDTH: u64 = 1024;
const WORDS: usize = (WIDTH / 64) as usize;

/// Which of a sender's latest counters have been here. Each is let in once; what is older than the window, never.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// One after the highest counter that was let in; 0 when none was.
    next: u64,
    seen: [u64; WORDS],
}

impl Window {
    /// Whether it is the first time for this counter.
    pub(super) const fn admit(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            // What lies between was never here, and takes the place of what is now too old.
            let step = counter - self.next;
            if step >= WIDTH {
                self.seen = [0; WORDS];
            } else {
                let mut at = self.next;
                while at < counter {
                    self.clear(at);
                    at += 1;
                }
            }
            self.set(counter);
            // The last counter of all can't be followed by another.
            self.next = counter.saturating_add(1);
            return true;
        }
        if self.next - counter > WIDTH || self.has(counter) {
            return false;
        }
        self.set(counter);
        true
    }

    const fn has(&self, counter: u64) -> bool {
        let (word, bit) = place(counter);
        self.seen[word] & bit != 0
    }

    const fn set(&mut self, counter: u64) {
        let (word, bit) = place(counter);
        self.seen[word] |= bit;
    }

    const fn clear(&mut self, counter: u64) {
        let (word, bit) = place(counter);
        self.seen[word] &= !bit;
    }
}

const fn place(counter: u64) -> (usize, u64) {
    // Below WIDTH, so it fits.
    let at = (counter % WIDTH) as usize;
    (at / 64, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Held against the plain meaning: a set of all that came, and the highest of them.
        #[test]
        fn each_once_and_none_too_old(counters in prop::collection::vec((0_u64..4000, 0_u64..3), 1..400)) {
            let mut window = Window::default();
            let (mut let_in, mut highest) = (HashSet::new(), None::<u64>);
            for (base, jump) in counters {
                let counter = base + jump * 5000;
                let is_too_old = highest.is_some_and(|highest| counter + WIDTH <= highest);
                let expected = !is_too_old && !let_in.contains(&counter);
                prop_assert_eq!(window.admit(counter), expected, "{} after {:?}", counter, highest);
                if expected {
                    let_in.insert(counter);
                    highest = highest.max(Some(counter));
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_window() {
        let mut window = Window::default();
        assert!(window.admit(0) && !window.admit(0));
        assert!(window.admit(WIDTH));
        assert!(!window.admit(0), "as old as the window is wide");
        assert!(window.admit(1) && !window.admit(1));
        assert!(window.admit(u64::MAX - 1) && !window.admit(u64::MAX - 1) && !window.admit(WIDTH));
    }
}
