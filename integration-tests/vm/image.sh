#!/bin/sh
# Builds what the virtual machines of `make vm-test` start from, in target/vm: a disk image with Debian 12 and, outside of it, its
# kernel and initial RAM disk. They are kept as long as they were made by these very files.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target/vm

[ "$(id -u)" -eq 0 ] || { echo "$0 needs root" >&2; exit 1; }
# What runs that were killed have left.
rm -rf "$target"/run.* "$target"/root.*
made_from=$(cat "$0" "$here/root-filesystem.sh" "$here"/guest/* | sha256sum)
if [ "$(cat "$target/made-from" 2>/dev/null)" = "$made_from" ]; then
    exit 0
fi

echo "Building the image of the virtual machines: target/vm"
mkdir -p "$target"
rm -f "$target/made-from"
root=$(mktemp -d "$target/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
# The agent runs commands in the machine through a virtual serial port: no network, and so no firewall, is in its way.
"$here/root-filesystem.sh" "$root/fs" qemu-guest-agent
cp "$here/guest/fstab" "$root/fs/etc/fstab"
cp "$here/guest/portward-witness.service" "$root/fs/etc/systemd/system/"
mkdir "$root/fs/payload"
# Addresses and names come from the kernel's command line (systemd-network-generator).
chroot "$root/fs" systemctl --quiet enable systemd-networkd.service systemd-network-generator.service portward-witness.service
chroot "$root/fs" systemctl --quiet mask systemd-networkd-wait-online.service getty@tty1.service e2scrub_reap.service

cp "$root"/fs/boot/vmlinuz-* "$target/vmlinuz"
cp "$root"/fs/boot/initrd.img-* "$target/initrd.img"
rm -f "$target/base.raw"
truncate -s 2G "$target/base.raw"
mkfs.ext4 -q -F -L root -E root_owner=0:0 -d "$root/fs" "$target/base.raw"
qemu-img convert -f raw -O qcow2 "$target/base.raw" "$target/base.qcow2"
rm "$target/base.raw"
echo "$made_from" >"$target/made-from"
