"""What a call would do and why: every branch of the explanation, and that the errors say the same."""

import numpy as np
import pytest
from test_dispatch import Fake

import normkit as nk
from normkit import registry, validation
from normkit.explaining import _layout, explanation

SHAPE = (128, 512, 1, 1)
F32 = np.float32


def lines(op, x, *args, **options):
    """The explanation as a dict from what to text."""
    return dict(nk.explain(op, x, *args, **options).lines)


def flat(text):
    """Without line breaks, so that where a text is wrapped does not matter."""
    return " ".join(str(text).split())


@pytest.fixture
def fake():
    def register(*args, **options):
        backend = Fake(*args, **options)
        nk.register_backend(backend)
        names.append(backend.name)

    names = []
    yield register
    for name in names:
        registry._forget(name)


# the question with which the project began

TAUGHT = [
    "axes (2, 3), of sizes (1, 1)",  # over which axes
    "65536 sets of statistics, each over 1 element",  # of each (instance, channel)
    "One element is its own mean and has variance 0",
    "x - mean is 0",
    "whatever x holds",
    "Nothing divides by zero (eps is inside the root)",
    "silently erased",
    "torch raises for that reason",
    "ONNX, Flax, MLX and Keras return the bias",
    "More than one element is enough: (128, 512, 1, 2) works",  # not "at least 2x2"
    "over the 512 channels of each instance: another function, not a fix",
]
CODE = [
    'nk.instance_norm(x, policy=nk.FallbackPolicy(single_element="identity"))',
    'nk.instance_norm(x, policy=nk.FallbackPolicy(single_element="bias"))',
    'nk.instance_norm(x, policy=nk.FallbackPolicy(single_element="layer_norm"))',
    "nk.instance_norm(x, running_mean, running_var, use_input_stats=False)",
    "with nk.using(policy=nk.FallbackPolicy.onnx()): ...",
]


def test_it_teaches_the_single_element():
    text = str(nk.explain("instance_norm", SHAPE))
    assert text.startswith("instance_norm on x: (128, 512, 1, 1) float32\n")
    for part in TAUGHT:
        assert part in flat(text)
    for code in CODE:
        assert code in text
    assert "the policy's single_element='raise' raises DegenerateShapeError" in flat(text)


def test_the_error_says_the_same():
    with pytest.raises(nk.DegenerateShapeError) as error:
        nk.instance_norm(np.zeros(SHAPE, F32))
    assert str(error.value).startswith("instance_norm: x ")
    assert "expected more than 1" in str(error.value).splitlines()[0]
    for part in TAUGHT:
        assert part in flat(error.value)
    for code in CODE:
        assert code in str(error.value)


def test_the_code_to_type_works():
    x = np.random.default_rng(0).normal(size=(2, 4, 1, 1)).astype(F32)
    names = {"nk": nk, "x": x, "running_mean": np.zeros(4), "running_var": np.ones(4)}
    for code in CODE:
        exec(code, names)
    exec(CODE[-1].replace("...", "y = nk.instance_norm(x)"), names)
    assert not names["y"].any()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("raise", "raises DegenerateShapeError"),
        ("bias", "returns 0 everywhere"),
        ("identity", "returns x * weight + bias"),
        ("layer_norm", "normalizes over the channels of each instance"),
        ("running", "uses the running statistics, which this call lacks: it raises"),
    ],
)
def test_what_each_answer_would_do(answer, text):
    said = lines("instance_norm", SHAPE, policy=nk.FallbackPolicy(single_element=answer))["single"]
    assert f"single_element={answer!r} {text}" in flat(said)


def test_what_answers_do_with_a_bias_and_with_running_statistics():
    bias = np.zeros(512, F32)
    assert "returns the bias everywhere" in flat(
        lines("instance_norm", SHAPE, bias=bias, policy=nk.FallbackPolicy.onnx())["single"]
    )
    running = nk.FallbackPolicy(single_element="running")
    said = lines("instance_norm", SHAPE, np.zeros(512), np.ones(512), policy=running)["single"]
    assert flat(said).endswith("uses the running statistics")


def test_a_callable_answer():
    def zeros(problem):
        return problem.x * 0

    said = lines("instance_norm", SHAPE, policy=nk.FallbackPolicy(single_element=zeros))["single"]
    assert "calls zeros(problem)" in said


def test_layer_norm_over_one_element():
    said = nk.explain("layer_norm", (8, 1))
    assert "(8, 2) works" in flat(said)
    assert "single_element='bias' returns 0 everywhere" in flat(said)
    assert "channels" not in str(said)
    with pytest.raises(nk.DegenerateShapeError, match=r"\(8, 2\) works"):
        nk.layer_norm(np.ones((8, 1), F32), policy=nk.FallbackPolicy.strict())


def test_instance_norm_without_spatial_axes():
    said = flat(nk.explain("instance_norm", (8, 3)))
    assert "no axis: 24 sets of statistics, each over 1 element" in said
    assert "(8, 3, 2) works" in said


def test_the_choices_are_those_that_there_are():
    text = str(nk.explain("instance_norm", (8, 1, 1)))
    assert "layer_norm" not in text  # over one channel it is no help
    text = str(nk.explain("instance_norm", (8, 1, 3), channel_axis=-1))
    assert 'nk.instance_norm(x, channel_axis=2, policy=nk.FallbackPolicy(single_element="layer_norm"))' in text
    text = str(nk.explain("layer_norm", (8, 1, 3), axis=1))
    assert 'nk.layer_norm(x, axis=1, policy=nk.FallbackPolicy(single_element="identity"))' in text


@pytest.mark.parametrize(
    ("op", "shape"),
    [("layer_norm", (0, 0)), ("layer_norm", (8, 0)), ("instance_norm", (2, 3, 0)), ("instance_norm", (0, 0, 0))],
)
def test_nothing_is_not_more_than_one(op, shape):
    assert lines(op, shape)["single"] == "does not arise: x is empty, and so is the output"


@pytest.mark.parametrize("shape", [(1, 2), (128, 512, 1, 2), (0, 5)])
def test_where_the_single_element_does_not_arise(shape):
    said = lines("layer_norm" if len(shape) == 2 else "instance_norm", shape)
    assert flat(said["single"]).startswith("does not arise")
    assert not {"why", "choices"} & said.keys()


# masks


def test_what_a_mask_leaves():
    mask = np.ones((2, 1, 5), bool)
    said = lines("instance_norm", (2, 3, 5), mask=mask)
    assert said["mask"] == "leaves 2 elements or more of each set, so the policy is not asked"
    assert "single" not in said
    mask[1, 0, 1:] = False
    said = lines("instance_norm", (2, 3, 5), mask=mask)
    assert said["mask"].startswith("leaves fewer than 2 elements of 3 of the 6 sets: one of x[1, 0, :], x[1, 1, :]")
    assert said["single"].startswith(
        "where the mask leaves fewer than 2 elements of a set, the policy's single_element='raise'"
    )
    with pytest.raises(nk.DegenerateShapeError) as error:
        nk.instance_norm(np.zeros((2, 3, 5), F32), mask=mask)
    for code in said["choices"].splitlines():
        assert code in str(error.value)


def test_the_shape_of_a_mask_will_do():
    said = lines("layer_norm", (2, 3, 5), mask=(2, 1, 1))
    assert said["mask"] == "statistics are those of the elements where it is True; all are normalized"
    assert said["single"].endswith("the policy's single_element='bias' returns 0")
    assert lines("layer_norm", (2, 3, 1), mask=(2, 3, 1)).keys() == lines("layer_norm", (2, 3, 1)).keys()
    with pytest.raises(nk.InputTypeError, match="mask is"):
        nk.explain("layer_norm", (2, 3, 5), mask=(2.0, 1, 1))


# axes, affine, layout


@pytest.mark.parametrize(
    ("op", "shape", "arguments", "text"),
    [
        ("layer_norm", (8, 512), {}, "axis 1, of size 512: 8 sets of statistics, each over 512 elements"),
        ("layer_norm", (5,), {}, "axis 0, of size 5: 1 set of statistics, each over 5 elements"),
        ("layer_norm", (2, 3, 4), {"axis": (0, 2)}, "axes (0, 2), of sizes (2, 4): 3 sets of statistics, each over 8 elements"),
        ("instance_norm", (8, 3, 4, 5), {}, "axes (2, 3), of sizes (4, 5): 24 sets of statistics, each over 20 elements"),
        ("instance_norm", (8, 4, 5, 3), {"channel_axis": -1}, "axes (1, 2), of sizes (4, 5): 24 sets"),
        (
            "instance_norm",
            (8, 3, 4),
            {"running_mean": np.zeros(3), "running_var": np.ones(3), "use_input_stats": False},
            "none: the statistics are the running ones, a pair for each of 3 channels",
        ),
    ],
)
def test_what_is_reduced(op, shape, arguments, text):
    assert text in flat(lines(op, shape, **arguments)["reduced"])


@pytest.mark.parametrize(
    ("op", "arguments", "text"),
    [
        ("layer_norm", {}, "no weight, no bias; each would have shape (4,), one for each element of a set"),
        ("instance_norm", {}, "no weight, no bias; each would have shape (3,), one for each channel"),
        ("layer_norm", {"weight": np.ones(4, F32)}, "weight (float32), no bias: shape (4,), one for each element of a set"),
        ("layer_norm", {"normalized_shape": (3, 4), "bias": np.ones((3, 4))}, "no weight, bias (float64): shape (3, 4)"),
        ("instance_norm", {"weight": np.ones(3, F32), "bias": np.ones(3, F32)}, "weight (float32), bias (float32): shape (3,)"),
    ],
)
def test_what_affine_applies_to(op, arguments, text):
    assert text in flat(lines(op, (2, 3, 4), **arguments)["affine"])


@pytest.mark.parametrize(
    ("op", "x", "arguments", "parts"),
    [
        ("layer_norm", (8, 512), {}, ["rows: x viewed as 8 rows of 512 neighbours", "nothing is copied"]),
        ("layer_norm", (8, 512), {"axis": 0}, ["columns: x viewed as 1 blocks of 8 x 512", "each of 512 lanes"]),
        ("layer_norm", (2, 3, 4), {"axis": (0, 2)}, ["copied, in blocks", "no view of x"]),
        ("layer_norm", (2, 3, 4), {"axis": (0, 2), "backend": "numpy"}, ["copied as a whole to float64"]),
        ("layer_norm", np.ones((8, 6), F32)[:, ::2], {}, ["copied, in blocks", "no axis of x is contiguous"]),
        ("layer_norm", np.ones((8, 6), F32)[::2], {}, ["rows: x viewed as 4 rows of 6", "nothing is copied"]),
        ("layer_norm", np.ones((6, 8), F32).T, {}, ["columns: x viewed as 1 blocks of 6 x 8", "nothing is copied"]),
        ("layer_norm", np.ones((6, 8), ">f4"), {}, ["copied, in blocks", "byte order"]),
        ("instance_norm", np.ones((1, 4, 9, 9), F32)[..., 1:8], {}, ["copied, in blocks", "no view of x"]),
        ("layer_norm", np.ones((8, 6), F32)[::2], {"backend": "numpy"}, ["copied as a whole to float64"]),
    ],
)
def test_how_it_lies_in_memory(op, x, arguments, parts):
    said = flat(lines(op, x, **arguments)["layout"])
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("x", "options", "part"),
    [
        (np.ones((8, 6), F32), {}, "rows: x viewed as 8 rows of 6 neighbours, nothing is copied"),
        (np.ones((8, 6), F32)[::2], {}, "it is strided"),
        (np.ones((2, 3, 4), F32), {"axis": (0, 2)}, "interleaved"),
    ],
)
def test_what_is_said_for_a_backend_that_does_not_say(x, options, part):
    assert part in _layout(validation.layer_norm(x, **options).problem, None)


# the backend


def test_the_backend_that_the_policy_chooses():
    assert "numpy, by the policy's order ('numpy',)" in flat(
        lines("layer_norm", (2, 3), policy=nk.FallbackPolicy(order=("numpy",)))["backend"]
    )


def test_the_backend_that_is_asked_for():
    said = flat(lines("layer_norm", (2, 3), backend="numpy")["backend"])
    assert "numpy, as asked for" in said
    assert "numba could too" in said


def test_why_the_others_would_not(fake):
    fake("moody", reasons=["it rains", "it pours"])
    said = flat(lines("layer_norm", (2, 3), policy=nk.FallbackPolicy(order=("moody", "numpy")))["backend"])
    assert "numpy, by the policy's order" in said
    assert "not moody: it rains not moody: it pours" in said
    said = flat(lines("layer_norm", (2, 3), policy=nk.FallbackPolicy(order=("numpy",)))["backend"])
    assert "not moody: it rains; it pours" in said


def test_nobody_can(fake):
    fake("moody", reasons=["it rains"])
    said = flat(lines("layer_norm", (2, 3), backend="moody")["backend"])
    assert said.startswith("none can run it, as asked for")
    assert "not moody: it rains" in said
    assert "numpy could too" in said


def test_a_policy_that_raises_instead_of_stepping_down(fake):
    fake("moody", reasons=["it rains"])
    policy = nk.FallbackPolicy(order=("moody", "numpy"), on_fallback="raise")
    assert "none: numpy could, but the policy says on_fallback='raise'" in flat(
        lines("layer_norm", (2, 3), policy=policy)["backend"]
    )


def test_a_backend_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN, "absent", registry.BuiltIn("normkit_absent_package", "numpy", "pip install absent"))
    try:
        said = flat(lines("layer_norm", (2, 3), backend="numpy")["backend"])
        assert "not absent: normkit_absent_package is not installed (pip install absent)" in said
    finally:
        registry._forget("absent")


def test_an_unknown_backend():
    assert "none: backend is 'nunba'" in flat(lines("layer_norm", (2, 3), backend="nunba")["backend"])


# what it takes, and how it shows


def test_an_array_or_its_shape():
    x = np.ones((2, 3, 4), np.float64)
    assert nk.explain("layer_norm", x) == nk.explain("layer_norm", (2, 3, 4), dtype=np.float64)
    assert nk.explain("layer_norm", [2, 3, 4]) == nk.explain("layer_norm", (np.int64(2), 3, 4))
    assert explanation(validation.layer_norm(x).problem) == nk.explain("layer_norm", x)


def test_the_arguments_of_a_call_as_they_stand():
    x, weight = np.ones((2, 3, 4), F32), np.ones(4, F32)
    said = nk.explain("layer_norm", x, (4,), weight, None, 1e-3, out=x, return_stats=True, backend="numpy")
    assert "weight (float32)" in str(said)


def test_it_computes_nothing():
    x = np.lib.stride_tricks.as_strided(np.ones(1, F32), (1 << 40, 1 << 20), (0, 0))  # 4 EB, were it copied
    assert "1048576" in str(nk.explain("layer_norm", x))
    out = np.full((2, 3), 9, F32)
    nk.explain("layer_norm", (2, 3), out=out)
    assert (out == 9).all()


@pytest.mark.parametrize(
    ("op", "x", "options", "kind", "message"),
    [
        ("batch_norm", (2, 3), {}, nk.InputValueError, "op is 'batch_norm', expected one of"),
        (None, (2, 3), {}, nk.InputValueError, "op is None"),
        (["layer_norm"], (2, 3), {}, nk.InputValueError, "op is"),
        ("layer_norm", "abc", {}, nk.InputTypeError, "x is a str"),
        ("layer_norm", (2, -3), {}, nk.InputTypeError, "expected an array or a shape"),
        ("layer_norm", (2, 3.0), {}, nk.InputTypeError, "expected an array or a shape"),
        ("layer_norm", (), {}, nk.InputValueError, "0-d"),
        ("layer_norm", (2, 3), {"dtype": int}, nk.InputTypeError, "int64"),
        ("layer_norm", (2, 3), {"dtype": "nonsense"}, nk.InputTypeError, "dtype is 'nonsense'"),
        ("layer_norm", (2, 3), {"weight": np.ones(4, F32)}, nk.InputValueError, "weight has shape"),
        ("instance_norm", (2,), {}, nk.InputValueError, "expected"),
        ("layer_norm", (2, 3), {"policy": "onnx"}, nk.PolicyError, "expected a FallbackPolicy"),
    ],
)
def test_bad_arguments(op, x, options, kind, message):
    with pytest.raises(kind, match=message):
        nk.explain(op, x, **options)


def test_in_a_notebook():
    html = nk.explain("instance_norm", SHAPE, policy=nk.FallbackPolicy(single_element="identity"))._repr_html_()
    assert html.startswith("<table>")
    assert html.endswith("</table>")
    assert "instance_norm on x: (128, 512, 1, 1) float32" in html
    for what in ("reduced", "affine", "layout", "backend", "single", "why", "choices"):
        assert f">{what}</th>" in html
    assert "single_element=&quot;bias&quot;" in html  # escaped
    assert html.count("<tr>") == html.count("</tr>") == 7


def test_in_a_terminal():
    text = str(nk.explain("instance_norm", SHAPE))
    assert max(map(len, text.splitlines())) <= 128
    assert not any(line != line.rstrip() for line in text.splitlines())
