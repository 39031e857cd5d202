#!/usr/bin/env bash
# Installs the wheel in a clean environment and uses it there, away from the checkout.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
cp -r "$checkout"/{setup.py,pyproject.toml,README.md,tfnorm} "$work/source"
cd "$work"
"${PYTHON:-python3}" -m venv clean
clean/bin/pip wheel --no-deps --wheel-dir . ./source
rm -r source
clean/bin/pip install --constraint "$checkout/constraints.txt" ./tfnorm-*.whl

clean/bin/python - <<'SCRIPT'
import keras
import numpy as np

import tfnorm

print("tfnorm", tfnorm.__version__, "from", tfnorm.__file__)
rng = np.random.default_rng(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, use_bias=False),
        tfnorm.layers.BatchRenormalization(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10),
    ]
)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images = rng.normal(size=(32, 8, 8, 1)).astype("float32")
model.fit(images, rng.integers(0, 10, 32), batch_size=8, verbose=0)
folded, report = tfnorm.fold(model)
print(report)
difference = np.abs(folded.predict(images, verbose=0) - model.predict(images, verbose=0)).max()
assert difference < 1e-5, difference
SCRIPT
for command in tfnorm-train tfnorm-compare tfnorm-export; do
  clean/bin/$command --model_dir= --norms=no_such_norm >log 2>&1 && exit 1
  test "$(tail -n 1 log | grep -c Traceback)" = 0
done
# One step of a run, from the console script.
clean/bin/tfnorm-train --model_dir="$work/run" --steps=1 --norm=brn --data_dir="$work/data"
clean/bin/tfnorm-export --model_dir="$work/run" --output_dir="$work/exported"
echo "The wheel installs and runs in a clean environment."
