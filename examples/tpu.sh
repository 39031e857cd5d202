#!/bin/sh
# Training on a TPU: sh examples/tpu.sh [local | NAME | grpc://HOST:PORT] [more flags of tfnorm.train]
#
# On a TPU VM, with tensorflow-tpu in place of tensorflow, its own cores are "local", the default. A
# TPU elsewhere is found by its name (pip install "tfnorm[tpu]") or by its address.
#
# 8 cores of 4 images each: the norms that suit such batches communicate nothing for them, while
# syncbn takes two collectives a layer. Many steps a loop keep the host out of the way; bfloat16 is
# what a TPU computes fastest in, statistics stay in float32.
tpu="${1:-local}"
[ "$#" -eq 0 ] || shift
exec "${PYTHON:-python}" -m tfnorm.train \
    --distribution_strategy=tpu --tpu="$tpu" \
    --steps_per_loop=200 --mixed_precision=mixed_bfloat16 \
    --model=resnet20 --norm=brn --replica_batch_size=4 \
    --dataset=cifar10 --augment=pad_crop_flip --epochs=50 \
    --model_dir=runs/tpu "$@"
