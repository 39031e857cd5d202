"""Calls one of the two commands, and imports no more than that one needs."""

import importlib
import sys

import benchmarks.accelerator

_COMMANDS = ("export", "run")


def main() -> int:
    """The command that the first argument names; returns its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in _COMMANDS:
        module = importlib.import_module(f"benchmarks.accelerator.{name}")
        return module.main([f"benchmarks.accelerator {name}", *arguments])
    print(benchmarks.accelerator.__doc__)
    if name in ("--help", "-h"):
        return 0
    print(f"error: no command '{name}'; the commands are export and run", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
