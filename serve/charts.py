"""Charts of the report as inline SVG text: numbers come in, one `<svg>` element goes out, no file is touched.

Colours and strokes are classes (`series-0`, `grid`, `muted`, ...) that the page's style sheet defines, so one
drawing serves the light and the dark page. Every mark carries a `<title>`, which browsers show on hover.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

NUM_COLOURS = 8
VISIBLE_SURVIVAL = 0.01


@dataclass
class Plot:
    """A drawing area with linear scales; `span_*` are data values, the rest is in pixels of the view box."""

    span_x: tuple[float, float]
    span_y: tuple[float, float]
    width: float = 520
    height: float = 280
    left: float = 44
    right: float = 14
    top: float = 14
    bottom: float = 40
    svg: ElementTree.Element = field(init=False)

    def __post_init__(self) -> None:
        self.svg = ElementTree.Element("svg", viewBox=f"0 0 {self.width:g} {self.height:g}", role="img")

    def x(self, value: float) -> float:
        """The pixel column of a data value."""
        low, high = self.span_x
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 2)

    def y(self, value: float) -> float:
        """The pixel row of a data value."""
        low, high = self.span_y
        return round(self.height - self.bottom - (value - low) / (high - low) * self._rows(), 2)

    def _rows(self) -> float:
        return self.height - self.top - self.bottom

    def mark(self, tag: str, css: str, title: str = "", **attributes: object) -> None:
        """Add one element; names such as stroke_width become stroke-width."""
        given = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
        element = ElementTree.SubElement(self.svg, tag, {"class": css, **given})
        if title:
            ElementTree.SubElement(element, "title").text = title

    def text(self, x: float, y: float, words: str, css: str = "", anchor: str = "start") -> None:
        """Add a line of text at a pixel position."""
        given = {"class": css, "x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor}
        ElementTree.SubElement(self.svg, "text", given).text = words

    def line(self, x: tuple[float, float], y: tuple[float, float], css: str) -> None:
        """Add a straight line between two points given in pixels."""
        self.mark("line", css, x1=x[0], x2=x[1], y1=y[0], y2=y[1])

    def rows(self, ticks: Sequence[float], form: str) -> None:
        """Horizontal grid lines with their labels."""
        for tick in ticks:
            self.line((self.left, self.width - self.right), (self.y(tick), self.y(tick)), "grid")
            self.text(self.left - 6, self.y(tick) + 4, format(tick, form), "muted", "end")

    def columns(self, labels: Mapping[float, str], name: str) -> None:
        """Labels below the area, at data positions, and the name of the axis."""
        for position, label in labels.items():
            self.text(self.x(position), self.height - self.bottom + 16, label, "muted", "middle")
        centre = (self.left + self.width - self.right) / 2
        self.text(centre, self.height - 6, name, "muted", "middle")

    def source(self) -> str:
        """The SVG as text to place in a page."""
        return ElementTree.tostring(self.svg, encoding="unicode")


def round_ticks(high: float, about: int = 4) -> list[float]:
    """Ticks from 0 to the first round one at or above `high`, roughly `about` steps."""
    rough = max(high, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def series(index: int) -> str:
    """The class of the index-th series: its colour, and dashes once the colours have all been used."""
    return f"series-{index % NUM_COLOURS}" + (" dashed" if index >= NUM_COLOURS else "")


def num_visible_slots(survival: Mapping[str, Sequence[float]]) -> int:
    """How many leading slots are reached by at least 1 % of some task's blocks (two at least)."""
    reached = [
        slot for values in survival.values() for slot, value in enumerate(values, start=1) if value >= VISIBLE_SURVIVAL
    ]
    return max([2, *reached])


def survival_curves(survival: Mapping[str, Sequence[float]]) -> str:
    """One curve a task: the share of blocks whose draft was accepted up to and including slot i."""
    last = num_visible_slots(survival)
    plot = Plot(span_x=(1, last), span_y=(0, 1), top=10)
    plot.rows([0, 0.25, 0.5, 0.75, 1], ".0%")
    every = max(1, math.ceil(last / 16))
    plot.columns({slot: str(slot) for slot in range(1, last + 1, every)}, "slot in the block")
    for index, (task, values) in enumerate(survival.items()):
        points = [(plot.x(slot), plot.y(value)) for slot, value in enumerate(values[:last], start=1)]
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        plot.mark("polyline", f"curve {series(index)}", points=path)
        for slot, ((x, y), value) in enumerate(zip(points, values, strict=False), start=1):
            plot.mark("circle", f"dot {series(index)}", f"{task}, slot {slot}: {value:.1%}", cx=x, cy=y, r=3)
    _legend(plot, list(survival), x=plot.width - 150)
    return plot.source()


def tau_curves(curves: Mapping[str, Sequence[float | None]], *, step: int = 16) -> str:
    """One curve a task: tau of the steps that began in each `step` tokens of the answer."""
    known = [value for values in curves.values() for value in values if value is not None]
    ticks = round_ticks(1.1 * max([1.0, *known]))
    last = max(2, *(len(values) for values in curves.values()))
    plot = Plot(span_x=(0, last), span_y=(0, ticks[-1]), top=10)
    plot.rows(ticks, "g")
    every = max(1, math.ceil(last / 8))
    plot.columns(
        {place: str(place * step) for place in range(0, last + 1, every)}, "tokens of the answer before the step"
    )
    for index, (task, values) in enumerate(curves.items()):
        points = [(plot.x(i + 0.5), plot.y(v), v) for i, v in enumerate(values) if v is not None]
        plot.mark("polyline", f"curve {series(index)}", points=" ".join(f"{x:g},{y:g}" for x, y, _ in points))
        for x, y, value in points:
            plot.mark("circle", f"dot {series(index)}", f"{task}: tau {value:.2f}", cx=x, cy=y, r=3)
    return plot.source()


def _legend(plot: Plot, names: Sequence[str], x: float) -> None:
    for index, name in enumerate(names):
        y = plot.top + 12 + 17 * index
        plot.line((x, x + 18), (y - 4, y - 4), f"curve {series(index)}")
        plot.text(x + 24, y, _short(name, 18))


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def speedup_bars(speedups: Mapping[str, tuple[float, float, float]]) -> str:
    """One bar a task, from (speedup, low, high): its interval as a whisker, a line at no gain."""
    ticks = round_ticks(max(1.2, *(high for _, _, high in speedups.values())))
    plot = Plot((0, ticks[-1]), (0, len(speedups)), height=54 + 34 * len(speedups), left=116, right=52)
    for tick in ticks:
        plot.line((plot.x(tick), plot.x(tick)), (plot.top, plot.height - plot.bottom), "grid")
    plot.columns({tick: f"{tick:g}" for tick in ticks}, "times as fast as the plain loop")
    for row, (task, (value, low, high)) in enumerate(speedups.items()):
        middle = plot.top + 34 * (row + 0.5)
        title = f"{task}: {value:.2f}x, between {low:.2f}x and {high:.2f}x"
        length = plot.x(value) - plot.x(0)
        plot.mark("rect", "bar", title, x=plot.x(0), y=middle - 9, width=f"{length:g}", height=18, rx=2)
        plot.line((plot.x(low), plot.x(high)), (middle, middle), "whisker")
        plot.text(plot.left - 8, middle + 4, _short(task, 16), "", "end")
        plot.text(plot.x(max(value, high)) + 6, middle + 4, f"{value:.2f}x", "strong")
    plot.line((plot.x(1), plot.x(1)), (plot.top - 6, plot.height - plot.bottom), "reference")
    return plot.source()


def cost_bars(widths: Sequence[Mapping[str, Any]], *, plain_ms: float, chosen: int) -> str:
    """Milliseconds of one step against the width: drafting on top of verifying, the plain step as a line."""
    ticks = round_ticks(1.1 * max(plain_ms, *(row["draft_ms"] + row["verify_ms"] for row in widths)))
    plot = Plot(span_x=(-0.5, len(widths) - 0.5), span_y=(0, ticks[-1]), top=34)
    plot.rows(ticks, "g")
    plot.columns(_width_labels(widths), "width W (the one most steps chose is marked)")
    for place, row in enumerate(widths):
        left, base = plot.x(place - 0.32), 0.0
        span = plot.x(place + 0.32) - left
        for part, css in (("verify_ms", "series-0"), ("draft_ms", "series-1")):
            top = plot.y(base + row[part])
            title = f"width {row['width']}: {part.removesuffix('_ms')} {row[part]:.2f} ms"
            size = {"width": f"{span:g}", "height": f"{plot.y(base) - top:g}"}
            plot.mark("rect", f"fill {css}", title, x=left, y=top, **size)
            base += row[part]
        if row["width"] == chosen:
            plot.text(plot.x(place), plot.y(base) - 5, "▾", "strong", "middle")
    plot.line((plot.left, plot.width - plot.right), (plot.y(plain_ms), plot.y(plain_ms)), "reference")
    _key(plot, {"fill series-0": "verify", "fill series-1": "draft"})
    plot.line((plot.left + 160, plot.left + 178), (14, 14), "reference")
    plot.text(plot.left + 184, 18, f"plain step, {plain_ms:.1f} ms")
    return plot.source()


def _key(plot: Plot, names: Mapping[str, str]) -> None:
    for place, (css, name) in enumerate(names.items()):
        plot.mark("rect", css, x=plot.left + 80 * place, y=8, width=12, height=12, rx=2)
        plot.text(plot.left + 80 * place + 18, 18, name)


def _width_labels(widths: Sequence[Mapping[str, Any]]) -> dict[float, str]:
    every = math.ceil(len(widths) / 16)
    return {place: str(row["width"]) for place, row in enumerate(widths) if place % every == 0}


def expected_speedups(widths: Sequence[Mapping[str, Any]], *, chosen: int) -> str:
    """The speedup that cost and acceptance predict at each width, with the chosen width marked."""
    known = [
        (place, row["width"], row["expected_speedup"])
        for place, row in enumerate(widths)
        if row["expected_speedup"] is not None
    ]
    ticks = round_ticks(1.1 * max([1.0, *(value for _, _, value in known)]))
    plot = Plot(span_x=(-0.5, len(widths) - 0.5), span_y=(0, ticks[-1]))
    plot.rows(ticks, "g")
    plot.columns(_width_labels(widths), "width W (the one most steps chose is filled)")
    plot.line((plot.left, plot.width - plot.right), (plot.y(1), plot.y(1)), "reference")
    path = " ".join(f"{plot.x(place):g},{plot.y(value):g}" for place, _, value in known)
    plot.mark("polyline", "curve series-2", points=path)
    for place, width, value in known:
        css = "point series-2 chosen" if width == chosen else "point series-2"
        title = f"width {width}: {value:.2f}x expected"
        plot.mark("circle", css, title, cx=plot.x(place), cy=plot.y(value), r=4.5)
        if width == chosen:
            plot.text(plot.x(place), plot.y(value) - 11, f"{value:.2f}x", "strong", "middle")
    return plot.source()


def committed_histogram(counts: Sequence[int], *, last: int, high: float, index: int) -> str:
    """The share of verify steps that committed 1 to `last` tokens, drawn small; `high`: the largest share."""
    total = max(1, sum(counts))
    ticks = round_ticks(high, about=3)
    plot = Plot((0.4, last + 0.6), (0, ticks[-1]), width=190, height=140, left=42, right=4, top=8, bottom=38)
    plot.rows(ticks, ".0%")
    every = math.ceil(last / 7)
    plot.columns({n: str(n) for n in range(1, last + 1, every)}, "tokens a step")
    for tokens, count in enumerate(counts[: last + 1]):
        if tokens == 0 or count == 0:
            continue
        top = plot.y(count / total)
        title = f"{tokens} tokens: {count} of {total} steps, {count / total:.1%}"
        size = {"width": f"{plot.x(1.7) - plot.x(1):g}", "height": f"{plot.y(0) - top:g}"}
        plot.mark("rect", f"fill {series(index)}", title, x=plot.x(tokens - 0.35), y=top, **size)
    return plot.source()


def cost_curves(curves: Sequence[Mapping[str, Any]]) -> str:
    """Times of steps over those of one token, against the width, both in powers of two; the roofline's dashed.

    A curve holds batch, context, and by width verify_ms and floor_ms.
    """
    ratios = []
    for curve in curves:
        one = next(iter(curve["verify_ms"].values()))
        ratios.append([{w: ms / one for w, ms in curve[name].items()} for name in ("verify_ms", "floor_ms")])
    widths = sorted({width for found, _ in ratios for width in found})
    highest = max(value for pair in ratios for each in pair for value in each.values())
    lowest = min(0.5, *(value for pair in ratios for each in pair for value in each.values()))
    low, high = math.floor(math.log2(lowest)), max(1, math.ceil(math.log2(highest)))
    plot = Plot((math.log2(widths[0]), math.log2(widths[-1])), (low, high), width=640, height=360, right=170)
    for power in range(low, high + 1):
        plot.line((plot.left, plot.width - plot.right), (plot.y(power), plot.y(power)), "grid")
        plot.text(plot.left - 6, plot.y(power) + 4, f"{2.0**power:g}x", "muted", "end")
    plot.columns({math.log2(width): str(width) for width in widths}, "width W (tokens verified of each row)")
    plot.line((plot.left, plot.width - plot.right), (plot.y(0), plot.y(0)), "reference")
    for index, (curve, pair) in enumerate(zip(curves, ratios, strict=True)):
        name = f"batch {curve['batch']}, {curve['context']}"
        for values, css in zip(pair, ("curve", "curve dashed"), strict=True):
            points = [(plot.x(math.log2(width)), plot.y(math.log2(value))) for width, value in values.items()]
            path = " ".join(f"{x:g},{y:g}" for x, y in points)
            plot.mark("polyline", f"{css} series-{index % NUM_COLOURS}", points=path)
        for width, value in pair[0].items():
            title = f"{name}, width {width}: {value:.2f} times one token"
            at = {"cx": plot.x(math.log2(width)), "cy": plot.y(math.log2(value))}
            plot.mark("circle", f"dot series-{index % NUM_COLOURS}", title, **at, r=3)
    _legend(plot, [f"b {curve['batch']}, S {curve['context']}" for curve in curves], x=plot.width - 155)
    return plot.source()


def width_curves(curves: Mapping[str, Mapping[int, float]], name: str, *, reference: float | None = None) -> str:
    """Values against the width in powers of two, one line a name; `name` says what they are."""
    widths = sorted({width for values in curves.values() for width in values})
    ticks = round_ticks(1.1 * max(value for values in curves.values() for value in values.values()))
    plot = Plot((math.log2(widths[0]), math.log2(widths[-1])), (0, ticks[-1]), width=640, height=320, right=170, top=30)
    plot.rows(ticks, "g")
    plot.columns({math.log2(width): str(width) for width in widths}, "width W")
    plot.text(plot.left, 16, name, "muted")
    if reference is not None:
        plot.line((plot.left, plot.width - plot.right), (plot.y(reference), plot.y(reference)), "reference")
    for index, (label, values) in enumerate(curves.items()):
        path = " ".join(f"{plot.x(math.log2(width)):g},{plot.y(value):g}" for width, value in values.items())
        plot.mark("polyline", f"curve {series(index)}", points=path)
        for width, value in values.items():
            at = {"cx": plot.x(math.log2(width)), "cy": plot.y(value)}
            plot.mark("circle", f"dot {series(index)}", f"{label}, width {width}: {value:.2f}", **at, r=3)
    _legend(plot, list(curves), x=plot.width - 155)
    return plot.source()


LOOK = """
svg { background: #ffffff; } text { font: 12px system-ui, sans-serif; fill: #1d1d1b; } .muted { fill: #6a6964; }
.grid { stroke: #e4e2dc; } .reference { stroke: #1d1d1b; stroke-dasharray: 4 3; } .dot { fill: currentColor; }
.curve { fill: none; stroke: currentColor; stroke-width: 2; } .dashed { stroke-dasharray: 5 3; stroke-width: 1.25; }
.series-0 { color: #2468b4; } .series-1 { color: #cf6a1c; } .series-2 { color: #14806a; } .series-3 { color: #8c55bd; }
.series-4 { color: #b98a00; } .series-5 { color: #c23b6e; } .series-6 { color: #5d7d1e; } .series-7 { color: #5c6b7d; }
"""


def alone(drawing: str) -> str:
    """A drawing as a file of its own, with the page's light colours in it."""
    head, _, body = drawing.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">\n<style>{LOOK}</style>\n{body}\n'
