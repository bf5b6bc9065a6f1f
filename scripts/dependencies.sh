#!/bin/sh
# Installs what portward needs and the machine does not have. Changes nothing, and needs no root, when all is there.
#
#   scripts/dependencies.sh build    the C compiler that Rust links with, clang for BPF, pkg-config, libmnl and libnftnl
#   scripts/dependencies.sh package  what makes a .deb and an .rpm of it; the cargo and Python tools go to target/tools
#   scripts/dependencies.sh test     all of these, and the programs that the tests run besides
#   scripts/dependencies.sh vm       what the tests in virtual machines need besides (Debian and its like)
#   scripts/dependencies.sh fuzz     what `make fuzz` needs besides; cargo-fuzz goes to target/tools
#   scripts/dependencies.sh vagrant  what the test with Vagrant needs besides (Debian and its like)
set -eu
cd "$(dirname "$0")/.."

# The packaging tools, pinned. Zig is a linker that knows the symbols of old versions of glibc; it and the cargo
# subcommand that calls it come as wheels, ready to run.
CARGO_DEB=3.8.0
CARGO_GENERATE_RPM=0.21.1
CARGO_ZIGBUILD=0.24.0
ZIG=0.13.0
CARGO_FUZZ=0.13.2
TOOLS=target/tools

# Where the services are that the tests run.
export PATH="$PATH:/usr/sbin:/sbin"

has() { command -v "$1" >/dev/null 2>&1; }

# RHEL 8, the oldest supported system, has libnftnl 1.2.2; Cargo.toml asks for the bindings of that version.
has_libraries() { has pkg-config && pkg-config --atleast-version=1.2.2 libnftnl && pkg-config --exists libmnl; }

# Prints the packages that are missing, named as the given package manager names them.
missing() {
    what=$1 manager=$2
    has cc || echo gcc
    has clang || echo clang
    if [ "$manager" = apt-get ]; then
        has cc || echo libc6-dev
        has pkg-config || echo pkg-config
        has_libraries || echo libmnl-dev libnftnl-dev
    else
        has pkg-config || echo pkgconf-pkg-config
        has_libraries || echo libmnl-devel libnftnl-devel
    fi
    case $what in
    build) return 0 ;;
    fuzz)
        # libFuzzer is compiled with it.
        has c++ || { [ "$manager" = apt-get ] && echo g++ || echo gcc-c++; }
        return 0
        ;;
    vm | vagrant)
        missing_for_machines "$what"
        return 0
        ;;
    esac
    has lowdown || echo lowdown
    has strip || echo binutils
    if [ "$manager" = apt-get ]; then
        python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
    else
        has python3 || echo python3
    fi
    [ "$what" = test ] || return 0
    has nft || echo nftables
    has vagrant || echo vagrant
    has rpcbind || echo rpcbind
    has systemd-nspawn || echo systemd-container
    has systemd-analyze || echo systemd
    has mmdebstrap || echo mmdebstrap
    has dpkg-deb || echo dpkg
    has firewalld || echo firewalld
    if [ "$manager" = apt-get ]; then
        { has iptables-nft && has iptables-legacy; } || echo iptables
        has dbus-daemon || echo dbus
        has ip || echo iproute2
        has_java || echo default-jdk-headless
        has rpc.mountd || echo nfs-kernel-server
        has rpc.rquotad || echo quota
    else
        has iptables-nft || echo iptables-nft
        has iptables-legacy || echo iptables-legacy
        has dbus-daemon || echo dbus-daemon
        has ip || echo iproute
        has_java || echo java-17-openjdk-devel
        has rpc.mountd || echo nfs-utils
        has rpc.rquotad || echo quota-rpc
    fi
}

missing_for_machines() {
    has qemu-system-x86_64 || echo qemu-system-x86 qemu-utils
    has qemu-img || echo qemu-utils
    has mmdebstrap || echo mmdebstrap
    has mkfs.ext4 || echo e2fsprogs
    has setpriv || echo util-linux
    [ "$1" = vagrant ] || return 0
    has vagrant || echo vagrant
    [ -e /usr/share/doc/vagrant-libvirt ] || echo vagrant-libvirt
    has libvirtd || echo libvirt-daemon
    has virsh || echo libvirt-clients
    has dnsmasq || echo dnsmasq-base
    has iptables || echo iptables
    has rsync || echo rsync
    has ssh || echo openssh-client
}

has_java() { has java && has javac && has keytool; }

# The units that packages of the given names enable. The tests start the services themselves, in namespaces of their own;
# the machine is not to offer them.
units() {
    for package; do
        case $package in
        rpcbind) echo rpcbind.service rpcbind.socket ;;
        nfs-kernel-server | nfs-utils) echo nfs-server.service nfs-blkmap.service ;;
        firewalld) echo firewalld.service ;;
        quota) echo quota.service quotarpc.service ;;
        quota-rpc) echo rpc-rquotad.service ;;
        esac
    done
}

# Installs a cargo subcommand of one version below target/tools, where it is missing or another.
cargo_tool() {
    name=$1 version=$2
    "$TOOLS/bin/$name" --version 2>/dev/null | grep -qFw "$version" && return
    echo "Installing $name $version below $TOOLS"
    # Most of the time goes into optimizing what then runs for a second.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        cargo install --quiet --locked --root "$TOOLS" --target-dir "$TOOLS/build" --version "=$version" \
        "$name" </dev/null
    # Some hundred megabytes that nobody needs again.
    rm -rf "$TOOLS/build"
}

packaging_tools() {
    cargo_tool cargo-deb "$CARGO_DEB"
    cargo_tool cargo-generate-rpm "$CARGO_GENERATE_RPM"
    wheels="cargo-zigbuild==$CARGO_ZIGBUILD ziglang==$ZIG"
    [ "$(cat "$TOOLS/python/wheels" 2>/dev/null)" != "$wheels" ] || return 0
    echo "Installing $wheels below $TOOLS"
    python3 -m venv --clear "$TOOLS/python"
    # The names are separate words on purpose.
    # shellcheck disable=SC2086
    "$TOOLS/python/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: $wheels </dev/null
    echo "$wheels" >"$TOOLS/python/wheels"
}

case ${1-} in
build | package | test | vm | vagrant | fuzz) ;;
*)
    echo "usage: $0 build|package|test|vm|vagrant|fuzz" >&2
    exit 2
    ;;
esac

if ! has cargo; then
    echo "portward is built with cargo, which is not in PATH: install a Rust toolchain from https://rustup.rs" >&2
    exit 1
fi

manager=none
for candidate in apt-get dnf; do
    if has "$candidate"; then
        manager=$candidate
        break
    fi
done

install_packages() {
    packages=$(missing "$1" "$manager" | tr '\n' ' ')
    [ -n "$packages" ] || return 0

    if [ "$manager" = none ]; then
        echo "Missing (by their names on RHEL): $packages" >&2
        echo "There is neither apt-get nor dnf here: install them with the package manager of this system." >&2
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        echo "Missing: $packages" >&2
        echo "Run this as root, or install them first: $manager install $packages" >&2
        exit 1
    fi

    echo "Installing: $packages"
    # The names are separate words on purpose.
    # shellcheck disable=SC2086
    if [ "$manager" = apt-get ]; then
        export DEBIAN_FRONTEND=noninteractive
        # Debian starts services when they are installed, unless this program says no
        # (https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt).
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            trap 'exit 1' HUP INT TERM
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt-get -qq update </dev/null
        # A qemu-utils that came from elsewhere may be too new for the rest of QEMU.
        qemu=$(apt-cache policy qemu-system-x86 | awk '$1 == "Candidate:" { print $2 }')
        packages=$(echo "$packages" | tr ' ' '\n' | sort -u | sed "s/^qemu-utils$/&=$qemu/")
        apt-get -qq install --yes --no-install-recommends --allow-downgrades $packages </dev/null >/dev/null
    else
        # The -devel packages are in a repository that is switched off by default, under a name of each distribution's own.
        repositories=$(dnf -q repolist --all | awk '{ print $1 }' |
            grep -E '^(crb|powertools|codeready-builder-for-rhel-[0-9]+-[a-z0-9_]+-rpms)$' | paste -sd, -) || true
        dnf -q -y ${repositories:+--enablerepo="$repositories"} install $packages </dev/null
    fi

    # shellcheck disable=SC2086
    for unit in $(units $packages); do
        # Not every release has every unit.
        ! has systemctl || systemctl --quiet disable "$unit" 2>/dev/null || true
    done

    packages=$(missing "$1" "$manager" | tr '\n' ' ')
    if [ -n "$packages" ]; then
        echo "Still missing after the installation: $packages" >&2
        exit 1
    fi
}

install_packages "$1"
case $1 in
package | test) packaging_tools ;;
fuzz) cargo_tool cargo-fuzz "$CARGO_FUZZ" ;;
esac
