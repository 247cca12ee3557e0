"""Run inside a restricted sandbox: each attempt as one line of JSON, its name and what came of it.

`refused: …` where the kernel, the filter or the supervisor said no; anything else is what was had.
"""

import ctypes
import json
import os
import resource
import socket
import sys

OUTSIDE, HARNESS, PORT, PROXY = sys.argv[1], *map(int, sys.argv[2:5])
SECRET = OUTSIDE + "/secret"
libc = ctypes.CDLL(None, use_errno=True)
LONG = ctypes.c_long


def call(number, *arguments):
    value = libc.syscall(LONG(number), *arguments)
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value


def read_file(path, mode="r", most=-1):
    with open(path, mode) as file:
        return file.read(most)


def write_file(path, mode, text):
    with open(path, mode) as file:
        return file.write(text)


def connect(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect((host, port))
        return "connected"


def fast_open():
    with socket.socket() as sock:
        return sock.sendto(b"hello", 0x20000000, ("127.0.0.1", PORT))


def connect_again(kind):
    ours, _ = socket.socketpair(socket.AF_UNIX, kind)
    ours.connect(OUTSIDE + "/datagrams")
    return ours.send(b"hello")


def unix(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(path)
        return "connected"


def server():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return "bound"


def listen_unbound():
    with socket.socket() as sock:
        sock.listen()
        return sock.getsockname()


def owner_of_signals():
    import fcntl

    reading, _ = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, HARNESS)
    return "set"


def by_link(change):
    name = f"link-{os.getpid()}"
    os.symlink(SECRET, name)
    try:
        return change(name)
    finally:
        os.unlink(name)


def chmod_by_descriptor():
    fd = os.open(SECRET, os.O_PATH)
    return os.chmod(f"/proc/self/fd/{fd}", 0o600)


def truncate_on_opening():
    return os.open(SECRET, os.O_RDONLY | os.O_TRUNC)


def descriptors_of_others():
    first = os.listdir(f"/proc/{HARNESS}/fd")[0]
    return os.readlink(f"/proc/{HARNESS}/fd/{first}")


ATTEMPTS = {
    "list the folder of another": lambda: os.listdir(OUTSIDE),
    "read a file outside": lambda: read_file(SECRET),
    "read a file of a home's .ssh": lambda: read_file(OUTSIDE + "/.ssh/id"),
    "read it by a link inside": lambda: by_link(read_file),
    "write a file outside": lambda: write_file(SECRET, "a", "x"),
    "make a file outside": lambda: write_file(OUTSIDE + "/new", "w", "x"),
    "make a file in /tmp": lambda: write_file("/tmp/sandlot-attempt", "w", "x"),
    "make a file in shared memory": lambda: write_file("/dev/shm/sandlot-attempt", "w", "x"),
    "remove a file outside": lambda: os.unlink(SECRET),
    "truncate a file outside": lambda: os.truncate(SECRET, 0),
    "truncate a file on opening it": truncate_on_opening,
    "move a file in": lambda: os.rename(SECRET, "mine"),
    "link a file in": lambda: os.link(SECRET, "mine"),
    "move a folder's file out": lambda: os.rename("here", OUTSIDE + "/out"),
    "change the mode of a file outside": lambda: os.chmod(SECRET, 0o600),
    "change it by a link inside": lambda: by_link(lambda name: os.chmod(name, 0o600)),
    "change it by a descriptor": chmod_by_descriptor,
    "change the times of a file outside": lambda: os.utime(SECRET, (0, 0)),
    "touch a file outside": lambda: os.utime(SECRET),
    "change them by a link inside": lambda: by_link(lambda name: os.utime(name, (0, 0))),
    "give an attribute to a file outside": lambda: os.setxattr(SECRET, "user.x", b"1"),
    "give a file away": lambda: os.chown(SECRET, os.getuid(), os.getgid()),
    "read the environment of the harness": lambda: read_file(f"/proc/{HARNESS}/environ"),
    "read the memory of the harness": lambda: read_file(f"/proc/{HARNESS}/mem", "rb", 1),
    "look at descriptors of the harness": descriptors_of_others,
    "follow the root of the harness": lambda: os.listdir(f"/proc/{HARNESS}/root/"),
    "read the environment of process 1": lambda: read_file("/proc/1/environ"),
    "signal the harness": lambda: os.kill(HARNESS, 0),
    "signal a thread of the harness": lambda: call(234, HARNESS, HARNESS, 0),
    "signal it by a descriptor": lambda: call(424, os.pidfd_open(HARNESS), 0, None, 0),
    "own signals as the harness": owner_of_signals,
    "limit the harness": lambda: resource.prlimit(HARNESS, resource.RLIMIT_NOFILE, (9, 9)),
    "slow the harness": lambda: os.setpriority(os.PRIO_PROCESS, HARNESS, 19),
    "bind the harness to a processor": lambda: os.sched_setaffinity(HARNESS, {0}),
    "trace the harness": lambda: call(101, 16, HARNESS, None, None),
    "take a descriptor of the harness": lambda: call(438, os.pidfd_open(HARNESS), 1, 0),
    "read memory by a call": lambda: call(310, HARNESS, None, LONG(0), None, LONG(0), LONG(0)),
    "connect to a server of this machine": lambda: connect("127.0.0.1", PORT),
    "connect to the proxy's port elsewhere": lambda: connect("127.0.0.2", PROXY),
    "connect to the metadata address": lambda: connect("169.254.169.254", 80),
    "connect by IPv6": lambda: connect("::1", PORT, socket.AF_INET6),
    "connect while sending": fast_open,
    "connect by multipath TCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262),
    "make a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "make a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "make a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "make a vsock socket": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "make a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "connect to a Unix socket": lambda: unix(OUTSIDE + "/stream"),
    "connect to an abstract Unix socket": lambda: unix(f"\0sandlot-test-{HARNESS}"),
    "connect half a pair anew": lambda: connect_again(socket.SOCK_DGRAM),
    "bind a server": server,
    "listen without binding": listen_unbound,
    "begin an io_uring": lambda: call(425, 8, ctypes.create_string_buffer(120)),
    "make a user namespace": lambda: call(272, 0x10000000),
    "enter a namespace": lambda: call(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    "mount": lambda: call(165, b"none", b".", b"tmpfs", 0, None),
    "change the root": lambda: os.chroot("."),
    "load a program into the kernel": lambda: call(321, 0, None, 0),
    "share memory": lambda: call(29, 0x5A5A, 4096, 0o1666),
    "make a queue": lambda: call(240, b"sandlot", 0x42, 0o600, None),
    "use a key ring": lambda: call(250, 0, -3, 0),
    "watch the folder of another": lambda: call(254, call(294, 0), OUTSIDE.encode(), 0x100),
    "make a device": lambda: os.mknod("null", 0o600 | 0o020000, os.makedev(1, 3)),
    "open a terminal": lambda: os.open("/dev/ptmx", os.O_RDWR),
}


def main():
    write_file("here", "w", "x")
    for name, attempt in ATTEMPTS.items():
        try:
            came = f"had: {attempt()!r}"
        except OSError as exc:
            came = f"refused: {exc.strerror}"
        print(json.dumps([name, came]), flush=True)


if __name__ == "__main__":
    main()
