"""What a plain `import tfnorm` loads."""

import subprocess
import sys

_PROGRAM = """
import sys
import keras, numpy, tensorflow
before = set(sys.modules)
import tfnorm
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(tfnorm.training.Config().norm)
"""


def test_tfnorm_loads_tensorflow_keras_numpy_and_nothing_else():
    """No TFDS, scikit-learn, absl.flags or matplotlib: only modules of Python's own beside."""
    found = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
    )
    loaded, norm = found.stdout.splitlines()
    others = set(loaded.split()) - set(sys.stdlib_module_names)
    assert others == {"tfnorm"}
    assert norm == "bn"
