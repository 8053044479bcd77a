//! Several nodes in one process, over real sockets: who finds whom, who reads from whom, and what becomes of it when
//! somebody goes.

mod bytes;
mod callers;
mod chains;
mod checks;
mod credentials;
mod faults;
mod images;
mod impostor;
mod node;
mod rights;
mod skew;
mod suspects;
mod tags;
mod throughput;
