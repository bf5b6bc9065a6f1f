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
    # libvirt looks this user up before it reads that it is to be another one; only libvirt-daemon-system brings it.
    id libvirt-qemu >/dev/null 2>&1 || useradd --system --user-group --no-create-home libvirt-qemu
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

# Waits until a port of the console is open, or closed, to a machine: what changes it takes a moment, and emulated machines
# are slow. A machine that does not answer is neither.
expect() {
    local machine=$1 port=$2 wanted=$3 verdict=unknown
    for _ in $(seq 30); do
        verdict=$(on "$machine" "nc -z -w 10 192.168.56.10 $port && echo open || echo closed") || verdict=unknown
        if [ "$verdict" = "$wanted" ]; then
            say "$port/tcp of the console is $wanted to $machine"
            return 0
        fi
        sleep 2
    done
    say "$port/tcp of the console is $verdict to $machine, not $wanted"
    return 1
}

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

# Runs this script again in namespaces of its own.
outside() {
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
}

inside() {
    say "libvirtd"
    start_libvirt
    trap finish EXIT

    if [ -z "${PORTWARD_BOX-}" ]; then
        export PORTWARD_BOX=portward-debian12
        say "vagrant box add"
        vagrant box add --no-color --name "$PORTWARD_BOX" --provider libvirt "$target/debian12.box"
    fi
    vagrant validate
    say "vagrant up"
    # A line for each percent of what it copies is of no use in a log.
    vagrant up --provider=libvirt 2>&1 | tr '\r' '\n' | sed -u '/Progress: /d'
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
}

case ${1-} in
inside) inside ;;
*) outside ;;
esac
