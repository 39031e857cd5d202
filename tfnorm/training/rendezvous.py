"""Workers meet before TensorFlow connects them: who is missing, and whether they want the same.

TensorFlow waits for a worker in C++, for an hour, without a word and deaf to SIGTERM, and does not
ask whether all run the same program: with another number of replicas the first collective hangs.
So the chief first listens at its own address of TF_CONFIG, where TensorFlow will listen after, each
other worker sends it a line of JSON, and gets the chief's verdict.
"""

import contextlib
import errno
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from tfnorm.errors import RunError, UserError
from tfnorm.training import agreement, cluster
from tfnorm.training.cluster import Cluster

_SAY_AFTER = 10.0  # Seconds of waiting before it is reported; then ten times as many.
_RETRY = 0.2
_RESOLVE = 30.0  # Names of machines that are just being started come to be known.
_LONGEST = 1 << 20  # Bytes of a message: more is somebody else's.


def meet(own: Cluster, says: dict[str, Any], timeout: float, notice: Callable[[str], None]) -> None:
    """Returns when all workers are there and have said the same.

    Args:
        own: The cluster, and which of its workers this is.
        says: What all have to agree on.
        timeout: Seconds to wait for the others.
        notice: Called with a line that says for whom this worker waits.

    Raises:
        UserError: They disagree, two are the same one, or an address cannot be resolved.
        RunError: A worker has not come in time, or went before all were there.
    """
    if len(own.addresses) == 1:
        return
    clock = _Clock(timeout, notice)
    for name, address in own.addresses.items():
        _resolve(name, address, min(timeout, _RESOLVE))
    if own.own == own.chief:
        with _listening(own, clock) as server:
            _Host(own, says, clock).serve(server)
    else:
        _visit(own, says, clock)


class _Clock:
    """How long this worker has waited, which it tells now and then."""

    def __init__(self, timeout: float, notice: Callable[[str], None]) -> None:
        self._start, self._timeout, self._notice = time.monotonic(), timeout, notice
        self._next = _SAY_AFTER

    def tick(self, missing: str) -> None:
        """Tells for whom it waits, if it is time.

        Raises:
            RunError: It has waited long enough.
        """
        waited = time.monotonic() - self._start
        if waited > self._timeout:
            raise RunError(
                f"{missing} did not come within {self._timeout:g} seconds; start it, or wait "
                "longer with --worker_timeout"
            )
        if waited > self._next:
            self._next = 10 * self._next if self._next < 60 else self._next + 60
            self._notice(f"waiting for {missing}, at most {self._timeout:g} seconds")


def _resolve(name: str, address: str, seconds: float) -> None:
    host, port = cluster.split(name, address)
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"the address '{address}' of {name} in TF_CONFIG cannot be resolved ({reason})"
                ) from None
        time.sleep(_RETRY)


@contextlib.contextmanager
def _listening(own: Cluster, clock: _Clock) -> Iterator[socket.socket]:
    """A server at the own port, on all interfaces as TensorFlow's."""
    address = own.addresses[own.own]
    _, port = cluster.split(own.own, address)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    while True:
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise RunError(f"{own.own} cannot listen at {address} ({error.strerror})") from None
            clock.tick(f"another process to leave the port {port} of {own.own}")
        time.sleep(_RETRY)
    with server:
        yield server


class _Host:
    """The chief: hears all others, and tells them the verdict."""

    def __init__(self, own: Cluster, says: dict[str, Any], clock: _Clock) -> None:
        self._cluster, self._clock = own, clock
        self._said: dict[str, dict[str, Any]] = {own.own: says}
        self._guests: dict[str, socket.socket] = {}

    def serve(self, server: socket.socket) -> None:
        """Returns when all have come and agree."""
        error: Exception | None = None
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            try:
                while missing := self._missing():
                    self._clock.tick(missing)
                    for key, _ in selector.select(timeout=_RETRY):
                        if key.fileobj is server:
                            guest = stack.enter_context(server.accept()[0])
                            guest.setblocking(False)
                            selector.register(guest, selectors.EVENT_READ, bytearray())
                        elif not self._hear(key.fileobj, key.data):
                            selector.unregister(key.fileobj)
                            self._forget(key.fileobj)
                found = agreement.differences(
                    {name: self._said[name] for name in self._cluster.addresses}
                )
                if found:
                    raise UserError(found)
            except (UserError, RunError) as raised:
                error = raised
            self._tell(error)
        if error:
            raise error

    def _missing(self) -> str:
        missing = [name for name in self._cluster.addresses if name not in self._said]
        return ", ".join(f"{name} ({self._cluster.addresses[name]})" for name in missing)

    def _hear(self, guest: socket.socket, received: bytearray) -> bool:
        """Takes what a guest sends; False if it is gone, or nobody that is waited for."""
        try:
            part = guest.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        received += part
        if not part or len(received) > _LONGEST:
            return False
        if not received.endswith(b"\n"):
            return True
        try:
            message = json.loads(received)
            name, says = message["worker"], dict(message["says"])
        except (ValueError, KeyError, TypeError):
            return False
        if name not in self._cluster.addresses:
            return False
        if name in self._said:
            raise UserError(
                f"two processes say that they are {name}; give each worker a TF_CONFIG with an "
                "index of its own"
            )
        self._said[name], self._guests[name] = says, guest
        return True

    def _forget(self, guest: socket.socket) -> None:
        """A worker that ended while it waited may be started again."""
        for name in [name for name, known in self._guests.items() if known is guest]:
            del self._guests[name], self._said[name]
        guest.close()

    def _tell(self, error: Exception | None) -> None:
        verdict = {"error": error and str(error), "user": isinstance(error, UserError)}
        for guest in self._guests.values():
            with contextlib.suppress(OSError):
                guest.settimeout(5)
                guest.sendall(json.dumps(verdict).encode() + b"\n")
                guest.recv(1)  # It hangs up first, so that the port here is free at once.


def _visit(own: Cluster, says: dict[str, Any], clock: _Clock) -> None:
    """Another worker than the chief: says what it wants, and hears whether all want that."""
    address = cluster.split(own.chief, own.addresses[own.chief])
    missing = f"{own.chief} ({own.addresses[own.chief]})"
    message = json.dumps({"worker": own.own, "says": says}).encode() + b"\n"
    while True:
        received = b""
        with contextlib.suppress(OSError), socket.create_connection(address, 5) as host:
            host.sendall(message)
            host.settimeout(_RETRY)
            while not received.endswith(b"\n"):
                try:
                    part = host.recv(65536)
                except TimeoutError:
                    clock.tick(f"{own.chief}, which waits for other workers")
                    continue
                received += part
                if not part:
                    break
        with contextlib.suppress(ValueError, KeyError, TypeError):  # Of whoever else listens there.
            verdict = json.loads(received)
            error, by_user = verdict["error"], verdict["user"]
            break
        clock.tick(missing)
        time.sleep(_RETRY)
    if error:
        raise (UserError if by_user else RunError)(error)
