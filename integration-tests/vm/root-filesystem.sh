#!/bin/sh
# Builds a root file system of Debian 12 with its 6.1 kernel, from the package sources of this machine or of Debian.
#
#   root-filesystem.sh FOLDER [PACKAGE...]    FOLDER must not exist; the packages come on top of the common ones
set -eu

folder=$1
shift

# The libraries are what the portward package depends on: the machines have no package source of their own.
packages=systemd-sysv,udev,kmod,e2fsprogs,iproute2,nftables,libmnl0,libnftnl11,linux-image-cloud-amd64
for package in "$@"; do
    packages=$packages,$package
done

# The sources of this machine itself, where it is a Debian 12: they may be a mirror nearby.
source=/etc/apt/sources.list.d/debian.sources
grep -qs '^Suites: bookworm' "$source" || source=http://deb.debian.org/debian

mmdebstrap --quiet --variant=minbase --mode=root --include="$packages" \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1"/etc/hostname "$1"/etc/resolv.conf' \
    --customize-hook='echo "127.0.0.1 localhost" >"$1"/etc/hosts' \
    --customize-hook='chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer' \
    bookworm "$folder" "$source"
