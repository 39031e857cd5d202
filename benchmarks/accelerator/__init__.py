"""Every layer and ResNet-50's training step as XLA compiles them for a TPU or GPU.

    python -m benchmarks.accelerator export --directory=runs/accelerator     # where TensorFlow is
    python -m benchmarks.accelerator run --directory=runs/accelerator        # where JAX is

The first lowers to StableHLO; the directory is small and travels. The second needs JAX and NumPy
and no TensorFlow (`pip install -e '.[accelerator]'`); it compiles and times the programs on the
device that JAX finds. Each prints its flags with --help.
"""
