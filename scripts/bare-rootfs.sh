#!/bin/sh
# Run commands in a machine that has only Debian's python3, python3-venv and make.
#
#   scripts/bare-rootfs.sh [--user] COMMAND [COMMAND...]
#
# Needs root and mmdebstrap. Builds a fresh root file system from this machine's own package
# sources, puts a clone of this repository (its last commit) into it, enters it by pivot_root
# (in a chroot the kernel refuses user namespaces) and runs each COMMAND by `sh -c`, as root or
# as an ordinary user, timing each. Removes all that it made. The exit code is that of the first
# COMMAND that failed.
#
# From this machine come: apt sources and download settings, pip settings, the CA bundle,
# resolv.conf and hosts, and the folders that pip's settings name. SANDLOT_ROOTFS_TAR=FILE keeps
# the built root file system in FILE and takes it from there the next time.
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)
bundle=/etc/ssl/certs/ca-certificates.crt
as_user=no
if [ "${1:-}" = --user ]; then
    as_user=yes
    shift
fi

fail() {
    printf 'bare-rootfs: %s\n' "$1" >&2
    exit 2
}

[ $# -gt 0 ] || fail "name at least one command, for example: 'make demo'"
[ "$(id -u)" = 0 ] || fail "needs root"
command -v mmdebstrap >/dev/null || fail "needs mmdebstrap: apt-get install mmdebstrap"

place=$(mktemp -d "${TMPDIR:-/var/tmp}/sandlot-bare.XXXXXX")
root=$place/root
# The mounts live in a namespace of their own and are gone when its last process is.
trap 'rm -rf --one-file-system "$place"' EXIT
trap 'exit 130' INT TERM

build_tar() {
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    set -- "$suite" "$1"
    for sources in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources \
        /etc/apt/sources.list.d/*.list; do
        [ -s "$sources" ] && set -- "$@" "$sources"
    done
    mmdebstrap --quiet --variant=apt --include=python3,python3-venv,make "$@"
}

carry_settings() {
    for file in /etc/resolv.conf /etc/hosts "$bundle" /etc/pip.conf; do
        [ -e "$file" ] || continue
        mkdir -p "$root$(dirname "$file")"
        cp -L "$file" "$root$file"
    done
    [ -e "$HOME/.config/pip/pip.conf" ] && cp -L "$HOME/.config/pip/pip.conf" "$root/etc/pip.conf"
    grep -l 'Acquire::' /etc/apt/apt.conf.d/* 2>/dev/null | while read -r file; do
        cp "$file" "$root/etc/apt/apt.conf.d/"
    done
    rm -f "$root"/var/lib/apt/lists/*_* # as on a machine that was never asked to update
}

# The local folders that pip's settings name as places of packages. An index page may point to
# files beside its own folder, so two levels (/opt/index/simple: /opt/index) are taken.
pip_folders() {
    python3 -m pip config list 2>/dev/null | grep -oE '(file://)?/[^ '"'"']+' |
        sed 's#^file://##' | cut -d/ -f1-3 | while read -r folder; do
        [ -d "$folder" ] && case $folder in /etc/*) ;; *) echo "$folder" ;; esac
    done | sort -u
}

machine_variables() {
    env | grep -E '^(PIP_[A-Z_]+|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|https?_proxy|no_proxy)=' || true
}

tar=${SANDLOT_ROOTFS_TAR:-$place/rootfs.tar}
[ -s "$tar" ] || {
    echo "==> building a bare root file system"
    build_tar "$tar"
}
mkdir "$root"
tar -C "$root" --numeric-owner -xpf "$tar"
carry_settings

user=root home=/root
if [ $as_user = yes ]; then
    user=visitor home=/home/visitor
    "$(command -v chroot)" "$root" /usr/sbin/useradd --create-home --shell /bin/sh $user
fi
git clone -q "$repository" "$root$home/sandlot"
chroot "$root" chown -R $user: "$home/sandlot"

mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/.outside"
pip_folders >"$place/folders"
machine_variables >"$place/variables"

# Runs in the new root. Python undoes the old root's mount: a bare system has no umount.
cat >"$root/.run" <<'RUN'
set -eu
python3 -c 'import ctypes; libc = ctypes.CDLL(None, use_errno=True)
assert libc.umount2(b"/.outside", 2) == 0, ctypes.get_errno()'
user=$1 home=$2
shift 2
while read -r line; do export "$line"; done </.variables
export HOME="$home" USER="$user" LOGNAME="$user" LANG=C.UTF-8
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd "$home/sandlot"
for command in "$@"; do
    begin=$(date +%s%N)
    code=0
    setpriv --reuid "$user" --regid "$user" --init-groups sh -c "$command" || code=$?
    took=$((($(date +%s%N) - begin) / 1000000))
    printf '==> %s as %s: exit %d after %d.%03d s\n' \
        "$command" "$user" $code $((took / 1000)) $((took % 1000))
    [ $code = 0 ] || exit $code
done
RUN
cp "$place/variables" "$root/.variables"

export root folders="$place/folders" user home
unshare --mount --pid --fork --kill-child --propagation private sh -eu -c '
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    while read -r folder; do
        mkdir -p "$root$folder"
        mount --bind -o ro "$folder" "$root$folder"
    done <"$folders"
    cd "$root"
    pivot_root . .outside
    exec env -i /bin/sh /.run "$user" "$home" "$@"
' enter "$@"
