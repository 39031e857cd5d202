#!/bin/sh
# Training on a TPU: sh examples/tpu.sh [local | NAME | grpc://HOST:PORT] [more flags of tfnorm.train]
#
# On a TPU VM, with tensorflow-tpu in place of tensorflow, its own cores are "local", the default. A
# TPU elsewhere is found by its name (pip install "tfnorm[tpu]") or by its address.
#
# It runs a recipe, ResNet-50 with mabn on ImageNet: 8 cores of 32 images, each of them in 16 groups
# of 2, that communicate nothing for their statistics, while syncbn takes two collectives a layer.
# --data_dir says where TFDS has prepared imagenet2012; other recipes and flags do as well.
# Many steps a loop keep the host out of the way; bfloat16 is what a TPU computes fastest in,
# statistics stay in float32.
tpu="${1:-local}"
[ "$#" -eq 0 ] || shift
exec "${PYTHON:-python}" -m tfnorm.train \
    --flagfile="$(dirname "$0")/../recipes/imagenet_resnet50_mabn.flags" \
    --distribution_strategy=tpu --tpu="$tpu" --num_replicas=0 \
    --steps_per_loop=200 --mixed_precision=mixed_bfloat16 \
    --model_dir=runs/tpu "$@"
