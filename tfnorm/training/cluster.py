"""The cluster of TF_CONFIG: which workers there are, and which of them this process is."""

import collections
import dataclasses
import json

from tfnorm.errors import UserError

_TYPES = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
        addresses: "host:port" of each, by its name, such as "worker 0"; the first is the chief.
        own: The name of this process.
    """

    addresses: dict[str, str]
    own: str

    @property
    def chief(self) -> str:
        """The name of the worker that writes."""
        return next(iter(self.addresses))


def read(text: str) -> Cluster:
    """The cluster that TF_CONFIG describes.

    Raises:
        UserError: It is not of the form that the message shows, has tasks that do not train, or
            an address that is no host:port or stands twice.
    """
    try:
        values = json.loads(text)
        jobs, task = values["cluster"], values["task"]
        kind, index = task["type"], task["index"]
        strange = sorted(({*jobs} | {kind}) - {*_TYPES})
        own = f"{kind} {index}"
        addresses = {
            f"{name} {number}": str(address)
            for name in _TYPES
            for number, address in enumerate(jobs.get(name, ()))
        }
        if not strange:
            addresses[own]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(
            "distribution_strategy=multi_worker_mirrored needs the environment variable TF_CONFIG "
            f"in every worker, received '{text}'; such as "
            '{"cluster": {"worker": ["host0:1234", "host1:1234"]}, '
            '"task": {"type": "worker", "index": 0}}'
        ) from None
    if strange:
        raise UserError(
            f"TF_CONFIG has tasks of type {', '.join(map(str, strange))}; multi_worker_mirrored "
            "knows chief and worker alone: every process trains, and evaluates with the others"
        )
    for name, address in addresses.items():
        split(name, address)
    often = [a for a, count in collections.Counter(addresses.values()).items() if count > 1]
    if often:
        names = [name for name, address in addresses.items() if address == often[0]]
        raise UserError(
            f"the address {often[0]} stands in TF_CONFIG for {' and '.join(names)}; each worker "
            "needs one of its own"
        )
    return Cluster(addresses, own)


def split(name: str, address: str) -> tuple[str, int]:
    """Host and port of a worker's address.

    Raises:
        UserError: It has no port.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"the address '{address}' of {name} in TF_CONFIG is no host:port, such as host0:1234"
        )
    return host.strip("[]"), int(port)
