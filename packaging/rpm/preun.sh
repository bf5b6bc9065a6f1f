# Before the removal ($1 is 0) and, in an upgrade, before the old version goes (1): that keeps service and table.
if [ "$1" -eq 0 ]; then
    if [ -d /run/systemd/system ]; then
        systemctl --no-reload disable --now portward.service || :
    elif command -v systemctl >/dev/null; then
        systemctl --no-reload disable portward.service || :
    fi
    # In a chroot, as when an image is built, the table is that of the machine around it and stays: only where / is what
    # it is for process 1 it is this system's own.
    # shellcheck disable=SC3013 # dash and bash know -ef
    if [ / -ef /proc/1/root/. ]; then
        portward down >/dev/null || {
            echo "portward: its table may still be in the kernel; look with: nft list table inet portward" >&2
            echo "portward: and delete it with: nft delete table inet portward" >&2
        }
    fi
fi
