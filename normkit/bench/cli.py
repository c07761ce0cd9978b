"""`normkit bench`: the arguments, the progress bar, and what becomes of the result."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from normkit.bench import gpu
from normkit.bench.cases import GROUPS, Case, select
from normkit.bench.contenders import CONTENDERS, ONE_THREAD
from normkit.bench.results import Run, Settings
from normkit.outputs import why_not

EPILOG = f"""\
A case is a group ({", ".join(GROUPS)}), a pattern over their names such as 'instance_norm/*', or a case of your own:
OP/SIZES[/OPTION...] with the options float16, bfloat16, float64, axis=N, channel_axis=N, mask, step=N, offset=X,
outlier=X and constant=X, as in layer_norm/64x197x768/float16.

Contenders: {", ".join(CONTENDERS)}.
pip install "normkit[peers]" installs the peers.
"""
if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUICK, FULL = Settings(5, 0.03), Settings(2, 0.1, 5)
CURE = 'pip install "normkit[demo]"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command to a parser."""
    parser.description = "Measure normkit side by side with other libraries, and check every result."
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--case", action="append", metavar="CASE", help="which cases (may be repeated; default: quick)")
    parser.add_argument(
        "--only", metavar="NAMES", help="contenders by the beginnings or parts of their names, separated by commas"
    )
    parser.add_argument("--full", action="store_true", help="all standard cases, longer turns, 5 sweeps (13 minutes or more)")
    parser.add_argument("--rounds", type=_count, metavar="N", help="rounds of turns in a sweep")
    parser.add_argument("--sweeps", type=_count, metavar="N", help="sweeps over all cases, each with processes of its own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured; - for the terminal")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios (.png, .svg, .pdf)")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables, between the marks if the file has them"
    )
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing: show a result that --json wrote")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="say how far the ratios are from those of an earlier --json"
    )
    parser.add_argument("--busy", action="store_true", help="what calls take beside a process that keeps a core busy")
    parser.add_argument("--list", action="store_true", help="list the cases and who would be measured")
    gpu.add_arguments(parser)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    if args.gpu:
        return gpu.main(args.case, args.only)
    try:
        import rich  # noqa: F401
    except ModuleNotFoundError:
        return _complain(f"needs rich to print: {CURE}")
    try:
        cases = select(args.case or ["standard" if args.full else "quick"])
        names = choose(args.only)
        loaded, earlier = (Run.load(file) if file else None for file in (args.load, args.compare))
    except (ValueError, OSError) as error:
        return _complain(str(error))
    if args.list:
        return _list(cases)
    if refused := _unwritable(args):
        return _complain(refused)
    if args.busy:
        from normkit.bench import busy

        chosen = list(busy.NAMES) if args.only is None else names
        return busy.main([case.spec for case in cases] if args.case else None, chosen, args.rounds, args.json)
    if loaded is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: processes and shared memory are given back
    run = loaded or measure(cases, names, settings(args))
    written = show(run, args, earlier)
    return 130 if run.interrupted else 1 if run.lost or not written else 0


def choose(only: str | None) -> list[str]:
    """The contenders that were asked for, by how their names begin, or else by a part of them."""
    if only is None:
        return [name for name in CONTENDERS if name != ONE_THREAD]
    chosen: set[str] = set()
    for part in (part.strip() for part in only.split(",")):
        begins = [name for name in CONTENDERS if name.lower().startswith(part.lower())]
        found = begins or [name for name in CONTENDERS if part.lower() in name.lower()]
        if not found:
            raise ValueError(f"--only: no contender is called {part!r}; there are: {', '.join(CONTENDERS)}")
        chosen |= set(found)
    return [name for name in CONTENDERS if name in chosen]


def settings(args: argparse.Namespace) -> Settings:
    """How long to look."""
    chosen = FULL if args.full else QUICK
    given = {name: value for name in ("rounds", "sweeps") if (value := getattr(args, name))}
    return replace(chosen, **given)


def measure(cases: list[Case], names: list[str], chosen: Settings) -> Run:
    """Play every case in every sweep. Ctrl-C ends it, and leaves what was measured."""
    from normkit.bench.machine import describe

    present = [name for name in names if not CONTENDERS[name].missing]
    base = "normkit" if "normkit" in present else (present or names)[-1]
    run = Run(describe(), chosen, base)
    run.left_out = {n: f"not installed: {', '.join(CONTENDERS[n].missing)}" for n in names if n not in present}
    with _progress_bar() as bar:
        task = bar.add_task("starting the contenders", total=len(cases) * chosen.sweeps, turn="")
        bar.refresh()
        try:
            for sweep in range(chosen.sweeps):
                _play(run, cases, present, sweep, bar, task)
            for sweep in range(chosen.sweeps, 2 * chosen.sweeps - 1):
                run.settle()
                again = [result.case for result in run.unsettled]
                bar.update(task, total=(bar.tasks[0].total or 0) + len(again))
                _play(run, again, present, sweep, bar, task)
        except KeyboardInterrupt:
            run.interrupted = True
    run.settle()
    return run


def _play(run: Run, cases: list[Case], names: list[str], sweep: int, bar: Progress, task: TaskID) -> None:
    """One sweep over these cases."""
    from normkit.bench.runner import Match

    if not cases:
        return
    with Match(names, run.settings, sweep) as match:
        run.versions, run.left_out = match.versions, run.left_out | match.left_out
        step = 1 / len(names) / (run.settings.rounds + 2)  # contenders are prepared, timed and checked
        for number, case in enumerate(cases, int(bar.tasks[0].completed)):
            bar.update(task, description=case.title, completed=number, refresh=True)
            match.play(run.result(case), lambda name: bar.update(task, advance=step, turn=name, refresh=True))
            bar.update(task, completed=number + 1)


def _progress_bar() -> Progress:
    """Drawn between turns, while nobody is measured, rather than by a thread."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("[dim]{task.fields[turn]}"))
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)


def show(run: Run, args: argparse.Namespace, earlier: Run | None = None) -> bool:
    """Print a run, and write the files that were asked for; False if one of them could not be written."""
    from rich.console import Console

    from normkit.bench import report

    to_stdout = args.json is not None and str(args.json) == "-"
    written = not args.json or to_stdout or _written(args.json, lambda: run.save(args.json))
    if to_stdout:
        print(run.dumps())
    else:
        report.print_run(run, Console(width=None if sys.stdout.isatty() else 100))
    if earlier and not to_stdout:
        print("\n".join(report.agreement(run, earlier)))
    if args.plot and run.finished:
        written &= _written(args.plot, lambda: _plot(run, args.plot))
    if args.markdown:
        picture = args.plot.name if args.plot else None
        written &= _written(args.markdown, lambda: report.write_markdown(run, args.markdown, picture))
    return written


def _unwritable(args: argparse.Namespace) -> str:
    """What is wrong with the files that shall be written: told before the work, not after it."""
    for option in ("json", "plot", "markdown"):
        file = getattr(args, option)
        if file is not None and str(file) != "-" and (why := why_not(file)):
            return f"--{option}: cannot write {file}: {why}"
    if args.plot is not None:
        try:
            from matplotlib.backend_bases import FigureCanvasBase
        except ModuleNotFoundError as error:
            return f"--plot needs {error.name}: {CURE}"
        if (kind := args.plot.suffix[1:].lower()) not in (known := FigureCanvasBase.get_supported_filetypes()):
            return f"--plot: cannot write {args.plot}: {kind or 'no suffix'} is none of {', '.join(sorted(known))}"
    return ""


def _written(file: Path, write: Callable[[], None]) -> bool:
    """Write a file, or say why it could not be: what was measured is shown all the same."""
    try:
        write()
    except OSError as error:
        _complain(f"cannot write {file}: {error.strerror or error}")
        return False
    return True


def _plot(run: Run, file: Path) -> None:
    from normkit.bench.plot import draw

    draw(run, file)


def _list(cases: list[Case]) -> int:
    for case in cases:
        print(case.spec)
    for contender in CONTENDERS.values():
        print(f"  {contender.name}: {'not installed: ' + ', '.join(contender.missing) if contender.missing else 'here'}")
    return 0


def _complain(message: str) -> int:
    print(f"normkit bench: {message}", file=sys.stderr)
    return 2
