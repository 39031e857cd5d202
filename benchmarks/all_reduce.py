"""What an all-reduce costs on N accelerators: a model, from latency and bandwidth of a link.

In both formulas a message of n bytes takes `latency` + n / `bandwidth`. Source: Thakur,
Rabenseifner & Gropp, "Optimization of Collective Communication Operations in MPICH", 2005, without
the time to add numbers up, which accelerators hide.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Link:
    """A connection between two accelerators.

    Attributes:
        latency: seconds until a message of no bytes has arrived.
        bandwidth: bytes a second.
    """

    latency: float
    bandwidth: float

    def message(self, size: float) -> float:
        """Seconds for a message of `size` bytes."""
        return self.latency + size / self.bandwidth


def ring(link: Link, replicas: int, size: float) -> float:
    """Seconds for the sum of `size` bytes over a ring: reduce-scatter, then all-gather.

    Each takes N − 1 messages of size/N one after the other: little data, many latencies.
    """
    return 2 * (replicas - 1) * link.message(size / replicas)


def tree(link: Link, replicas: int, size: float) -> float:
    """Seconds over a binomial tree: all of it to the root, and all of it back.

    Each takes ⌈log2 N⌉ messages of the whole size: few latencies, much data.
    """
    return 2 * math.ceil(math.log2(replicas)) * link.message(size)


ALGORITHMS = {"ring": ring, "tree": tree}


@dataclasses.dataclass(frozen=True)
class Payload:
    """What a replica hands to one collective, which may grow with the number of replicas.

    Attributes:
        constant: bytes whatever the number of replicas.
        each: bytes more for each replica.
    """

    constant: float
    each: float

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> "Payload":
        """The line through two measured points (replicas, bytes)."""
        each = (second[1] - first[1]) / (second[0] - first[0])
        return cls(first[1] - each * first[0], each)

    def size(self, replicas: int) -> float:
        """Bytes on so many replicas."""
        return self.constant + self.each * replicas
