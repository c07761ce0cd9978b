"""A run in words: tables for a terminal (rich) and for a document (Markdown), from the same cells."""

from __future__ import annotations

from math import expm1, log, log1p
from pathlib import Path
from statistics import median

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from normkit.bench.cases import PLAIN, Case
from normkit.bench.contenders import CONTENDERS, PLAIN_COPY
from normkit.bench.results import APART, CaseResult, Run, Score, geometric_mean

BEGIN, END = "<!-- normkit bench: begin -->", "<!-- normkit bench: end -->"
COLOURS = {"floor": "dim", "peer": "", "normkit": "bold green"}
LEGEND = """\
ratio: time over {base}'s, the median of the rounds; ±: their spread (quartiles)
of copy: share of the fastest copy's speed; error: the largest, at unit variance"""
FLOOR = "streaming copy"
LOSS = 0.98  # a peer below this ratio is named as quicker
CLOSE = 0.15  # two runs agree about a ratio that differs by less


def seconds_text(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds / scale < 999.5 else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def bytes_text(count: int) -> str:
    """Three digits and a unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


def error_text(score: Score) -> str:
    """The largest error; of half types in units of the last place."""
    if score.ulps is not None:
        return f"{score.ulps:.2f} ulp" if score.ulps < 100 else f"{score.ulps:.0e} ulp"
    return "" if score.error is None else f"{score.error:.0e}"


def ratio_text(ratio: float) -> str:
    """Three digits."""
    return f"{ratio:.3g}x" if ratio < 999.5 else f"{ratio:.0f}x"


def print_run(run: Run, console: Console) -> None:
    """Everything, for a person at a terminal."""
    console.print(Text("; ".join(f"{name} {fact}" for name, fact in run.machine.items()), style="dim"))
    console.print(Text(LEGEND.format(base=run.base), style="dim"))
    for result in run.finished:
        console.print(Text(f"\n{result.case.title}", style="bold"), Text(f"  {bytes_text(result.case.nbytes)}", style="dim"))
        console.print(_case_table(run, result, wide=console.width >= 100, blocks=console.encoding.lower().startswith("utf")))
        _print_failures(result, console)
    for result in run.lost:
        console.print(Text(f"\n{result.case.title}", style="bold"), Text(f"  nothing to compare with: {run.base} failed"))
        _print_failures(result, console)
    if len(run.finished) > 1:
        console.print(Text(f"\ntime over {run.base}'s, over all cases", style="bold"))
        console.print(_summary_table(run))
    console.print(Text("\n".join(["", *_remarks(run)])))


def _print_failures(result: CaseResult, console: Console) -> None:
    for name, score in result.scores.items():
        if score.failure and score.failure != PLAIN_COPY:
            console.print(Text(f"  {name}: {score.failure}", style="dim italic"), overflow="ellipsis", no_wrap=True)


def _case_table(run: Run, result: CaseResult, wide: bool, blocks: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", width=20)
    for heading, width in (("time", 8), ("ratio", 8), ("±", 5), ("of copy", 7), ("error", 9)):
        table.add_column(heading, justify="right", width=width)
    table.add_column("", width=30 if wide else 12)
    longest = max(result.time(name) for name in result.timed)
    for name in sorted(result.timed, key=lambda n: result.ratio(n, run.base)):
        share = result.time(name) / longest
        width = 30 if wide else 12
        bar = Bar(1, 0, share, width=width) if blocks else "#" * round(share * width)
        table.add_row(f"  {name}", *_cells(run, result, name), bar, style=COLOURS[CONTENDERS[name].kind])
    return table


def _cells(run: Run, result: CaseResult, name: str) -> list[str]:
    spread = "" if name == run.base else f"{result.spread(name, run.base):.0%}"
    ratio = ratio_text(result.ratio(name, run.base))
    return [seconds_text(result.time(name)), ratio, spread, copy_fraction(result, name), error_text(result.scores[name])]


def copy_fraction(result: CaseResult, name: str) -> str:
    """Speed as a share of the quickest copy's."""
    return f"{1 / result.ratio(name, FLOOR):.2f}" if FLOOR in result.timed else ""


def _summary_rows(run: Run) -> list[list[str]]:
    rows = []
    for name in run.names:
        ratios = [result.ratio(name, run.base) for result in run.finished if name in result.timed]
        rows.append([name, *_ratio_cells(ratios), _worst_error(run, name)])
    if any(CONTENDERS[name].kind == "peer" for name in run.names):
        rows.append(["best peer of each case", *_ratio_cells(run.best_peers()), ""])
    return rows


def _ratio_cells(ratios: list[float]) -> list[str]:
    figures = (geometric_mean(ratios), min(ratios), max(ratios))
    return [str(len(ratios)), *map(ratio_text, figures)]


def _worst_error(run: Run, name: str) -> str:
    """Of float32 cases."""
    float32 = [result for result in run.finished if result.case.dtype == "float32" and name in result.timed]
    errors = [error for result in float32 if (error := result.scores[name].error) is not None]
    return f"{max(errors):.0e}" if errors else ""


SUMMARY = ("contender", "cases", "mean", "least", "most", "worst error")


def _summary_table(run: Run) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in SUMMARY:
        table.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
    for name, *figures in _summary_rows(run):
        table.add_row(f"  {name}", *figures, style=COLOURS[CONTENDERS[name].kind] if name in CONTENDERS else "bold")
    return table


def _remarks(run: Run) -> list[str]:
    lines = [f"left out: {name} ({reason})" for name, reason in run.left_out.items()]
    turns = sum(len(score.seconds) for result in run.results for score in result.scores.values())
    if disturbed := sum(result.disturbed for result in run.results):
        lines.append(f"disturbed: other processes had part of the cores during {disturbed} of {turns} turns")
    lines += _distance_remarks(run)
    if run.interrupted:
        lines.append("interrupted: these are the rounds that were played")
    return [*lines, *layout_costs(run), *losses(run)]


def _distance_remarks(run: Run) -> list[str]:
    """Whether the host of a virtual machine moved the cores apart, and what became of those turns."""
    near = [d for d in run.distances if d <= run.near]
    far = [d for d in run.distances if d > run.near]
    if not far:
        return []
    lines = [
        f"cores: apart during {len(far)} of {len(near) + len(far)} turns: a line went to another core and back in "
        f"{seconds_text(median(far))}, otherwise in {seconds_text(median(near))}; those turns do not count"
    ]
    if unsettled := [result.case.title for result in run.unsettled]:
        lines.append(f"cores: less than half of the rounds count in {', '.join(unsettled)}")
    return lines


def losses(run: Run) -> list[str]:
    """Case by case, who is quicker than the base, the quickest first."""
    found = []
    for result in run.finished:
        quicker = sorted((ratio, name) for name, ratio in run.peers(result).items() if ratio < LOSS)
        if quicker:
            found.append(f"{result.case.title}: " + ", ".join(f"{name} {ratio_text(ratio)}" for ratio, name in quicker))
    if found:
        return [f"Quicker than {run.base}:", *found]
    if not any(run.peers(result) for result in run.finished):
        return []
    return [f"No peer is quicker than {run.base} in any of these cases."]


def layout_costs(run: Run) -> list[str]:
    """What a layout or a dtype costs: the base's time over that of the plain case with the same elements.

    Beside it, that time over what the reads and writes of such a layout take without any arithmetic, see `floors`.
    """
    results, lines = {result.case.spec: result for result in run.finished}, []
    for spec, plain in PLAIN.items():
        if spec in results and plain in results:
            line = f"{spec}: {_cost(results[spec], results[plain], run.base):.2f}x of {plain}"
            if "layout copy" in results[spec].timed:
                line += f", {results[spec].ratio(run.base, 'layout copy'):.2f}x of a copy with its reads and writes"
            lines.append(line)
    return [f"{run.base}'s time over that of the plain layout:", *lines] if lines else []


def _cost(result: CaseResult, plain: CaseResult, name: str) -> float:
    """Time over time: in units of the copy beside each, if they have as many bytes, since the speed of a machine drifts."""
    if result.case.nbytes == plain.case.nbytes and FLOOR in result.timed and FLOOR in plain.timed:
        return result.ratio(name, FLOOR) / plain.ratio(name, FLOOR)
    return result.time(name) / plain.time(name)


def agreement(run: Run, other: Run) -> list[str]:
    """How far the ratios of two runs differ, by size of the arrays: one by one, and the mean of each contender's."""
    lines = _apart(run, other)
    sizes = (("small (below 1 MB)", 0, 1e6), ("medium (1 to 8 MB)", 1e6, 8e6), ("large (8 MB and more)", 8e6, float("inf")))
    for title, low, high in sizes:
        changes = [change for change in _changes(run, other) if low <= change[2].nbytes < high]
        if changes:
            lines += [f"{title}:", *_spread(changes)]
    return lines


def _apart(run: Run, other: Run) -> list[str]:
    """A warning, where the machines of two runs cannot be compared."""
    here, there = run.distance, other.distance
    if 1 / APART <= here / there <= APART or not (run.distances and other.distances):
        return []
    return [f"not on the same footing: a line takes {seconds_text(here)} between cores, there {seconds_text(there)}; run again"]


def _spread(changes: list[tuple[float, str, Case]]) -> list[str]:
    sizes = sorted((abs(log(change)), f"{name}, {case.title}") for change, name, case in changes)
    within = sum(size < log1p(CLOSE) for size, _ in sizes)
    middle = expm1(median(size for size, _ in sizes))
    worst, label = sizes[-1]
    means = {name: geometric_mean(c for c, n, _ in changes if n == name) for _, name, _ in changes}
    furthest = max(means, key=lambda name: abs(log(means[name])))
    return [
        f"  {within} of {len(sizes)} ratios differ by less than {CLOSE:.0%}; "
        f"by {middle:.1%} in the median, {expm1(worst):.1%} at most ({label})",
        f"  the mean over these cases differs by {expm1(abs(log(means[furthest]))):.1%} at most ({furthest})",
    ]


def _changes(run: Run, other: Run) -> list[tuple[float, str, Case]]:
    """Each ratio over that of the other run."""
    before = {result.case: result for result in other.finished}
    return [
        (result.ratio(name, run.base) / before[result.case].ratio(name, run.base), name, result.case)
        for result in run.finished
        if result.case in before and run.base in before[result.case].timed
        for name in result.timed
        if name in before[result.case].timed and name != run.base
    ]


def markdown(run: Run, picture: str | None = None) -> str:
    """The tables for a document."""
    machine = "; ".join(f"{name} {fact}" for name, fact in run.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.versions.items()))
    chosen = run.settings
    rounds = f"{chosen.sweeps} sweeps of {chosen.rounds} rounds, turns of {chosen.seconds:g} s"
    parts = [f"Machine: {machine}.", f"Versions: {versions}. {rounds}."]
    parts += [f"![time of each contender over normkit's, per case]({picture})"] if picture else []
    parts += [f"Time over {run.base}'s, over all cases:", _markdown_table(SUMMARY, _summary_rows(run))]
    parts += ["Each cell: time, time over " + run.base + "'s, largest error.", _markdown_cases(run)]
    for heading, *lines in filter(None, (layout_costs(run), losses(run))):
        parts.append("\n".join([heading, "", *(f"- {line}" for line in lines)]).strip())
    parts += ["\n".join(f"- {name} left out: {reason}" for name, reason in run.left_out.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_cases(run: Run) -> str:
    rows = []
    for result in run.finished:
        cells = [f"{result.case.title}<br>{bytes_text(result.case.nbytes)}"]
        for name in run.names:
            cells.append(_markdown_cell(run, result, name))
        rows.append(cells)
    return _markdown_table(("case", *run.names), rows)


def _markdown_cell(run: Run, result: CaseResult, name: str) -> str:
    if name not in result.timed:
        return "-"
    parts = [seconds_text(result.time(name)), ratio_text(result.ratio(name, run.base)), error_text(result.scores[name])]
    text = "<br>".join(part for part in parts if part)
    return f"**{text}**" if CONTENDERS[name].kind == "normkit" else text


def _markdown_table(headings: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [headings, ("---", *["--:"] * (len(headings) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_markdown(run: Run, file: Path, picture: str | None = None) -> None:
    """Put the tables between the marks of a document, or into a new one."""
    text = f"{BEGIN}\n\n{markdown(run, picture)}\n{END}"
    before, after = "", "\n"
    if file.exists() and BEGIN in (old := file.read_text(encoding="utf-8")):
        before, _, rest = old.partition(BEGIN)
        after = rest.partition(END)[2]
    file.write_text(before + text + after, encoding="utf-8")
