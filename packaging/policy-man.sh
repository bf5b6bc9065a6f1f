#!/bin/sh
# Prints docs/policy.md as the manual page portward-policy(5). Needs lowdown.
#
#   packaging/policy-man.sh VERSION
set -eu
cd "$(dirname "$0")/.."

# A manual page has a line for whatis(1) in the place of a title, and neither a table of contents nor links.
sed -e '1s/.*/# NAME\n\nportward-policy - the policy file of portward, policy.toml\n\n# DESCRIPTION/' \
    -e '/^- \[.*\](#.*)$/d' \
    -e 's/\[\([^]]*\)\]([^)]*)/\1/g' docs/policy.md |
    lowdown -s -t man -M section=5 -M title=PORTWARD-POLICY -M source="portward $1" -M volume="File formats"
