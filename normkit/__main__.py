"""The `normkit` command: what is here, what a call would do, and a look at it. Each subcommand imports what it needs."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import normkit
from normkit.errors import CacheWarning, NormkitError
from normkit.outputs import take_any_character
from normkit.validation import FLOATS

EXTRAS = {"rich": "demo", "matplotlib": "demo", "PIL": "demo", "asv": "bench", "ml_dtypes": "half"}


class UsageError(Exception):
    """What the user typed cannot be served; the message says why, in one line."""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says more\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    take_any_character()
    try:
        argv = sys.argv[1:] if argv is None else argv
        args = _parser(argv[:1]).parse_args(argv)
        return int(args.run(args) or 0)
    except (UsageError, NormkitError) as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _complain(f"{package} is not installed; pip install 'normkit[{EXTRAS[package]}]'")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _complain(message: str) -> int:
    print(f"normkit: {message}", file=sys.stderr)
    return 2


def _parser(command: Sequence[str]) -> Parser:
    """The parser, with the arguments of `bench` only if that is the command: they take importing."""
    parser = Parser(prog="normkit", description="Normalization for NumPy arrays, without a framework.")
    parser.add_argument("--version", action="version", version=f"normkit {normkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    doctor = commands.add_parser("doctor", help="what is installed here, and which backends can be used")
    doctor.set_defaults(run=_doctor)

    explain = commands.add_parser("explain", help="what a call would do, and why")
    explain.add_argument("op", metavar="OP", choices=["layer_norm", "instance_norm"], help="layer_norm or instance_norm")
    explain.add_argument("shape", metavar="SHAPE", type=shape, help="of x, as 128x512x1x1, 128,512,1,1 or torch prints it")
    explain.add_argument("--axis", type=axes, help="of layer_norm, instead of the last one: 1, or 0,2")
    explain.add_argument("--channel-axis", type=int, metavar="AXIS", help="of instance_norm; default: 1")
    explain.add_argument("--mask", metavar="SHAPE", type=shape, help="there is a mask of this shape")
    explain.add_argument("--dtype", default="float32", choices=["float16", "bfloat16", "float32", "float64"])
    explain.add_argument("--backend", help="ask for this backend, as the argument backend= does")
    explain.add_argument("--policy", default="torch", choices=["torch", "onnx", "strict"], help="default: torch")
    explain.set_defaults(run=_explain)

    demo = commands.add_parser("demo", help="normalize a photograph, check and time it, and draw what happened")
    demo.add_argument("image", metavar="IMAGE", nargs="?", help="your own picture; default: a sample photograph")
    demo.add_argument("--output", metavar="PNG", default="normkit-demo.png", help="default: normkit-demo.png")
    demo.set_defaults(run=_demo)

    warmup = commands.add_parser("warmup", help="compile kernels now, and keep them for later processes")
    warmup.add_argument("dtypes", metavar="DTYPE", nargs="*", help="float16, bfloat16, float32, float64; default: the last two")
    warmup.add_argument("--all", action="store_true", help="also the kernels that few calls need; without DTYPE, of all dtypes")
    warmup.add_argument("--into", metavar="DIR", help="keep them there, for all users; NORMKIT_CACHE_DIR=DIR uses them")
    warmup.set_defaults(run=_warmup)

    bench = commands.add_parser("bench", help="time normkit side by side with other libraries, and check every result")
    if list(command) == ["bench"]:
        from normkit.bench import cli

        cli.add_arguments(bench)
        bench.set_defaults(run=cli.main)
    return parser


def shape(text: str) -> tuple[int, ...]:
    """A shape as a person types it: 128x512x1x1, 128,512,1,1 or (128, 512, 1, 1); or in what torch prints."""
    printed = re.search(r"torch\.Size\(\[([^\]]*)\]\)", text)
    parts = [part for part in re.split(r"[x\u00d7,\s]+", printed[1] if printed else text.strip("()[] ")) if part]
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape, as 128x512x1x1")
    return tuple(map(int, parts))


def axes(text: str) -> int | tuple[int, ...]:
    """Axes as a person types them: 1, -1, 0,2 or (0, 2)."""
    parts = re.split(r"[,\s]+", text.strip("()[] "))
    if not all(re.fullmatch(r"-?[0-9]+", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no axis, as 1, and no axes, as 0,2")
    return int(parts[0]) if len(parts) == 1 else tuple(map(int, parts))


def _doctor(args: argparse.Namespace) -> None:
    from normkit import doctor

    doctor.show(doctor.examine())


def _explain(args: argparse.Namespace) -> None:
    if args.backend is not None and args.backend not in (known := normkit.registry.names()):
        raise UsageError(f"--backend is {args.backend!r}, expected one of {', '.join(known)}")
    given = {"axis": args.axis, "channel_axis": args.channel_axis, "mask": args.mask}
    options = {name: value for name, value in given.items() if value is not None}
    for op, name in (("layer_norm", "channel_axis"), ("instance_norm", "axis")):
        if args.op == op and name in options:
            other = {"channel_axis": "--axis", "axis": "--channel-axis"}[name]
            raise UsageError(f"{op} has no --{name.replace('_', '-')}; it takes {other}")
    policy = getattr(normkit.FallbackPolicy, args.policy)()
    print(normkit.explain(args.op, args.shape, dtype=_dtype(args.dtype), backend=args.backend, policy=policy, **options))


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return name
    import ml_dtypes

    return ml_dtypes.bfloat16


def _demo(args: argparse.Namespace) -> None:
    from normkit import demo

    try:
        demo.run(args.image, args.output)
    except demo.UnusableError as error:
        raise UsageError(str(error)) from None


def _warmup(args: argparse.Namespace) -> None:
    if unknown := set(args.dtypes) - set(FLOATS):
        raise UsageError(f"{', '.join(sorted(unknown))}: expected dtypes among {', '.join(FLOATS)}")
    from normkit import warmup

    try:
        warmup.run(args.dtypes, args.all, args.into)
    except CacheWarning as warning:
        raise UsageError(str(warning)) from None


if __name__ == "__main__":
    sys.exit(main())
