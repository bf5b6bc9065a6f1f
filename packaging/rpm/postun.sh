# After the removal ($1 is 0) and, in an upgrade, after the old version is gone (1 or more).
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
if [ "$1" -eq 0 ]; then
    # State goes with the program: a later installation must not enforce what was in force long ago. The policy is the
    # administrator's and stays.
    rm -rf /var/lib/portward /run/portward
    # The folders that hold nothing any more; the package's list of files has only files.
    rmdir /etc/portward /usr/share/portward /usr/share/licenses/portward /usr/share/doc/portward/examples \
        /usr/share/doc/portward 2>/dev/null || :
elif [ -d /run/systemd/system ]; then
    # The table stays meanwhile.
    systemctl try-restart portward.service || :
fi
