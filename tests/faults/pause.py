"""Stops a merge amid its work, by a failpoint: something is done to it, and it goes on."""

import os
import signal
import subprocess
import time

import scene
from scene import Bad, Place


def start(args, n):
    """Starts a merge that stops before its n-th call that changes the disk, and waits until it has."""
    child = subprocess.Popen([*args, "--failpoint", f"pause:{n}"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.time() + 30
    while time.time() < end:
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            return child
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            raise Bad(f"not injected: it ended with {child.returncode} before call {n}: {child.stderr.read()}")
        time.sleep(0.002)
    child.kill()
    raise Bad(f"it did not come to call {n}")


def go_on(child, timeout=30):
    """Lets it go on to its end; returns its exit code and what it said."""
    child.send_signal(signal.SIGCONT)
    try:
        _, stderr = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise Bad(f"it hung for {timeout} s") from None
    return child.returncode, stderr


def killed(args, n):
    """Kills a merge before its n-th call; tells whether it came to it."""
    done = scene.reflow_run([*args, "--failpoint", f"kill:{n}"])
    if done.returncode not in (0, -signal.SIGKILL):
        raise Bad(f"exit code {done.returncode}: {done.stderr}")
    return done.returncode != 0


def calls(merge):
    """How many calls that change the disk an undisturbed merge makes."""
    with Place("calls") as place:
        low, high = 0, 1 << 12
        while low < high:
            middle = (low + high) // 2
            out = f"{place}/{middle}"
            low, high = (middle + 1, high) if killed(merge(out), middle) else (low, middle)
        return low
