# Everyday commands; `just` lists them.
default:
    @just --list

# What must pass before a commit.
dev: format lint test docs

format:
    cargo fmt

lint:
    cargo clippy --all-targets -- -D warnings

test:
    cargo test

docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Kernels and selection.
bench:
    cargo bench

# The main job against the disk's floor, on a family of 1.1 B parameters (needs root to drop caches).
bench-e2e:
    benches/e2e/run.sh

# How the time of a merge grows with parameters, experts and threads.
bench-scaling:
    benches/e2e/scaling.sh

# Python safetensors and transformers open the output.
interop:
    tests/interop/run.sh

# Kills and faults at system calls; the bounded form that CI runs.
faults:
    cargo build --release
    tests/faults/run.sh target/release/reflow

# All of them: an hour or so.
faults-nightly:
    cargo build --release
    tests/faults/run.sh target/release/reflow --nightly

# One parser under a coverage-guided fuzzer, for so many seconds (a nightly compiler, cargo-fuzz).
fuzz target seconds="60":
    mkdir -p fuzz/corpus-new/{{target}}
    cargo +nightly fuzz run {{target}} fuzz/corpus-new/{{target}} fuzz/corpus/{{target}} -- -max_total_time={{seconds}} -max_len=8192

# All of them.
fuzz-all seconds="60":
    for target in $(cargo +nightly fuzz list); do just fuzz $target {{seconds}} || exit 1; done

# Makes all fixtures anew.
fixtures:
    python3 fixtures/make_all.py

# exp and tanh against the exact functions on every float there is (six minutes).
exhaustive:
    cargo test --release --lib -- --ignored
