"""Code inside asks the kernel for what would lead out: namespaces, mounts, devices, tracing.

Each attempt is a short Python program that says `GOT` if the kernel gave it what it asked for and
`refused` if not; some may be killed by the filter instead. Numbers are the kernel's own
(uapi `unistd_64.h`, `asm-generic/unistd.h`).
"""

from __future__ import annotations

import asyncio
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, canary, opened, untouched
from sandlot.sandbox.policy import MIB, Mount
from waiting import comes_true

from .attack import python, tiny_policy, until_said, usable

pytestmark = pytest.mark.sandbox

_MACHINES = ("x86_64", "aarch64")
_NUMBERS = {
    "clone": (56, 220), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "setns": (308, 268), "unshare": (272, 97), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "syslog": (103, 116),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60),
    "chroot": (161, 51), "io_setup": (206, 0),
}  # fmt: skip
_SAME = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433, "clone3": 435,
         "io_uring_setup": 425, "mount_setattr": 442}  # fmt: skip
_KNOWN = platform.machine() in _MACHINES
_COLUMN = _MACHINES.index(platform.machine()) if _KNOWN else 0
_CALLS = {name: numbers[_COLUMN] for name, numbers in _NUMBERS.items()} | _SAME

PRELUDE = f"""
import ctypes, os, signal, socket, struct, sys
NR = {_CALLS!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(name, *args):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return libc.syscall(ctypes.c_long(NR[name]), *words)
def given(*tries):
    for attempt in tries:
        try:
            if attempt() not in (-1, None, False):
                return True
        except OSError:
            pass
    return False
"""
_FORKED = "lambda: call('clone', {flag:#x} | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)"

ATTEMPTS = {
    "a user namespace": "given(lambda: call('unshare', 0x10000000) == 0)",
    "a user namespace for a child": f"given({_FORKED.format(flag=0x10000000)})",
    "a user namespace by clone3": (
        "given(lambda: call('clone3', struct.pack('11Q', 0x10000000, 0, 0, 0, signal.SIGCHLD, "
        "0, 0, 0, 0, 0, 0), 88) or os._exit(0))"
    ),
    "any other namespace": (
        "given(*(lambda f=f: call('unshare', f) == 0 for f in (0x20000, 0x4000000, 0x8000000, "
        "0x20000000, 0x40000000, 0x2000000, 0x80)))"
    ),
    "a namespace by the 32-bit table": (
        # mov eax, 310 (unshare); mov ebx, CLONE_NEWUSER; int 0x80; ret
        "platform_32(b'\\xb8\\x36\\x01\\x00\\x00\\xbb\\x00\\x00\\x00\\x10\\xcd\\x80\\xc3')"
    ),
    "a namespace by the x32 table": (
        "given(lambda: libc.syscall(ctypes.c_long(0x40000000 | 272), 0x10000000) == 0)"
    ),
    "the namespaces of the first process": (
        "given(*(lambda n=n: call('setns', os.open(f'/proc/1/ns/{n}', 0), 0) == 0 "
        "for n in ('user', 'mnt', 'net', 'pid', 'uts', 'ipc', 'cgroup')))"
    ),
    "a mount": "given(lambda: call('mount', b'none', b'/mnt', b'tmpfs', 0, 0) == 0)",
    "a bind mount over a file that is trusted": (
        "given(lambda: call('mount', b'/etc', b'/run', 0, 0x1000, 0) == 0)"
    ),
    "a mount with the new calls": (
        "given(lambda: call('fsopen', b'tmpfs', 0), lambda: call('open_tree', -100, b'/', 1), "
        "lambda: call('move_mount', 3, b'', -100, b'/mnt', 4) == 0, "
        "lambda: call('fspick', -100, b'/', 0))"
    ),
    "a mount made writable": (
        "given(lambda: call('mount_setattr', -100, b'/run/sandlot', 0, "
        "struct.pack('4Q', 0, 1, 0, 0), 32) == 0, "
        "lambda: call('mount', 0, b'/', 0, 0x20, 0) == 0)"
    ),
    "an unmount of what hides the host": (
        "given(*(lambda p=p: call('umount2', p, 2) == 0 for p in (b'/proc', b'/dev', b'/run', "
        "b'/', b'/dev/shm')))"
    ),
    "another root": "given(lambda: call('pivot_root', b'/', b'/mnt') == 0)",
    "a handle of a host file": (
        "given(*(lambda i=i: call('open_by_handle_at', os.open('/', 0), "
        "struct.pack('Ii8s', 8, 1, struct.pack('II', i, 0)), 0) for i in (2, 64, 128, 256)))"
    ),
    "tracing the first process": (
        "given(lambda: call('ptrace', 16, 1, 0, 0) == 0, "
        "lambda: call('ptrace', 0x4206, 1, 0, 0) == 0)"
    ),
    "tracing the shell": "given(lambda: call('ptrace', 16, os.getppid(), 0, 0) == 0)",
    "another process's memory": (
        "given(*(lambda n=n: call(n, os.getpid(), vector(), 1, vector(), 1, 0) > 0 "
        "for n in ('process_vm_readv', 'process_vm_writev')))"
    ),
    "a BPF program": (
        "given(lambda: call('bpf', 0, struct.pack('5I', 2, 4, 4, 1, 0) + bytes(108), 72))"
    ),
    "performance counters": (
        "given(lambda: call('perf_event_open', struct.pack('II', 1, 112) + bytes(104), 0, -1, -1, "
        "0))"
    ),
    "page faults handled by itself": "given(lambda: call('userfaultfd', 0))",
    "io_uring": "given(lambda: call('io_uring_setup', 8, ctypes.create_string_buffer(120)))",
    "a kernel image": "given(lambda: call('kexec_load', 0, 0, 0, 0) == 0)",
    "a kernel module": (
        "given(lambda: call('init_module', b'x', 1, b'') == 0, "
        "lambda: call('finit_module', 0, b'', 0) == 0, "
        "lambda: call('delete_module', b'loop', 0) == 0)"
    ),
    "a restart of the machine": (
        # The wrong magic: were it allowed, the kernel would say EINVAL and not EPERM.
        "(call('reboot', 1, 2, 3, 0), ctypes.get_errno() == 22)[1]"
    ),
    "swap space": "given(lambda: call('swapon', b'/etc/passwd', 0) == 0)",
    "process accounting": "given(lambda: call('acct', b'/tmp/acct') == 0)",
    "the clock": (
        "given(lambda: call('settimeofday', now(), 0) == 0, "
        "lambda: call('clock_settime', 0, now()) == 0)"
    ),
    "the kernel's log": (
        "given(lambda: call('syslog', 3, ctypes.create_string_buffer(4096), 4096) > 0, "
        "lambda: os.read(os.open('/dev/kmsg', os.O_NONBLOCK), 100))"
    ),
    "everyone's file events": "given(lambda: call('fanotify_init', 0, 0))",
    "quotas of the host's disk": "given(lambda: call('quotactl', 0x80000700, 0, 0, 0) == 0)",
    "a packet socket": "given(lambda: socket.socket(17, socket.SOCK_RAW, 0x0300))",
    "a raw socket": (
        "given(lambda: socket.socket(2, socket.SOCK_RAW, 1), "
        "lambda: socket.socket(10, socket.SOCK_RAW, 58))"
    ),
    "sockets that leave the network namespace": (
        "given(lambda: socket.socket(40, socket.SOCK_STREAM), "
        "lambda: socket.socket(38, socket.SOCK_SEQPACKET), "
        "lambda: socket.socket(31, socket.SOCK_RAW, 1))"
    ),
    "a network device": "given(netlink_changes_a_device)",
    "keys typed into a terminal": "given(typed_into_a_terminal)",
    "more privileges than it was given": (
        "libc.prctl(39, 0, 0, 0, 0) != 1 or given(lambda: libc.prctl(24, 21, 0, 0, 0) and None)"
    ),
    "a higher priority": (
        "given(lambda: os.setpriority(0, 0, -5) is None and os.getpriority(0, 0) < 0, "
        "lambda: os.sched_setscheduler(0, 1, os.sched_param(10)) is None)"
    ),
    "safety from the memory limit": (
        "given(lambda: open('/proc/self/oom_score_adj', 'w').write('-1000') and "
        "open('/proc/self/oom_score_adj').read().startswith('-'))"
    ),
    "limits higher than the policy's": "raised_limits()",
    "a block device of the host": (
        "given(*(lambda n=n: os.mknod(f'/tmp/d{n[0]}', 0o60666, os.makedev(*n)) or "
        "open(f'/tmp/d{n[0]}', 'rb').read(1) for n in ((8, 0), (253, 0), (259, 0), (254, 0))))"
    ),
    "the machine's memory": (
        "given(*(lambda n=n: os.mknod(f'/tmp/c{n}', 0o20666, os.makedev(1, n)) or "
        "open(f'/tmp/c{n}', 'rb').read(1) for n in (1, 2, 4)))"
    ),
    "settings of the kernel": (
        "given(*(lambda p=p: open(p, 'w').write(open(p).read()) for p in ("
        "'/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', "
        "'/proc/sys/vm/overcommit_memory', '/proc/sys/kernel/hostname', "
        "'/proc/sys/user/max_user_namespaces', '/proc/sys/user/max_net_namespaces', "
        "'/proc/sys/fs/file-max', '/proc/irq/default_smp_affinity', "
        "'/sys/kernel/uevent_helper')))"
    ),
}  # fmt: skip
HELPERS = """
def now():
    import time
    return struct.pack('qq', int(time.time()), 0)
def platform_32(code):
    if os.uname().machine != 'x86_64':
        return False
    import mmap
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 0
def netlink_changes_a_device():
    body = struct.pack('=BxHiII', 0, 0, 1, 0, 1)  # lo, down
    head = struct.pack('=IHHII', 16 + len(body), 16, 5, 1, 0)
    sock = socket.socket(16, socket.SOCK_RAW, 0)
    sock.settimeout(2)
    sock.sendto(head + body, (0, 0))
    return struct.unpack('=i', sock.recv(4096)[16:20])[0] == 0
KEPT = ctypes.create_string_buffer(16)
def vector():
    return struct.pack('PN', ctypes.addressof(KEPT), 16)
def typed_into_a_terminal():
    import fcntl, termios
    ours, theirs = os.openpty()
    return fcntl.ioctl(theirs, termios.TIOCSTI, b'x') == b'x'
def raised_limits():
    import resource
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_NICE):
        soft, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY:
            continue
        try:
            resource.setrlimit(kind, (hard + 1, hard + 1))
            return True
        except (OSError, ValueError):
            pass
    return False
"""


async def attempt(box: Sandbox, expression: str) -> str:
    """What the kernel said; then the shell must still be there."""
    program = f"{PRELUDE}{HELPERS}\nprint('GOT' if {expression} else 'refused')"
    result = await box.exec(python(program), 10)
    await usable(box)
    if result.exit_code is not None and result.exit_code > 128:
        return "killed"
    return result.stdout.strip() or result.stderr


@pytest.fixture(scope="session")
def answers(make_box: MakeSandbox) -> dict[str, str]:
    """What each attempt got, one after the other in one sandbox."""

    async def ask() -> dict[str, str]:
        with canary() as path:
            async with opened(make_box, tiny_policy(memory_bytes=128 * MIB)) as box:
                said = {name: await attempt(box, code) for name, code in ATTEMPTS.items()}
            untouched(path)
            return said

    return asyncio.run(ask()) if _KNOWN else {}


@pytest.mark.skipif(not _KNOWN, reason="no system-call numbers for this machine")
@pytest.mark.parametrize("kind", ATTEMPTS)
def test_the_kernel_gives_nothing_that_leads_out(kind: str, answers: dict[str, str]) -> None:
    assert answers[kind] in ("refused", "killed")


async def test_keys_made_inside_do_not_show_on_the_host(make_box: MakeSandbox) -> None:
    marker = "sandlot-evil-key"
    async with opened(make_box, tiny_policy(memory_bytes=128 * MIB)) as box:
        rings = "(-1, -2, -3, -4, -5)"
        code = f"{PRELUDE}\nprint(*(call('add_key', b'user', b'{marker}', b'x', 1, r)"
        await box.exec(python(f"{code} for r in {rings}))"), 10)
        keys = Path("/proc/keys")
        assert not keys.exists() or marker not in keys.read_text()


async def test_two_changes_of_root_do_not_lead_out(make_box: MakeSandbox) -> None:
    climb = (
        "import os\nos.makedirs('/tmp/deep', exist_ok=True)\ntop = os.open('/', os.O_RDONLY)\n"
        "try:\n os.chroot('/tmp/deep')\nexcept OSError: pass\n"
        "os.fchdir(top)\nfor _ in range(50): os.chdir('..')\n"
        "try:\n os.chroot('.')\nexcept OSError: pass\n"
        "print(open({path!r}).read())"
    )
    with canary() as path:
        async with opened(make_box, tiny_policy(memory_bytes=128 * MIB)) as box:
            result = await box.exec(python(climb.format(path=str(path))), 10)
            assert "FileNotFoundError" in result.stderr
            assert path.read_text() not in result.stdout
        untouched(path)


async def test_descriptors_that_are_inherited_lead_nowhere(make_box: MakeSandbox) -> None:
    """A socket or a folder of the host that was left open is the shortest way out."""
    show = (
        "for f in /proc/1/fd/* /proc/$$/fd/*; do readlink $f; done | "
        "grep -v -e '^pipe:' -e '^/dev/null$' -e '^/run/sandlot/' -e '^/dev/shm/.sandlot-' "
        "-e 'eventpoll' -e ' (deleted)'"
    )
    async with opened(make_box, tiny_policy()) as box:
        found = (await box.exec(show)).stdout.split()
        assert [name for name in found if name.startswith(("socket:", "/"))] == []


async def test_a_set_user_id_program_gives_nothing(make_box: MakeSandbox) -> None:
    steps = (
        "cp $(command -v id) /tmp/id && chmod 4755 /tmp/id && chmod 755 /tmp; "
        'python3 -I -c "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); '
        "os.execv('/tmp/id', ['id', '-u'])\""
    )
    async with opened(make_box, tiny_policy(memory_bytes=128 * MIB)) as box:
        result = await box.exec(steps)
        if result.exit_code == 0:
            assert result.stdout == "65534\n"


async def test_the_machines_one_count_of_asynchronous_requests_is_not_used_up(
    make_box: MakeSandbox,
) -> None:
    """fs.aio-max-nr is for everybody: a data base of the host cannot start when it is taken."""
    grab = (
        "import ctypes, time\nlibc = ctypes.CDLL(None)\nfor _ in range(64):\n"
        f" libc.syscall({_CALLS['io_setup']}, 500, ctypes.byref(ctypes.c_ulong(0)))\n"
        "print('tried', flush=True); time.sleep(30)"
    )
    count = Path("/proc/sys/fs/aio-nr")
    before = int(count.read_text())
    async with opened(make_box, tiny_policy(memory_bytes=128 * MIB)) as box:
        tried = await box.exec(until_said(python(grab)), 15)
        assert tried.stdout == "tried\n"
        assert int(count.read_text()) - before < 8_000
    assert await comes_true(lambda: int(count.read_text()) <= before + 500)


async def test_a_lease_on_a_mounted_file_does_not_hold_up_the_host(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    """A program of the host that opens a leased file waits for most of a minute."""
    tmp_path.chmod(0o755)
    file = tmp_path / "shared"
    file.write_text("x")
    file.chmod(0o644)
    take = (
        "import fcntl, time\nf = open('/mnt/in/shared')\n"
        "try: fcntl.fcntl(f, 1024, 0); print('GOT', flush=True)\n"
        "except OSError: print('refused', flush=True)\ntime.sleep(20)"
    )
    policy = tiny_policy(memory_bytes=128 * MIB)
    policy = replace(policy, mounts=(Mount(str(tmp_path), "/mnt/in"),))
    async with opened(make_box, policy) as box:
        said = await box.exec(until_said(python(take)), 15)
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))  # EAGAIN where a lease is in the way
        assert said.stdout == "refused\n"


async def test_terminals_made_inside_are_given_back(make_box: MakeSandbox) -> None:
    grab = (
        "import os, time\nheld = []\ntry:\n while True: held.append(os.openpty())\n"
        "except OSError: pass\nprint(len(held), flush=True); time.sleep(30)"
    )
    count = Path("/proc/sys/kernel/pty/nr")
    before = int(count.read_text())
    async with opened(make_box, tiny_policy(memory_bytes=128 * MIB)) as box:
        held = await box.exec(until_said(python(grab)), 15)
        assert int(held.stdout) > 0
        assert int(count.read_text()) - before <= 256
    assert await comes_true(lambda: int(count.read_text()) <= before + 8)
