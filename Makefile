# Each target does its own set-up and says what it does. They expect Debian (bookworm or newer) and rustup's cargo; build
# and install want no Debian.
CARGO ?= cargo
# Always all of the workspace: its parts by themselves would be built with other features, and so again.
BUILD := $(CARGO) build --workspace --bins
TARGET := $${CARGO_TARGET_DIR:-target}

# The image's architecture; for another than this machine's, with BINARY=, which was built elsewhere.
ARCH ?= amd64
IMAGE ?= ghcr.io/larder/larder

# What is installed, and where: a test installs another program by BINARY=, who makes a package sets DESTDIR.
INSTALLED := $(or $(BINARY),$(TARGET)/release/larder)
DESTDIR ?=
PREFIX ?= /usr/local

.PHONY: help setup test lint demo build papers deb install uninstall image bench simulate

help:
	@echo 'make setup   packages for the build, and into .tools/ what the tests run (containerd in four versions, a registry)'
	@echo 'make test    all tests; those in integration/ drive real containerds and take root'
	@echo 'make lint    formatting, clippy, and licences where cargo-deny is there'
	@echo 'make build   the program, for a machine to be installed on; make install DESTDIR= PREFIX=/usr/local, make uninstall'
	@echo 'make deb     a Debian package of it, by cargo-deb'
	@echo 'make demo    a pull through Larder, the registry stopped, the pull again: seconds, after the build'
	@echo 'make image   the container image, as an OCI archive below target/image/; ARCH=arm64 BINARY=… for a binary built elsewhere'
	@echo 'make simulate   clusters of up to 5,000 nodes, simulated: figures, and 10,000 schedules; half an hour'
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

demo:
	integration/setup --demo
	$(BUILD) --release
	$(TARGET)/release/demo

# At most 25 MiB, compressed. Of a binary that was built here, only what runs: symbols are a seventh of it.
image: VERSION := $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
image:
	integration/setup --image
ifndef BINARY
	$(BUILD) --release
	mkdir -p target/image
	strip -o target/image/larder $(TARGET)/release/larder
endif
	daemonset/image/build --binary $(or $(BINARY),target/image/larder) --arch $(ARCH) --max-mib 25 \
		--output oci-archive:target/image/larder-$(VERSION)-$(ARCH).tar:$(IMAGE):$(VERSION)

bench:
	integration/setup --bench
	$(BUILD) --release
	$(TARGET)/release/bench

# Prints its figures. Optimised, but for what takes the linker minutes.
simulate:
	integration/setup --build
	CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	$(CARGO) test --workspace --release --lib --target-dir $(TARGET)/simulate -- \
		--ignored --nocapture --test-threads=2 cluster::sim::published cluster::members::tests::crowd

build:
	integration/setup --build
	$(BUILD) --release

# Shell completion and the manual, made by the program itself.
papers:
	systemd/papers "$(INSTALLED)" "$(TARGET)/release/papers"

deb: build papers
	integration/setup --deb
	PATH="$${LARDER_TOOLS:-$(CURDIR)/.tools}/cargo-deb/bin:$$PATH" $(CARGO) deb --no-build --manifest-path agent/Cargo.toml

install:
	systemd/install "$(INSTALLED)" "$(DESTDIR)" "$(PREFIX)"

uninstall:
	systemd/uninstall "$(DESTDIR)" "$(PREFIX)"
