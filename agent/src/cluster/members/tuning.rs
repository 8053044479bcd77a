use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};

/// For how long the dead are remembered, and asked whether they are.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// How often news are passed on at least. In a cluster of three foca would do with two, and with both to the same one
/// of the others: who is suspected wouldn't hear of it, and couldn't contradict.
const LEAST_TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(8).unwrap();

/// How foca works in a cluster of about `members`, in packets of at most `packet` bytes.
///
/// A probe a second (0.5 s for an answer, then three others are asked to try), suspicion for 4 s up to ten members and
/// for 4 s more with every tenfold, and gossip of what is new to three others five times a second.
pub(super) fn config(members: usize, packet: NonZeroUsize) -> Config {
    // In steps: the figures that depend on it are logarithms.
    let members = u32::try_from(members.max(1).next_power_of_two()).unwrap_or(u32::MAX);
    let members = NonZeroU32::new(members).unwrap_or(NonZeroU32::MIN);
    let lan = Config::new_lan(members);
    Config {
        max_packet_size: packet,
        max_transmissions: lan.max_transmissions.max(LEAST_TRANSMISSIONS),
        remove_down_after: Some(FORGET_AFTER),
        // The roll does that, and knows what it has already been told.
        periodic_announce: None,
        // What heals partitions.
        periodic_announce_to_down_members: Some(PeriodicParams {
            frequency: Duration::from_secs(5),
            num_members: NonZeroUsize::MIN,
        }),
        notify_down_members: true,
        ..lan
    }
}
