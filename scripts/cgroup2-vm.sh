#!/bin/sh
# Run the control group tests and a part of the contract on a machine with version 2 alone.
#
#   scripts/cgroup2-vm.sh [COMMAND]
#
# Boots a small virtual machine under software emulation (no KVM, one processor, 1 GB, 15 minutes
# at most): a Debian from this machine's own package sources with systemd, and a clone of this
# repository's last commit. COMMAND, run there as root, may be any shell command or name some of
# the cases (all of them without it, in this order):
#   root_scope      root, the launcher in a scope of the system's manager
#   user_scope      an ordinary user, the launcher in a scope of the user's own manager
#   user_delegated  an ordinary user, all of the tests started in a delegated scope
#   by_hand         an ordinary user in a group that root made and gave away
#   contract        a part of the contract suite, as an ordinary user and as root
# The exit code is 0 if all passed.
#
# Needs root, mmdebstrap, qemu-system-x86, e2fsprogs and git; about 1.5 GB below TMPDIR (/var/tmp).
# SANDLOT_VM_TAR=FILE keeps the built root file system in FILE and takes it from there next time;
# SANDLOT_VM_SITE=FOLDER does the same with the Python packages.
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)
limit_s=${SANDLOT_VM_SECONDS:-900}

fail() {
    printf 'cgroup2-vm: %s\n' "$1" >&2
    exit 2
}

[ "$(id -u)" = 0 ] || fail "needs root"
for tool in mmdebstrap qemu-system-x86_64 mke2fs git; do
    command -v $tool >/dev/null || fail "needs $tool (packages: mmdebstrap qemu-system-x86 e2fsprogs git)"
done

place=$(mktemp -d "${TMPDIR:-/var/tmp}/sandlot-vm.XXXXXX")
root=$place/root
trap 'rm -rf --one-file-system "$place"' EXIT
trap 'exit 130' INT TERM

build_tar() {
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    set -- "$suite" "$1"
    for sources in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources \
        /etc/apt/sources.list.d/*.list; do
        [ -s "$sources" ] && set -- "$@" "$sources"
    done
    packages=linux-image-cloud-amd64,systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd
    mmdebstrap --quiet --variant=apt --aptopt='Apt::Install-Recommends "false"' \
        --include="$packages,python3,python3-venv,uidmap,libgomp1,e2fsprogs,kmod" "$@"
}

# The guest has no network: its packages are chosen and unpacked here, by its own Python.
install_packages() {
    chroot "$root" /usr/bin/python3 --version >"$place/theirs"
    /usr/bin/python3 --version | cmp -s - "$place/theirs" ||
        fail "this machine's /usr/bin/python3 must be that of its own Debian packages"
    /usr/bin/python3 -m venv "$place/venv"
    "$place/venv/bin/pip" install --quiet "$root/opt/sandlot[dev]" >"$place/pip.log" 2>&1 || {
        cat "$place/pip.log" >&2
        fail "the Python packages could not be installed"
    }
    "$place/venv/bin/pip" uninstall --quiet --yes sandlot mypy ruff
    mkdir -p "$1"
    cp -a "$place"/venv/lib/python3*/site-packages/. "$1"
}

tar=${SANDLOT_VM_TAR:-$place/rootfs.tar}
[ -s "$tar" ] || {
    echo "==> building a root file system"
    build_tar "$tar"
}
mkdir "$root"
tar -C "$root" --numeric-owner -xpf "$tar"

git clone -q "$repository" "$root/opt/sandlot"
site=${SANDLOT_VM_SITE:-$place/site}
[ -d "$site" ] || {
    echo "==> installing Python packages"
    install_packages "$site"
}
mkdir -p "$root/opt/site"
cp -a "$site/." "$root/opt/site"
chroot "$root" /usr/sbin/useradd --create-home --shell /bin/sh visitor
mkdir -p "$root/var/lib/systemd/linger"
: >"$root/var/lib/systemd/linger/visitor" # a user manager without a login

printf '%s\n' "${1:-root_scope; user_scope; user_delegated; by_hand; contract}" >"$root/opt/command"
cat >"$root/opt/guest" <<'GUEST'
#!/bin/sh
export PYTHONPATH=/opt/sandlot/src:/opt/site PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
export SANDLOT_REQUIRE_SANDBOX=1 SANDLOT_REQUIRE_CGROUPS=2 SANDLOT_TEST_IMAGE=host
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
failed=0
tests='python3 -m pytest -q -p no:cacheprovider --tb=short --color=no'
real="$tests -m sandbox --durations=4 tests/sandbox/test_cgroups.py"
part='limit or memory or process or close or daemon or killing or snapshot'
contract="$tests tests/sandbox/test_contract.py"

as_visitor() {
    setpriv --reuid visitor --regid visitor --init-groups env HOME=/home/visitor USER=visitor "$@"
}

check() { # NAME COMMAND...
    name=$1 code=0
    shift
    begin=$(date +%s)
    "$@" || code=$? failed=1
    echo "==> $name: exit $code after $(($(date +%s) - begin)) s"
}

wait_for_manager() {
    for _ in $(seq 120); do
        [ -S /run/user/1000/systemd/private ] && return
        sleep 1
    done
    echo "no user manager came up"
    systemctl status user@1000.service
}

root_scope() {
    check "root, a scope of the system's manager" $tests tests/sandbox/test_cgroups.py
}

user_scope() {
    check "ordinary user, a scope of its own manager" as_visitor $real
}

user_delegated() {
    check "ordinary user, started in a delegated scope" as_visitor \
        env XDG_RUNTIME_DIR=/run/user/1000 \
        systemd-run --user --scope --quiet -p Delegate=yes $real
}

in_group_by_hand() {
    mkdir /sys/fs/cgroup/by-hand
    echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
    for file in . cgroup.procs cgroup.subtree_control cgroup.threads; do
        chown visitor: "/sys/fs/cgroup/by-hand/$file"
    done
    (
        sh -c 'echo $PPID >/sys/fs/cgroup/by-hand/cgroup.procs'
        exec setpriv --reuid visitor --regid visitor --init-groups \
            env HOME=/home/visitor USER=visitor $real
    )
}

by_hand() {
    check "ordinary user, a group delegated by hand" in_group_by_hand
}

contract() {
    check "contract, ordinary user" as_visitor $contract -k "bubblewrap and ($part)"
    check "contract, root" $contract -k "bubblewrap and ($part)"
}

cd /opt/sandlot
uname -r
stat -fc 'cgroup file system: %T' /sys/fs/cgroup
modprobe loop # for disks in images, which root may mount
wait_for_manager
. /opt/command
echo "sandlot-vm: exit $failed"
sync
systemctl poweroff --force --force
GUEST
chmod 755 "$root/opt/guest"
chroot "$root" /bin/chown -R visitor: /opt/sandlot

cat >"$root/etc/systemd/system/sandlot-tests.service" <<'UNIT'
[Unit]
Description=The tests
After=multi-user.target user@1000.service
[Service]
Type=oneshot
ExecStart=/opt/guest
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
[Install]
WantedBy=default.target
UNIT
ln -sf /etc/systemd/system/sandlot-tests.service \
    "$root/etc/systemd/system/multi-user.target.wants/sandlot-tests.service"
rm -f "$root/etc/systemd/system/getty.target.wants/"*
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
echo sandlot-vm >"$root/etc/hostname"
echo '/dev/vda / ext4 rw 0 0' >"$root/etc/fstab"

kernel=$(ls "$root"/boot/vmlinuz-* | tail -n 1)
initrd=$(ls "$root"/boot/initrd.img-* | tail -n 1)
mke2fs -q -t ext4 -d "$root" "$place/disk" 2G

echo "==> booting ($(basename "$kernel"))"
status=0
timeout --foreground "$limit_s" nice -n 19 qemu-system-x86_64 -accel tcg -cpu max -smp 1 -m 1024 \
    -nographic -no-reboot -nic none -kernel "$kernel" -initrd "$initrd" \
    -drive "file=$place/disk,format=raw,if=virtio,cache=unsafe" \
    -append "console=ttyS0 root=/dev/vda rw quiet panic=-1 no_timer_check systemd.show_status=0 random.trust_cpu=1" \
    </dev/null | tee "$place/console" || status=$?
grep -q '^sandlot-vm: exit 0' "$place/console" || fail "the tests failed, or the time was over ($status)"
