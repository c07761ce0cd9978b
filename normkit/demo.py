"""`normkit demo`: both ops on a photograph, on every backend here: checked, timed, and drawn; then the single element.

The story of the picture: exposure and colour cast are a scale and an offset of each channel, which is what InstanceNorm
takes out; LayerNorm over the colours of each pixel is another function, which keeps the hue alone.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich import box
from rich.console import Console
from rich.table import Table

import normkit as nk
from normkit import outputs, registry
from normkit.bench.machine import done_between, work_of_others
from normkit.errors import DegenerateShapeError
from normkit.hardware import load_average

Pixels = NDArray[np.float32]  # (H, W, 3), 0 .. 1 before normalization

MOST_PIXELS = 4_000_000
BUSY = 0.2  # cores that others may use before it is told
ROUNDS, SECONDS = 15, 2.0  # of timing, whichever is used up first
GAIN, OFFSET = np.array([[0.62, 0.38, 0.20], [0.22, 0.08, 0.01]], np.float32)  # tungsten light, washed out; stays in 0 .. 1
WIDTH = 80  # columns of what is printed into a file or a pipe, and of many a terminal: everything fits them
POLICIES = {
    "'raise', the default": nk.FallbackPolicy(single_element="raise"),
    "'bias'": nk.FallbackPolicy(single_element="bias"),
    "'identity'": nk.FallbackPolicy(single_element="identity"),
    "'layer_norm'": nk.FallbackPolicy(single_element="layer_norm"),
    "'running'": nk.FallbackPolicy(single_element="running"),
    "lambda p: p.x / 2": nk.FallbackPolicy(single_element=lambda problem: problem.x / 2),
}


class UnusableError(Exception):
    """The picture cannot be read, or the result not be written; the message says why, in one line."""


class Contender(NamedTuple):
    """One way to compute an op."""

    name: str
    error: float  # largest, against long double
    offset_error: float  # the same for x + 10,000, where a float32 mean is not enough
    milliseconds: float  # median
    speed: float  # plain NumPy's time over this one's, the median over rounds


class Comparison(NamedTuple):
    """Who took part, how far apart the backends are, and how many cores other processes kept busy meanwhile."""

    contenders: list[Contender]
    apart: float
    busy: float


def run(image: str | None, output: str) -> None:
    """The whole demo, on a picture of the user's or on the sample photograph."""
    os.environ.setdefault("NORMKIT_BACKGROUND", "0")  # nothing else is to run while calls are timed
    photo = read(image or get_sample_data("grace_hopper.jpg", asfileobj=False))
    check_writable(output)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    height, width, _ = photo.shape
    name = Path(image).name if image else "Grace Hopper, from matplotlib"
    console.print(f"normkit {nk.__version__} on {name}: {width} x {height} pixels, float32\n", markup=False)
    with nk.using(policy=nk.FallbackPolicy.onnx()), console.status("compiling, checking, timing"):  # 1 pixel shall be erased
        x = channels_first(photo)
        instance = compare(lambda x, name: nk.instance_norm(x, backend=name), x, (2, 3))
        layer = compare(lambda x, name: nk.layer_norm(x, backend=name), photo, -1)
        figure = draw(photo)
    console.print(table(f"InstanceNorm of {x.shape}: each channel over its {width * height} pixels", instance))
    console.print(table(f"LayerNorm of {photo.shape}: each pixel over its 3 colours", layer))
    if others := _others(max(instance.busy, layer.busy)):
        console.print(f"[yellow]{others}: it may do better than this.\n")
    console.print(single_element())
    try:
        figure.savefig(output, format="png", dpi=120)
    except OSError as error:
        raise UnusableError(f"cannot write {output}: {error.strerror or error}") from None
    console.print(f"Before and after, as a picture: {output}", markup=False, soft_wrap=True)


# --- reading a picture


def read(path: str) -> Pixels:
    """Any picture that Pillow reads, as (H, W, 3) in 0 .. 1, and at most MOST_PIXELS."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on large or odd files; what cannot be read raises
            with Image.open(path) as picture:
                return _rgb(_reduced(picture))
    except FileNotFoundError:
        raise UnusableError(f"there is no file {path}") from None
    except Image.DecompressionBombError:
        raise UnusableError(f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; scale it down first") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what Pillow raises on broken files
        why = getattr(error, "strerror", None) or "it is not a picture, or a broken one"
        raise UnusableError(f"cannot read {path}: {why}") from None


def _reduced(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    scale = (MOST_PIXELS / (width * height)) ** 0.5
    if scale < 1:
        picture.draft(
            "RGB", (max(1, int(width * scale)), max(1, int(height * scale)))
        )  # a JPEG can be decoded at a fraction of its size
        width, height = picture.size
        scale = min(1, (MOST_PIXELS / (width * height)) ** 0.5)
        how = Image.Resampling.BOX if picture.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else Image.Resampling.NEAREST
        picture = picture.resize((max(1, int(width * scale)), max(1, int(height * scale))), how)
    return ImageOps.exif_transpose(picture)


def _rgb(picture: Image.Image) -> Pixels:
    if picture.mode.startswith(("I", "F")):  # one channel of 16 or 32 bits, where Pillow's own conversion clips
        grey = np.nan_to_num(np.asarray(picture, dtype=np.float32), posinf=0, neginf=0)
        grey -= min(0, float(grey.min()))
        most = float(grey.max())
        grey /= 65535 if picture.mode.startswith("I") and most <= 65535 else max(most, 1e-30)
        return np.repeat(grey[..., np.newaxis], 3, axis=2)
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    pixels: Pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255)
    return pixels


def check_writable(output: str) -> None:
    """Before the work, not after it."""
    if why := outputs.why_not(Path(output)):
        raise UnusableError(f"cannot write {output}: {why}")


def channels_first(photo: Pixels) -> Pixels:
    """(H, W, 3) as a batch of one, (1, 3, H, W), in memory order."""
    return np.ascontiguousarray(photo.transpose(2, 0, 1)[np.newaxis])


def channels_last(x: Pixels) -> Pixels:
    """(1, 3, H, W) as (H, W, 3)."""
    pixels: Pixels = x[0].transpose(1, 2, 0)
    return pixels


# --- checking and timing


def plain_norm(x: Any, axis: Any, eps: float = 1e-5) -> Any:
    """As a NumPy user writes it."""
    mean = x.mean(axis=axis, keepdims=True)
    var = x.var(axis=axis, keepdims=True)
    return (x - mean) / np.sqrt(var + eps)


def compare(ours: Callable[[Pixels, str], Pixels], x: Pixels, axis: Any) -> Comparison:
    """Plain NumPy and every usable backend: their errors against long double, their times in turns."""
    calls: dict[str, Callable[[Pixels], Any]] = {"NumPy, as one writes it": lambda x: plain_norm(x, axis)}
    for name in registry.family_names("numpy"):
        if not isinstance(registry.find(name), registry.Missing):
            calls[f"normkit, backend {name!r}"] = partial(ours, name=name)  # type: ignore[call-arg]
    errors = [(_error(call, x, axis), _error(call, x + np.float32(10_000), axis)) for call in calls.values()]
    rounds: list[list[float]] = []
    before, start = work_of_others({os.getpid()}), perf_counter()
    end = start + SECONDS
    while len(rounds) < 3 or (len(rounds) < ROUNDS and perf_counter() < end):
        rounds.append([_time(call, x) for call in calls.values()])
    busy = done_between(before, work_of_others({os.getpid()})) / (perf_counter() - start)
    milliseconds = [1e3 * median(column) for column in zip(*rounds, strict=True)]
    speeds = [median(times[0] / times[i] for times in rounds) for i in range(len(calls))]
    rows = zip(calls, errors, milliseconds, speeds, strict=True)
    results = [call(x) for call in calls.values()][1:]
    apart = max(float(np.max(np.abs(y - results[0]))) for y in results)
    return Comparison([Contender(name, *both, time, speed) for name, both, time, speed in rows], apart, busy)


def _error(call: Callable[[Pixels], Any], x: Pixels, axis: Any) -> float:
    return float(np.max(np.abs(call(x) - plain_norm(x.astype(np.longdouble), axis))))


def _others(busy: float) -> str:
    """Who else was at work meanwhile, where something tells; empty if nobody was."""
    cores, load = nk.get_num_threads(), load_average()
    if busy >= BUSY:
        return f"Other processes kept {busy:.1f} cores busy meanwhile"
    return f"This machine has been busy (load {load:.1f} on {cores} cores)" if load > cores else ""


def _time(call: Callable[[Pixels], Any], x: Pixels) -> float:
    start = perf_counter()
    call(x)
    return perf_counter() - start


def table(title: str, comparison: Comparison) -> Table:
    """Contenders with their errors and times."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, caption_justify="left")
    grid.caption = (
        f"  The backends agree to {comparison.apart:.0e}. Error: the largest, against long double.\n"
        "  Time: the median, taking turns. Speed: NumPy's time over this one's.\n"
        "  Backend 'numpy' is the reference: slower, as it sums in float64.\n"
    )
    grid.add_column("", min_width=25)
    for heading in ("error", "error of\nx + 10,000", "time", "speed,\nNumPy = 1"):
        grid.add_column(heading, justify="right")
    for c in comparison.contenders:
        figures = f"{c.error:.0e}", f"{c.offset_error:.0e}", f"{c.milliseconds:.3g} ms", f"{c.speed:.2g} x"
        grid.add_row(c.name, *figures, style="green" if c.speed > 1.05 else "")
    return grid


def single_element() -> Table:
    """What each policy makes of (128, 512, 1, 1): one spatial element, so nothing to take statistics of."""
    x = np.random.default_rng(0).normal(3, 2, (128, 512, 1, 1)).astype(np.float32)
    running = np.full(512, 3, np.float32), np.full(512, 4, np.float32)
    grid = Table(
        title=f"InstanceNorm of {x.shape}, one spatial element, x = {_head(x)} ...\n"
        "with policy=nk.FallbackPolicy(single_element=...)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("single_element=", "y", "which is"):
        grid.add_column(heading)
    meanings = ["", "the bias: x is erased", "x", "x over its 512 channels", "by running mean and variance", "what you say"]
    for (name, policy), meaning in zip(POLICIES.items(), meanings, strict=True):
        try:
            stats = running if policy.answer("instance_norm") == "running" else ()
            y = _head(nk.instance_norm(x, *stats, policy=policy)) + " ..."
        except DegenerateShapeError:
            y, meaning = "DegenerateShapeError", "whose text has your choices"
        grid.add_row(name, y, meaning)
    return grid


def _head(x: Pixels) -> str:
    return "  ".join(f"{v:.2f}" for v in x.ravel()[:3])


# --- drawing

INK, FAINT, PAPER = "#1f2430", "#6b7280", "#fbfaf7"
CHANNELS = {"red": "#d1495b", "green": "#3a9e6e", "blue": "#3d6fb6"}


class Panel(NamedTuple):
    """A picture (H, W, 3) as it is shown, the values its histogram counts, and their range."""

    shown: Pixels
    values: Pixels
    limits: tuple[float, float]
    note: str


class Page:
    """A figure that is laid out in inches from its top left corner: four columns of pictures over histograms, twice."""

    left, top, gap, wide, low = 0.95, 1.55, 0.34, 3.2, 0.72

    def __init__(self, tall: float) -> None:
        self.tall = tall
        self.block = tall + 0.08 + self.low + 0.62  # a row of pictures, its histograms, and their words
        self.size = (self.left + 4 * self.wide + 3 * self.gap + 0.3, self.top + 2 * self.block + 0.72)
        self.figure = Figure(figsize=self.size, facecolor=PAPER)

    def x(self, column: int) -> float:
        return self.left + column * (self.wide + self.gap)

    def axes(self, row: int, column: int, histogram: bool) -> Axes:
        y, high = self.top + row * self.block, self.tall
        if histogram:
            y, high = y + self.tall + 0.08, self.low
        width, height = self.size
        return self.figure.add_axes((self.x(column) / width, 1 - (y + high) / height, self.wide / width, high / height))

    def write(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        width, height = self.size
        self.figure.text(x / width, 1 - y / height, text, **{"size": size, "color": INK, "ha": "center", **style})


def draw(photo: Pixels) -> Figure:
    """The photograph and a badly exposed one, each before and after: a row of pictures over a row of histograms, twice."""
    height, width, _ = photo.shape
    page = Page(Page.wide * min(max(height / width, 0.5), 1.3))
    rows = {"as taken": photo, "badly exposed,\nunder tungsten light": photo * GAIN + OFFSET}
    results = []
    for row, (label, x) in enumerate(rows.items()):
        y, z = channels_last(nk.instance_norm(channels_first(x))), nk.layer_norm(x)
        results.append((y, z))
        panels = [
            Panel(x, x, (0, 1), "each channel has its own mean and spread"),
            Panel(_visible(y), y, (-3, 3), "every channel: mean 0, " + ("std 1" if y.std() > 0.5 else "and nothing else")),
            Panel(_visible(z), z, (-3, 3), "every pixel: mean 0, " + ("std 1" if z.std() > 0.5 else "and little else")),
        ]
        for column, panel in enumerate(panels):
            _picture(page.axes(row, column, histogram=False), panel.shown)
            _histogram(page.axes(row, column, histogram=True), panel)
        pooled = x.mean(axis=(0, 1), keepdims=True)
        erased = channels_last(nk.instance_norm(channels_first(pooled)))
        _swatches(page.axes(row, 3, histogram=False), pooled, _visible(erased))
        _histogram(page.axes(row, 3, histogram=True), Panel(erased, erased, (-3, 3), "every channel: 0"))
        page.write(0.5, page.top + row * page.block + page.tall / 2, label, 13, rotation=90, va="center", linespacing=1.4)
    _words(page, *results)
    return page.figure


def _visible(y: Pixels) -> Pixels:
    """-2 .. 2 as black .. white: what is 0 is mid-grey."""
    return np.clip(0.5 + y / 4, 0, 1)


def _words(page: Page, first: tuple[Pixels, Pixels], second: tuple[Pixels, Pixels]) -> None:
    """The headline, titles above the columns, and below them what to see."""
    apart = [float(np.mean(np.abs(a - b))) for a, b in zip(first, second, strict=True)]
    columns = [
        (
            "The photograph",
            "x, each channel in 0 .. 1",
            "Bad light is a scale and an offset\nof each channel.",
        ),
        (
            "InstanceNorm",
            "each channel over all pixels",
            f"Scale and offset are taken out:\nboth rows agree, to {apart[0]:.1g} on average.",
        ),
        (
            "LayerNorm",
            "each pixel over its 3 colours",
            f"Another function: hue alone is left, and\nthe cast with it. The rows differ by {apart[1]:.1f}.",
        ),
        (
            "InstanceNorm of 1 x 1",
            "the picture pooled to (1, 3, 1, 1)",
            "One element: x - mean is 0, whatever x.\nErased, so normkit asks what you want.",
        ),
    ]
    for column, (title, what, lesson) in enumerate(columns):
        middle = page.x(column) + page.wide / 2
        page.write(middle, page.top - 0.36, title, 15, weight="bold")
        page.write(middle, page.top - 0.13, what, 11, color=FAINT)
        for line, text in enumerate(lesson.splitlines()):
            page.write(middle, page.top + 2 * page.block + 0.08 + 0.25 * line, text, 11.5)
    page.write(page.left, 0.6, "What normalization takes out, and what it keeps", 21, weight="bold", ha="left")
    right = page.x(3) + page.wide
    page.write(right, 0.6, "y = (x - mean) / sqrt(var + eps)", 12.5, color=FAINT, ha="right", family="monospace")


def _picture(axes: Axes, shown: Pixels) -> None:
    height, width, _ = shown.shape
    axes.imshow(shown, vmin=0, vmax=1, aspect="equal" if 0.1 < height / width < 10 else "auto")
    axes.axis("off")


def _swatches(axes: Axes, before: Pixels, after: Pixels) -> None:
    axes.imshow(np.concatenate([before, after], axis=1), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for x, colour, text in ((0, before, "x"), (1, after, "y = 0")):
        dark = float(colour.mean()) < 0.55
        axes.text(x, 0, text, ha="center", va="center", size=22, style="italic", color="white" if dark else INK)
    axes.axis("off")


def _histogram(axes: Axes, panel: Panel) -> None:
    low, high = panel.limits
    for channel, colour in enumerate(CHANNELS.values()):
        counts, edges = np.histogram(panel.values[..., channel], bins=90, range=panel.limits)
        share = counts / max(1, counts.max())
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.28)
        axes.stairs(share, edges, baseline=None, color=colour, linewidth=1.1)
    axes.set(xlim=panel.limits, ylim=(0, 1.08), yticks=[], xticks=[low, (low + high) / 2, high], facecolor="none")
    axes.set_xlabel(panel.note, size=9.5, color=FAINT, labelpad=1)
    axes.tick_params(labelsize=8.5, colors=FAINT, length=2, pad=2)
    first, _, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
