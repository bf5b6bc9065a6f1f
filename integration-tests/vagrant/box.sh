#!/bin/sh
# Builds a Vagrant box for libvirt with Debian 12, target/vagrant/debian12.box, for machines that cannot download one. It
# brings its kernel beside the disk, so that it needs no boot loader, and, where the processor's own virtualization cannot
# be used, the settings for emulation. Does nothing when the box is there and was made by these very files.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target/vagrant

[ "$(id -u)" -eq 0 ] || { echo "$0 needs root" >&2; exit 1; }

# What runs that were killed have left.
rm -rf "$target"/box.*

# The device of KVM may be there and of no use, so it is tried.
trial='ulimit -c 0; echo quit | qemu-system-x86_64 -machine q35 -cpu max -accel kvm -nodefaults -display none -S -monitor stdio'
if sh -c "$trial" >/dev/null 2>&1; then
    emulation=
else
    emulation='
    libvirt.driver = "qemu"
    libvirt.cpu_mode = "custom"
    libvirt.cpu_model = "qemu64"'
fi

made_from=$({ cat "$0" "$here/../vm/root-filesystem.sh"; echo "$emulation"; } | sha256sum)
if [ "$(cat "$target/made-from" 2>/dev/null)" = "$made_from" ]; then
    exit 0
fi

echo "Building the box: target/vagrant/debian12.box"
mkdir -p "$target"
rm -f "$target/made-from"
work=$(mktemp -d "$target/box.XXXXXX")
trap 'rm -rf "$work"' EXIT
"$here/../vm/root-filesystem.sh" "$work/fs" dbus openssh-server sudo rsync netcat-openbsd
echo 'LABEL=root / ext4 defaults,noatime 0 1' >"$work/fs/etc/fstab"
printf '[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n' >"$work/fs/etc/systemd/network/10-management.network"
chroot "$work/fs" systemctl --quiet enable systemd-networkd.service
chroot "$work/fs" systemctl --quiet mask systemd-networkd-wait-online.service e2scrub_reap.service
echo 'UseDNS no' >>"$work/fs/etc/ssh/sshd_config"

# What Vagrant expects of a box: a user `vagrant` that its well-known key opens and that may become root. The address of
# the machine is only ever known to the network that it is started in.
chroot "$work/fs" useradd --create-home --shell /bin/bash vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$work/fs/etc/sudoers.d/vagrant"
chmod 0440 "$work/fs/etc/sudoers.d/vagrant"
key=$(find /usr/share/rubygems-integration /opt/vagrant -name vagrant.pub 2>/dev/null | head -n 1)
install -d -m 0700 "$work/fs/home/vagrant/.ssh"
install -m 0600 "$key" "$work/fs/home/vagrant/.ssh/authorized_keys"
chroot "$work/fs" chown -R vagrant:vagrant /home/vagrant/.ssh

mkdir "$work/box"
cp "$work"/fs/boot/vmlinuz-* "$work/box/vmlinuz"
cp "$work"/fs/boot/initrd.img-* "$work/box/initrd.img"
truncate -s 3G "$work/disk.raw"
mkfs.ext4 -q -F -L root -E root_owner=0:0 -d "$work/fs" "$work/disk.raw"
qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/box/box.img"
echo '{"provider":"libvirt","format":"qcow2","virtual_size":3}' >"$work/box/metadata.json"
cat >"$work/box/Vagrantfile" <<EOF
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.boot_timeout = 900
  config.vm.provider(:libvirt) do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd.img")
    libvirt.cmd_line = "root=LABEL=root rw console=ttyS0 net.ifnames=0 mitigations=off"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"$emulation
  end
end
EOF
tar -C "$work/box" -czf "$target/debian12.box" metadata.json Vagrantfile vmlinuz initrd.img box.img
echo "$made_from" >"$target/made-from"
