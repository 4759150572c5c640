#!/usr/bin/env bash
# Fetches Debian's etcd into .tools/etcd-server without installing it (its package would start a service), and prints the
# binary's path. Idempotent; a broken download leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
target=.tools/etcd-server
binary=$target/usr/bin/etcd

if [ ! -x "$binary" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        echo "shoal: etcd is missing and this is no Debian: put an etcd 3.4 or newer at $PWD/$binary" >&2
        exit 1
    fi
    mkdir -p .tools
    work=$(mktemp -d .tools/etcd.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    if ! (cd "$work" && apt-get download -qq etcd-server >&2); then
        (cd "$work" && apt-get update -qq && apt-get download -qq etcd-server) >&2
    fi
    dpkg -x "$work"/etcd-server_*.deb "$work/root"
    rm -rf "$target"
    mv "$work/root" "$target" 2>/dev/null || [ -x "$binary" ] # somebody else was faster
fi
echo "$PWD/$binary"
