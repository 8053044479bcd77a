//! The mirror over real sockets: real store, real upstreams, callers that speak as containerd does.

mod node;
mod private;
mod registry;
mod tags;
