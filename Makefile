# `make` prints this help. Every target sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash

.PHONY: help
help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## run the five workflows on the embedded broker, with nothing installed
	cargo run --quiet -- demo

.PHONY: run
run: ## run an orchestrator and a worker against RabbitMQ until Ctrl-C (starts a private broker if RABBITMQ_URL is unset)
	cargo build --quiet
	scripts/with-rabbitmq scripts/run

.PHONY: up
up: ## start RabbitMQ, orchestrator and worker with Docker Compose; BINARY_FROM=prebuilt uses this machine's cargo
	set -e; if [ "$${BINARY_FROM:-}" = prebuilt ]; then \
	  cargo build --release; install -D target/release/tasker-worker-rust dist/tasker-worker-rust; \
	fi
	scripts/compose build orchestrator
	scripts/compose up -d rabbitmq orchestrator worker
	scripts/compose-ready rabbitmq orchestrator worker

.PHONY: smoke
smoke: ## tasks of all workflows on the stack of `make up`, with one worker of three killed
	scripts/smoke

.PHONY: down
down: ## stop what `make up` started; the data stays
	scripts/compose --profile observability down

.PHONY: down-volumes
down-volumes: ## stop what `make up` started, and delete its data and passwords
	scripts/compose --profile observability down --volumes
	rm -rf .secrets

.PHONY: broker
broker: ## start RabbitMQ alone with Docker Compose, and print how to reach it
	scripts/compose up -d rabbitmq
	scripts/compose-ready rabbitmq
	@echo "export RABBITMQ_URL=amqp://tasker:$$(cat .secrets/rabbitmq_password)@127.0.0.1:$${RABBITMQ_PORT:-5672}/%2f"

# Tests wait for brokers and timers more than they compute: more of them at a time than there are cores.
.PHONY: test
test: ## run every test, the RabbitMQ ones too (starts a private broker if RABBITMQ_URL is unset)
	cargo build --tests --examples
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-12} scripts/with-rabbitmq cargo test

.PHONY: coverage
coverage: ## run every test with line coverage; fails below 90 % of all lines or 75 % of any file
	scripts/with-rabbitmq scripts/coverage

# Hours for all of it; FILE=src/orchestrator/dag.rs for a part. What survives is a missing test: see target/mutants/mutants.out.
FILE := src/orchestrator/advance.rs src/orchestrator/answer.rs src/orchestrator/dag.rs src/orchestrator/growth.rs \
	src/outcome.rs src/retry.rs src/template/** src/worker/answer.rs src/worker/settle.rs
.PHONY: mutants
mutants: ## change the pure core line by line, and name the changes that no test notices
	command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants
	cargo mutants --output target/mutants $(FILE:%=--file '%')

.PHONY: fuzz
fuzz: ## a million mutated inputs to every decoder, and a million through a running worker
	FUZZ_CASES=$${FUZZ_CASES:-1000000} FUZZ_MESSAGES=$${FUZZ_MESSAGES:-1000000} \
		cargo test --release --test fuzz -- --nocapture decoding messages extremes

.PHONY: soak
soak: ## a million steps and 500 reconnects through RabbitMQ; fails when the worker's memory grows
	SOAK_STEPS=$${SOAK_STEPS:-1000000} SOAK_RECONNECTS=$${SOAK_RECONNECTS:-500} \
		scripts/with-rabbitmq cargo test --release --test fuzz -- --nocapture soak

.PHONY: scale
scale: ## a chain of 1,000 steps, a fan-out of 10,000 and 10,000 batches on both brokers, with figures
	SCALE=full scripts/with-rabbitmq cargo test --test system -- --nocapture --test-threads=1 scale

.PHONY: simulate
simulate: ## run worker and orchestrator through 10,000 seeded schedules of faults
	SIMULATION_SEEDS=10000 cargo test --test simulation

# A minute of the scenarios; `make test` runs this form too.
.PHONY: chaos-quick
chaos-quick: ## kill processes and brokers under load for a minute; nothing may be lost
	cargo test --test chaos

.PHONY: chaos
chaos: ## every chaos scenario in full, ten minutes; figures also in target/chaos.json
	cargo test --test chaos -- --full --json target/chaos.json

.PHONY: chaos-cluster
chaos-cluster: ## kill one of three RabbitMQ nodes under load
	cargo test --test chaos -- cluster

FROM := $(shell git describe --tags --abbrev=0 2>/dev/null)
.PHONY: upgrade
upgrade: ## run an older version, FROM=COMMIT or the last tag, and replace it under load in both orders; nothing may be lost
	@[ -n "$(FROM)" ] || { echo "there is no tag yet; say which version is replaced: make upgrade FROM=COMMIT" >&2; exit 64; }
	mkdir -p target/older/$(FROM)
	git archive $(FROM) | tar -x -C target/older/$(FROM)
	cargo build --locked --manifest-path target/older/$(FROM)/Cargo.toml --target-dir target/older/$(FROM)/target
	cargo test --test chaos -- upgrade --old target/older/$(FROM)/target/debug/tasker-worker-rust

.PHONY: chart
chart: ## check the Helm chart, the alerts, the Dockerfile and the Compose file; installs what it checks with
	set -e; tools=$$(scripts/chart-tools); "$$tools/venv/bin/python" helm/tests/check.py "$$tools"

ON :=
.PHONY: cluster
cluster: ## run the guide's commands for Kubernetes on a stand-in for its API; ON=current: on the cluster of kubectl's context
	cargo build --quiet
	set -e; tools=$$(scripts/chart-tools); $(if $(ON),,env -u RABBITMQ_URL scripts/with-rabbitmq) \
	  "$$tools/venv/bin/python" helm/tests/cluster.py "$$tools" $(ON)

.PHONY: scaling
scaling: ## scale real workers by KEDA's and the autoscaler's rules, and draw docs/scaling.svg; three minutes
	cargo build --quiet
	set -e; tools=$$(scripts/chart-tools); scripts/with-rabbitmq "$$tools/venv/bin/python" scripts/scaling

.PHONY: preview
preview: ## draw docs/dashboard.svg from two minutes of load; needs prometheus
	cargo build --quiet
	scripts/with-rabbitmq scripts/preview

# Wants a machine that does nothing else for an hour and a half; disturbed runs are repeated. In pieces, each of which
# leaves what the documents hold of the others: make bench PIECE=w2, or PIECE="w1 --only 'quorum, 4 namespaces'".
PIECE :=
.PHONY: bench
bench: ## measure this worker beside a bare lapin program; writes docs/performance.md and its plots; PIECE=w1 for a part
	cargo build --release
	scripts/with-rabbitmq target/release/tasker-worker-rust bench $(PIECE) --write docs

.PHONY: bench-quick
bench-quick: ## a minute of that; fails when a ratio is worse than half its goal
	cargo build --release
	scripts/with-rabbitmq target/release/tasker-worker-rust bench --quick

# Both workers are as slow as each other in a debug build, near enough for half the goals.
.PHONY: bench-report
bench-report: ## the same with the program as the tests build it; fails as bench-quick does
	cargo build --tests
	scripts/with-rabbitmq target/debug/tasker-worker-rust bench --quick

GENERATIONS := 4.0 4.3
.PHONY: test-generations
test-generations: ## the RabbitMQ tests on other generations of it (needs Debian or Ubuntu, and root)
	cargo build --tests
	set -e; for version in $(GENERATIONS); do \
	  root=$$(scripts/rabbitmq-generation $$version); \
	  for test in broker system; do \
	    env -u RABBITMQ_URL RABBITMQ_ROOT=$$root scripts/with-rabbitmq cargo test --test $$test rabbit; \
	  done; \
	done

.PHONY: package
package: ## build the crate as it would be published
	cargo package --quiet
	@ls -sh target/package/*.crate

.PHONY: fmt
fmt: ## format the code
	cargo fmt

.PHONY: lint
lint: ## check format, lints and documentation
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet

.PHONY: supply-chain
supply-chain: ## check licences, sources and known vulnerabilities of the dependencies, and that all are used
	scripts/supply-chain

.PHONY: sbom
sbom: ## list every crate in the program as CycloneDX, in target/sbom.cdx.json
	scripts/supply-chain sbom

.PHONY: check
check: lint test bench-report supply-chain ## what CI runs: lint, test, bench-report, supply-chain

.PHONY: clean
clean: ## remove what was built
	cargo clean
