"""The demo: any picture in, a table and one picture out; what cannot be read is refused in one line."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import normkit as nk
from normkit import demo
from normkit.__main__ import main

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo, "ROUNDS", 3)
    monkeypatch.setattr(demo, "SECONDS", 0)


def picture(mode):
    """A small picture of each kind that files hold."""
    if mode == "I;16":
        return Image.fromarray(RAMP.astype(np.uint16) * 1000)
    if mode in ("I", "F"):
        return Image.fromarray(RAMP.astype({"I": np.int32, "F": np.float32}[mode]))
    return Image.fromarray(RAMP * 5).convert(mode)


def saved(image, path):
    image.save(path)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("L", "png"),
        ("L", "jpg"),
        ("LA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("RGB", "png"),
        ("RGB", "webp"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("I;16", "png"),
        ("I", "tiff"),
        ("F", "tiff"),
    ],
)
def test_reads_every_mode(mode, suffix, tmp_path):
    pixels = demo.read(saved(picture(mode), tmp_path / f"a.{suffix}"))
    assert pixels.shape == (6, 8, 3)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_sixteen_bits_are_kept(tmp_path):
    pixels = demo.read(saved(picture("I;16"), tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels[..., 0], (RAMP.astype(np.uint16) * 1000).astype(np.float32) / 65535)


def test_nan_and_inf_are_read_as_black(tmp_path):
    values = np.array([[np.nan, np.inf, -np.inf, 2]], np.float32)
    assert demo.read(saved(Image.fromarray(values), tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 0, 0, 1]


def test_transparency_shows_white(tmp_path):
    assert (demo.read(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), tmp_path / "a.png")) == 1).all()


def test_the_camera_was_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn to view
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert demo.read(str(tmp_path / "a.jpg")).shape == (8, 6, 3)


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_huge_is_scaled_down(mode, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MOST_PIXELS", 12)
    height, width, _ = demo.read(saved(picture(mode), tmp_path / "a.png")).shape
    assert height * width <= 12
    assert (height, width) == (3, 4)


@pytest.mark.parametrize("size", [(100, 1), (1, 100)])
def test_a_thin_one_is_scaled_down(size, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MOST_PIXELS", 25)
    assert min(demo.read(saved(Image.new("L", size), tmp_path / "a.png")).shape[:2]) == 1


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    path = saved(Image.new("L", (100, 100)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(demo.UnusableError, match="more than 2,000 pixels"):
        demo.read(path)


def broken_files():
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "png")
    whole = whole.getvalue()
    header = bytearray(whole)
    header[40:60] = b"\xff" * 20
    return {"empty": b"", "text": b"not a picture", "truncated": whole[:2000], "damaged": bytes(header), "head": whole[:30]}


@pytest.mark.parametrize("kind", broken_files())
def test_unreadable_is_one_line(kind, tmp_path, capsys):
    path = tmp_path / f"{kind}.png"
    path.write_bytes(broken_files()[kind])
    assert main(["demo", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(path) in said.err


def test_a_folder_is_one_line(tmp_path, capsys):
    assert main(["demo", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"normkit: cannot read {tmp_path}: Is a directory\n"


def test_output_that_cannot_be_written(tmp_path, capsys, quick):
    path = saved(picture("RGB"), tmp_path / "a.png")
    for output in (tmp_path, tmp_path / "none" / "b.png"):
        assert main(["demo", path, "--output", str(output)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"normkit: cannot write {output}: ")


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (8, 6), (40, 2), (2, 40)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_small_pictures(size, mode, tmp_path, capsys, quick):
    output = tmp_path / "b.png"
    path = saved(picture(mode).resize(size), tmp_path / "a.png")
    assert main(["demo", path, "--output", str(output)]) == 0
    with Image.open(output) as image:
        assert image.format == "PNG"
    assert f"a.png: {size[0]} x {size[1]} pixels" in capsys.readouterr().out


def test_the_sample_photograph(tmp_path, capsys, quick):
    output = tmp_path / "b.png"
    assert main(["demo", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    for text in ("'numba'", "'numpy'", "(1, 3, 600, 512)", "DegenerateShapeError", "erased", "the reference", str(output)):
        assert text in out
    with Image.open(output) as image:
        assert image.width > 1500
        assert len(np.unique(np.asarray(image.convert("L")))) > 200


def test_the_backends_agree_and_beat_plain_numpy_in_accuracy(quick):
    x = np.random.default_rng(0).random((1, 3, 50, 40), np.float32)
    found = demo.compare(lambda x, name: nk.instance_norm(x, backend=name), x, (2, 3))
    plain, *ours = found.contenders
    assert len(ours) >= 2
    assert found.apart < 1e-6
    for contender in ours:
        assert contender.error < 1e-6
        assert contender.offset_error < 1e-6 < plain.offset_error


def test_instance_norm_takes_exposure_out():
    """The claim of the picture."""
    photo = demo.read(demo.get_sample_data("grace_hopper.jpg", asfileobj=False))
    before, after = (nk.instance_norm(demo.channels_first(x), eps=0.0) for x in (photo, photo * demo.GAIN + demo.OFFSET))
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert (photo * demo.GAIN + demo.OFFSET).max() <= 1


def test_it_fits_a_terminal_of_80_columns(tmp_path, quick):
    """Every column of every table, whole: what decides stands in the last one."""
    console = Console(width=80, file=io.StringIO(), highlight=False)
    longest = demo.Contender("normkit, backend 'numba'", 1.234e-12, 1.234e-12, 12345.6, 123456.0)
    console.print(demo.table("InstanceNorm of (1, 3, 2000, 2000): each channel over its 4000000 pixels", longest_of(longest)))
    console.print(demo.single_element())
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)
    assert sum("1.2e+05 x" in line for line in lines) == 3
    for name in demo.POLICIES:
        assert any(line.strip().startswith(name) for line in lines)  # in one line


def longest_of(contender):
    return demo.Comparison([contender] * 3, 1.234e-12, 0.0)


def test_lines_around_the_tables_fit_too(tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(demo, "load_average", lambda: 1000.0)
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("normkit") and line.endswith("float32") for line in lines)


@pytest.mark.parametrize(("load", "others"), [(0.0, 0.0), (1000.0, 0.0), (0.0, 1.5)])
def test_a_busy_machine_is_named(load, others, tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(demo, "load_average", lambda: load)
    monkeypatch.setattr(demo, "done_between", lambda before, after: others * 1e6)
    main(["demo", saved(picture("RGB"), tmp_path / "a.png"), "--output", str(tmp_path / "b.png")])
    said = capsys.readouterr().out
    assert ("busy (load 1000.0" in said) == (load > 0)
    assert ("cores busy meanwhile" in said) == (others > 0)
