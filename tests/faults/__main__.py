"""Makes things go wrong around `reflow merge`, and looks whether it keeps its promises (docs/reliability.md).

    tests/faults/run.sh target/release/reflow [--quick | --nightly] [--seed N] [--only ROW,..]
"""

import argparse
import os
import shutil
import sys
import tempfile
import time

import damage
import errors
import kills
import moments
import places
import scene
import tracer


def main():
    parser = argparse.ArgumentParser(prog="tests/faults/run.sh")
    parser.add_argument("reflow")
    parser.add_argument("--quick", action="store_true", help="a part of the cases, in half a minute")
    parser.add_argument("--nightly", action="store_true", help="all of them, in an hour or so")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="for what is chosen at random")
    parser.add_argument("--only", default="", help="only these, for example kills,disk")
    options = parser.parse_args()
    why_not = tracer.works()
    report = scene.Report()
    # In memory where there is room: what is tested are system calls, not a disk.
    base = os.environ.get("FAULTS_DIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    root = tempfile.mkdtemp(prefix="reflow-faults-", dir=base)
    os.chmod(root, 0o755)
    try:
        scene.prepare(options.reflow, root)
        for room, traced in ((kills, True), (errors, True), (places, False), (moments, False), (damage, False)):
            if options.only and room.__name__ not in options.only.split(","):
                continue
            if traced and why_not:
                report.skip(0, room.__doc__.splitlines()[0], why_not)
                continue
            room.rows(report, options)
    finally:
        if report.failed:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    report.line(f"{report.passed} passed, {report.failed} failed, {report.skipped} skipped")
    sys.exit(1 if report.failed else 0)


main()
