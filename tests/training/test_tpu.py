"""What a TPU would run, compiled by XLA for the CPU; the way from flags to a TPU by a stand-in."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import two_layers
from tfnorm import models, tasks, train, training
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.training import flags, strategies
from tfnorm.training.batches import of_epoch
from tfnorm.training.trainer import Trainer

STEPS = 2
NORMS = tuple(name for name in norms.NAMES if name != "none")
# Short thresholds, so that the steps cross them.
OPTIONS = {
    "mabn": {"window": 2, "warmup_steps": 1, "correction_start_step": 1},
    "cbn": {"window": 2, "burn_in_steps": 1},
}


@pytest.fixture
def small_network(monkeypatch):
    monkeypatch.setattr(models, "build", two_layers)


def make(data_dir, norm, **fields):
    config = training.Config(
        norm=norm, norm_options=OPTIONS.get(norm, {}), width=4, data_dir=data_dir,
        train_examples=50, replica_batch_size=4, steps_per_loop=STEPS, warmup_epochs=0, **fields,
    )  # fmt: skip
    keras.config.set_dtype_policy(config.mixed_precision)
    return Trainer(config, tasks.load(config), strategies.create(config))


def loop(trainer, jit_compile):
    """`steps_per_loop` steps in one tf.function, each as the trainer's own loop makes it."""

    @tf.function(jit_compile=jit_compile)
    def steps(stacked):
        for index in tf.range(STEPS):
            batch = {name: values[index] for name, values in stacked.items()}
            trainer.strategy.run(trainer._train_step, (index, batch))

    def run(stacked):
        steps(stacked)
        return trainer._records.numpy()

    run.function = steps
    return run


def batches(trainer, count):
    """So many times [STEPS, ...] of images and labels, as the trainer's own input has them."""
    source = of_epoch(trainer.config, trainer.task, 0, 4).batch(STEPS).take(count)
    return list(source.as_numpy_iterator())


def operations(function, *arguments):
    """Those of a function's graph and of the functions that it calls."""
    graph = function.get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("norm", NORMS)
def test_the_loop_of_steps_compiles_and_computes_what_it_does_without(data_dir, norm):
    """Forward, backward, optimizer and metrics; traced once for all calls."""
    compiled, plain = (make(data_dir, norm) for _ in range(2))
    run, wanted = loop(compiled, True), loop(plain, None)
    for stacked in batches(compiled, 3):
        found, expected = run(stacked), wanted(stacked)
        assert np.isfinite(found).all() and (found[:, 0] > 0).all()
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    assert run.function.experimental_get_tracing_count() == 1
    # Not only the metrics: what the optimizer and the normalizers have written.
    for a, b in zip(compiled.model.variables, plain.model.variables):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-2, atol=2e-3, err_msg=a.path)
    python = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
    assert not python & operations(run.function, stacked)


@pytest.mark.usefixtures("small_network")
def test_bfloat16_compiles(data_dir):
    trainer = make(data_dir, "syncbn", mixed_precision="mixed_bfloat16")
    run = loop(trainer, True)
    losses = [run(stacked)[:, 0] for stacked in batches(trainer, 2)]
    assert np.isfinite(losses).all()
    assert run.function.experimental_get_tracing_count() == 1
    assert {v.dtype for v in trainer.model.variables} <= {"float32", "int32"}
    assert any(layer.compute_dtype == "bfloat16" for layer in trainer.model.layers)


def test_all_shapes_are_static(data_dir):
    trainer = make(data_dir, "bn")
    for skip in (0, 7):
        for spec in trainer.epoch_iterator(0, skip).element_spec.values():
            assert spec.shape.is_fully_defined()
    (stacked,) = batches(trainer, 1)
    step = tf.function(trainer._train_step).get_concrete_function(
        tf.constant(0), {name: tf.constant(values[0]) for name, values in stacked.items()}
    )
    kinds = (tf.resource, tf.variant)
    for operation in step.graph.get_operations():
        for tensor in operation.outputs:
            # What the kernel leaves for its gradient on a GPU has no shape here.
            is_left = {user.type for user in tensor.consumers()} <= {"FusedBatchNormGradV3"}
            assert is_left or tensor.dtype in kinds or tensor.shape.is_fully_defined(), tensor


def config(*arguments):
    values = flags.define()
    values(["train", *arguments])
    return flags.config(values)


def test_naming_a_tpu_chooses_the_strategy(monkeypatch):
    resolvers = []
    monkeypatch.setattr(
        tf.distribute.cluster_resolver, "TPUClusterResolver", lambda tpu: resolvers.append(tpu)
    )
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", lambda resolver: None)
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda resolver: None)
    strategy = types.SimpleNamespace(num_replicas_in_sync=8)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver: strategy)
    for name in ("local", "my-tpu"):
        assert strategies.create(config(f"--tpu={name}")) is strategy
    assert resolvers == ["local", "my-tpu"]
    given = config("--tpu=local", "--mixed_precision=mixed_bfloat16", "--steps_per_loop=7")
    assert (given.distribution_strategy, given.tpu) == ("tpu", "local")
    assert (given.mixed_precision, given.steps_per_loop) == ("mixed_bfloat16", 7)


def test_a_tpu_with_another_strategy():
    with pytest.raises(UserError) as error:
        config("--tpu=local", "--distribution_strategy=mirrored")
    assert str(error.value) == (
        "tpu='local' with distribution_strategy=mirrored; choose --distribution_strategy=tpu, or "
        "leave --tpu out"
    )


def test_the_command_says_in_one_line_where_it_looked(tmp_path, capsys, monkeypatch):
    def resolver(tpu):
        raise ValueError("nothing here\nand much more about it")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    assert train.main(["train", "--tpu=local", f"--model_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        "tfnorm: error: found no TPU: looked with TPUClusterResolver for tpu='local' (local is a "
        "TPU VM's own, otherwise a Cloud TPU name or grpc://host:port); ValueError: nothing here\n"
    )
