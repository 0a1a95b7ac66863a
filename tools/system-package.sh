#!/usr/bin/env bash
# Install a program that pip cannot install: system-package.sh bubblewrap|chromium
# Never fails: it says what could not be installed, and the parts that need it say so themselves.
set -u
have() { command -v "$1" >/dev/null 2>&1; }

apt_install() {
    [ "$(id -u)" = 0 ] && have apt-get || return 1
    echo "installing $1 with apt-get" >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install -y -qq --no-install-recommends "$1" ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$1"; }; } >/dev/null 2>&1
}

case "${1:-}" in
bubblewrap)
    have bwrap || apt_install bubblewrap ||
        echo "bubblewrap is not installed and cannot be installed here: benchmarks that execute code will be marked as not run" >&2
    ;;
chromium)
    have chromium || have chromium-browser || have google-chrome || apt_install chromium ||
        "${PYTHON:-python3}" -m playwright install chromium >/dev/null 2>&1 ||
        echo "Chromium is not installed, and neither apt-get nor playwright can install it: browser tests cannot run" >&2
    ;;
*)
    echo "usage: $0 bubblewrap|chromium" >&2
    exit 2
    ;;
esac
exit 0
