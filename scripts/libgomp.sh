#!/bin/sh
# Bring libgomp.so.1: as root by installing libgomp1, else by unpacking that package into .venv/lib.
set -eu
cd "$(dirname "$0")/.."
command -v apt-get >/dev/null || exit 1

if [ "$(id -u)" = 0 ]; then
    apt-get install -y --no-install-recommends libgomp1 2>/dev/null || {
        apt-get update
        apt-get install -y --no-install-recommends libgomp1
    }
    exit 0
fi

place=$PWD/.venv/.apt
trap 'rm -rf "$place"' EXIT
mkdir -p "$place/lists/partial" "$place/cache/archives/partial"
cd "$place"
# With folders of its own, apt needs no rights; the system's package lists may well be empty.
own="-o Debug::NoLocking=1 -o Dir::State::Lists=$place/lists -o Dir::Cache=$place/cache -o APT::Sandbox::User="
# shellcheck disable=SC2086
{
    apt-get download libgomp1 2>/dev/null || {
        apt-get $own update
        apt-get $own download libgomp1
    }
}
dpkg-deb -x libgomp1_*.deb unpacked
cp -L unpacked/usr/lib/*/libgomp.so.1 ../lib/
