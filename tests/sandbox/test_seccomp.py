"""The system-call filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct

import pytest

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.seccomp import build_filter

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
KILL, ALLOW = 0x80000000, 0x7FFF0000
NEW_NAMESPACE_FLAGS = {
    "CLONE_NEWTIME": 0x00000080,
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
THREAD_FLAGS = 0x003D0F00  # what pthread_create asks for
FORK_FLAGS = 0x01200011  # what fork asks for: SIGCHLD and the child's thread id


def verdict(program: bytes, call: int, *arguments: int, arch: int = X86_64) -> int:
    """What the kernel would do: the value that the filter returns for one system call."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("IIQ6Q", call, arch, 0x7F0000000000, *words)
    code = list(struct.iter_unpack("HBBI", program))
    accumulator = at = 0
    while True:
        operation, on_true, on_false, k = code[at]
        at += 1
        if operation == 0x20:  # load a word of struct seccomp_data
            (accumulator,) = struct.unpack_from("I", data, k)
        elif operation == 0x06:  # return
            return int(k)
        elif operation == 0x54:  # and
            accumulator &= k
        else:
            holds = {
                0x15: accumulator == k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[operation]
            at += on_true if holds else on_false


def refused_with(number: int) -> int:
    return 0x00050000 | number


@pytest.fixture(scope="module")
def program() -> bytes:
    return build_filter("x86_64")


@pytest.mark.parametrize(
    "call", [0, 1, 2, 9, 57, 59, 61, 257, 332, 437], ids=lambda nr: f"number-{nr}"
)
def test_ordinary_calls_are_allowed(program: bytes, call: int) -> None:
    assert verdict(program, call) == ALLOW


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("ptrace", 101),
        ("mount", 165),
        ("umount2", 166),
        ("pivot_root", 155),
        ("unshare", 272),
        ("setns", 308),
        ("bpf", 321),
        ("keyctl", 250),
        ("userfaultfd", 323),
        ("perf_event_open", 298),
        ("open_by_handle_at", 304),
        ("io_uring_setup", 425),
        ("fsopen", 430),
        ("mount_setattr", 442),
    ],
)
def test_calls_that_reach_into_the_kernel_fail_with_eperm(
    program: bytes, name: str, call: int
) -> None:
    assert verdict(program, call) == refused_with(errno.EPERM), name


def test_clone3_is_reported_missing_so_that_the_c_library_falls_back_to_clone(
    program: bytes,
) -> None:
    assert verdict(program, 435) == refused_with(errno.ENOSYS)


@pytest.mark.parametrize("flag", NEW_NAMESPACE_FLAGS, ids=str)
def test_clone_cannot_make_a_namespace_of_any_kind(program: bytes, flag: str) -> None:
    flags = NEW_NAMESPACE_FLAGS[flag]
    assert verdict(program, 56, flags) == refused_with(errno.EPERM)
    assert verdict(program, 56, FORK_FLAGS | flags) == refused_with(errno.EPERM)


@pytest.mark.parametrize("flags", [FORK_FLAGS, THREAD_FLAGS, 0x4111])
def test_clone_still_makes_processes_and_threads(program: bytes, flags: int) -> None:
    assert verdict(program, 56, flags) == ALLOW


def test_namespace_bits_in_another_argument_of_clone_do_not_count(program: bytes) -> None:
    assert verdict(program, 56, FORK_FLAGS, NEW_NAMESPACE_FLAGS["CLONE_NEWUSER"]) == ALLOW


@pytest.mark.parametrize("request_number", [0x5412, 0x541C], ids=["TIOCSTI", "TIOCLINUX"])
def test_a_terminal_cannot_be_made_to_type(program: bytes, request_number: int) -> None:
    assert verdict(program, 16, 0, request_number) == refused_with(errno.EPERM)


def test_the_kernel_ignores_the_high_word_of_a_terminal_request_and_so_does_the_filter(
    program: bytes,
) -> None:
    assert verdict(program, 16, 0, (1 << 32) | 0x5412) == refused_with(errno.EPERM)


def test_other_ioctls_are_allowed(program: bytes) -> None:
    assert verdict(program, 16, 0, 0x5413) == ALLOW  # TIOCGWINSZ


def test_a_call_of_the_x32_table_ends_the_process(program: bytes) -> None:
    assert verdict(program, 0x40000000) == KILL
    assert verdict(program, 0x40000000 | 165) == KILL


def test_a_call_of_a_foreign_architecture_ends_the_process(program: bytes) -> None:
    assert verdict(program, 1, arch=I386) == KILL
    assert verdict(build_filter("aarch64"), 64, arch=X86_64) == KILL


def test_aarch64_has_numbers_of_its_own() -> None:
    program = build_filter("aarch64")
    assert verdict(program, 40, arch=AARCH64) == refused_with(errno.EPERM)  # mount
    assert verdict(program, 97, arch=AARCH64) == refused_with(errno.EPERM)  # unshare
    assert verdict(program, 220, 0x10000000, arch=AARCH64) == refused_with(errno.EPERM)  # clone
    assert verdict(program, 29, 0, 0x5412, arch=AARCH64) == refused_with(errno.EPERM)  # ioctl
    assert verdict(program, 435, arch=AARCH64) == refused_with(errno.ENOSYS)
    assert verdict(program, 64, arch=AARCH64) == ALLOW  # write
    assert verdict(program, 165, arch=AARCH64) == ALLOW  # getrusage, which is mount elsewhere


def test_ptrace_is_allowed_only_where_it_was_asked_for() -> None:
    lenient = build_filter("x86_64", allow_ptrace=True)
    assert verdict(lenient, 101) == ALLOW
    assert verdict(lenient, 165) == refused_with(errno.EPERM)


def test_the_filter_is_small_enough_for_the_kernel(program: bytes) -> None:
    assert len(program) % 8 == 0
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS


def test_a_machine_without_a_table_is_named() -> None:
    with pytest.raises(SandboxUnavailable, match=r"'riscv64'.*x86_64, aarch64"):
        build_filter("riscv64")


@pytest.mark.parametrize("call", [41, 53], ids=["socket", "socketpair"])
def test_only_families_that_a_namespace_contains_get_sockets(program: bytes, call: int) -> None:
    """AF_VSOCK, for one, would speak to the hypervisor whatever the network policy says."""
    for family in (1, 2, 10, 16):
        assert verdict(program, call, family) == ALLOW
    for family in (17, 38, 40, 44):
        assert verdict(program, call, family) == refused_with(errno.EAFNOSUPPORT)
