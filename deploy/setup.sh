#!/usr/bin/env bash
# Sets up what Shoal's make targets need, as far as it is not there yet:
#   setup.sh venv     Python packages into .venv
#   setup.sh demo     what a development cluster needs of the system
#   setup.sh test     the same, and what the tests need
#   setup.sh etcd     etcd alone; prints where its binary is
#   setup.sh registry docker's registry alone
# Idempotent. Packages that carry a service (etcd, docker's registry, Prometheus) are unpacked into .tools, never
# installed, so that nothing gets enabled or started. Elsewhere than on Debian it lists what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
TOOLS=$PWD/.tools

DEMO_PACKAGES=(python3-venv iproute2 nftables busybox-static libseccomp2 procps)
TEST_PACKAGES=("${DEMO_PACKAGES[@]}" skopeo umoci vagrant e2fsprogs iputils-ping)
DEMO_COMMANDS=(ip nft busybox)
TEST_COMMANDS=("${DEMO_COMMANDS[@]}" skopeo umoci vagrant mkfs.ext4 ping)

say() { echo "shoal: $*" >&2; }

apt_refreshed=
apt_refresh() {
    [ -n "$apt_refreshed" ] || apt-get update -qq
    apt_refreshed=1
}

# A failed lookup may only mean that the package lists are old: refresh them once and try again.
apt_try() { "$@" || { apt_refresh && "$@"; }; }

install_packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt_try apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# unpack PACKAGE BINARY: downloads a Debian package and unpacks it as .tools/PACKAGE.
unpack() {
    [ -x "$TOOLS/$1/$2" ] && return
    say "unpacking $1 into .tools"
    local work
    work=$(mktemp -d)
    chmod 755 "$work"
    (cd "$work" && apt_try apt-get -o APT::Sandbox::User=root download -qq "$1" >/dev/null)
    rm -rf "${TOOLS:?}/$1"
    mkdir -p "$TOOLS"
    dpkg -x "$work"/*.deb "$work/unpacked"
    mv "$work/unpacked" "$TOOLS/$1" 2>/dev/null || [ -x "$TOOLS/$1/$2" ] # somebody else was faster
    rm -rf "$work"
}

list_missing() {
    local missing=() name
    for name in "$@"; do command -v "$name" >/dev/null || missing+=("$name"); done
    if [ ${#missing[@]} != 0 ]; then
        say "this is not Debian; please install what provides: ${missing[*]}"
        exit 1
    fi
}

system() {
    local kind=$1
    if ! command -v apt-get >/dev/null; then
        if [ "$kind" = test ]; then list_missing "${TEST_COMMANDS[@]}" etcd docker-registry promtool
        else list_missing "${DEMO_COMMANDS[@]}" etcd docker-registry; fi
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        say "root is needed: Shoal makes namespaces, cgroups and links (try: sudo make $kind)"
        exit 1
    fi
    if [ "$kind" = test ]; then install_packages "${TEST_PACKAGES[@]}"; else install_packages "${DEMO_PACKAGES[@]}"; fi
    unpack etcd-server usr/bin/etcd
    unpack docker-registry usr/bin/docker-registry
    if [ "$kind" = test ]; then unpack prometheus usr/bin/promtool; fi
}

venv() {
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "Python 3.11 or newer is needed as python3 (Debian 12: apt-get install python3 python3-venv)"
        exit 1
    fi
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then install_packages python3-venv
        else say "python3's venv module is missing (Debian: apt-get install python3-venv)"; exit 1; fi
    fi
    if ! [ -x .venv/bin/python ]; then
        say "making .venv"
        python3 -m venv .venv
    fi
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]' 2> >(grep -v '^WARNING: Location' >&2)
}

case "${1:-}" in
    venv) venv ;;
    demo | test) system "$1" ;;
    etcd)
        [ -x "$TOOLS/etcd-server/usr/bin/etcd" ] || { command -v apt-get >/dev/null && unpack etcd-server usr/bin/etcd; }
        [ -x "$TOOLS/etcd-server/usr/bin/etcd" ] && echo "$TOOLS/etcd-server/usr/bin/etcd" || command -v etcd
        ;;
    registry) unpack docker-registry usr/bin/docker-registry ;;
    *) echo "usage: setup.sh venv|demo|test|etcd|registry" >&2; exit 2 ;;
esac
