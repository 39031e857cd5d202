#!/usr/bin/env bash
# Installs the wheel in a clean environment and uses it there, away from the checkout.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source"
cp -r "$checkout"/{setup.py,pyproject.toml,README.md,LICENSE,tfnorm} "$work/source"
cd "$work"
"${PYTHON:-python3}" -m venv clean
clean/bin/pip wheel --no-deps --wheel-dir . ./source
rm -r source
clean/bin/pip install --quiet --constraint "$checkout/constraints.txt" ./tfnorm-*.whl

export TF_CPP_MIN_LOG_LEVEL=3
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
clean/bin/tfnorm-train --model_dir=run --data_dir=data --steps=1 --norm=brn
clean/bin/tfnorm-export --model_dir=run --directory=served
if clean/bin/tfnorm-compare --help 2>refusal; then
  echo "tfnorm-compare runs without the extra that draws its plots" >&2
  exit 1
fi
grep --fixed-strings "pip install tfnorm[report]" refusal
wheel=$(echo ./tfnorm-*.whl)
clean/bin/pip install --quiet --constraint "$checkout/constraints.txt" "${wheel}[report]"
clean/bin/tfnorm-compare --help > help
head -n 1 help
echo "The wheel installs and runs in a clean environment."
