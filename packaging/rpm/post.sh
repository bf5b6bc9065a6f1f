# After an installation ($1 is 1) and after an upgrade (2). Enables the service once, by the presets, so that a site
# that presets otherwise has its way. Installing starts nothing, and enforces nothing.
if [ ! -d /etc/portward ]; then
    # The policy that will be there says who may administer what: it is root's alone.
    install -d -m 0750 /etc/portward
fi
if [ "$1" -eq 1 ] && command -v systemctl >/dev/null; then
    systemctl --no-reload preset portward.service || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
