# make demo    the product shown at work: three hypervisors in network namespaces (root, about a minute)
# make test    unit tests and the tests with the real daemon in namespaces (root)
# make test-datagram   the tests with the real daemon, in standard mode; `make test` has some of them (CARRIED)
# make check   format, lints, licences and bans
# make fuzz    each fuzz target for SECS seconds, 60 by default (nightly toolchain); TARGETS picks some
# make lab     leave the demo's world running to play with; make lab-down removes it
# make bench   benchmarks, see benches/README.md
# make bench-egress   how long the Internet is away when an egress node fails (root, an hour; RUNS=10 for less)

CARGO ?= cargo
DENY_VERSION := 0.20.2
FUZZ_VERSION := 0.13.2
ADVISORIES = $${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs

.PHONY: all build demo test test-datagram check deny fuzz lab lab-down bench bench-egress deps

all: build

deps:
	@tests/deps.sh

build: deps
	$(CARGO) build --workspace --locked --bins

demo: build
	target/debug/mesh-lab demo

lab: build
	target/debug/mesh-lab up

lab-down: build
	target/debug/mesh-lab down

# What depends most on how packets travel: run in standard mode too.
CARRIED := paths public mtu slowness failover lease

# The namespace tests have one lab at a time: they measure seconds, and two labs would slow each other.
test: build
	@tests/deps.sh test
	$(CARGO) test --workspace --exclude mesh-tests --locked
	$(CARGO) test -p mesh-tests --locked --no-fail-fast -- --test-threads=1
	MESH_LAB_TRANSPORT=datagram $(CARGO) test -p mesh-tests --locked --no-fail-fast $(CARRIED:%=--test netns_%) -- --test-threads=1

test-datagram: build
	@tests/deps.sh test
	MESH_LAB_TRANSPORT=datagram $(CARGO) test -p mesh-tests --locked --no-fail-fast -- --test-threads=1

check: deps
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@$(MAKE) --no-print-directory deny

# Building cargo-deny takes about five minutes, once. Advisories need a clone of the advisory database; where it cannot be fetched, say so and check the rest.
deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install cargo-deny --locked --version $(DENY_VERSION)
	@$(CARGO) fetch --locked --quiet
	$(CARGO) deny --offline check bans licenses sources
	@timeout 60 $(CARGO) deny fetch db >/dev/null 2>&1 || true
	@if ls -d $(ADVISORIES)/advisory-db-*/crates >/dev/null 2>&1; then \
		$(CARGO) deny --offline check advisories; \
	else \
		echo "advisories skipped: no advisory database here, and it cannot be fetched"; \
	fi

# The targets are a workspace of their own, built with the daemon's own dependencies.
SECS ?= 60
TARGETS ?= $$(cargo +nightly fuzz list --fuzz-dir tests/fuzz)
fuzz:
	@cargo +nightly --version >/dev/null 2>&1 || \
		{ echo "make fuzz needs a nightly toolchain: rustup toolchain install nightly --profile minimal"; exit 1; }
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked --version $(FUZZ_VERSION)
	@cp Cargo.lock tests/fuzz/Cargo.lock
	@for target in $(TARGETS); do \
		echo "$$target: $(SECS) s"; \
		cargo +nightly fuzz run --fuzz-dir tests/fuzz "$$target" -- \
			-max_total_time=$(SECS) -max_len=4096 -timeout=10 -verbosity=0 -print_funcs=0 -print_final_stats=1 || exit 1; \
	done

# One table with ratios, and target/bench/bench.json; `cargo bench` runs the microbenches alone.
bench:
	@tests/deps.sh bench
	benches/throughput/bench.sh

# RUNS of each scenario, ONLY some of them (power,freeze), and LOAD seconds of traffic without a failure.
RUNS ?= 100
ONLY ?=
LOAD ?= 0
bench-egress:
	@tests/deps.sh bench
	$(CARGO) build --release --workspace --locked --bins
	target/release/mesh-lab bench-egress --runs $(RUNS) --load $(LOAD) $(if $(ONLY),--only $(ONLY))
