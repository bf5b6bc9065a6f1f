# `make help` lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help

# Where rustup puts cargo; a shell that was open before the installation does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Packages have the BPF programs, which need clang; plain `cargo build` does without.
FEATURES := --features portward/bpf
ALL_FEATURES := --features portward/bpf,portward-integration-tests/bpf

# The programs that cargo builds for the tests and the benchmark.
RELEASE := target/release
# The cargo features that the packages are built with, as for `cargo build --features`.
PACKAGE_FEATURES := bpf

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile

.PHONY: build-dependencies
build-dependencies: ## install the compilers and libraries that the build needs, where they are missing (root)
	@scripts/dependencies.sh build

.PHONY: test-dependencies
test-dependencies: ## install what the tests need besides (root)
	@scripts/dependencies.sh test

.PHONY: root
root:
	@[ "$$(id -u)" -eq 0 ] || { echo "This needs root: it makes network namespaces and changes their nftables." >&2; exit 1; }

.PHONY: build
build: build-dependencies ## build the release binary, target/release/portward
	cargo build --release $(FEATURES)

.PHONY: run
run: root build ## run the daemon with the embedded policy in a network namespace of its own (root)
	$(RELEASE)/portward run --sandbox

.PHONY: test
test: root test-dependencies vagrant-validate deb rpm ## build the packages and run all tests but those in virtual machines (root)
	cargo build --workspace $(ALL_FEATURES)
	scripts/test.sh $(ALL_FEATURES)

.PHONY: package-dependencies
package-dependencies: ## install what makes packages (root, unless all is there)
	@scripts/dependencies.sh package

.PHONY: deb
deb: package-dependencies ## build the Debian package, target/packages/portward_*.deb
	@FEATURES="$(PACKAGE_FEATURES)" scripts/package.sh deb

.PHONY: rpm
rpm: package-dependencies ## build the package for RHEL 8 and 9, target/packages/portward-*.rpm
	@FEATURES="$(PACKAGE_FEATURES)" scripts/package.sh rpm

# The package that goes into virtual machines. Where it is not named, it is built.
PORTWARD_DEB ?=
BUILT_DEB := $(if $(PORTWARD_DEB),,deb)
export PORTWARD_DEB
# A part of the tests' names, such as boot.
TEST ?=
THE_DEB = $${PORTWARD_DEB:-$$(ls target/packages/portward_*.deb)}

.PHONY: vm-test
vm-test: root $(BUILT_DEB) ## boot, power cuts, memory, three appliances: tests in virtual machines (root, half an hour)
	@scripts/dependencies.sh vm
	integration-tests/vm/image.sh
	PORTWARD_DEB="$(THE_DEB)" cargo test --package portward-integration-tests --features vm --test vm -- \
		--test-threads=1 --nocapture $(TEST)

.PHONY: vagrant-test
vagrant-test: root $(BUILT_DEB) ## bring up the machines of the Vagrantfile and change their policy (root, half an hour)
	@scripts/dependencies.sh vagrant
	PORTWARD_DEB="$(THE_DEB)" integration-tests/vagrant/run.sh

# Without the provider's plugin, its own settings are left out; vagrant-test has it and checks them too.
.PHONY: vagrant-validate
vagrant-validate: test-dependencies
	scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_HOME=$$scratch VAGRANT_DOTFILE_PATH=$$scratch/machines \
		vagrant validate --ignore-provider

# The target to fuzz (default: each of them), and for how many seconds.
TARGET ?=
SECONDS ?= 60

.PHONY: fuzz
fuzz: ## fuzz the parsers of outside input, each for a minute, or TARGET=policy SECONDS=600 (root, unless all is there)
	@scripts/dependencies.sh fuzz
	scripts/fuzz.sh "$(SECONDS)" "$(TARGET)"

# The fuzz targets are checked without libFuzzer, with the dependencies that are there anyway.
.PHONY: lint
lint: build-dependencies ## formatting, clippy, documentation, fuzz targets, and cargo-deny where it is installed
	cargo fmt --all --check
	cargo fmt --all --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --all-targets $(ALL_FEATURES),portward-integration-tests/vm,portward/fuzzing -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --workspace $(ALL_FEATURES)
	@if cargo deny --version >/dev/null 2>&1; then \
		echo "cargo deny check bans licenses sources"; cargo deny check bans licenses sources; \
	else \
		echo "cargo-deny is not installed: bans, licences and sources were not checked (see CONTRIBUTING.md)"; \
	fi

.PHONY: bench
bench: root test-dependencies ## measure loading, changing and packets beside nft -f and the netlink floor (root)
	cargo build --release --workspace $(ALL_FEATURES)
	$(RELEASE)/portward-bench
