"""Row 15: bits that flip in what is begun and in what is finished; and long sequences of everything at once."""

import collections
import os
import random
import shutil
import signal

import pause
import scene
from scene import Bad, Place

OTHER = ["--keep", "0.2"]
STEPS = ["kill", "kill", "kill", "flip", "clean", "restart", "run"]


def kind(path):
    """What a file of a staging directory is."""
    name = os.path.basename(path)
    for begin in ("fold-", "kept-", "journal", "plan.json", "lock"):
        if name.startswith(begin):
            return begin.rstrip("-")
    return "part" if name.endswith(".part") else "temporary" if name.endswith(".tmp") else "made"


def files(root):
    """All files below that have bytes, by what they are."""
    found = collections.defaultdict(list)
    for at, _, names in os.walk(root):
        for name in sorted(names):
            path = os.path.join(at, name)
            if os.path.getsize(path) > 0:
                found[kind(path)].append(path)
    return found


def flip(path, rng):
    with open(path, "r+b") as file:
        at = rng.randrange(os.path.getsize(path))
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))


def flip_begun(seed, calls):
    """A bit of something begun: the merge goes on to the same bytes, or says that it cannot, and why."""
    rng = random.Random(seed)
    with Place(f"flip{seed}") as place:
        out = f"{place}/out"
        pause.killed(scene.merge(out), rng.randrange(calls // 10, calls - 2))
        found = files(f"{out}.partial")
        if not found:
            return (1, "not begun")
        what = rng.choice(sorted(found))
        victim = rng.choice(found[what])
        flip(victim, rng)
        # Also where nothing is read back that need not be.
        reread = rng.choice(["0", "1GB"])
        done = scene.reflow_run(scene.merge(out, "--reread", reread))
        if done.returncode == 0 and reread == "0" and what == "made" and scene.contents(out) != scene.EXPECTED:
            # A shard that was whole, and longer ago than a resume looks back.
            found_by_verify(out, os.path.basename(victim))
            return (1, "made, found by verify")
        if done.returncode == 0:
            scene.identical(out)
            return (1, what)
        scene.clean_stop(out, done.returncode, done.stderr, [8])
        if victim not in done.stderr:
            raise Bad(f"{what}: it does not say what is damaged: {done.stderr}")
        # Nothing else tells what is made; and the header of a whole shard is in no record, so only the last look
        # before the commit finds it.
        if what not in ("plan.json", "made"):
            raise Bad(f"{what}: work is lost by one bit: {done.stderr}")
        scene.resume(out, "--restart")
        return (1, what)


def found_by_verify(out, name, depth="--full"):
    done = scene.reflow_run([scene.REFLOW, "verify", depth, out], stdout=-1)
    if done.returncode != 8 or name not in done.stdout:
        raise Bad(f"{depth} does not find it in {name}: {done.returncode}: {done.stdout}{done.stderr}")


def flip_finished(seed):
    """A bit of a finished output: verify names the file."""
    rng = random.Random(seed)
    with Place(f"flipped{seed}") as place:
        out = f"{place}/out"
        shutil.copytree(f"{scene.ROOT}/calm", out)
        name = rng.choice(sorted(os.listdir(out)))
        flip(f"{out}/{name}", rng)
        for depth in ["--full"] + ["--quick"] * (not name.endswith(".safetensors")):
            found_by_verify(out, name, depth)
        return (1, "shards" if name.endswith(".safetensors") else "small files")


def recorded(out):
    """Whether a staging directory has anything that a merge could go on from; None if its plan is damaged."""
    if not os.path.exists(f"{out}.partial/state/plan.json"):
        return False
    told = scene.reflow_run([scene.REFLOW, "status", "--json", out], stdout=-1)
    if told.returncode == 8:
        return None
    if told.returncode != 0:
        raise Bad(f"status ends with {told.returncode}: {told.stderr}")
    return scene.json.loads(told.stdout)["total"] > 0


def sequence(seed, calls, expected):
    """Runs, kills, flips, other settings and other recipes in any order: a model knows what may come of each."""
    rng, steps, begun, unsound = random.Random(seed), 0, [], []
    with Place(f"sequence{seed}") as place:
        out = f"{place}/out"
        while not os.path.exists(out):
            steps += 1
            step = rng.choice(STEPS if steps < 12 else ["restart"])
            before = recorded(out)
            if step == "flip":
                found = files(f"{out}.partial")
                if found:
                    what = rng.choice(sorted(found))
                    flip(rng.choice(found[what]), rng)
                    # The last look before the commit may find it: see flip_begun.
                    unsound = [8] if what == "made" else unsound
                continue
            if step == "clean":
                told = scene.reflow_run([scene.REFLOW, "clean", out])
                allowed = [8] if before is None else [0]
            else:
                recipe = rng.choice([[], [], [], OTHER])
                extra = [*recipe, "--threads", rng.choice("123"), "--io", rng.choice(["mmap", "pread", "direct"]),
                         "--tile", str(rng.randrange(300, 9000)), "--checkpoint", rng.choice(["60000", "500000"])]
                extra += ["--restart"] * (step == "restart")
                extra += ["--failpoint", f"kill:{rng.randrange(1, calls)}"] * (step == "kill")
                told = scene.reflow_run(scene.merge(out, *extra))
                allowed = [0, *unsound, -signal.SIGKILL] if step == "kill" else [0, *unsound]
                other = step != "restart" and before and recipe != begun
                if step == "restart":
                    allowed = [0]
                elif other:
                    # It may be killed before it comes to say so.
                    allowed = [10] + [-signal.SIGKILL] * (step == "kill")
                elif before is None:
                    # A damaged plan is refused, unless nothing is lost without it.
                    allowed = [*allowed, 8]
            if told.returncode not in allowed or "panicked" in told.stderr:
                raise Bad(f"step {steps}, {step}, begun {begun}: {told.returncode}, not one of {allowed}: {told.stderr}")
            if step != "clean" and not other and told.returncode in (0, -signal.SIGKILL):
                begun = recipe
        if os.path.exists(f"{out}.partial"):
            # It was killed while it swept up.
            told = scene.reflow_run(scene.merge(out, *begun))
            if told.returncode != 0:
                raise Bad(f"after the commit: {told.returncode}: {told.stderr}")
        scene.identical(out, expected[tuple(begun)])
        return (steps, "steps")


def rows(report, options):
    calls = pause.calls(scene.merge)
    flips = 5000 if options.nightly else 50 if options.quick else 500
    report.row(15, "a bit of something begun", flip_begun,
               ((options.seed * 10_000 + k, calls) for k in range(flips)), f"seed {options.seed}")
    report.row(15, "a bit of something finished", flip_finished, ((options.seed * 10_000 + k,) for k in range(flips)))
    expected = {}
    with Place("expected") as place:
        for recipe in ([], OTHER):
            out = f"{place}/{len(recipe)}"
            done = scene.reflow_run(scene.merge(out, *recipe))
            if done.returncode != 0:
                raise Bad(done.stderr)
            expected[tuple(recipe)] = scene.contents(out)
    runs = 1000 if options.nightly else 20 if options.quick else 100
    report.row("-", "random sequences of runs, kills, flips, other settings and recipes", sequence,
               ((options.seed * 10_000 + k, calls, expected) for k in range(runs)), f"seed {options.seed}")
