"""TensorFlow without its start-up talk."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def is_command() -> bool:
    """Whether this process runs `python -m tfnorm...` or a console script of ours."""
    program = sys.argv[0] if sys.argv else ""
    # While Python imports the package of `python -m package.module`, that is all argv[0] says.
    return program == "-m" or os.path.basename(program).startswith("tfnorm-")


def import_tensorflow() -> None:
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
