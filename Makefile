# Each target does its own set-up and says what it does. They expect Debian (bookworm or newer) and rustup's cargo.
CARGO ?= cargo
# How many scenarios run at once: each starts a containerd, an agent and a registry of its own.
SCENARIOS ?= 2

.PHONY: help setup build test lint demo bench

help:
	@echo 'make setup   packages for the build, and into .tools/ what the tests run (containerd in four versions, a registry)'
	@echo 'make test    all tests; those in integration/ drive real containerds and take root'
	@echo 'make lint    formatting, clippy, and licences where cargo-deny is there'
	@echo 'make demo    a pull through Larder, the registry stopped, the pull again: in under a minute after the build'
	@echo 'make bench   what a pull costs with Larder, without it, and with nginx'

setup:
	integration/setup

build: setup
	$(CARGO) build -p larder

# The agent is built first: the scenarios start the real binary.
test: build
	$(CARGO) test --workspace --exclude larder-integration
	$(CARGO) test -p larder-integration -- --test-threads=$(SCENARIOS)

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check licenses bans sources; \
	else echo 'lint: cargo-deny is not here: licences are not checked (cargo install cargo-deny)'; fi

demo: setup
	$(CARGO) build --release -p larder
	$(CARGO) run --release -p larder-integration --bin demo

bench:
	integration/setup --bench
	$(CARGO) build --release -p larder
	$(CARGO) run --release -p larder-integration --bin bench
