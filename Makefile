# Each target does its own set-up and says what it does. They expect Debian (bookworm or newer) and rustup's cargo.
CARGO ?= cargo
# Always all of the workspace: its parts by themselves would be built with other features, and so again.
BUILD := $(CARGO) build --workspace --bins
TARGET := $${CARGO_TARGET_DIR:-target}

.PHONY: help setup test lint demo bench

help:
	@echo 'make setup   packages for the build, and into .tools/ what the tests run (containerd in four versions, a registry)'
	@echo 'make test    all tests; those in integration/ drive real containerds and take root'
	@echo 'make lint    formatting, clippy, and licences where cargo-deny is there'
	@echo 'make demo    a pull through Larder, the registry stopped, the pull again: seconds, after the build'
	@echo 'make bench   what a pull costs with Larder, without it, and with nginx, and a soak: more than an hour'

setup:
	integration/setup

# The programs first: the scenarios start the real agent.
test: setup
	$(BUILD)
	$(CARGO) test --workspace --no-fail-fast

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo 'lint: cargo-deny is not here: licences are not checked (cargo install cargo-deny)'; fi

demo: setup
	$(BUILD) --release
	$(TARGET)/release/demo

bench:
	integration/setup --bench
	$(BUILD) --release
	$(TARGET)/release/bench
