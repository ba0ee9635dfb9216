"""From rows to a page: what was promised and what was measured, tables, and a plot of how the cost scales."""

import contextlib
import csv
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from benchmarks.speed.methods import METHODS

from straightvq.studies.results import hardware

Size = tuple[int, int, int]  # vectors, codes, width
VECTORS, CODES, WIDTH = 16384, 8192, 64  # the middle of the grid
# What the quantizer of the autoencoder step gets: the recipe's 64 images of 8 x 8 vectors, or 8 of 16 x 16.
SHARE_OF: dict[str, Size] = {"cpu": (4096, 512, 8), "cuda": (2048, 8192, 8)}
QUERY: Size = (1, 65536, 64)
RESIDUAL: Size = (16384, 1024, 128)
PRODUCT: Size = (16384, 256, 128)
START: Size = (256, 8192, 64)  # a batch is a small part of the codebook
TITLES = {
    "search": "The search alone",
    "query": "The search for one vector",
    "sums": "Counts and sums per code",
    "step": "A training step of the layer: forward, loss, backward",
    "residual": "A training step of 8 residual levels",
    "product": "A training step of 8 groups of channels",
    "start": "A training step of a layer whose batches are smaller than its codebook",
    "growth": "One, two and four times the work, `straightvq` and EMA",
    "share": "A training step of an autoencoder, and the quantizer's part of it",
}


class Rows:
    """The CSV file, asked by method and size."""

    def __init__(self, path: Path) -> None:
        with path.open() as file:
            self.all = list(csv.DictReader(file))
        self.name = path.name
        self.device = self.all[0]["device"] if self.all else "cpu"
        self._cells = {(r["kind"], r["method"], self._size(r)): r for r in self.all}

    @staticmethod
    def _size(row: dict[str, str]) -> Size:
        return int(row["vectors"]), int(row["codes"]), int(row["width"])

    def sizes(self, kind: str) -> list[Size]:
        return sorted({self._size(r) for r in self.all if r["kind"] == kind})

    def methods(self, kind: str) -> list[str]:
        there = {r["method"] for r in self.all if r["kind"] == kind}
        return [name for name in METHODS[kind] if name in there]

    def number(self, kind: str, method: str, size: Size, field: str = "seconds") -> float | None:
        row = self._cells.get((kind, method, size))
        return float(row[field]) if row and row["outcome"] == "ok" else None

    def ratio(self, kind: str, method: str, other: str, size: Size, field: str = "seconds") -> float | None:
        top, bottom = self.number(kind, method, size, field), self.number(kind, other, size, field)
        # A step that finds room in what is held already measures as nothing: a megabyte stands in.
        return None if top is None or bottom is None else top / max(bottom, 1.0 if field == "extra_mb" else 1e-9)

    def cell(self, kind: str, method: str, size: Size) -> str:
        row = self._cells.get((kind, method, size))
        if row is None:
            return ""
        if row["outcome"] != "ok":
            return f"*{row['outcome']}*"
        return f"{_time(float(row['seconds']))}, {float(row['extra_mb']):.0f} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.{1 if seconds < 0.01 else 0}f} ms"


def promises(rows: Rows) -> Iterator[tuple[str, str, float | None, str]]:
    """What is measured, the limit, the number, and whether it must be "<=" or ">="."""
    for k in (1024, 8192, 65536):
        size = (VECTORS, k, WIDTH)
        yield f"search, {k:,} codes: time over FAISS", "1.15", rows.ratio("search", "straightvq", "FAISS", size), "<="
        speedup = rows.ratio("search", "cdist + argmin", "straightvq", size)
        yield f"search, {k:,} codes: speed-up over cdist + argmin", "2.5", speedup, ">="
    middle = (VECTORS, CODES, WIDTH)
    tiled = rows.ratio("search", "straightvq, torch only", "matrix product alone", middle)
    yield "search in torch only, 8,192 codes: time over the matrix product", "2.2", tiled, "<="
    query = rows.ratio("query", "straightvq", "cdist + argmin", QUERY)
    yield "search, one vector, 65,536 codes: time over cdist + argmin", "1.5", query, "<="
    for name, least in (("EMA", "15"), ("gradient", "8"), ("alternated", "8")):
        speedup = rows.ratio("step", "vector-quantize-pytorch", f"straightvq, {name}", middle)
        yield f"step, 8,192 codes, {name}: speed-up over vector-quantize-pytorch", least, speedup, ">="
    memory = rows.ratio("step", "vector-quantize-pytorch", "straightvq, EMA", middle, "extra_mb")
    yield "step, 8,192 codes, EMA: its peak memory over ours", "40", memory, ">="
    for name in ("EMA", "gradient", "alternated"):
        extra = rows.number("step", f"straightvq, {name}", (65536, 262144, 32), "extra_mb")
        yield f"step, 65,536 vectors, 262,144 codes, width 32, {name}: MB", "400", extra, "<="
    for what, size, least in (("residual", RESIDUAL, "8"), ("product", PRODUCT, "10")):
        speedup = rows.ratio(what, "vector-quantize-pytorch", "straightvq, EMA", size)
        yield f"{what}, 8 x {size[1]:,} codes, EMA: speed-up over vector-quantize-pytorch", least, speedup, ">="
        memory = rows.ratio(what, "vector-quantize-pytorch", "straightvq, EMA", size, "extra_mb")
        yield f"{what}, 8 x {size[1]:,} codes, EMA: its peak memory over ours", "10", memory, ">="
    start = rows.ratio("start", "straightvq, EMA, during k-means init", "straightvq, EMA", START)
    yield "step, 256 vectors, 8,192 codes, during k-means init: time over a later one", "3", start, "<="
    for what in ("search", "step"):
        yield f"{what}: largest growth for a doubling, from 8,192 codes up", "2.2", _growth(rows, what), "<="
    share = rows.ratio("share", "quantizer in it", "step", SHARE_OF[rows.device])
    network, limit = {"cpu": ("recipe `photos`", "0.10"), "cuda": ("VQGAN at 256 x 256 pixels", "0.03")}[rows.device]
    yield f"{network}: the quantizer's share of a training step", limit, share, "<="


def _growth(rows: Rows, what: str) -> float | None:
    """The largest factor by which twice the vectors or codes take longer."""
    middle = (VECTORS, CODES, WIDTH)
    ratios = [
        rows.ratio("growth", f"{what}, {more} x {axis}", f"{what}, {less} x {axis}" if less > 1 else what, middle)
        for axis in ("vectors", "codes")
        for less, more in ((1, 2), (2, 4))
    ]
    found = [ratio for ratio in ratios if ratio is not None]
    return max(found) if len(found) == len(ratios) else None


def write_report(path: Path, arguments: str) -> list[Path]:
    """The page and the plot beside the CSV file at ``path``."""
    rows = Rows(path)
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    has_plot = _plot(rows, picture)
    lines = ["# Speed and memory", "", _provenance(rows, arguments), ""]
    if has_plot:
        lines += [f"![time and memory against the number of codes and vectors]({picture.name})", ""]
    lines += _promises_table(rows)
    for kind, title in TITLES.items():
        if rows.sizes(kind):
            lines += ["", f"## {title}", "", *_table(rows, kind)]
    page.write_text("\n".join(lines) + "\n")
    return [page, picture] if has_plot else [page]


def _provenance(rows: Rows, arguments: str) -> str:
    packages = {method.package for kind in METHODS.values() for method in kind.values() if method.package}
    versions = []
    for package in sorted(packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    dates = sorted({row["date"] for row in rows.all})
    machine = hardware(rows.device, int(rows.all[0]["threads"]))
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machine}; {', '.join(versions)}; "
        f"`python -m benchmarks.speed {arguments}`".rstrip(" `")
        + "`.\n\n"
        "Standard normal vectors and codes. Medians of several repetitions after one that warms up, in which the "
        "methods of one size take turns, each in a process of its own; memory is the most that was held at once beyond "
        "what was held before, results and gradients included. *Words* instead of a time say which limit a row "
        f"exceeded. Every row, with its fastest and slowest repetition: [{rows.name}]({rows.name})."
    )


def _promises_table(rows: Rows) -> list[str]:
    lines = ["| promised | limit | measured | |", "|---|---|---|---|"]
    for what, limit, value, sense in promises(rows):
        if value is None:
            lines.append(f"| {what} | {sense} {limit} | not measured | |")
            continue
        holds = value <= float(limit) if sense == "<=" else value >= float(limit)
        lines.append(f"| {what} | {sense} {limit} | {value:.3g} | {'holds' if holds else '**does not hold**'} |")
    return lines


def _table(rows: Rows, kind: str) -> list[str]:
    methods = rows.methods(kind)
    lines = [f"| vectors x codes x width | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for size in rows.sizes(kind):
        cells = [rows.cell(kind, method, size) for method in methods]
        lines.append(f"| {' x '.join(f'{n:,}' for n in size)} | {' | '.join(cells)} |")
    return lines


def _plot(rows: Rows, path: Path) -> bool:
    """Time and memory against codes, and time against vectors, through the middle of the grid."""
    panels = [
        ("search", "seconds", 1, "search: time / ms"),
        ("step", "seconds", 1, "training step: time / ms"),
        ("step", "extra_mb", 1, "training step: peak extra memory / MB"),
        ("step", "seconds", 0, "training step: time / ms"),
    ]
    middles = [size for kind in ("search", "step") for size in rows.sizes(kind) if size == (VECTORS, CODES, WIDTH)]
    if len(middles) < 2:
        return False
    from matplotlib.figure import Figure

    from straightvq.diagnostics.pictures import save

    figure = Figure(figsize=(13, 9), layout="constrained", dpi=110)
    for axes, (kind, field, axis, title) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        fixed = {0: f"{CODES:,} codes", 1: f"{VECTORS:,} vectors"}[axis]
        on_line = [s for s in rows.sizes(kind) if s[1 - axis] == (VECTORS, CODES)[1 - axis] and s[2] == WIDTH]
        for method in rows.methods(kind):
            values = [(size[axis], rows.number(kind, method, size, field)) for size in on_line]
            points = [(x, y * (1e3 if field == "seconds" else 1)) for x, y in values if y is not None and y > 0]
            ours = method.startswith("straightvq")
            axes.plot(*zip(*points, strict=True), marker="o", label=method, lw=2.2 if ours else 1.4,
                      ls="-" if ours else "--") if points else None  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=("vectors", "codes")[axis], title=title)
        ticks = [size[axis] for size in on_line]
        axes.set_xticks(ticks, [f"{n // 1024}k" if n >= 1024 else str(n) for n in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, title=f"{fixed}, width {WIDTH}", title_fontsize=8)
    save(figure, path)
    return True
