//! The commands.

pub mod hosts;
