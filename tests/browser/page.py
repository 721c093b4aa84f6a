"""Opens pages in headless Chromium and looks at them, by the DevTools protocol over a pipe. Standard library only.

    page.py [--shots DIR] PAGE..

Each page is opened at the width of a desk and of a phone, in light and in dark. Demands that nothing is written to the console, nothing is
requested but the page itself, it is no wider than the window, every picture has a name, and what should be there is there. Exits with 1 and a line for each
thing that is wrong. --shots writes a PNG of each.
"""

import base64
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
]
WIDTHS = [(1440, False), (390, True)]
SCHEMES = ["light", "dark"]
PATIENCE = 120


class Browser:
    """A Chromium of our own, with a profile that goes with it."""

    def __init__(self, program):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # It reads commands from 3 and writes answers to 4.
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()

        def wire():
            # Neither must be in the way of the other.
            a, b = os.dup(theirs_in), os.dup(theirs_out)
            high = [os.dup2(fd, 100 + k) for k, fd in enumerate((a, b))]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [program, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.rest, self.events = 0, b"", []

    def message(self):
        """The next message."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self.into, 1 << 20) if ready else b""
            if not part:
                raise SystemExit("chromium does not answer")
            self.rest += part
        whole, self.rest = self.rest.split(b"\0", 1)
        return json.loads(whole)

    def call(self, method, session=None, **params):
        """Sends a command and returns its result; what happens meanwhile goes to `events`."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if session:
            command["sessionId"] = session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data):]
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise SystemExit(f"{method}: {message['error']}")
                return message["result"]
            if "method" in message:
                self.events.append(message)

    def wait(self, method):
        """Waits for an event."""
        while not any(event["method"] == method for event in self.events):
            message = self.message()
            if "method" in message:
                self.events.append(message)

    def close(self):
        self.call("Browser.close")
        self.process.wait(PATIENCE)
        self.profile.cleanup()


LOOK = """(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const box = document.documentElement;
  const wide = all('body *').filter(e => !e.closest('figure, .table, svg') && e.getBoundingClientRect().right > WIDTH + 1);
  return {
    title: document.title,
    scheme: matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light',
    page: getComputedStyle(document.body ?? box).backgroundColor,
    overflow: box.scrollWidth - WIDTH,
    wide: wide.map(e => e.tagName + ' ' + e.textContent.slice(0, 40)),
    pictures: all('svg').length,
    nameless: all('svg').filter(e => e.getAttribute('role') != 'img' || !e.getAttribute('aria-label')).length,
    empty: all('svg').filter(e => e.getBoundingClientRect().width < 20 && !e.closest('details:not([open])')).length,
    scripts: all('script').length,
    sections: all('h2[id]').map(e => e.id),
    broken: all('a[href^="#"]').filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length,
    numbers: all('svg.heat g text').length,
    colourless: all('svg.heat g rect').filter(e => getComputedStyle(e).fill == 'rgb(0, 0, 0)').length,
    root: box.getBoundingClientRect().width,
    height: Math.ceil(box.scrollHeight),
  };
})()"""


def look(browser, page, width, mobile, scheme, shots):
    """Opens a page, and returns what is wrong with it."""
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ["Page", "Runtime", "Log", "Network"]:
        browser.call(f"{domain}.enable", session)
    height = 844 if mobile else 900
    # Phones lay a picture out as on a desk, and show it smaller; in a narrow window it has to fit.
    mobile = mobile and page.suffix != ".svg"
    browser.call("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", session, features=media)
    browser.events.clear()
    url = page.absolute().as_uri()
    browser.call("Page.navigate", session, url=url)
    browser.wait("Page.loadEventFired")
    found = browser.call("Runtime.evaluate", session, expression=LOOK.replace("WIDTH", str(width)), returnByValue=True)["result"]["value"]
    wrong = []
    for event in browser.events:
        params = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            asked = params["request"]["url"]
            if asked != url and not asked.startswith("data:"):
                wrong.append(f"asks for {asked}")
        elif event["method"] == "Runtime.exceptionThrown":
            wrong.append(f"throws {params['exceptionDetails'].get('text')}")
        elif event["method"] == "Runtime.consoleAPICalled":
            wrong.append(f"writes to the console: {params['args']}")
        elif event["method"] == "Log.entryAdded":
            wrong.append(f"console: {params['entry']['level']}: {params['entry']['text']}")
    if found["scheme"] != scheme:
        wrong.append(f"the scheme is {found['scheme']}")
    if page.suffix == ".svg":
        if found["root"] > width + 1:
            wrong.append(f"it is {found['root']} px wide")
    else:
        dark = sum(int(part) for part in found["page"].strip("rgba()").split(",")[:3]) < 3 * 128
        if dark != (scheme == "dark"):
            wrong.append(f"the page is {found['page']}")
        if found["overflow"] > 0 or found["wide"]:
            wrong.append(f"it is {found['overflow']} px too wide: {found['wide'][:5]}")
        for what in ["nameless", "scripts", "empty", "broken", "colourless"]:
            if found[what]:
                wrong.append(f"{what}: {found[what]}")
        for section in ["experts", "changes", "cosines", "magnitudes", "distances"]:
            if section not in found["sections"]:
                wrong.append(f"there is no section {section}")
        if found["pictures"] < 8 or found["numbers"] < 10 or not found["title"]:
            wrong.append(f"there are {found['pictures']} pictures with {found['numbers']} numbers, titled {found['title']!r}")
    if shots:
        clip = {"x": 0, "y": 0, "width": width, "height": min(found["height"], 15000), "scale": 1}
        shot = browser.call("Page.captureScreenshot", session, format="png", clip=clip, captureBeyondViewport=True)
        name = f"{page.stem}-{width}-{scheme}.png"
        pathlib.Path(shots, name).write_bytes(base64.b64decode(shot["data"]))
    browser.call("Target.closeTarget", targetId=target)
    return wrong


def main(args):
    shots = None
    if args[:1] == ["--shots"]:
        shots, args = args[1], args[2:]
        pathlib.Path(shots).mkdir(parents=True, exist_ok=True)
    browser = Browser(os.environ.get("CHROMIUM", "chromium"))
    faults = 0
    for page in map(pathlib.Path, args):
        for width, mobile in WIDTHS:
            for scheme in SCHEMES:
                wrong = look(browser, page, width, mobile, scheme, shots)
                print(f"{'WRONG' if wrong else 'ok'}: {page.name}, {width} px, {scheme}")
                for line in wrong:
                    print(f"    {line}")
                faults += len(wrong)
    browser.close()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
