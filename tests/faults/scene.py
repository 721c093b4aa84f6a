"""What a case works with, and the rule by which it passes."""

import collections
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import toy

REFLOW = None
ROOT = None
# One reading thread, small pieces, several shards: many calls, each of them countable. Shards as small as these are written
# through the page cache, unless FAULTS_WRITE says "direct".
SETTINGS = ["--threads", "1", "--checkpoint", "500000", "--shard-size", "130000", "--write", os.environ.get("FAULTS_WRITE", "auto")]


class Bad(Exception):
    """A case that did not go as promised."""


def prepare(reflow, root):
    """Makes the inputs, and the output of a merge that nobody disturbs."""
    global REFLOW, ROOT, EXPECTED
    REFLOW, ROOT = os.path.abspath(reflow), root
    toy.make(f"{root}/in")
    out = f"{root}/calm"
    done = reflow_run(merge(out))
    if done.returncode != 0:
        sys.exit(f"the undisturbed merge fails: {done.stderr}")
    EXPECTED = contents(out)


def merge(out, *extra, inputs=None):
    """The command under test; what is given takes the place of the usual setting."""
    inputs = inputs or f"{ROOT}/in"
    usual = [text for flag, value in zip(SETTINGS[::2], SETTINGS[1::2]) if flag not in extra for text in (flag, value)]
    return [REFLOW, "merge", "--base", f"{inputs}/base", "--expert", f"{inputs}/expert1", "--expert",
            f"{inputs}/expert2=1.3", "--out", out, *usual, *extra]


def reflow_run(args, timeout=60, **options):
    options.setdefault("stdout", subprocess.DEVNULL)
    return subprocess.run(args, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=timeout,
                          **options)


def contents(directory):
    """SHA-256 and mode of every file below."""
    found = {}
    for at, dirs, files in os.walk(directory):
        for name in dirs + files:
            path = os.path.join(at, name)
            mode = oct(os.lstat(path).st_mode)
            with open(path, "rb") if os.path.isfile(path) else open(os.devnull, "rb") as file:
                found[os.path.relpath(path, directory)] = (hashlib.sha256(file.read()).hexdigest(), mode)
    return found


def identical(out, expected=None):
    """Demands that `out` is what an undisturbed merge makes, and nothing is left beside it."""
    expected, found = expected or EXPECTED, contents(out)
    if found != expected:
        differs = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise Bad(f"not identical: {', '.join(differs)}")
    for litter in (f"{out}.partial", f"{out}/.reflow-state"):
        if os.path.exists(litter):
            raise Bad(f"left behind: {sorted(contents(litter))}")


def clean_stop(out, code, stderr, allowed):
    """Demands a documented end: no panic, no half output."""
    if "panicked" in stderr:
        raise Bad(f"panic: {stderr}")
    if code not in allowed:
        raise Bad(f"exit code {code}, not one of {allowed}: {stderr}")
    if os.path.lexists(out):
        # The one way to fail after the commit: nobody knows whether the disk has the new name.
        unsure = code == 7 and "durable" in stderr and os.path.exists(f"{out}.partial")
        if not unsure or contents(out) != EXPECTED:
            raise Bad(f"exit code {code}, and the output is there: {stderr}")


def resume(out, *extra, inputs=None):
    """Demands that the same command, undisturbed, finishes the work."""
    done = reflow_run(merge(out, *extra, inputs=inputs))
    if done.returncode != 0:
        raise Bad(f"the resume fails with {done.returncode}: {done.stderr}")
    identical(out)


def survives(out, ended, allowed, *extra):
    """The pass rule: identical at once, or a clean stop and identical after a resume."""
    code, stderr = ended
    if code == 0:
        if "panicked" in stderr:
            raise Bad(f"panic: {stderr}")
        identical(out)
        return
    clean_stop(out, code, stderr, allowed)
    resume(out, *extra)


def status(out):
    """What `reflow status --json` says."""
    done = subprocess.run([REFLOW, "status", "--json", out], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Bad(f"status fails with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


class Place:
    """A directory of a case's own, removed if all went well."""

    def __init__(self, name):
        self.path = f"{ROOT}/case/{name}-{os.getpid()}"

    def __enter__(self):
        shutil.rmtree(self.path, ignore_errors=True)
        os.makedirs(self.path)
        return self.path

    def __exit__(self, kind, error, trace):
        if kind is None:
            shutil.rmtree(self.path, ignore_errors=True)


class Report:
    """A line per row, and the sum."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.begin = time.time()

    def line(self, text):
        print(f"[{time.time() - self.begin:6.1f} s] {text}", flush=True)

    def row(self, row, name, case, cases, note=""):
        """Runs `case(*arguments)` for each of `cases`, some at a time.

        A case returns a note, or a number and what it counts, or nothing.
        """
        cases = list(cases)
        with multiprocessing.Pool(os.cpu_count()) as pool:
            results = pool.map(guarded, [(case, arguments) for arguments in cases], chunksize=1)
        bad = [(arguments, text) for arguments, (ok, text) in zip(cases, results) if not ok]
        if not cases:
            bad = [("-", "nothing was injected")]
        self.passed, self.failed = self.passed + (not bad), self.failed + bool(bad)
        notes = [note] + sorted({text for ok, text in results if ok and isinstance(text, str)})
        sums = collections.Counter()
        for ok, counted in results:
            if ok and isinstance(counted, tuple):
                sums[counted[1]] += counted[0]
        notes += [f"{count} {what}" for what, count in sums.items()]
        tail = "; ".join(n for n in notes if n)
        verdict = f"FAILED {len(bad)}" if bad else "ok"
        self.line(f"row {row:>2}  {name}: {len(cases)} cases, {verdict}{'; ' + tail if tail else ''}")
        for arguments, text in bad[:8]:
            print(f"        {arguments}: {text.strip()}", flush=True)

    def skip(self, row, name, why):
        self.skipped += 1
        self.line(f"row {row:>2}  NOT TESTED: {name}: {why}")


def guarded(job):
    case, arguments = job
    try:
        return True, case(*arguments) or ""
    except Bad as bad:
        return False, str(bad)
    except Exception as error:
        return False, f"the case itself broke: {type(error).__name__}: {error}"
