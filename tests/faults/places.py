"""Rows 5, 8, 9, 13, 16 and 17: full disks, limits, places that cannot be written, outputs that nobody reads."""

import contextlib
import ctypes
import os
import resource
import shutil
import stat
import subprocess

import pause
import scene
import toy
from scene import Bad, Place

NEWNS = 0x20000
MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


@contextlib.contextmanager
def mounted(at, *args):
    """A mount that only this process and its children see."""
    if libc.unshare(NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    run("mount", "--make-rprivate", "/")
    os.makedirs(at, exist_ok=True)
    run("mount", *args, at)
    try:
        yield at
    finally:
        run("umount", "-l", at)


@contextlib.contextmanager
def disk(kind, place, size):
    """A small file system of its own, of a number of bytes."""
    at = f"{place}/disk"
    if kind == "tmpfs":
        with mounted(at, "-t", "tmpfs", "-o", f"size={size}", "none"):
            yield at
    else:
        image = f"{place}/image"
        with open(image, "wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        with mounted(at, "-o", "loop", image):
            os.rmdir(f"{at}/lost+found")
            yield at


def cannot(kind):
    """Why such a file system cannot be had here; None if it can."""
    try:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with Place(f"try-{kind}") as place, disk(kind, place, 32 * MIB):
                    code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] == 0:
            return None
    except OSError as error:
        return str(error)
    return f"{kind} cannot be mounted here (needs root{' and loop devices' * (kind == 'ext4')})"


def fill(at, left):
    """Fills a file system up to so many bytes; returns the file to remove."""
    name = f"{at}/filler"
    fs = os.statvfs(at)
    with open(name, "wb") as file:
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, fs.f_bavail * fs.f_frsize - left))
        if left == 0:
            with contextlib.suppress(OSError):
                while True:
                    os.write(file.fileno(), bytes(4096))
    return name


def needed():
    """Bytes that a merge demands to be free."""
    place = f"{scene.ROOT}/nowhere"
    done = subprocess.run([scene.REFLOW, "plan", *scene.merge(place, "--json")[2:]], capture_output=True, text=True,
                          timeout=60)
    return scene.json.loads(done.stdout)["space"]["needed"]


def too_small(kind, needs, short):
    """A file system that lacks some bytes is refused before anything is made."""
    with Place(f"small-{kind}-{short}") as place, disk(kind, place, max(32 * MIB, needs + 4 * MIB)) as at:
        fill(at, needs - short)
        fs = os.statvfs(at)
        if not 0 < needs - fs.f_bavail * fs.f_frsize:
            raise Bad("not injected: there is room")
        before = sorted(os.listdir(at))
        done = scene.reflow_run(scene.merge(f"{at}/out"))
        scene.clean_stop(f"{at}/out", done.returncode, done.stderr, [6])
        if "needs" not in done.stderr or sorted(os.listdir(at)) != before:
            raise Bad(f"left {sorted(os.listdir(at))}: {done.stderr}")
        os.remove(f"{at}/filler")
        scene.resume(f"{at}/out")


def filled(kind, needs, share, left, calls):
    """A file system that somebody fills after the check, up to some bytes."""
    with Place(f"filled-{kind}-{share}-{left}") as place, disk(kind, place, max(32 * MIB, needs + 4 * MIB)) as at:
        out = f"{at}/out"
        paused = pause.start(scene.merge(out), int(calls * share))
        filler = fill(at, left)
        code, stderr = pause.go_on(paused)
        if code == 0:
            # What was reserved was enough.
            scene.identical(out)
            return (1, "went on in what was reserved")
        scene.clean_stop(out, code, stderr, [6])
        if "os error 28" not in stderr and "free" not in stderr:
            raise Bad(f"no word about space: {stderr}")
        os.remove(filler)
        scene.resume(out)
        return (1, "stopped with 6")


def file_limit(limit):
    """A limit on the size of files: an error, no death by signal."""
    with Place(f"fsize{limit}") as place:
        out = f"{place}/out"
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with open(f"{place}/stderr", "w+") as told:
            # Its messages go through a pipe: the limit holds for files.
            done = scene.reflow_run(scene.merge(out), preexec_fn=set_limit)
            told.write(done.stderr)
        scene.clean_stop(out, done.returncode, done.stderr, [6])
        scene.resume(out)


# Bad places: how the place is made, the output or inputs there, and the codes that are right.
def bad_places():
    yield "the output is an input", lambda p: (f"{p}/in/base", None), [2, 5]
    yield "the output lies in an input", lambda p: (f"{p}/in/base/out", None), [2]
    yield "the same through a link", lambda p: (link(p, f"{p}/in/base", "via") + "/out", None), [2]
    yield "the output contains the inputs", lambda p: (f"{p}/in", None), [2, 5]
    yield "the output is a link", lambda p: (link(p, folder(p, "empty"), "out"), None), [5]
    yield "the output is a dangling link", lambda p: (link(p, f"{p}/nowhere", "out"), None), [5]
    yield "the output is a file", lambda p: (text(p, "out"), None), [5]
    yield "the output is not empty", lambda p: (os.path.dirname(text(p, "out/mine")), None), [5]
    yield "the staging directory has a file of somebody's", \
        lambda p: (os.path.dirname(text(p, "out.partial/mine")).removesuffix(".partial"), None), [5]
    yield "the staging directory is a file", lambda p: (text(p, "out.partial").removesuffix(".partial"), None), [5, 7]
    yield "the parent is missing", lambda p: (f"{p}/nowhere/out", None), [2]
    yield "the parent is a file", lambda p: (text(p, "file") + "/out", None), [2]
    yield "an input is a pipe", lambda p: (f"{p}/out", shard(p, os.mkfifo)), [3]
    yield "an input is a directory", lambda p: (f"{p}/out", shard(p, os.mkdir)), [3]
    yield "an input is a device", lambda p: (f"{p}/out", shard(p, lambda at: os.symlink("/dev/zero", at))), [3]
    yield "an input is missing", lambda p: (f"{p}/out", shard(p, lambda at: None)), [3]


def folder(place, name):
    os.makedirs(f"{place}/{name}", exist_ok=True)
    return f"{place}/{name}"


def link(place, to, name):
    os.symlink(to, f"{place}/{name}")
    return f"{place}/{name}"


def text(place, name):
    folder(place, os.path.dirname(name))
    with open(f"{place}/{name}", "w") as file:
        file.write("mine\n")
    return f"{place}/{name}"


def shard(place, make):
    """Puts something else in the place of an input's shard."""
    at = f"{place}/in/expert1/model-00002-of-00003.safetensors"
    os.remove(at)
    make(at)
    return f"{place}/in"


def kinds(place):
    """Everything below, with what it is: contents would wait for pipes."""
    found = {}
    for at, dirs, files in os.walk(place):
        for name in dirs + files:
            meta = os.lstat(os.path.join(at, name))
            found[os.path.join(at, name)] = (stat.S_IFMT(meta.st_mode), meta.st_size, meta.st_mtime_ns)
    return found


def refused(number):
    """A place that is refused before any work; nothing there is touched."""
    name, make, codes = list(bad_places())[number]
    with Place(f"bad{number}") as place:
        shutil.copytree(f"{scene.ROOT}/in", f"{place}/in")
        out, inputs = make(place)
        before = kinds(place)
        done = scene.reflow_run(scene.merge(out, inputs=inputs or f"{place}/in"), timeout=10)
        expect(name, done, codes)
        after = kinds(place)
        # A directory that was looked into by making and removing something has another time.
        changed = {at for at in {*before, *after} if before.get(at, "")[:2] != after.get(at, "")[:2]}
        if changed:
            raise Bad(f"{name}: changed {sorted(changed)}")


def expect(name, done, codes):
    if done.returncode not in codes or "panicked" in done.stderr or "error:" not in done.stderr:
        raise Bad(f"{name}: exit code {done.returncode}, not one of {codes}: {done.stderr}")
    if scene.ROOT not in done.stderr:
        raise Bad(f"{name}: the message names no path: {done.stderr}")


def read_only(_):
    with Place("ro") as place:
        with mounted(folder(place, "ro"), "--bind", f"{place}/ro"):
            run("mount", "-o", "remount,bind,ro", f"{place}/ro")
            expect("read-only", scene.reflow_run(scene.merge(f"{place}/ro/out")), [7])


def immutable(_):
    with Place("immutable") as place:
        run("chattr", "+i", folder(place, "fixed"))
        try:
            expect("immutable", scene.reflow_run(scene.merge(f"{place}/fixed/out")), [7])
            if os.listdir(f"{place}/fixed"):
                raise Bad("something was made")
        finally:
            run("chattr", "-i", f"{place}/fixed")


def other_user(what):
    """Somebody who may not write there, or not read the inputs."""
    with Place(f"other-{what}") as place:
        shutil.copytree(f"{scene.ROOT}/in", f"{place}/in")
        # Where the program lies, others may not be allowed to look.
        shutil.copy(scene.REFLOW, f"{place}/reflow")
        out = folder(place, "theirs") + "/out"
        os.chmod(f"{place}/reflow", 0o755)
        if what == "inputs":
            os.chmod(f"{place}/in/expert2", 0o700)
            os.chown(f"{place}/theirs", 65534, 65534)
        command = [f"{place}/reflow", *scene.merge(out, inputs=f"{place}/in")[1:]]
        done = scene.reflow_run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *command])
        expect(what, done, [3] if what == "inputs" else [7])
        if "os error 13" not in done.stderr:
            raise Bad(f"no word about permission: {done.stderr}")


def few_files(io, threads):
    """50 shards in each input and 60 in the output, 16 file descriptors."""
    with Place(f"files-{io}-{threads}") as place:
        toy.LAYERS = 12
        toy.make(f"{place}/in", shards=(50, 50, 50))
        extra = ["--shard-size", "6000", "--io", io, "--threads", threads]
        calm = scene.reflow_run(scene.merge(f"{place}/calm", *extra, inputs=f"{place}/in"))
        if calm.returncode != 0:
            raise Bad(f"without a limit: {calm.stderr}")
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
        done = scene.reflow_run(scene.merge(f"{place}/out", *extra, inputs=f"{place}/in"), preexec_fn=limit)
        if done.returncode != 0:
            raise Bad(f"exit code {done.returncode}: {done.stderr}")
        scene.identical(f"{place}/out", scene.contents(f"{place}/calm"))


REDIRECTIONS = [
    # How, the right codes of the merge: only who asked for the name of the output hears that it could not be told.
    ("{} | head -1", [0]), ("{} --json | head -1", [0]), ("{} --log-format json --progress always 2>&1 | head -1", [0]),
    ("{} > /dev/full", [6]), ("{} 2> /dev/full", [0]), ("{} >&-", [0]), ("{} 2>&-", [0]), ("{} <&- >&- 2>&-", [0]),
    ("{} 2>&1 | true", [0]),
]


def unread(number):
    """The merge goes on, whoever reads what it says."""
    how, codes = REDIRECTIONS[number]
    with Place(f"unread{number}") as place:
        out = f"{place}/out"
        command = how.replace("{}", '"$@"')
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}", "bash", *scene.merge(out)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode not in codes or "panicked" in done.stderr:
            raise Bad(f"{how}: exit code {done.returncode}: {done.stderr}")
        scene.identical(out)


def told_to_nobody(command):
    """Commands that only tell something end well when nobody listens any more."""
    with Place(f"nobody-{command[0]}") as place:
        args = [argument.replace("IN", f"{scene.ROOT}/in").replace("OUT", f"{scene.ROOT}/calm") for argument in command]
        for tail, codes in (("| head -1", [0]), ("| true", [0]), ("> /dev/full", [6]), (">&-", [0])):
            done = subprocess.run(["bash", "-c", f'set -o pipefail; "$@" {tail}', "bash", scene.REFLOW, *args],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=place)
            if done.returncode not in codes or "panicked" in done.stderr:
                raise Bad(f"{command[0]} {tail}: exit code {done.returncode}: {done.stderr}")


def rows(report, options):
    needs, calls = needed(), pause.calls(scene.merge)
    for kind in ("tmpfs", "ext4"):
        why_not = cannot(kind)
        if why_not:
            report.skip(8, f"a full {kind}", why_not)
            continue
        short = (4096, needs // 2, needs - 4096)
        report.row(8, f"{kind} too small by a page, by half, but for a page", too_small,
                   ((kind, needs, s) for s in short))
        shares = [k / 20 for k in range(20)] if options.nightly else (0.02, 0.2, 0.6, 0.95)
        cases = ((kind, needs, share, left, calls) for share in shares for left in (0, 4096, 32768))
        report.row(8, f"{kind} filled after the check", filled, cases)
    limits = range(0, 140_000, 1000) if options.nightly else (0, 100, 4096, 15_000, 60_000, 100_000)
    report.row(9, "a limit on file sizes", file_limit, ((limit,) for limit in limits))
    report.row(13, "bad places", refused, ((n,) for n in range(len(list(bad_places())))))
    special(report)
    report.row(16, "16 file descriptors, 50 shards", few_files,
               ((io, threads) for io in ("mmap", "pread", "direct") for threads in ("1", "4")))
    report.row(17, "outputs that nobody reads", unread, ((n,) for n in range(len(REDIRECTIONS))))
    telling = (("methods",), ("inspect", "IN/base", "--tensors"), ("status", "OUT"), ("verify", "OUT"),
               ("plan", "--base", "IN/base", "--expert", "IN/expert1"))
    report.row(17, "answers that nobody reads", told_to_nobody, ((command,) for command in telling))


def special(report):
    """Places that take root to make."""
    if os.getuid() != 0:
        report.skip(13, "read-only, immutable and foreign places", "needs root")
        return
    for name, case, arguments, why_not in (
        ("a read-only mount", read_only, [(0,)], cannot("tmpfs")),
        ("an immutable directory", immutable, [(0,)], no_chattr()),
        ("another user", other_user, [("output",), ("inputs",)], no_setpriv()),
    ):
        if why_not:
            report.skip(13, name, why_not)
        else:
            report.row(13, name, case, arguments)


def no_chattr():
    with Place("chattr") as place:
        try:
            run("chattr", "+i", folder(place, "x"))
            run("chattr", "-i", f"{place}/x")
        except OSError as error:
            return str(error)


def no_setpriv():
    with Place("setpriv") as place:
        try:
            shutil.copy("/bin/true", f"{place}/true")
            run("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", f"{place}/true")
        except OSError as error:
            return str(error)
