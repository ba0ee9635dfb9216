"""The paper's toy figure through the real layer: five ways to combine the commitment and the task gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

import straightvq as svq
from straightvq.diagnostics import panels, save
from straightvq.io import write_text
from straightvq.studies.report.tables import NONE, Table
from straightvq.training.alternated import alternated_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Constants of the authors' figure, read off its pixels.
LR, SPLIT, SYNC = 0.55, 0.7, 0.3
Z_START, CODE_START = (-0.9, -0.9), (0.0, -0.9)


def _task(quantized: Tensor) -> Tensor:
    return 0.5 * quantized.square().sum()


def _joint(z: nn.Parameter, layer: svq.VectorQuantizer, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    out = layer(z)
    (_task(out.quantized) + out.loss).backward()
    optimizer.step()


def _unquantized(z: nn.Parameter, layer: svq.VectorQuantizer, optimizer: torch.optim.Optimizer) -> None:
    with svq.bypass(layer):
        _joint(z, layer, optimizer)


def _alternated(z: nn.Parameter, layer: svq.VectorQuantizer, optimizer: torch.optim.Optimizer) -> None:
    alternated_step(lambda: layer(z).loss, lambda: _task(layer(z).quantized), optimizer, optimizer)


def _as_drawn(z: nn.Parameter, layer: svq.VectorQuantizer, optimizer: torch.optim.Optimizer) -> None:
    """The first phase's gradient is still there in the second, and counts twice."""
    optimizer.zero_grad()
    layer(z).loss.backward()
    optimizer.step()
    _task(layer(z).quantized).backward()
    optimizer.step()


class Rule(NamedTuple):
    """A way to step, and what its recursion gives, written down for plain gradient descent."""

    step: Callable[[nn.Parameter, svq.VectorQuantizer, torch.optim.Optimizer], None]
    sync: float
    still: int  # steps until |z| stays below 0.01
    length: float  # of the path over 40 steps
    off: float | None  # largest distance from the points of the authors' panel, in units of its axes; None without any


RULES = {
    "no quantizer": Rule(_unquantized, 0.0, 7, 1.273, None),
    "joint": Rule(_joint, 0.0, 22, 2.657, 0.0026),
    "synchronised": Rule(_joint, SYNC, 15, 1.933, 0.0033),
    "alternated": Rule(_alternated, 0.0, 11, 1.578, 0.0034),
    "alternated + synchronised": Rule(_alternated, SYNC, 10, 1.434, 0.35),
    "the same as the authors draw it": Rule(_as_drawn, SYNC, 6, 1.273, 0.0024),
}


def trajectory(rule: str, steps: int = 60) -> tuple[Tensor, Tensor]:
    """Embedding and code after each step of one of `RULES`, Float (steps + 1, 2) both, the figure's start first.

    The task loss is ½ |z_q|², the network's head the identity, the optimizer plain gradient descent.

    Example:
        >>> z, code = trajectory("alternated + synchronised", 1)
        >>> [round(v, 4) for v in z[1].tolist()], [round(v, 4) for v in code[1].tolist()]
        ([-0.5609, -0.405], [-0.2893, -0.7515])
    """
    layer = svq.VectorQuantizer(
        2,
        # A mean over two elements makes the losses half squares. The second code is never chosen.
        svq.Codebook(2),
        estimator=svq.StraightThrough(RULES[rule].sync),
        losses=[svq.CommitmentLoss(1 - SPLIT), svq.CodebookLoss(SPLIT)],
    )
    layer.set_codes(torch.tensor([CODE_START, (100.0, 100.0)]))
    z = nn.Parameter(torch.tensor([Z_START]))
    optimizer = torch.optim.SGD([z, *layer.parameters()], lr=LR)
    path = [torch.cat([z, layer.codes()[:1]]).detach()]
    for _ in range(steps):
        RULES[rule].step(z, layer, optimizer)
        path.append(torch.cat([z, layer.codes()[:1]]).detach())
    embeddings, codes = torch.stack(path, 1)
    return embeddings, codes


def steps_until_still(z: Tensor) -> int:
    """The first step from which on |z| stays below 0.01; z with the start, Float (steps + 1, 2)."""
    return int((z.norm(dim=1) >= 0.01).nonzero().max()) + 1


def path_length(z: Tensor, steps: int = 40) -> float:
    return float((z[1 : steps + 1] - z[:steps]).norm(dim=1).sum())


def draw_toy(folder: Path, title: str, about: str) -> None:
    """Writes ``toy.png``, ``report.md``, ``report.tex`` and ``results.csv`` (all points) into a folder."""
    paths = {rule: trajectory(rule) for rule in RULES}
    save(_figure(paths, title), folder / "toy.png")
    lines = []
    for name, rule in RULES.items():
        z, _ = paths[name]
        own = [str(steps_until_still(z)), str(rule.still), f"{path_length(z):.3f}", f"{rule.length:.3f}"]
        lines.append([name, *own, NONE if rule.off is None else f"{rule.off:.2g}"])
    header = ["rule", "steps to rest", "by formula", "path length", "by formula", "distance from the authors' figure"]
    table = Table(title, header, lines)
    page = [f"# {title}", about.strip(), "`straightvq reproduce toy`", table.markdown(), "![trajectories](toy.png)"]
    write_text(folder / "report.md", "\n\n".join(page) + "\n")
    write_text(folder / "report.tex", table.latex() + "\n")
    columns = ["z_0", "z_1", "code_0", "code_1"]
    points = {rule: pd.DataFrame(torch.cat(path, 1), columns=columns) for rule, path in paths.items()}
    write_text(folder / "results.csv", pd.concat(points, names=["rule", "step"]).to_csv(float_format="%.6f"))


def _figure(paths: dict[str, tuple[Tensor, Tensor]], title: str) -> "Figure":
    figure = panels.new_figure(16.0, 11.4, title)
    axes = panels.grid(figure, len(paths), 3, top=0.56, above=1.03, below=0.51, left=0.8, between=0.8)
    around = torch.linspace(0, 2 * torch.pi, 90)
    for ax, (rule, (z, code)) in zip(axes, paths.items(), strict=True):
        for radius in (0.3, 0.6, 0.9, 1.2):  # where the task loss is the same
            ax.plot(radius * around.cos(), radius * around.sin(), color=panels.RULE, linewidth=0.9, zorder=1)
        drawn = {"embedding": (z, "o", 3), "code": (code, "s", 2)}
        if rule == "no quantizer":
            del drawn["code"]
        handles = {}
        for (name, (path, marker, zorder)), color in zip(drawn.items(), panels.PALETTE, strict=False):
            line = ax.plot(*path[:30].T, color=color, marker=marker, markersize=4, linewidth=1.6, zorder=zorder)
            handles[name] = line[0]
        ax.plot(0, 0, marker="+", markersize=12, color=panels.INK, zorder=4)
        ax.set(xlim=(-1.05, 0.45), ylim=(-1.05, 0.45), aspect="equal")
        panels.finish(ax, handles, f"{rule}: {steps_until_still(z)} steps")
    return figure
