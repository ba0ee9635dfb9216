"""The result of a comparison: a ranking, what it costs, what was tuned, in Markdown, CSV and a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from straightvq.diagnostics import save
from straightvq.io import write_text
from straightvq.studies.comparing.methods import BOUND, Method
from straightvq.studies.comparing.picture import draw_ranking
from straightvq.studies.comparing.standings import Standing, Standings, mean_and_error
from straightvq.studies.comparing.targets import Target
from straightvq.studies.plan import Plan
from straightvq.studies.report.page import origin
from straightvq.studies.report.tables import NONE, Table, spread, tuning_table
from straightvq.studies.results import TUNE
from straightvq.studies.study import Measure

RANKING, PICTURE, PAGE = "ranking.csv", "ranking.png", "report.md"
ENOUGH_TOKENS = 10  # of the test set per code: below, usage is that of the set and not of the codebook
PSNR = "PSNR, dB"


@dataclass(frozen=True)
class Ranking:
    """``report.md``, ``ranking.csv`` and ``ranking.png`` of whatever is finished."""

    plan: Plan
    target: Target
    methods: Mapping[str, Method]  # without the bound
    codebook_size: int
    steps: int
    command: str  # how it was run
    conditions: str  # what all rows share, in words

    @property
    def _first(self) -> Measure:
        return self.plan.study.headline

    def _standings(self) -> Standings:
        return Standings(self.plan.study, self.plan.results.matching(self.plan), self.plan.seeds)

    def draw(self) -> None:
        """Writes the picture."""
        standings = self._standings()
        if len(standings.finals):
            title = self.plan.study.title
            figure = draw_ranking(standings, self._first, self.target.pictured, title)
            save(figure, self.plan.results.folder / PICTURE)

    def write(self) -> None:
        """Writes the page and the table."""
        folder, found = self.plan.results.folder, self.plan.results.matching(self.plan)
        standings = self._standings()
        places = standings.by(self._first)
        layer, tuned = self._layer(standings, places), found[found.kind == TUNE]
        picture = f"![rows from the best down, means with two standard errors each way]({PICTURE})"
        sections = [
            f"# {self.plan.study.title}",
            self._head(standings),
            self._quality(standings, places).markdown(),
            self._reading(),
            picture if (folder / PICTURE).is_file() else "",
            "## The layer",
            layer.markdown(),
            self._layer_reading(),
            *self._tuning(tuned),
            f"All numbers: `{RANKING}`; of every run: `results.csv`. One run again: `straightvq fit --config` with the "
            "`config.yaml` in its folder.",
        ]
        write_text(folder / PAGE, "\n\n".join(filter(None, sections)) + "\n")
        write_text(folder / RANKING, self._csv(standings, places).to_csv(index=False))

    def _head(self, standings: Standings) -> str:
        count = f"{len(standings.finals)} of {len(self.plan.compared) * self.plan.seeds} runs are finished"
        return f"{self.conditions}\n`{self.command}`. {count}{origin(standings.finals)}."

    def _quality(self, standings: Standings, places: list[Standing]) -> Table:
        first, measures = self._first, self.target.measures
        quality = [measure for measure in measures.values() if measure in (first, *self.target.pictured)]
        quality = [*self.target.pictured[:1], *(one for one in quality if one != self.target.pictured[0])]
        header = ["", "quantizer", *(one.heading for one in quality), f"{first.label} to the best", "verdict"]
        gaps = self._gaps(standings)
        header += ["behind no quantizer, dB"] if gaps is not None else []
        rows = []
        for place in places:
            row = [str(place.rank or NONE), place.row]
            row += [spread(standings.values(one)[place.row], one.digits) for one in quality]
            row += [NONE if place.to_best is None else place.to_best.text(first), place.verdict or NONE]
            row += [_number(gaps.get(place.row), 2)] if gaps is not None else []
            rows.append(row)
        return Table(self.plan.study.title, header, rows)

    def _gaps(self, standings: Standings) -> "pd.Series | None":
        """Decibels that the network loses by each quantizer, over common seeds; None without the bound."""
        if BOUND not in standings.rows:
            return None
        values = standings.values(self.target.measures[PSNR])
        return values.drop(columns=BOUND).rsub(values[BOUND], axis=0).mean()

    def _layer(self, standings: Standings, places: list[Standing]) -> Table:
        shown = [one for one in self.target.measures.values() if one not in (self._first, *self.target.pictured)]
        header = ["quantizer", *(one.heading for one in shown), "run, ms per step", "bits", "reset", "seeds"]
        header += ["setting"] if self._is_tuned else []
        seconds = standings.finals.groupby("row").seconds.mean()
        rows = []
        for place in (place for place in places if place.row in self.methods):
            method, values = self.methods[place.row], standings.finals[standings.finals.row == place.row]
            row = [place.row, *(spread(standings.values(one)[place.row], one.digits) for one in shown)]
            row += [_number(1000 * seconds.get(place.row, math.nan) / self.steps, 0), f"{method.bits:.2f}"]
            row += [{True: "yes", False: "no", None: NONE}[method.has_reset], str(len(values))]
            row += [self._setting(place.row) or NONE] if self._is_tuned else []
            rows.append(row)
        return Table("The layer", header, rows)

    @property
    def _is_tuned(self) -> bool:
        return self.plan.size.tune is not None

    def _setting(self, row: str) -> str:
        """What tuning has chosen, once it has ended."""
        cell = next(cell for cell in self.plan.compared if cell.row == row)
        final = self.plan.final(cell, 0)
        return final.setting if self.plan.is_ready(final) else ""

    def _reading(self) -> str:
        first, lead = self._first.label, self.target.pictured[0].label
        text = (
            "Values are mean ± standard deviation over seeds, on the test set. "
            f"**{lead.capitalize()}** is mean ||z - q||² / mean ||z - mean z||² between the layer's input and output. "
            f"Ranked by {first}; **{first} to the best** is the mean of the paired differences over common seeds ± its "
            "standard error, and *tied* is within two standard errors: more seeds may separate what is tied."
        )
        if self.target.has_bound:
            text += (
                f" Rows can make their vectors easy to quantize and lose the picture, so {lead} alone ranks nothing. "
                f"**{BOUND}** is the same network without a quantizer, tuned as all: no row, a limit."
            )
        return text

    def _layer_reading(self) -> str:
        per_code = self.target.tokens / self.codebook_size
        text = (
            f"Codes used and perplexity are of all {self.target.tokens:,} vectors of the test set, {per_code:.0f} per "
            "code. Layer, ms and MiB: one training step of the layer alone, and what it holds for it; run, ms per "
            "step: of the whole training with its validation. Times are of this machine as it was."
        )
        if per_code < ENOUGH_TOKENS:
            text += " **So few vectors per code** make both lower than they are: take more test data or fewer codes."
        return text

    def _tuning(self, tuned: pd.DataFrame) -> list[str]:
        if not len(tuned):
            return []
        text = (
            "Each row tried the same number of settings with seed 0 and half the budget, measured by "
            f"`{self.plan.study.tune.by}` on validation data; the best, in bold, was used for all seeds. A row without "
            "a weight or a rate that others tune tries as many learning rates instead."
        )
        return ["## Tuning", text, tuning_table(self.plan.study, self.plan.compared, tuned).markdown()]

    def _csv(self, standings: Standings, places: list[Standing]) -> pd.DataFrame:
        """One line per row: numbers as they are logged, times in milliseconds."""
        lines = []
        for place in places:
            method, best = self.methods.get(place.row), place.to_best
            line: dict[str, object] = {"rank": place.rank, "quantizer": place.row, "verdict": place.verdict}
            for one in self.target.measures.values():
                name = one.name.removeprefix("test/")
                line[name], line[f"{name}_error"] = mean_and_error(standings.values(one)[place.row] / one.scale)
            line["to_best"] = None if best is None else best.difference / self._first.scale
            line["to_best_error"] = None if best is None else best.error / self._first.scale
            own = standings.finals[standings.finals.row == place.row]
            line |= {"run_ms": 1000 * own.seconds.mean() / self.steps, "seeds": len(own)}
            line |= {"bits": method.bits if method else None, "reset": method.has_reset if method else None}
            lines.append({**line, "setting": self._setting(place.row)})
        return pd.DataFrame(lines)


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}"
