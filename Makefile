# `make help` says what there is. Every step prints one line; its output is in _build/log,
# and is shown while it runs with V=1.

export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/sbin:/sbin
export LC_ALL := C.UTF-8

STEP := .ci/step
EBIN := _build/default/lib/chatter/ebin
ERLANG_SOURCES = $(wildcard erlang/*.erl test/*.erl bench/*.erl examples/demo/*.erl)

.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: build setup setup-build demo test test-rust test-erlang check bench bench-spf bench-flow soak \
        conformance nemesis failover fmt clean help

build: setup-build                    ## build the NIF and the Erlang application
	@$(STEP) build "build the NIF and the application" rebar3 compile

setup:                                ## install what is missing for everything below (apt)
	@.ci/setup all

setup-build:
	@.ci/setup build

demo: setup build                     ## nodes in a line at work, and others that find each other
	@examples/demo/run

test: setup test-rust test-erlang     ## all tests of Rust and Erlang

test-rust:                            ## the tests of the Rust crates alone
	@$(STEP) cargo-test "test the Rust crates" cargo test --workspace --locked
	@$(MAKE) -s test-sim

# make test-sim SEEDS=2000 FROM=1
SEEDS ?= 2000
FROM ?= 1
.PHONY: test-sim
test-sim:                             ## simulated clusters, 200 faults for each of 2,000 seeds
	@$(STEP) sim "simulate $(SEEDS) clusters from seed $(FROM)" \
	    cargo run --locked -p chatter-sim -- seeds $(SEEDS) --from $(FROM)

# make test-erlang SUITE=chatter_boot_SUITE CASE=port_taken
test-erlang: build                    ## Common Test alone; SUITE=..., CASE=... to choose
	@$(STEP) ct "test over real nodes (Common Test)" rebar3 ct --readable=compact \
	    $(if $(SUITE),--suite test/$(SUITE)) $(if $(CASE),--case $(CASE)) || \
	    { echo "   by case: _build/test/logs/index.html"; exit 1; }

check: setup                          ## all that CI asks before the tests
	@$(STEP) fmt "format of the Rust sources" cargo fmt --all --check
	@$(STEP) columns "no tabs, at most 100 columns in Erlang" $(MAKE) -s columns
	@$(STEP) clippy "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
	@RUSTDOCFLAGS=-Dwarnings $(STEP) rustdoc "documentation of the Rust crates" \
	    cargo doc --workspace --no-deps --document-private-items --locked
	@$(STEP) compile "compile Erlang, warnings are errors" rebar3 as check compile
	@$(STEP) compile-rest "compile tests, bench and demo, warnings are errors" \
	    $(MAKE) -s compile-rest
	@$(STEP) xref "xref" rebar3 xref
	@$(STEP) dialyzer "dialyzer" rebar3 dialyzer

.PHONY: columns compile-rest
columns:
	@! grep -nP '\t' $(ERLANG_SOURCES) || { echo "tabs: use spaces"; exit 1; }
	@! grep -nE '^.{101,}$$' $(ERLANG_SOURCES) || { echo "longer than 100 columns"; exit 1; }

compile-rest:
	@mkdir -p _build/rest
	@erlc -Werror -pa $(EBIN) -o _build/rest \
	    $(filter-out erlang/%,$(ERLANG_SOURCES))
	@PYTHONPYCACHEPREFIX=_build/rest python3 -m py_compile bench/compare.py bench/broadcast.py \
	    test/wire/chatter_wire.py

bench: setup build                    ## the figures against stock, as a table with the bar
	@python3 bench/compare.py --all $(BENCH)

# make bench-broadcast BENCH="--rounds 5 --count 1000000"
.PHONY: bench-broadcast
bench-broadcast: setup build          ## broadcasts of small messages against one send for each node
	@python3 bench/broadcast.py $(BENCH)

bench-spf: setup                      ## how long shortest paths take
	@cargo bench --locked -p chatter-core --bench spf -- --quiet

bench-flow: setup                     ## how long it takes to find a frame's sender
	@cargo bench --locked -p chatter-core --bench flow -- --quiet

# make soak CHANGES=1000000 SEEDS=100000 FROM=1
CHANGES ?= 1000000
HEADERS ?= 10000000
SIGNALS ?= 3000000
soak: setup build                           ## long runs of the random tests; CHANGES=... of topology, SEEDS=...
	@$(MAKE) -s soak-groups
	@$(MAKE) -s soak-broadcast
	@CHATTER_CHANGES=$(CHANGES) $(STEP) soak-routing "routing tables after $(CHANGES) changes" \
	    cargo test --release --locked -p chatter-core --test routing_changes
	@CHATTER_HEADERS=$(HEADERS) CHATTER_SEED=$(FROM) \
	    $(STEP) soak-frames "read $(HEADERS) damaged frames" \
	    cargo test --release --locked -p chatter-core --test flow_hostile
	@CHATTER_SIGNALS=$(SIGNALS) $(STEP) soak-order "order of $(SIGNALS) signals on each network" \
	    rebar3 ct --readable=compact --suite test/chatter_order_SUITE \
	    --group direct_default,relay_default,uneven_default --case all_kinds
	@$(MAKE) -s test-sim SEEDS=$(if $(filter 2000,$(SEEDS)),100000,$(SEEDS))
	@$(STEP) cold "cold start of 1,000 simulated nodes" \
	    cargo run --locked -p chatter-sim -- cold 1000

# make soak-broadcast NODES=1000 EVERY=2 FROM=4711; ten times as many broadcasts as nodes, one in EVERY ms
NODES ?= 1000
EVERY ?= 2
.PHONY: soak-broadcast
soak-broadcast:                             ## broadcasts in a simulated network of 1,000 of which a third dies
	@CHATTER_NODES=$(NODES) CHATTER_EVERY_MS=$(EVERY) CHATTER_SEED=$(FROM) \
	    $(STEP) soak-broadcast "broadcasts of $(NODES) nodes of which 30 % die, seed $(FROM)" \
	    cargo test --release --locked -p chatter-core --test broadcast_crowd -- --nocapture

# make forged FORGED=1000000
FORGED ?= 1000000
.PHONY: forged
forged: build                               ## what forged datagrams do to live traffic, with the bar (root)
	@CHATTER_FORGED=$(FORGED) $(STEP) forged "$(FORGED) forged datagrams" \
	    rebar3 ct --readable=compact --suite test/chatter_discovery_SUITE --case forged_datagrams

# make soak-groups HISTORIES=100000; CHATTER_SEED=4711 to run one again
HISTORIES ?= 100000
.PHONY: soak-groups
soak-groups: build
	@$(MAKE) -s compile-rest
	@CHATTER_HISTORIES=$(HISTORIES) $(STEP) soak-groups "$(HISTORIES) random histories of groups" \
	    erl -noinput -pa _build/rest -pa $(EBIN) -eval 'chatter_group_props:main().'

conformance: setup build              ## OTP's own suites over Chatter and over stock
	@test/conformance/run $(CONFORMANCE)

# make test-otp OTP=29 SUITE=chatter_dist_SUITE
.PHONY: test-otp
test-otp:                             ## Common Test on another OTP, in a Debian that has it (root)
	@.ci/setup otp
	@test/otp/run "$(OTP)" $(if $(SUITE),SUITE=$(SUITE)) $(if $(CASE),CASE=$(CASE))

# make nemesis MESSAGES=1000000 FAULTS=50 SEED=7 SCENARIO=test/lab/short.scenario
nemesis: setup build                  ## faults against real nodes under load (half an hour, root)
	@test/lab/run nemesis SCENARIO=$(SCENARIO) SEED=$(SEED) MESSAGES=$(MESSAGES) FAULTS=$(FAULTS)

# make failover ROUNDS=20 ONLY=relay_killed,link_cut
failover: setup build                 ## how long failures are felt, as a table with the bar (root)
	@test/lab/run failover ROUNDS=$(ROUNDS) SEED=$(SEED) ONLY=$(ONLY)

# make fair ONLY=jain,queue,high,slow,loss
.PHONY: fair
fair: setup build                     ## fairness and isolation of flows, as a table with the bar (root)
	@test/lab/run fair ONLY=$(ONLY)

fmt:                                  ## format the Rust sources
	@cargo fmt --all

clean:                                ## remove all that was built
	@rm -rf _build priv/libchatter_nif.so
	@cargo clean --quiet

help:                                 ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | \
	    while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done
