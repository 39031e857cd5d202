"""What all commands of tfnorm share: absl flags, one line an error, exit codes, a quiet start."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from tfnorm.errors import RunError, UserError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def run(
    define: Callable[[], flags.FlagValues],
    main: Callable[[flags.FlagValues], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the command line, runs a command and turns its errors into an exit code.

    Flags live in a FlagValues of their own and not in absl's global one, so that commands may share
    names and one process may call several. TensorFlow is imported here, before `define` and `main`,
    with its start-up talk kept off the terminal.

    Args:
        define: Makes the command's flags.
        main: The command.
        argv: Program name and arguments; None is sys.argv.

    Returns:
        0; 2 for a user's mistake (a UserError or a wrong flag), 1 for a RunError, both with
        one line on stderr; 130 after an interruption.
    """
    argv = sys.argv if argv is None else argv
    try:
        _import_tensorflow_quietly()
        values = define()
        flags.DEFINE_bool("help", False, "Print the flags and exit.", flag_values=values)
        positional = values(list(argv))[1:]
        if values.help:
            print(_help(main, values))
            return DONE
        if positional:
            raise UserError(f"unexpected argument '{positional[0]}'; flags start with --")
        main(values)
    except (UserError, flags.Error) as error:
        return _report(f"error: {error}", MISUSED)
    except RunError as error:
        return _report(f"error: {error}", FAILED)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    return DONE


def _report(text: str, code: int) -> int:
    print(f"tfnorm: {' '.join(text.split())}", file=sys.stderr)
    return code


def _help(main: Callable, values: flags.FlagValues) -> str:
    lines = [sys.modules[main.__module__].__doc__ or "", ""]
    for name in sorted(values):
        flag = values[name]
        lines.append(f"  --{name} (default: {flag.default_as_str or 'none'})")
        lines.append(f"      {flag.help}")
    return "\n".join(lines)


def _import_tensorflow_quietly() -> None:
    """TensorFlow reports missing GPUs and oneDNN on every start, whatever its log level."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _stderr_set_aside():
        import tensorflow as tf

        tf.config.list_physical_devices()  # Looks for GPUs, and talks about it.


@contextlib.contextmanager
def _stderr_set_aside() -> Iterator[None]:
    """Keeps what native code writes to stderr, and shows it only if the block fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(stderr, aside.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
