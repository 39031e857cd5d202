"""A headless Chromium that is driven over a socket pair: its DevTools protocol and nothing else."""

import itertools
import json
import shutil
import socket
import subprocess
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

# The sandbox needs rights that containers lack; the rest keeps the browser from the network.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """The path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `events` holds what the browser has reported about it since `open`."""

    def __init__(self, program: str, profile: str, seconds: float = 60):
        ours, theirs = socket.socketpair()
        ours.settimeout(seconds)
        self._socket, self._numbers, self._buffer = ours, itertools.count(1), b""
        self._seconds, self._session = seconds, None
        self.events: list[dict[str, Any]] = []
        end = theirs.fileno()
        with theirs:
            # Chromium reads what it is asked on descriptor 3 and answers on 4.
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{end} 4>&{end}', "bash", program, *FLAGS]
                + [f"--user-data-dir={profile}", "about:blank"],
                pass_fds=[end],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        """Ends the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(self._seconds)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.sendall(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']['message']}"
        return answer["result"]

    def open(self, url: str) -> None:
        """Goes to an address and waits until all of it is loaded."""
        self.events.clear()
        failure = self.ask("Page.navigate", url=url).get("errorText")
        assert not failure, f"{url}: {failure}"
        self._wait_for_load()

    def click(self, element: str) -> None:
        """Clicks on a link, an expression of JavaScript, and waits until its page is loaded."""
        self.events.clear()
        self.evaluate(f"{element}.click()")
        self._wait_for_load()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, expression: str) -> Any:
        """The first value of the expression that JavaScript takes for true."""
        end = time.monotonic() + self._seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not so in {self._seconds} s: {expression}"
            time.sleep(0.05)
        return value

    def resize(self, width: int, height: int, *, mobile: bool) -> None:
        """Makes the screen so many CSS pixels large."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def problems(self) -> list[str]:
        """Exceptions, errors on the console and resources that failed, since `open`."""
        return [text for event in self.events if (text := _problem(event))]

    def requests(self) -> list[str]:
        """Addresses of everything that was loaded since `open`."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def _wait_for_load(self) -> None:
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            received = self._socket.recv(1 << 16)
            assert received, "Chromium has ended"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


def _problem(event: dict[str, Any]) -> str | None:
    method, content = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
        details = content["exceptionDetails"]
        return details.get("exception", {}).get("description", details["text"])
    if method == "Runtime.consoleAPICalled" and content["type"] in ("error", "assert"):
        return " ".join(str(value.get("value")) for value in content["args"])
    if method == "Log.entryAdded" and content["entry"]["level"] == "error":
        return f"{content['entry']['text']} {content['entry'].get('url', '')}"
    if method == "Network.loadingFailed" and not content.get("canceled"):
        return f"a resource failed: {content['errorText']}"
    return None
