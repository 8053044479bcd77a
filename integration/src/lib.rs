//! Fixtures for Larder's tests, demo and benchmarks: real containerd, real registries, and one that misbehaves.
