#!/usr/bin/env bash
# `make vagrant-test`: brings the machines of the Vagrantfile up under libvirt, edits the policy on the console and sees
# what becomes of the stranger's connections, and destroys them.
#
#   PORTWARD_DEB   the package to install in the machines
#   PORTWARD_BOX   the box to use; without it, a Debian 12 is built here
#
# libvirtd and all that it starts run in namespaces of their own: the network, the processes, and the mounts, with /etc, /run
# and /var laid over. Nothing of it is seen outside, and all of it ends with this script, however that ends.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=integration-tests/vagrant
target=$PWD/target/vagrant
export VIRSH_DEFAULT_CONNECT_URI=qemu:///system
export VAGRANT_HOME=$target/run/home VAGRANT_DOTFILE_PATH=$target/run/machines VAGRANT_DEFAULT_PROVIDER=libvirt
export VAGRANT_CHECKPOINT_DISABLE=1 PORTWARD_PACKAGES=$target/run/packages

if [ "${1-}" != inside ]; then
    [ "$(id -u)" -eq 0 ] || { echo "$0 needs root" >&2; exit 1; }
    : "${PORTWARD_DEB:?must name the .deb to test: run make vagrant-test}"
    [ -n "${PORTWARD_BOX-}" ] || "$here/box.sh"
    # What a run that was killed has left.
    rm -rf "$target/run"
    mkdir -p "$target"/run/{home,packages,images,etc,etc-work,var,var-work}
    cp "$PORTWARD_DEB" "$target/run/packages/"
    status=0
    unshare --net --mount --pid --fork --kill-child --mount-proc "$here/run.sh" inside || status=$?
    rm -rf "$target/run"
    exit "$status"
fi

say() { printf '%5d s  %s\n' "$SECONDS" "$*"; }

start_libvirt() {
    ip link set lo up
    mount -t sysfs sysfs /sys
    mount -t tmpfs tmpfs /run
    for folder in etc var; do
        mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$target/run/$folder,workdir=$target/run/$folder-work" "/$folder"
    done
    mkdir -p /run/libvirt /run/lock /var/lib/libvirt/images /etc/libvirt
    # Nothing that the machines write has to outlive them.
    mount --bind "$target/run/images" /var/lib/libvirt/images
    cat >/etc/libvirt/qemu.conf <<EOF
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
EOF
    cat >/etc/libvirt/libvirtd.conf <<EOF
auth_unix_rw = "none"
unix_sock_group = "root"
log_outputs = "2:file:$target/run/libvirtd.log"
EOF
    libvirtd --config /etc/libvirt/libvirtd.conf </dev/null >"$target/run/libvirtd.out" 2>&1 &
    for _ in $(seq 120); do
        ! virsh version >/dev/null 2>&1 || return 0
        sleep 0.5
    done
    cat "$target/run/libvirtd.out" "$target/run/libvirtd.log" >&2
    return 1
}

# Runs a command in a machine.
on() {
    local machine=$1
    shift
    vagrant ssh "$machine" --no-tty --command "$*" </dev/null
}

# Whether a port of the console is open to a machine.
reaches() { on "$1" "nc -z -w 10 192.168.56.10 $2"; }

# Waits until a command succeeds; machines that are emulated are slow.
eventually() {
    for _ in $(seq 30); do
        ! "$@" || return 0
        sleep 2
    done
    say "never came true: $*"
    return 1
}

expect() {
    local machine=$1 port=$2 verdict=$3
    if [ "$verdict" = open ]; then
        eventually reaches "$machine" "$port"
    else
        eventually closed "$machine" "$port"
    fi
    say "$port/tcp of the console is $verdict to $machine"
}

closed() { ! reaches "$1" "$2"; }

finish() {
    local status=$?
    set +e
    if [ "$status" -ne 0 ]; then
        say "failed; the last words of libvirtd and of the console's portward:"
        tail -n 20 "$target/run/libvirtd.log" "$target/run/libvirtd.out"
        on console 'systemctl status --no-pager portward; sudo journalctl --no-pager -u portward | tail -n 20'
    fi
    say "vagrant destroy"
    vagrant destroy --force
    say "ends with $status"
    exit "$status"
}

say "libvirtd"
start_libvirt
trap finish EXIT

if [ -z "${PORTWARD_BOX-}" ]; then
    export PORTWARD_BOX=portward-debian12
    say "vagrant box add"
    vagrant box add --name "$PORTWARD_BOX" --provider libvirt "$target/debian12.box"
fi
vagrant validate
say "vagrant up"
vagrant up --provider=libvirt
say "the machines are up"

# Something listens on an open port and on one that no row opens.
for port in 443 9102; do
    on console "sudo systemd-run --quiet --unit=listener-$port nc -lk $port"
done
on console 'sudo portward status; sudo portward diff'

expect event-processor 443 open
expect event-processor 9102 closed
expect stranger 443 closed
expect stranger 9102 closed

say "the policy names the stranger a user; the daemon follows the file"
on console "sudo sed -i 's/^user = .*/user = [\"192.168.56.99\"]/' /etc/portward/policy.toml"
expect stranger 443 open
expect stranger 9102 closed

say "a policy that does not load is refused, and the one before stays in force"
on console "sudo cp /etc/portward/policy.toml /root/good.toml; echo 'user = 1' | sudo tee -a /etc/portward/policy.toml >/dev/null"
if on console 'sudo systemctl reload portward'; then
    say "the reload of a policy that does not load succeeded"
    exit 1
fi
expect stranger 443 open
expect event-processor 443 open

say "the stranger is taken out again"
on console "sudo sed 's/^user = .*/user = []/' /root/good.toml | sudo tee /etc/portward/policy.toml >/dev/null; sudo systemctl reload portward"
expect stranger 443 closed
expect event-processor 443 open
on console 'sudo portward status'
say "all as it should be"
