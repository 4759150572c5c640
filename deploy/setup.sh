#!/usr/bin/env bash
# Sets up what Shoal's make targets need: `setup.sh venv` for Python, `setup.sh system` for Debian's packages.
# Idempotent. Packages that carry a service are unpacked beside the checkout, never installed: nothing gets enabled.
set -euo pipefail
cd "$(dirname "$0")/.."

venv() {
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "shoal: Python 3.11 or newer is needed as python3 (Debian 12: apt-get install python3 python3-venv)" >&2
        exit 1
    fi
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
            apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
        else
            echo "shoal: python3's venv module is missing (Debian: apt-get install python3-venv)" >&2
            exit 1
        fi
    fi
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
}

case "${1:-}" in
    venv) venv ;;
    *) echo "usage: setup.sh venv" >&2; exit 2 ;;
esac
