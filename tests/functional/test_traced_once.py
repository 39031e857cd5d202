"""traced_once: one trace and one operation for all callers, and the function itself elsewhere."""

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as eager_context  # it has no public name

from tfnorm.functional import xla
from tfnorm.functional.traced_once import (
    forget,
    traced_for_any_inner_size,
    traced_for_any_size,
    traced_for_any_small_size,
    traced_once,
)


def counted():
    """A function that is traced once, and how often it has run in Python."""
    calls = []

    @traced_once
    def scale(pair, offset, *, factor):
        calls.append(factor)
        a, b = pair
        return a * b * factor, (a if offset is None else a + offset)

    return scale, calls


def test_callers_of_one_signature_share_a_trace(rng):
    scale, calls = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))

    @tf.function
    def network(a, b):
        for _ in range(3):
            with tf.device("CPU:0"):
                a, b = scale((a, b), None, factor=2.0)
        return a, b

    first = network.get_concrete_function(a, b)
    operations = [node.op for node in first.graph.as_graph_def().node]
    assert sum("PartitionedCall" in op for op in operations) == 3 and "Mul" not in operations
    tf.function(lambda a, b: scale((a, b), None, factor=2.0))(a, b)
    assert calls == [2.0]
    wanted = a, b
    for _ in range(3):
        wanted = wanted[0] * wanted[1] * 2, wanted[0]
    for got, want in zip(network(a, b), wanted, strict=True):
        np.testing.assert_allclose(got, want)


def test_constants_shapes_and_what_is_missing_have_traces_of_their_own(rng):
    scale, calls = counted()
    for factor, size, has_offset in [
        (2.0, 5, False),
        (3.0, 5, False),
        (2.0, 4, False),
        (2.0, 4, 1),
    ]:
        a, b, c = (tf.constant(rng.normal(size=size)) for _ in range(3))
        offset = c if has_offset else None
        product, moved = tf.function(lambda *x, f=factor, o=offset: scale(x, o, factor=f))(a, b)
        np.testing.assert_allclose(product, a * b * factor)
        np.testing.assert_allclose(moved, a + c if has_offset else a)
    assert len(calls) == 4


def test_what_is_forgotten_is_traced_again(rng):
    scale, calls = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))
    for _ in range(2):
        tf.function(lambda a, b: scale((a, b), None, factor=2.0))(a, b)
    forget()
    product, _ = tf.function(lambda a, b: scale((a, b), None, factor=2.0))(a, b)
    np.testing.assert_allclose(product, a * b * 2)
    assert calls == [2.0, 2.0]


def test_eagerly_and_for_xla_it_is_the_function(rng):
    scale, calls = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))
    scale((a, b), None, factor=2.0)
    compiled = tf.function(lambda a, b: scale((a, b), None, factor=2.0), jit_compile=True)
    concrete = compiled.get_concrete_function(a, b)
    assert "Mul" in [node.op for node in concrete.graph.as_graph_def().node]
    assert len(calls) == 2


def test_derivatives_of_both_orders_pass_through(rng):
    scale, _ = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))

    @tf.function
    def derivatives(a, b):
        with tf.GradientTape() as outer:
            outer.watch([a, b])
            with tf.GradientTape() as inner:
                inner.watch(a)
                loss = tf.reduce_sum(scale((a, b), None, factor=2.0)[0] ** 2)
            first = inner.gradient(loss, a)
        return first, outer.gradient(first, b)

    first, second = derivatives(a, b)
    np.testing.assert_allclose(first, 8 * a * b * b)
    np.testing.assert_allclose(second, 16 * a * b)


def test_calls_with_constants_of_their_own_share_a_function(rng):
    """TensorFlow's optimizer would make one for each: start-up and memory would grow with them."""
    scale, _ = counted()

    @tf.function
    def network(a):
        for number in (2.0, 3.0, 4.0):
            a = tf.add_n(scale((a, tf.constant([number] * 5, tf.float64)), None, factor=2.0))
        return a

    context = eager_context.context()
    context.enable_run_metadata()
    context.enable_graph_collection()
    a = rng.normal(size=5)
    result = network(tf.constant(a))
    graphs = context.export_run_metadata().function_graphs
    context.disable_graph_collection()
    context.disable_run_metadata()
    nodes = [node for graph in graphs for node in graph.post_optimization_graph.node]
    names = [node.attr["f"].func.name for node in nodes if node.op == "PartitionedCall"]
    assert len(names) == 3 and len(set(names)) == 1
    np.testing.assert_allclose(result, a * 5 * 7 * 9)


def test_one_within_another_is_a_part_of_its_operation(rng):
    scale, calls = counted()

    @traced_once
    def around(a, b):
        return tf.add_n(scale((a, b), None, factor=2.0))

    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))
    network = tf.function(lambda a, b: around(a, b) + scale((b, a), None, factor=3.0)[0])
    graph = network.get_concrete_function(a, b).graph.as_graph_def()
    operations = [[node.op for node in f.node_def] for f in graph.library.function]
    assert len(operations) == 2 and not any("PartitionedCall" in names for names in operations)
    np.testing.assert_allclose(network(a, b), 2 * a * b + a + 3 * a * b)
    assert calls == [2.0, 3.0]


def test_functions_run_without_the_optimizer_and_what_calls_them_with_it(rng):
    scale, _ = counted()
    a, b = (tf.constant(rng.normal(size=5)) for _ in range(2))
    plain = tf.function(lambda x: 2 * x)
    graph = tf.function(
        lambda a, b: plain(scale((a, b), None, factor=2.0)[0])
    ).get_concrete_function(a, b)
    calls = [node for node in graph.graph.as_graph_def().node if node.op == "PartitionedCall"]
    configs = [tf.compat.v1.ConfigProto.FromString(node.attr["config_proto"].s) for node in calls]
    disabled = [x.graph_options.rewrite_options.disable_meta_optimizer for x in configs]
    assert disabled == [True, False]
    assert all(config.allow_soft_placement for config in configs)


def test_widths_share_a_trace(rng):
    traces = []

    def of_channels(square, vector):
        traces.append(square.shape)
        return tf.matmul(vector, square), tf.reduce_sum(square, 0)

    for share, number in ((traced_for_any_size(of_channels), 2), (traced_once(of_channels), 4)):
        traces.clear()
        for size in (5, 7, 7, 1, 2):
            square, vector = rng.normal(size=(size, size)), rng.normal(size=(1, size))
            graph = tf.function(share, autograph=False)
            product, total = graph(tf.constant(square), tf.constant(vector))
            np.testing.assert_allclose(product, vector @ square)
            np.testing.assert_allclose(total, square.sum(0))
        assert len(traces) == number


def test_the_first_size_stays_where_it_counts(rng):
    traces = []

    @traced_for_any_inner_size
    def mean_over_window(held):
        traces.append(held.shape)
        return tf.reduce_sum(held, 0) / held.shape[0]

    for window, width in ((3, 5), (3, 6), (4, 5)):
        held = tf.constant(rng.normal(size=(window, width)))
        graph = tf.function(lambda x: mean_over_window(x))
        np.testing.assert_allclose(graph(held), held.numpy().mean(0))
    assert [shape.as_list() for shape in traces] == [[3, None], [4, None]]


def test_equal_sizes_of_arguments_say_nothing_of_results(rng):
    twice = traced_for_any_size(lambda x: tf.concat([x, x], 1))
    x = rng.normal(size=(4, 4))
    concrete = tf.function(lambda x: twice(x)).get_concrete_function(tf.constant(x))
    assert concrete.structured_outputs.shape.is_compatible_with([4, 8])
    np.testing.assert_allclose(concrete(tf.constant(x)), np.concatenate([x, x], 1))


def test_small_sizes_share_a_trace_and_large_ones_have_their_own(rng, monkeypatch):
    monkeypatch.setattr(xla, "_SMALL", 50)
    traces = []

    @traced_for_any_small_size
    def total(x):
        traces.append(x.shape.as_list())
        return tf.reduce_sum(x, 0)

    for width in (3, 7, 11, 12):
        x = rng.normal(size=(5, width))
        np.testing.assert_allclose(tf.function(lambda x: total(x))(tf.constant(x)), x.sum(0))
    assert traces == [[None, None], [5, 11], [5, 12]]
