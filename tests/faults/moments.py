"""Rows 11, 12, 14 and 20: inputs that change, two at once, clocks, resumes with other settings, signals."""

import glob
import os
import shutil
import signal
import subprocess
import time

import pause
import scene
from scene import Bad, Place

SHARD = "expert1/model-00002-of-00003.safetensors"


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path):
    os.truncate(path, 0)


def replace(path):
    shutil.copy(path, f"{path}.new")
    os.rename(f"{path}.new", path)


def rewrite(path):
    """Other values, the same size."""
    with open(path, "r+b") as file:
        file.seek(-200, os.SEEK_END)
        tail = file.read(100)
        file.seek(-200, os.SEEK_END)
        file.write(bytes(b ^ 1 for b in tail))


def changed(io, change, share, calls):
    """An input that changes while it is read is found, named, and nothing is published."""
    with Place(f"changed-{io}-{change.__name__}-{share}") as place:
        shutil.copytree(f"{scene.ROOT}/in", f"{place}/in")
        out = f"{place}/out"
        args = scene.merge(out, "--io", io, inputs=f"{place}/in")
        paused = pause.start(args, int(calls * share))
        told = scene.status(out)
        change(f"{place}/in/{SHARD}")
        code, stderr = pause.go_on(paused)
        if told["read"] == told["total"] > 0:
            # It was read, and looked at for the last time: what becomes of it does not matter any more.
            if code != 0:
                raise Bad(f"exit code {code} although all was read: {stderr}")
            scene.identical(out)
            return (1, "read before")
        scene.clean_stop(out, code, stderr, [4])
        # Amid a bus error there is no more to say than what it is.
        if SHARD not in stderr and "SIGBUS" not in stderr:
            raise Bad(f"the message does not name the input: {stderr}")
        if not os.path.exists(f"{out}.partial") and change in (replace, rewrite):
            # Nothing had been recorded: the next run begins with the input that is there now.
            again = scene.reflow_run(args)
            if again.returncode != 0:
                raise Bad(f"exit code {again.returncode} with an input that is whole: {again.stderr}")
            return (1, "begun anew")
        # What was begun does not fit the input that is there now.
        again = scene.reflow_run(args)
        scene.clean_stop(out, again.returncode, again.stderr, [3, 10])
        if SHARD not in again.stderr:
            raise Bad(f"the message does not name the input: {again.stderr}")


def second(share, calls):
    """The second process on the same output is refused, told who the first is, and does no harm."""
    with Place(f"second{share}") as place:
        out = f"{place}/out"
        first = pause.start(scene.merge(out), int(calls * share))
        for command in (scene.merge(out), scene.merge(out, "--restart"), [scene.REFLOW, "clean", out]):
            done = scene.reflow_run(command)
            if done.returncode != 11 or f"process {first.pid} " not in done.stderr:
                raise Bad(f"{command[1]}: exit code {done.returncode}: {done.stderr}")
        if f"process {first.pid} " not in str(scene.status(out).get("running")):
            raise Bad("status does not say who is at work")
        code, stderr = pause.go_on(first)
        if code != 0:
            raise Bad(f"the first ends with {code}: {stderr}")
        scene.identical(out)


def stale(text, share, calls):
    """Whatever a dead process has left in the lock file, it blocks nobody."""
    with Place(f"stale{abs(hash(text))}") as place:
        out = f"{place}/out"
        pause.killed(scene.merge(out), int(calls * share))
        with open(f"{out}.partial/state/lock", "w") as lock:
            lock.write(text)
        scene.resume(out)


def race(share, calls):
    """Of several resumes at once one does the work; the others are told so, or that it is done."""
    with Place(f"race{share}") as place:
        out = f"{place}/out"
        pause.killed(scene.merge(out), int(calls * share))
        runs = [subprocess.Popen(scene.merge(out, "-q"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True) for _ in range(5)]
        ended = [(run.communicate(timeout=60)[1], run.returncode) for run in runs]
        codes = sorted(code for _, code in ended)
        if codes[0] != 0 or any(code not in (0, 5, 11) for code in codes):
            raise Bad(f"exit codes {codes}: {ended}")
        scene.identical(out)


def clock(when, share, calls):
    """Times of files do not matter: neither those of staging, nor those of inputs."""
    with Place(f"clock{abs(hash(when))}{share}") as place:
        shutil.copytree(f"{scene.ROOT}/in", f"{place}/in")
        out = f"{place}/out"
        touch(f"{place}/in", when)
        pause.killed(scene.merge(out, inputs=f"{place}/in"), int(calls * share))
        touch(f"{out}.partial", when)
        scene.resume(out, inputs=f"{place}/in")


def touch(root, when):
    paths = [os.path.join(at, name) for at, dirs, files in os.walk(root) for name in dirs + files]
    subprocess.run(["touch", "-d", when, *paths], check=True)


def shifted(prefix, share, calls):
    """A clock that jumps between two runs, and is wrong in both."""
    with Place(f"shifted{share}") as place:
        out = f"{place}/out"
        pause.killed([*prefix[0], *scene.merge(out)], int(calls * share))
        done = scene.reflow_run([*prefix[1], *scene.merge(out, "--progress", "always")])
        if done.returncode != 0:
            raise Bad(f"exit code {done.returncode}: {done.stderr}")
        scene.identical(out)


def clocks():
    """Ways to shift the clock that work here."""
    def works(prefix):
        return shutil.which(prefix[0]) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0

    def monotonic(seconds):
        return ["unshare", "--time", "--monotonic", seconds, "--boottime", seconds]

    # Not by the command of that name, which would stay in between.
    for library in glob.glob("/usr/lib/*/faketime/libfaketime.so.1")[:1]:
        def fake(when):
            return ["env", f"LD_PRELOAD={library}", f"FAKETIME={when}"]

        yield "the clock in 1980, then in 2100", (fake("@1980-01-01 00:00:00"), fake("@2100-01-01 00:00:00"))
        # Each look at it, at the one that should only go forward, too, is an hour after or before the last.
        jumps = [fake(f"@2020-01-01 00:00:00 i{step}") for step in ("3600.0", "-3600.0")]
        yield "a clock that jumps an hour at each look", jumps
        yield "the same, backward first", jumps[::-1]
    if works(monotonic("1000000000")):
        yield "30 years of uptime, then none", (monotonic("1000000000"), [])


OTHER = [["--threads", "3"], ["--memory", "64MiB"], ["--io", "pread"], ["--io", "direct"], ["--tile", "333"],
         ["--checkpoint", "9000"], ["--threads", "2", "--tile", "77", "--io", "direct", "--checkpoint", "70000"]]


def other_settings(extra, share, calls):
    """How it is run may change between two runs."""
    with Place(f"other{abs(hash(str(extra)))}{share}") as place:
        out = f"{place}/out"
        pause.killed(scene.merge(out), int(calls * share))
        done = scene.reflow_run(scene.merge(out, *extra))
        if done.returncode != 0:
            raise Bad(f"exit code {done.returncode}: {done.stderr}")
        scene.identical(out)


RECIPES = [["--lambda", "1.1"], ["--keep", "0.2"], ["--variant", "b"], ["--scope", "layer"], ["--dtype", "f32"],
           ["--exclude", "*norm*"]]


def other_recipe(extra, calls):
    """What is merged may not: it is refused and said, and --restart is the way out."""
    with Place(f"recipe{abs(hash(str(extra)))}") as place:
        out = f"{place}/out"
        pause.killed(scene.merge(out, *extra), calls // 2)
        done = scene.reflow_run(scene.merge(out))
        scene.clean_stop(out, done.returncode, done.stderr, [10])
        if "--restart" not in done.stderr or "recipe" not in done.stderr:
            raise Bad(f"it does not say what differs and what to do: {done.stderr}")
        scene.resume(out, "--restart")


def touched(calls):
    """An input with another time is refused by name."""
    with Place("touched") as place:
        shutil.copytree(f"{scene.ROOT}/in", f"{place}/in")
        out, inputs = f"{place}/out", f"{place}/in"
        pause.killed(scene.merge(out, inputs=inputs), calls // 2)
        os.utime(f"{inputs}/{SHARD}")
        done = scene.reflow_run(scene.merge(out, inputs=inputs))
        scene.clean_stop(out, done.returncode, done.stderr, [10])
        if SHARD not in done.stderr or "modification time" not in done.stderr:
            raise Bad(f"it does not say what differs: {done.stderr}")
        scene.resume(out, "--restart", inputs=inputs)


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def first_signal(number, io, share, calls):
    """The first signal stops it within two seconds; it says how to go on, and so does status."""
    with Place(f"signal{number}-{io}-{share}") as place:
        out = f"{place}/out"
        args = scene.merge(out, "--io", io)
        paused = pause.start(args, int(calls * share))
        paused.send_signal(number)
        begin = time.time()
        code, stderr = pause.go_on(paused)
        if code == 0:
            raise Bad("it went on to its end")
        scene.clean_stop(out, code, stderr, [CODES[number]])
        if time.time() - begin > 2:
            raise Bad(f"it took {time.time() - begin:.1f} s")
        if "run the same command again" not in stderr:
            raise Bad(f"it does not say how to go on: {stderr}")
        told = scene.status(out)
        if told["state"] == "unfinished" and f"--out {out}" not in told["command"]:
            raise Bad(f"status names another command: {told['command']}")
        scene.resume(out)


def two_signals(share, calls):
    """The second ends it at once, wherever it is."""
    with Place(f"signals{share}") as place:
        out = f"{place}/out"
        paused = pause.start(scene.merge(out), int(calls * share))
        paused.send_signal(signal.SIGINT)
        paused.send_signal(signal.SIGTERM)
        code, stderr = pause.go_on(paused, timeout=2)
        scene.clean_stop(out, code, stderr, CODES.values())
        scene.resume(out)


def slow_disk(io, second, delay, wait):
    """Signals while every read takes long: while it looks at its inputs each ends it at once; later the first stops
    it within two seconds, and the second at once."""
    with Place(f"slow-{io}-{second}-{delay}") as place:
        out = f"{place}/out"
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-e",
                  f"inject=pread64:delay_enter={delay}ms"]
        tracer = subprocess.Popen([*inject, *scene.merge(out, "--io", io)], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        end = time.time() + 30
        while wait and not os.path.exists(f"{out}.partial/state/plan.json") and time.time() < end:
            time.sleep(0.01)
        time.sleep(0.3 if wait else 1.5)
        begun = os.path.exists(f"{out}.partial")
        with open(f"/proc/{tracer.pid}/task/{tracer.pid}/children") as children:
            pid = int(children.read().split()[0])
        begin = time.time()
        os.kill(pid, signal.SIGINT)
        last = 130
        if second and begun:
            time.sleep(0.05)
            try:
                os.kill(pid, signal.SIGTERM)
                last = 143
            except ProcessLookupError:
                pass  # The first has ended it.
        try:
            stderr = tracer.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            os.kill(pid, signal.SIGKILL)
            tracer.communicate()
            raise Bad("it did not stop") from None
        took, at_once = time.time() - begin, second or not begun
        if took > (1 if at_once else 2):
            raise Bad(f"it took {took:.1f} s: {stderr}")
        scene.clean_stop(out, tracer.returncode, stderr, {130, last})
        scene.resume(out, "--io", io)
        return (1, "while it worked" if begun else "before it began")


def rows(report, options):
    calls = pause.calls(scene.merge)
    many = [k / 25 for k in range(1, 18)] if options.nightly else (0.1, 0.4, 0.7)
    report.row(11, "an input that is truncated, emptied, replaced or rewritten", changed,
               ((io, change, share, calls) for io in ("mmap", "pread", "direct")
                for change in (truncate, empty, replace, rewrite) for share in many))
    report.row(12, "a second process", second, ((share, calls) for share in many))
    pid = os.getpid()
    texts = (f'{{"pid":{pid},"host":"{os.uname().nodename}","boot_id":"another","generation":7}}', f"{pid}\n", "",
             "\0" * 100, '{"pid":1}')
    report.row(12, "a stale lock", stale, ((text, 0.5, calls) for text in texts))
    report.row(12, "resumes that race", race, ((share, calls) for share in many))
    report.row(14, "files from 1970 and 2100", clock,
               ((when, share, calls) for when in ("@0", "2100-01-01") for share in (0.3, 0.8)))
    shifts = list(clocks())
    if len(shifts) < 4:
        report.skip(14, "some clocks that jump", "faketime or time namespaces are missing")
    for name, prefix in shifts:
        report.row(14, name, shifted, ((prefix, share, calls) for share in (0.3, 0.8)))
    report.row(20, "a resume with other settings", other_settings, ((o, share, calls) for o in OTHER for share in many))
    report.row(20, "a resume with another recipe", other_recipe, ((extra, calls) for extra in RECIPES))
    report.row(20, "a resume with an input of another time", touched, ((calls,),))
    report.row("-", "the first SIGINT or SIGTERM", first_signal,
               ((number, io, share, calls) for number in CODES for io in ("mmap", "pread") for share in many))
    report.row("-", "the second", two_signals, ((share, calls) for share in many))
    if shutil.which("strace"):
        report.row(18, "signals on a slow disk", slow_disk, ((io, second, delay, wait) for io in ("pread", "direct")
                   for second in (0, 1) for delay, wait in ((300, False), (60, True))))
    else:
        report.skip(18, "signals on a slow disk", "strace is not installed")
