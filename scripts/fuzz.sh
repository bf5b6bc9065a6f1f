#!/bin/sh
# Runs one fuzz target, or each of them, for so many seconds: scripts/fuzz.sh SECONDS [TARGET]
#
# What is found lies in fuzz/artifacts/TARGET. The inputs that reach new code are kept in fuzz/corpus/TARGET, so that the next run
# begins where this one ended; they are not committed.
set -eu
cd "$(dirname "$0")/.."
seconds=$1 only=${2-}

export PATH="$PWD/target/tools/bin:$PATH"
# The address sanitizer is there on every toolchain, but only nightly ones may ask for it. This asks on a stable one, so that
# fuzzing needs no second toolchain. Nothing that is shipped is built so.
export RUSTC_BOOTSTRAP=1

# The folders with inputs to begin with: what the repository has already serves too.
seeds() {
    [ ! -d "fuzz/seeds/$1" ] || echo "fuzz/seeds/$1"
    case $1 in
    catalogue) echo policy ;;
    policy) echo policy/examples policy ;;
    rmi) echo src/trackers/rmi/captures ;;
    rpcbind) echo src/trackers/rpc/captures ;;
    esac
}

cargo fuzz build ${only:+"$only"}
for target in ${only:-$(cargo fuzz list)}; do
    echo "$target: $seconds seconds"
    corpus=fuzz/corpus/$target dictionary=fuzz/dictionaries/$target
    [ -e "$dictionary" ] || dictionary=
    mkdir -p "$corpus"
    # The first folder is the one that is written to. An input that takes more than five seconds, or half a gigabyte, is a
    # finding.
    # shellcheck disable=SC2046
    cargo fuzz run "$target" "$corpus" $(seeds "$target") -- -max_total_time="$seconds" -timeout=5 \
        -rss_limit_mb=1024 -malloc_limit_mb=512 -max_len=16384 -print_final_stats=1 ${dictionary:+-dict="$dictionary"}
done
