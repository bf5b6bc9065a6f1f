#!/bin/sh
# Builds the packages. One binary serves both: it is linked against the symbols of glibc 2.28, which RHEL 8 has.
#
#   scripts/package.sh deb    target/packages/portward_VERSION_ARCHITECTURE.deb
#   scripts/package.sh rpm    target/packages/portward-VERSION.ARCHITECTURE.rpm
#
# FEATURES names cargo features to build with. What it needs is installed by scripts/dependencies.sh package.
set -eu
cd "$(dirname "$0")/.."

GLIBC=2.28
TARGET=$(uname -m)-unknown-linux-gnu
TOOLS=$PWD/target/tools
LAID_OUT=target/package
PACKAGES=target/packages

case ${1-} in
deb | rpm) kind=$1 ;;
*)
    echo "usage: $0 deb|rpm" >&2
    exit 2
    ;;
esac

# The same source gives the same package, whoever builds it where: files carry the time of the commit, and messages name
# no folder of this machine.
if [ -z "${SOURCE_DATE_EPOCH-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
    export SOURCE_DATE_EPOCH
fi

REGISTRY=${CARGO_HOME:-$HOME/.cargo}/registry/src
export RUSTFLAGS="${RUSTFLAGS-} --remap-path-prefix=$PWD=/usr/src/portward --remap-path-prefix=$REGISTRY=/usr/src/cargo"

export PATH="$TOOLS/python/bin:$TOOLS/bin:$PATH"
cargo-zigbuild zigbuild --release --locked --package portward --bin portward --target "$TARGET.$GLIBC" \
    ${FEATURES:+--features "$FEATURES"}

rm -rf "$LAID_OUT"
mkdir -p "$LAID_OUT/completions" "$LAID_OUT/man" "$PACKAGES"
strip -o "$LAID_OUT/portward" "target/$TARGET/release/portward"
portward=$LAID_OUT/portward
version=$("$portward" --version | cut -d ' ' -f 2)
for shell in bash zsh fish; do
    "$portward" completions "$shell" >"$LAID_OUT/completions/portward.$shell"
done
"$portward" man --folder "$LAID_OUT/man" >/dev/null
packaging/policy-man.sh "$version" >"$LAID_OUT/man/portward-policy.5"
gzip -9n "$LAID_OUT"/man/*

case $kind in
deb)
    rm -f "$PACKAGES"/portward_*.deb
    cargo-deb --quiet --no-build --no-strip --locked --package portward --target "$TARGET" --output "$PACKAGES/"
    ;;
rpm)
    rm -f "$PACKAGES"/portward-*.rpm
    # gzip is what the rpm of every RHEL unpacks. The libraries are found with ldd wherever this runs, not with rpm's own
    # scripts where they happen to be installed.
    cargo-generate-rpm generate-rpm --target "$TARGET" --payload-compress gzip --auto-req builtin \
        --source-date "$SOURCE_DATE_EPOCH" --output "$PACKAGES/"
    ;;
esac
ls -sh "$PACKAGES"/*."$kind"
