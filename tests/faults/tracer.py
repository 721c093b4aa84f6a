"""Runs a program and interferes with its N-th system call of a kind, counted over all its threads.

`strace -e inject=..:when=N` counts per thread: with a writer thread for every pass, most calls cannot be named
that way. Here a seccomp filter stops the program at the chosen calls only, before they run, and one counter
counts them all. Linux on x86-64.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import threading

CALLS = {
    "read": 0, "write": 1, "mmap": 9, "pread64": 17, "pwrite64": 18, "madvise": 28, "fsync": 74, "fdatasync": 75,
    "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "unlink": 87, "flock": 73, "getdents64": 217, "fadvise64": 221,
    "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "sync_file_range": 277, "fallocate": 285,
    "renameat2": 316, "statx": 332, "clone3": 435,
}
NAMES = {number: name for name, number in CALLS.items()}
# Which argument is a path, or a file descriptor.
BY_PATH = {"rename": 0, "mkdir": 0, "rmdir": 0, "unlink": 0, "openat": 1, "mkdirat": 1, "unlinkat": 1,
           "renameat": 1, "renameat2": 1, "statx": 1}
BY_FD = {"read": 0, "write": 0, "mmap": 4, "pread64": 0, "pwrite64": 0, "fsync": 0, "fdatasync": 0, "ftruncate": 0,
         "flock": 0, "getdents64": 0, "fadvise64": 0, "sync_file_range": 0, "fallocate": 0}

TRACEME, CONT, GETREGS, SETREGS, SETOPTIONS = 0, 7, 12, 13, 0x4200
OPTIONS = 0x80 | 0x08 | 0x10 | 0x100000  # seccomp, clone, exec, kill on exit
EVENT_SECCOMP = 7
WALL = 0x40000000
# Places in user_regs_struct.
RAX, RDX, RSI, RDI, ORIG_RAX, R10, R8 = 10, 12, 13, 14, 15, 7, 9

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def works():
    """Why this cannot be used here; None if it can."""
    if platform.machine() != "x86_64":
        return f"the tracer knows x86-64 only, not {platform.machine()}"
    try:
        return None if run(["/bin/true"], ["openat"], lambda call: None).code == 0 else "ptrace does not work here"
    except OSError as error:
        return f"ptrace does not work here: {error}"


class Call:
    """A system call that is about to run."""

    def __init__(self, pid, tid, regs):
        self.pid, self.tid, self.regs = pid, tid, regs
        self.name = NAMES.get(regs[ORIG_RAX], "?")

    def argument(self, n):
        return self.regs[(RDI, RSI, RDX, R10, R8)[n]]

    @property
    def path(self):
        """The file it is about; empty if none."""
        try:
            if self.name in BY_PATH:
                with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
                    memory.seek(self.argument(BY_PATH[self.name]))
                    return memory.read(512).split(b"\0")[0].decode(errors="replace")
            if self.name in BY_FD:
                descriptor = self.argument(BY_FD[self.name]) & 0xFFFFFFFF
                return os.readlink(f"/proc/{self.pid}/fd/{descriptor}") if descriptor < 1 << 31 else ""
        except (OSError, OverflowError, ValueError):
            pass
        return ""


class Ended:
    """How a traced program ended: `code` as subprocess has it (minus the signal)."""

    def __init__(self, code, stderr):
        self.code, self.stderr = code, stderr


def kill(call):
    os.kill(call.pid, signal.SIGKILL)


def answer(call, value):
    """Skips the call; the program sees this value (an errno, negated)."""
    call.regs[ORIG_RAX] = 2**64 - 1
    call.regs[RAX] = value % 2**64
    ptrace(SETREGS, call.tid, call.regs)


def shorten(call, value):
    """Lets the call do only this many bytes of what it was asked for."""
    call.regs[RDX] = value
    ptrace(SETREGS, call.tid, call.regs)


def run(args, calls, on_call, cwd=None, stderr=None, timeout=60):
    """Runs `args`; `on_call(Call)` is asked before every call whose name is in `calls`."""
    path = stderr or "/dev/null"
    pid = os.fork()
    if pid == 0:
        child(args, [CALLS[name] for name in calls], cwd, path)
    stopped(pid, os.waitpid(pid, WALL)[1])
    ptrace(SETOPTIONS, pid, OPTIONS)
    ptrace(CONT, pid, 0)
    known = {pid}
    hung = []

    def end():
        hung.append(True)
        os.kill(pid, signal.SIGKILL)

    alarm = threading.Timer(timeout, end)
    alarm.start()
    try:
        code = follow(pid, known, on_call)
    finally:
        alarm.cancel()
    if hung:
        raise OSError(f"it hung, and was killed after {timeout} s")
    with open(path, errors="replace") as text:
        return Ended(code, text.read() if stderr else "")


def follow(pid, known, on_call):
    """Lets it run to its end; returns its code."""
    while True:
        tid, status = os.waitpid(-1, WALL)
        if os.WIFSTOPPED(status):
            number, event = os.WSTOPSIG(status), status >> 16
            give = 0
            if event == EVENT_SECCOMP:
                regs = (ctypes.c_uint64 * 27)()
                if ptrace(GETREGS, tid, regs, quiet=True):
                    on_call(Call(pid, tid, regs))
            elif event == 0 and not (number == signal.SIGSTOP and tid not in known):
                give = number
            known.add(tid)
            ptrace(CONT, tid, give, quiet=True)
        elif tid == pid:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def stopped(pid, status):
    if not os.WIFSTOPPED(status):
        raise OSError(f"process {pid} did not start: {status}")


def ptrace(request, tid, data, quiet=False):
    value = ctypes.cast(data, ctypes.c_void_p) if isinstance(data, ctypes.Array) else ctypes.c_void_p(data)
    if libc.ptrace(request, tid, None, value) == -1:
        code = ctypes.get_errno()
        # It was killed meanwhile.
        if not (quiet or code == errno.ESRCH):
            raise OSError(code, os.strerror(code))
        return False
    return True


def child(args, numbers, cwd, stderr):
    """Becomes the program, with a filter that stops it at the calls."""
    try:
        null = os.open("/dev/null", os.O_RDWR)
        out = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for descriptor, at in ((null, 0), (null, 1), (out, 2)):
            os.dup2(descriptor, at)
        os.closerange(3, 64)
        if cwd:
            os.chdir(cwd)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        libc.ptrace(TRACEME, 0, None, None)
        filter_calls(numbers)
        os.execv(args[0], args)
    finally:
        os._exit(127)


def filter_calls(numbers):
    load, equal, give = 0x20, 0x15, 0x06
    program = struct.pack("HBBI", load, 0, 0, 0)
    for k, number in enumerate(numbers):
        program += struct.pack("HBBI", equal, len(numbers) - k, 0, number)
    program += struct.pack("HBBI", give, 0, 0, 0x7FFF0000)  # allow
    program += struct.pack("HBBI", give, 0, 0, 0x7FF00000)  # stop for the tracer
    code = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges
    if libc.prctl(22, 2, ctypes.c_char_p(described), 0, 0) != 0:
        os._exit(126)
