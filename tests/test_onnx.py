"""The node tests that ONNX ships for InstanceNormalization and LayerNormalization, statistics included."""

import numpy as np
import pytest

import normkit as nk

pytest.importorskip("onnx")

OPS = ("InstanceNormalization", "LayerNormalization")


def _cases():
    from onnx.backend.test.case.node import collect_testcases

    return [
        case
        for case in collect_testcases("")
        if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in OPS and "_expanded" not in case.name
    ]


@pytest.mark.filterwarnings("ignore")  # of ONNX's own, while it computes other cases
def test_node_cases():
    import onnx

    cases = _cases()
    assert len(cases) >= 20
    seen = set()
    for case in cases:
        node = case.model.graph.node[0]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for inputs, outputs in case.data_sets:
            for backend in ("numba", "numpy"):
                results = _run(node.op_type, attributes, inputs, backend)
                for actual, expected in zip(results, outputs, strict=False):
                    seen.add((node.op_type, len(outputs)))
                    assert actual.shape == expected.shape, case.name
                    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-7, err_msg=case.name)
    assert seen == {("InstanceNormalization", 1), ("LayerNormalization", 3)}


def _run(op, attributes, inputs, backend):
    policy = nk.FallbackPolicy.onnx()
    eps = attributes.get("epsilon", 1e-5)
    x, scale, *bias = inputs
    if op == "InstanceNormalization":
        return (nk.instance_norm(x, weight=scale, bias=bias[0], eps=eps, policy=policy, backend=backend),)
    axes = tuple(range(attributes.get("axis", -1) % x.ndim, x.ndim))
    weight, *bias = (p.reshape(x.shape[axes[0] :]) for p in (scale, *bias))
    bias = bias[0] if bias else None
    return nk.layer_norm(x, axis=axes, weight=weight, bias=bias, eps=eps, return_stats=True, policy=policy, backend=backend)
