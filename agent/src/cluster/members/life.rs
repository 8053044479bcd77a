//! A node's lives in one process: coming back, moving, leaving.

use std::net::SocketAddr;
use std::time::Duration;

use super::identity::Identity;
use super::twin::Standing;
use super::{Effect, Members};

impl Members {
    /// Says good-bye. What is received from now on is ignored.
    pub fn leave(&mut self, now: Duration) {
        if !self.standing.takes_part() {
            return;
        }
        self.standing = Standing::Left;
        self.me = self.me.leaving();
        let me = self.me.clone();
        let _ = self.swim(now, |swim, out| {
            swim.change_identity(me, &mut *out)?;
            swim.leave_cluster(&mut *out)?;
            // Nobody asks again: a few more are told, so that one lost datagram isn't the end of it.
            swim.gossip(&mut *out)?;
            swim.gossip(out)
        });
        self.agenda.clear();
    }

    /// This node's address has changed: it goes on at the new one.
    pub fn move_to(&mut self, now: Duration, addr: SocketAddr) {
        let me = self.me.moved(addr);
        if me.socket() == self.me.socket() {
            return;
        }
        if self.standing.takes_part() {
            self.introduce_as(now, me);
        } else if !matches!(self.standing, Standing::Left) {
            // Where it comes back, once its twin is gone.
            self.me = me;
        }
    }

    /// Goes on under another identity, and says so.
    pub(super) fn go_on_as(&mut self, now: Duration, me: Identity) {
        if !self.standing.takes_part() {
            return;
        }
        self.renewed = Some(now);
        self.introduce_as(now, me);
        self.effects.push_back(Effect::Renewed);
    }

    fn introduce_as(&mut self, now: Duration, me: Identity) {
        self.me = me.clone();
        let sender = self.sender.take();
        let _ = self.swim(now, |swim, out| {
            swim.change_identity(me, &mut *out)?;
            // The others are still there: probing them goes on.
            swim.apply_many(std::iter::empty(), false, &mut *out)?;
            sender.map_or(Ok(()), |sender| swim.announce(sender, out))
        });
        self.known.touch();
    }
}
