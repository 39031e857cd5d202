"""What all commands of tfnorm share: absl flags, one line an error, exit codes."""

import sys
from collections.abc import Callable, Sequence

from absl import flags

from tfnorm import output
from tfnorm.errors import RunError, UserError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

_FLAGFILE = (
    "  --flagfile (default: none)",
    "      File of flags, one a line; a line that starts with # is a comment. The last of a flag "
    "wins.",
)


def run(
    define: Callable[[], flags.FlagValues],
    main: Callable[[flags.FlagValues], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the command line, runs a command and turns its errors into an exit code.

    Flags live in a FlagValues of their own and not in absl's global one, so that commands may share
    names and one process may call several.

    Args:
        define: Makes the command's flags.
        main: The command.
        argv: Program name and arguments; None is sys.argv.

    Returns:
        0; 2 for a user's mistake (a UserError or a wrong flag), 1 for a RunError, both with
        one line on stderr; 130 after an interruption. A stdout or stderr that is closed or full
        ends nothing.
    """
    with output.tolerated():
        return _run(define, main, argv)


def whole_numbers(texts: Sequence[str], name: str) -> list[int]:
    """The values of a flag that lists whole numbers, such as seeds.

    Raises:
        UserError: One of them is none.
    """
    wrong = [text for text in texts if not text.isdecimal()]
    if wrong:
        raise UserError(f"{name} are numbers from 0 on, as in --{name}=0,1; received {wrong[0]!r}")
    return [int(text) for text in texts]


def _run(
    define: Callable[[], flags.FlagValues],
    main: Callable[[flags.FlagValues], None],
    argv: Sequence[str] | None,
) -> int:
    argv = sys.argv if argv is None else argv
    try:
        values = define()
        flags.DEFINE_bool("help", False, "Print the flags and exit.", flag_values=values)
        positional = _parse(values, argv)
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


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Sets the flags, those in the file of --flagfile as well; returns what is none."""
    try:
        return values(list(argv))[1:]
    except flags.CantOpenFlagFileError as error:
        reason = getattr(error.__context__, "strerror", None) or error
        name = getattr(error.__context__, "filename", None)
        raise UserError(f"cannot read --flagfile={name} ({reason}); give a file of flags") from None
    except UnicodeDecodeError:
        raise UserError(
            "what --flagfile names is no text in UTF-8; a file of flags has one flag a line"
        ) from None


def _report(text: str, code: int) -> int:
    print(f"tfnorm: {' '.join(text.split())}", file=sys.stderr)
    return code


def _help(main: Callable, values: flags.FlagValues) -> str:
    lines = [sys.modules[main.__module__].__doc__ or "", "", *_FLAGFILE]
    for name in sorted(values):
        flag = values[name]
        lines.append(f"  --{name} (default: {flag.default_as_str or 'none'})")
        lines.append(f"      {flag.help}")
    return "\n".join(lines)
