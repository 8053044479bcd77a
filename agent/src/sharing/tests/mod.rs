//! Several nodes in one process, over real sockets: who finds whom, who reads from whom, and what becomes of it when
//! somebody goes.

mod bytes;
mod chains;
mod faults;
mod images;
mod node;
mod tags;
mod throughput;
