#!/bin/sh
# Copies the installed hook to where libvirt looks for it. Arguments: PROGRAM HOOK_DIRECTORY. DESTDIR is respected.
set -eu
install -d -m 0755 "${DESTDIR:-}$2"
install -m 0755 "${DESTDIR:-}$1" "${DESTDIR:-}$2/50-usblease"
