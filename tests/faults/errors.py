"""Rows 3 to 5: calls that fail once or for good, syncs that fail, writes that are short or lie."""

import errno
import os

import pause
import scene
import tracer
from scene import Bad, Place

FULL = ("ENOSPC", "EDQUOT", "EFBIG")
# Which errors a call can give, and what a merge may make of them: go on as if nothing was, or stop with a code.
FITTING = {
    "read": ("EIO", "ENOMEM", "EINTR"),
    "pread64": ("EIO", "ENOMEM", "EINTR"),
    "write": ("EIO", "ENOSPC", "EINTR"),
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT", "EFBIG", "EINTR"),
    "fdatasync": ("EIO", "ENOSPC", "EDQUOT", "EINTR"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT", "EINTR"),
    "rename": ("EIO", "ENOSPC", "EACCES"),
    "renameat2": ("EIO", "ENOSPC", "EINVAL"),
    "openat": ("EIO", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "EINTR"),
    "mmap": ("ENOMEM", "EAGAIN", "ENODEV"),
    "getdents64": ("EIO", "ENOMEM"),
    "madvise": ("EINVAL", "ENOMEM"),
    "fadvise64": ("EINVAL",),
    "fallocate": ("ENOSPC", "EOPNOTSUPP", "EIO", "EINTR"),
    "ftruncate": ("EIO", "EINTR"),
    "sync_file_range": ("EIO", "ENOSPC"),
    "unlink": ("EIO", "EACCES"),
    "mkdir": ("EIO", "ENOSPC", "EACCES"),
}
# What it takes to sweep up after the commit: the output is complete whether they work or not.
SWEEPING = ("unlink", "getdents64", "openat")
# Those that a resume makes before it goes on, and a few of the others.
RESUMING = ("read", "openat", "getdents64", "mmap", "pwrite64", "fdatasync", "unlink")
# Invisible, if it happens once.
PASSING = ("EINTR", "EMFILE", "ENFILE")
# Invisible, always: advice, and what there is another way for.
HARMLESS = {("madvise", "EINVAL"), ("fadvise64", "EINVAL"), ("renameat2", "EINVAL"),
            ("fallocate", "EOPNOTSUPP")}


def counts(call):
    """Whether the merge makes this call of its own accord: on its files, or as advice on its memory."""
    if call.path.endswith("/stderr"):
        return False
    return call.path.startswith(scene.ROOT) or call.name == "madvise"


def args(call, out):
    return scene.merge(out, "--io", "pread" if call == "pread64" else "mmap")


def count(name):
    """How often an undisturbed merge makes a call."""
    made = []
    with Place(f"count-{name}") as place:
        tracer.run(args(name, f"{place}/out"), [name], lambda call: made.append(counts(call)))
    return sum(made)


def fail(name, error, n, for_good):
    """Lets the n-th call of this name fail, and all after it if for good."""
    code, made, failed = getattr(errno, error), [], []
    with Place(f"{name}-{error}-{n}{'+' * for_good}") as place:
        out = f"{place}/out"

        def on_call(call):
            if counts(call):
                made.append(call.path)
                if len(made) == n or (for_good and len(made) > n):
                    failed.append(call.path)
                    tracer.answer(call, -code)

        ended = tracer.run(args(name, out), [name], on_call, stderr=f"{place}/stderr")
        if not failed and n > 1:
            # Some calls are made more often in one run than in another.
            return fail(name, error, n - n // 20 - 1, for_good)
        if not failed:
            raise Bad("not injected")
        told = ended.stderr
        invisible = (name, error) in HARMLESS or (error in PASSING and not for_good)
        if invisible and ended.code != 0:
            raise Bad(f"exit code {ended.code}: {told}")
        if name in SWEEPING and ended.code == 0 and os.path.exists(f"{out}.partial"):
            # The output is complete; the litter goes with the next run.
            scene.resume(out)
            return
        # An input that may not be opened is a bad input.
        allowed = [6] if error in FULL else [3, 7] if error == "EACCES" else [7]
        if name == "fsync" and os.path.exists(out):
            # More room is no cure then: it is about the name of what is there.
            allowed = [7]
        scene.survives(out, (ended.code, told), allowed, *args(name, out)[-2:])
        if ended.code != 0 and f"os error {code}" not in told:
            raise Bad(f"the message does not name {os.strerror(code)}: {told}")
        if ended.code != 0 and scene.ROOT not in told:
            raise Bad(f"the message names no path: {told}")


def fail_sync(name, n):
    """Lets the n-th sync fail once: a shard is thrown away and made again, never synced a second time."""
    made, distrusted, wrong = [], [], []
    with Place(f"sync-{name}-{n}") as place:
        out = f"{place}/out"

        def on_call(call):
            path = call.path
            if distrusted == [path]:
                if call.name != "unlink":
                    wrong.append(f"{call.name} of {path} after its sync has failed")
                distrusted.append("settled")
            if call.name == name and counts(call):
                made.append(path)
                if len(made) == n:
                    tracer.answer(call, -errno.EIO)
                    if path.endswith(".part"):
                        distrusted.append(path)

        ended = tracer.run(scene.merge(out), [name, "pwrite64", "unlink", "rename", "renameat2"], on_call,
                           stderr=f"{place}/stderr")
        if wrong:
            raise Bad("; ".join(wrong))
        if distrusted and (ended.code != 0 or "made again" not in ended.stderr):
            raise Bad(f"the shard was not made again, exit code {ended.code}: {ended.stderr}")
        scene.survives(out, (ended.code, ended.stderr), [7])
        return (len(distrusted) > 0, "shards made again")


def fail_resume(name, error, n, share, calls):
    """Lets a call fail amid a resume: what had been recorded before is still there."""
    with Place(f"resume-{name}-{error}-{n}-{share}") as place:
        out, failed, made = f"{place}/out", [], []
        pause.killed(args(name, out), int(calls * share))
        before = scene.status(out)["read"]

        def on_call(call):
            if counts(call):
                made.append(call.path)
                if len(made) == n:
                    failed.append(call.path)
                    tracer.answer(call, -getattr(errno, error))

        ended = tracer.run(args(name, out), [name], on_call, stderr=f"{place}/stderr")
        if not failed:
            return (0, "injected")
        if name in SWEEPING and ended.code == 0 and os.path.exists(f"{out}.partial"):
            # The output is complete; the litter goes with the next run.
            scene.resume(out)
            return (1, "injected")
        if ended.code != 0:
            allowed = [6] if error in FULL else [3, 7] if error == "EACCES" else [7]
            scene.clean_stop(out, ended.code, ended.stderr, allowed)
            told = scene.status(out)
            if told["state"] != "unfinished" and not os.path.exists(out):
                raise Bad(f"all is lost: {ended.stderr}")
            if told["state"] == "unfinished" and told["read"] < before:
                raise Bad(f"{failed}: progress went back from {before} to {told['read']}: {ended.stderr}")
        scene.survives(out, (ended.code, ended.stderr), [ended.code], *args(name, out)[-2:])
        return (1, "injected")


def short(name, n):
    """Lets all calls from the n-th on do only a part of what is asked for."""
    made = []
    with Place(f"short-{name}-{n}") as place:
        out = f"{place}/out"

        def on_call(call):
            if counts(call):
                made.append(call.name)
                asked = call.argument(2)
                if len(made) >= n and asked > 1:
                    tracer.shorten(call, max(1, asked // 3))

        ended = tracer.run(args(name, out), [name], on_call, stderr=f"{place}/stderr")
        if len(made) < n or ended.code != 0:
            raise Bad(f"exit code {ended.code} after {len(made)} calls: {ended.stderr}")
        scene.identical(out)


def lie(n):
    """Lets the n-th write into a shard do nothing and claim success."""
    made = []
    with Place(f"lie{n}") as place:
        out = f"{place}/out"

        def on_call(call):
            if call.path.endswith(".part"):
                made.append(call.path)
                if len(made) == n:
                    tracer.answer(call, call.argument(2))

        ended = tracer.run(scene.merge(out), ["pwrite64"], on_call, stderr=f"{place}/stderr")
        if len(made) < n:
            raise Bad("not injected")
        if ended.code == 8:
            # Found by the way, where bytes were read back.
            return (1, "found at once")
        if ended.code != 0:
            raise Bad(f"exit code {ended.code}: {ended.stderr}")
        if scene.contents(out) == scene.EXPECTED:
            return (1, "made again")
        verified = scene.reflow_run([scene.REFLOW, "verify", "--full", out], stdout=-1)
        shard = os.path.basename(made[n - 1]).removesuffix(".part")
        if verified.returncode != 8 or shard not in verified.stdout:
            raise Bad(f"verify exits {verified.returncode}: {verified.stdout}{verified.stderr}")
        checked = scene.reflow_run([*scene.merge(f"{place}/checked")])
        return (checked.returncode == 0, "found by verify --full")


def spread(most, wanted, seed):
    """Numbers from 1 to `most`: all of them, or as many as wanted, others with another seed."""
    if wanted is None or wanted >= most:
        return range(1, most + 1)
    return sorted({1 + (seed + most * k // wanted) % most for k in range(wanted)})


def rows(report, options):
    wanted = None if options.nightly else 2 if options.quick else 4
    for name, fitting in FITTING.items():
        most = count(name)
        if most == 0:
            report.skip(3, f"{name} fails", "an undisturbed merge makes no such call here")
            continue
        # For good, EINTR is a call that never ends; too many open files are waited for, ten seconds.
        cases = [(name, error, n, for_good) for error in fitting for for_good in (False, True)
                 for n in spread(most, wanted, options.seed)
                 if not (for_good and error in PASSING) or (options.nightly and error == "EMFILE" and n % 50 == 1)]
        report.row(3, f"{name} fails with {', '.join(fitting)}", fail, cases, f"{most} calls")
    calls = pause.calls(scene.merge)
    shares = [k / 10 for k in range(1, 10)] if options.nightly else (0.4, 0.8)
    report.row(3, "a call that fails once amid a resume", fail_resume,
               ((name, error, n, share, calls) for name in RESUMING for error in FITTING[name] for share in shares
                for n in spread(12, wanted and 2 * wanted, options.seed)))
    for name in ("fdatasync", "fsync"):
        report.row(4, f"{name} fails once with EIO", fail_sync,
                   ((name, n) for n in spread(count(name), wanted and 3 * wanted, options.seed)))
    for name in ("pwrite64", "pread64", "read", "write"):
        if count(name) == 0:
            report.skip(5, f"short {name}", "an undisturbed merge makes no such call here")
            continue
        report.row(5, f"short {name}", short,
                   ((name, n) for n in spread(count(name), wanted and 2 * wanted, options.seed)))
    report.row(5, "a write that does nothing and claims success", lie,
               ((n,) for n in spread(parts(), wanted and 2 * wanted, options.seed)))


def parts():
    """Writes into shards."""
    made = []
    with Place("count-parts") as place:
        tracer.run(scene.merge(f"{place}/out"), ["pwrite64"], lambda call: made.append(call.path.endswith(".part")))
    return sum(made)
