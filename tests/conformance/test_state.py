"""When a step may change a normalizer's state, and when not, for every one of the registry."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks
from tests.conformance.test_robustness import Single
from tests.layers import running
from tfnorm.layers import BatchRenormalization, recomputation

SHAPE = (4, 3, 5)


@pytest.mark.parametrize("bad", [np.nan, 1e30])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_one_bad_example(name, bad):
    """Its group keeps its state, the others go on; so does all of it with the next batch."""
    groups = 1 if name == "syncbn" else 2
    layer = Single(name, SHAPE, virtual_replicas=groups)
    clean = Single(name, SHAPE, virtual_replicas=groups)
    rng = np.random.default_rng(1)
    for step in range(6):
        x, dy = rng.normal(1, 2, SHAPE), rng.normal(size=SHAPE)
        before = layer.state()
        if step in (0, 3):
            x[0, 1, 2] = bad
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                layer(x, dy)
            said = [w for w in caught if "leaves its statistics as they are" in str(w.message)]
            assert len(said) == (step == 0)  # once
            after = layer.state()
            if groups == 1:
                networks.assert_identical(after, before)
            for variable in set(after) - {"moving_mean", "moving_variance"}:
                np.testing.assert_array_equal(after[variable][:, 0], before[variable][:, 0])
            assert all(np.isfinite(value).all() for value in after.values())
            changed = [key for key in after if not np.array_equal(after[key], before[key])]
            assert bool(changed) == (groups == 2)
        else:
            y, dx, *_ = layer(x, dy)
            assert np.isfinite(y).all() and np.isfinite(dx).all()
            clean(x, dy)
    if groups == 1:
        networks.assert_identical(layer.state(), clean.state())


@pytest.mark.parametrize("name", ["bn", "mabn", "bkn", "on"])
def test_a_graph_says_it_too(name):
    layer = Single(name, SHAPE).layer
    step = tf.function(lambda x: layer(x, training=True))
    step(tf.zeros(SHAPE))
    with pytest.warns(UserWarning, match="leaves its statistics as they are") as caught:
        for _ in range(3):
            step(tf.fill(SHAPE, np.float32(np.nan)))
    assert len(caught) == 1


@pytest.mark.parametrize("is_graph", [False, True])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_recomputation(name, is_graph):
    """tf.recompute_grad: the gradients and the state of a step without it."""
    rng = np.random.default_rng(2)
    layers = [Single(name, SHAPE).layer for _ in range(2)]
    steps = [recomputing_step(layer, index == 1) for index, layer in enumerate(layers)]
    steps = list(map(tf.function, steps)) if is_graph else steps
    for _ in range(4):
        x, dy = (tf.constant(rng.normal(size=SHAPE), tf.float32) for _ in range(2))
        plain, again = (step(x, dy) for step in steps)
        for a, b in zip(plain, again, strict=True):
            running.assert_close(a, b, 1e-5)
        for a, b in zip(layers[0].variables, layers[1].variables, strict=True):
            running.assert_close(running.number(b), running.number(a), 1e-5, a.name)


def test_recomputation_of_one_tensor_time_and_again(rng):
    """Whose passes without a gradient leave nothing that a later one takes for its own."""
    x, dy = (tf.constant(rng.normal(2, 3, size=SHAPE), tf.float32) for _ in range(2))
    layers = [BatchRenormalization(momentum=0.5, r_max=3.0, d_max=5.0) for _ in range(2)]
    calls = [functools.partial(layer, training=True) for layer in layers]
    kept = len(recomputation._first_passes)
    calls[1] = tf.recompute_grad(calls[1])
    for step in range(24):
        gradients = []
        for layer, call in zip(layers, calls, strict=True):
            if step % 3 == 0:
                call(x)
            if step % 3 == 1:
                with tf.GradientTape() as tape:  # that nobody asks for a gradient
                    tape.watch(x)
                    call(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(call(x) * dy)
            gradients.append(tape.gradient(loss, x))
            layer.moving_variance.assign(tf.fill(SHAPE[-1:], 0.2 + step % 5))
        running.assert_close(gradients[1], gradients[0], 1e-5)
    assert len(recomputation._first_passes) <= kept + 2


def test_recomputation_within_another(rng):
    """The inner one runs a third time, by which only its own normalizer is asked."""

    def blocks():
        layers = [BatchRenormalization(momentum=0.5, r_max=3.0, d_max=5.0) for _ in range(2)]
        for layer, scale in zip(layers, (0.2, 30.0), strict=True):
            layer.build(SHAPE)
            layer.moving_variance.assign(tf.fill(SHAPE[-1:], scale))
        return [functools.partial(layer, training=True) for layer in layers]

    numbers = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    gradients, states = [], []
    for wrap in (lambda call: call, tf.recompute_grad):
        outer, inner = blocks()
        x, dy = map(tf.constant, numbers)
        for _ in range(2):
            block = wrap(lambda z: wrap(inner)(tf.tanh(outer(z))))  # noqa: B023
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(block(x) * dy)
            gradients.append(tape.gradient(loss, x))
        states.append([v.numpy() for call in (outer, inner) for v in call.func.variables])
    for plain, again in zip(gradients[:2], gradients[2:], strict=True):
        running.assert_close(again, plain, 1e-5)
    for plain, again in zip(*states, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5)


def test_inputs_of_recomputed_blocks_are_let_go(rng):
    """All but the first block's, which the next step lets go."""
    calls = [
        tf.recompute_grad(functools.partial(BatchRenormalization(), training=True))
        for _ in range(4)
    ]
    kept = len(recomputation._first_passes)
    for _ in range(3):
        x = tf.constant(rng.normal(size=SHAPE), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for call in calls:
                y = tf.tanh(call(y))
        tape.gradient(y, x)
    del tape
    assert len(recomputation._first_passes) <= kept + 1


def test_a_remat_scope_changes_no_state_twice(rng):
    """Of Keras' own kind, which hands keyword arguments on; eagerly, as TensorFlow needs it."""
    x, y = rng.normal(size=(4, 3, 5)).astype(np.float32), rng.normal(size=(4, 3, 5))
    states = []
    for mode in (None, "full"):
        with keras.RematScope(mode=mode):
            model = keras.Sequential([keras.Input((3, 5)), BatchRenormalization(momentum=0.5)])
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0)
        assert int(model.layers[0].step.value) == 2
        states.append(model.get_weights())
    for plain, again in zip(*states, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_recomputation_of_a_graph_is_refused(name):
    """It would count its steps twice; within a graph it is fine, see above."""
    layer = Single(name, SHAPE).layer
    call = tf.recompute_grad(tf.function(lambda x: layer(x, training=True)))
    with pytest.raises(ValueError, match=r"tf\.recompute_grad of a tf\.function\. Give"):
        call(tf.ones(SHAPE))


def recomputing_step(layer, is_recomputed):
    def block(x):
        y = layer(x, training=True)
        return y[0] if isinstance(y, tuple) else y

    def step(x, dy):
        call = tf.recompute_grad(block) if is_recomputed else block
        weights = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(call(x)) * dy)
        return tape.gradient(loss, [x, *weights], unconnected_gradients="zero")

    return step


@pytest.mark.parametrize("given", ["tensors", "variables"])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_a_stateless_call_writes_nothing(name, given):
    """Whether values or the model's own variables are handed to it."""
    model = networks.network(name)
    before = [running.number(v) for v in model.variables]
    x, dy = (tf.constant(values, tf.float32) for values in networks.batch(0))
    values = [[tf.identity(v.value) for v in model.trainable_variables]]
    values.append([tf.identity(v.value) for v in model.non_trainable_variables])
    lent = values
    if given == "variables":
        lent = [model.trainable_variables, model.non_trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(values[0])
        y, new = model.stateless_call(*lent, x, training=True)
        loss = tf.reduce_sum(y * dy)
    tape.gradient(loss, values[0])
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(running.number(variable), value, variable.path)
    assert any(not np.array_equal(a, b) for a, b in zip(new, values[1], strict=True))


@pytest.mark.parametrize("options", [{}, {"virtual_replicas": 2}])
@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_gradients_wait_for_the_forward_pass_to_read(name, options):
    """Else an update of a weight could overtake the read of it, where the loss is linear in y.

    By data: TensorFlow's graph optimizer can lose an edge of control.
    """
    model = networks.network(name, **({} if name == "syncbn" else options))
    x, dy = (tf.constant(values, tf.float32) for values in networks.batch(0))

    @tf.function
    def step():
        variables = [v.value for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) * dy)
        return tape.gradient(loss, variables, unconnected_gradients="none")

    graph = step.get_concrete_function().graph
    gradients = iter(graph.outputs)
    captured = {placeholder.name: value for value, placeholder in graph.captures}
    for variable in model.trainable_variables:
        assert variable.value.handle in read_by(next(gradients).op, captured), variable.path


def read_by(op, captured):
    """Handles of the variables whose value an operation needs."""
    handles, seen, queue = [], set(), [op]
    while queue:
        op = queue.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.type == "ReadVariableOp":
            handles.append(captured[op.inputs[0].name])
        queue += [value.op for value in op.inputs]
    return Handles(handles)


class Handles(list):
    """Tensors do not compare by identity."""

    def __contains__(self, handle):
        return any(handle is other for other in self)


def test_a_layer_is_named_by_what_it_says(rng):
    keras.utils.set_random_seed(0)
    layer = Single("brn", SHAPE).layer
    layer.name = "stem_norm"
    with pytest.warns(UserWarning, match="'stem_norm' leaves its statistics"):
        layer(tf.fill(SHAPE, np.float32(np.inf)), training=True)
