"""Rows 1 and 2: kill -9, before every call that writes and at random times."""

import collections
import os
import random
import re
import shutil
import signal
import subprocess
import time

import scene
import tracer
from scene import Bad, Place

WRITES = ["pwrite64", "write", "fdatasync", "fsync", "rename", "renameat", "renameat2", "fallocate", "ftruncate", "unlink",
          "unlinkat", "rmdir", "openat", "mkdir", "mkdirat"]
CREATE = os.O_CREAT | os.O_WRONLY | os.O_RDWR


def writes(call, place):
    """Whether a call changes something in this directory."""
    if call.name == "openat" and not call.argument(2) & CREATE:
        return False
    return call.path.startswith(place)


def run_killed(place, args, n):
    """Runs, and kills before the n-th call that writes (never, if n is 0); returns the calls made."""
    made = []

    def on_call(call):
        if writes(call, place):
            made.append(call.name)
            if len(made) == n:
                tracer.kill(call)

    ended = tracer.run(args, WRITES, on_call, stderr=f"{place}/stderr")
    if (n > 0) != (ended.code == -signal.SIGKILL):
        raise Bad(f"killed before call {n} of {len(made)}, and it ended with {ended.code}: {ended.stderr}")
    return made


def finished(out):
    return os.path.exists(out) and not os.path.exists(f"{out}.partial")


def after_kill(out, *extra):
    """The same command finishes the work; if only its last breath was missing, all is there already."""
    if finished(out):
        scene.identical(out)
    else:
        scene.resume(out, *extra)


def kill_at(n, extra):
    with Place(f"kill{n}") as place:
        run_killed(place, scene.merge(f"{place}/out", *extra), n)
        after_kill(f"{place}/out", *extra)


def with_components(place):
    return scene.merge(f"{place}/out", "--components", f"{place}/kept")


def kill_components(n, kept):
    """Components get their name whole or not at all, and before the output gets its own."""
    with Place(f"components{n}") as place:
        run_killed(place, with_components(place), n)
        names = [os.path.exists(f"{place}/{name}") for name in ("kept", "out")]
        if names[1] and not names[0]:
            raise Bad("the output is there, and its components are not")
        if names[0] and scene.contents(f"{place}/kept") != kept:
            raise Bad("components are there, and not all of them")
        after_kill(f"{place}/out", "--components", f"{place}/kept")
        scene.identical(f"{place}/kept", kept)


def kill_deep(seed, calls):
    """Kills a run, and five resumes of it, each before a call of its own."""
    rng, settings = random.Random(seed), []
    with Place(f"deep{seed}") as place:
        out, left = f"{place}/out", calls
        for depth in range(6):
            made = []

            def on_call(call, n=rng.randrange(1, max(2, left))):
                if writes(call, place):
                    made.append(call.name)
                    if len(made) == n:
                        tracer.kill(call)

            tracer.run(scene.merge(out, *settings), WRITES, on_call, stderr=f"{place}/stderr")
            if finished(out):
                break
            left = left - len(made) // 2
            settings = ["--io", rng.choice(["mmap", "pread", "direct"]), "--tile", str(rng.randrange(500, 9000))]
        after_kill(out)


def kill_randomly(seed, calm):
    """Kills at random times until it is done; the progress that is recorded never goes back."""
    rng, kills, seen = random.Random(seed), 0, 0
    with Place(f"random{seed}") as place:
        out = f"{place}/out"
        while not finished(out):
            child = subprocess.Popen(scene.merge(out, "-q"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            # Up to five early deaths; then later and later, so that the case ends.
            time.sleep(calm * rng.random() * (1 + max(0, kills - 5) / 4))
            child.kill()
            stderr = child.communicate()[1].decode()
            if child.returncode not in (0, -signal.SIGKILL):
                raise Bad(f"exit code {child.returncode} after {kills} kills: {stderr}")
            kills += child.returncode != 0
            if kills > 60:
                raise Bad("no progress")
            # A kill during the commit leaves the output and a staging directory that is to be swept.
            told = scene.status(out)
            if told["state"] == "unfinished":
                if told["read"] < seen:
                    raise Bad(f"progress went back from {seen} to {told['read']}")
                seen = told["read"]
            if child.returncode == 0:
                break
        scene.identical(out)
        return kills, "kills"


def strace_kill(call, n):
    """The same by strace, for the calls of its main thread."""
    with Place(f"strace-{call}{n}") as place:
        out = f"{place}/out"
        inject = f"inject={call}:signal=SIGKILL:when={n}"
        args = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, *scene.merge(out)]
        killed = scene.reflow_run(args)
        if killed.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            raise Bad(f"the kill before {call} {n} did not happen: {killed.returncode}")
        after_kill(out)


def rows(report, options):
    with Place("count") as place:
        made = run_killed(place, scene.merge(f"{place}/out"), 0)
    kinds = collections.Counter(made)
    told = ", ".join(f"{name} {count}" for name, count in kinds.most_common())
    step = 7 if options.quick else 1
    report.row(1, "kill -9 before a call that writes", kill_at, ((n, ()) for n in range(1, len(made) + 1, step)),
               f"{'every' if step == 1 else 'every 7th'} one of {len(made)}: {told}")
    if options.nightly:
        for io in ("pread", "direct"):
            report.row(1, f"the same with --io {io}", kill_at, ((n, ("--io", io)) for n in range(1, len(made) + 1)))
    with Place("components") as place:
        made_with = run_killed(place, with_components(place), 0)
        kept = scene.contents(f"{place}/kept")
    step = 1 if options.nightly else 7
    report.row(1, "the same with --components", kill_components, ((n, kept) for n in range(1, len(made_with) + 1, step)),
               f"{'every' if step == 1 else 'every 7th'} one of {len(made_with)}")
    report.row(1, "kills during resumes, five deep", kill_deep,
               ((options.seed + k, len(made)) for k in range(600 if options.nightly else 20)), f"seed {options.seed}")
    by_strace(report, options)
    random_times(report, options)


def by_strace(report, options):
    if not shutil.which("strace"):
        report.skip(1, "a second opinion by strace", "strace is not installed")
        return
    with Place("strace") as place:
        log = f"{place}/log"
        scene.reflow_run(["strace", "-f", "-o", log, "-e", "trace=rename,renameat2,mkdir,unlink,ftruncate",
                          *scene.merge(f"{place}/out")])
        with open(log) as text:
            lines = [re.match(r"(\d+) +(\w+)\(", line) for line in text]
    by_thread = collections.Counter((m[1], m[2]) for m in lines if m)
    most = collections.Counter()
    for (_, call), count in by_thread.items():
        most[call] = max(most[call], count)
    step = 1 if options.nightly else 9
    report.row(1, "kill -9 by strace, counted per thread", strace_kill,
               ((call, n) for call in sorted(most) for n in range(1, most[call] + 1, step)))


def random_times(report, options):
    begin = time.time()
    with Place("calm") as place:
        scene.reflow_run(scene.merge(f"{place}/out", "-q"))
    calm = time.time() - begin
    wanted = 2000 if options.nightly else 40 if options.quick else 200
    # A case has one kill or more, fewer on a busy machine.
    cases = [(options.seed * 10_000 + k, calm) for k in range(wanted + wanted // 4)]
    report.row(2, "kill -9 at random times", kill_randomly, cases, f"seed {options.seed}")
