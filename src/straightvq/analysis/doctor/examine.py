"""`straightvq doctor`: what a quantizer is, whether it is well, and what to do if not, on one screen."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from straightvq.analysis.doctor.findings import findings
from straightvq.analysis.doctor.measure import Table, send, tables_of
from straightvq.analysis.doctor.sources import OWNER, find, with_vectors
from straightvq.analysis.report import format_number
from straightvq.diagnostics.following import outermost
from straightvq.errors import InvalidValueError
from straightvq.nn import Quantizer
from straightvq.nn.part import check_int


def examine(
    source: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    num_examples: int = 512,
    lr_scale: float | None = None,
) -> dict[str, Any]:
    """Measures and judges every quantizer at a place; runs no code of the files and changes nothing.

    Args:
        source: folder of a run, or one that ``save_pretrained`` wrote; a checkpoint of a run; or a file of tensors in
            layouts that `straightvq.interop.from_file` recognises, of one of our own layers or networks among them.
        data: a .npy or .parquet file, or a folder of them, with embeddings as the quantizer gets them, one per row.
            None takes the test set of a run, and no data where there is none.
        num_examples: of a run's test set, at least 1.
        lr_scale: of a file whose codes are behind an affine map, which no entry tells; > 0.

    Returns:
        What ``--json`` prints: ``source``, ``what``, ``notes``, ``data`` (None where there is none) and
        ``quantizers``: for each its ``name``, ``parts``, numbers (``values``), ``unused`` codes (None where nothing
        tells) with what tells it (``unused_by``), and ``findings``, each with ``name``, ``seen`` and
        ``cures``.

    Raises:
        TypeError, ValueError: for what is none of these, without a quantizer, or damaged; and for data that do not
            fit.

    Example:
        >>> import straightvq as svq
        >>> svq.presets.ema(4, 8).save_pretrained("layer")
        >>> [each["name"] for each in examine("layer")["quantizers"][0]["findings"]]
        ['not_started']
    """
    check_int(OWNER, "num_examples", num_examples, 1)
    found = find(Path(source), num_examples, lr_scale)
    if data is not None:
        found = with_vectors(found, Path(data))
    tables = tables_of(found.module)
    if not tables:
        raise InvalidValueError(f"`{OWNER}`: {str(source)!r} must hold a quantizer. Got {found.what}.")
    if found.data and not any("not_finite" in table.values for table in tables):
        send(found.module, tables, found.inputs, found.run)
    return {
        "source": str(source),
        "what": found.what,
        "notes": [*found.notes, *_composites(found.module)],
        "data": found.data or None,
        "quantizers": [_told(table) for table in tables],
    }


def _composites(module: nn.Module) -> list[str]:
    """A sentence on each quantizer that is followed part by part."""
    return [
        f"{path + ' is a' if path else 'a'} {type(quantizer).__name__}, {quantizer.num_quantizers} codes for each "
        "vector; each of its parts is measured on what the part is given"
        for path, quantizer in outermost(module).items()
        if quantizer.is_composite
    ]


def _told(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "parts": _parts(table.followed.quantizer),
        "values": {name: value if math.isfinite(value) else None for name, value in table.values.items()},
        "unused": None if table.unused is None else table.unused.nonzero().flatten().tolist(),
        "unused_by": table.unused_by,
        "findings": [vars(finding) for finding in findings(table)],
    }


def _parts(quantizer: Quantizer) -> str:
    """The quantizer and what fills its slots, in one line."""
    book = getattr(quantizer, "codebook", None)
    named = {**dict(quantizer.named_children()), **({} if book is None else dict(book.named_children()))}
    slots = [f"{name} {_line(part)}" for name, part in named.items() if name not in ("codebook", "clock", "losses")]
    slots += ["no reset"] if book is not None and book.reset is None else []
    slots += [f"losses {', '.join(map(_line, quantizer.losses)) or 'none'}"]
    return f"{type(quantizer).__name__} with {'; '.join(slots)}"


def _line(part: nn.Module) -> str:
    return f"{type(part).__name__}({part.extra_repr()})"


# --- one screen -----------------------------------------------------------------------------------------------------

_COLUMNS = 116
# Columns of the two tables: what they are called, and the number.
_OF_CODES = {
    "codes": "codes",
    "width": "width",
    "on one spot": "crowded",
    "gap, least": "nearest_min",
    "gap, median": "nearest_median",
    "norm, median": "norm_median",
    "norm, largest": "norm_max",
    "directions": "code_directions",
}
_ON_DATA = {
    "used": "used",
    "perplexity": "perplexity",
    "error": "error",
    "mean off": "mean_distance",
    "spread ratio": "scale",
    "directions": "directions",
    "far": "far",
}


def page(result: Mapping[str, Any]) -> str:
    """What `examine` returned, for people."""
    tables = result["quantizers"]
    lines = [f"{result['source']}: {result['what']}"]
    for about in (*(f"note: {note}" for note in result["notes"]), *dict.fromkeys(table["parts"] for table in tables)):
        lines += _wrapped(about, "  ")
    lines += ["", "Codes:", *_columns(_OF_CODES, tables, alive=True)]
    if result["data"]:
        lines += ["", f"On {result['data']}:", *_columns(_ON_DATA, tables)]
    lines += ["", *_judgement(tables)]
    return "\n".join(lines) + "\n"


def _columns(columns: Mapping[str, str], tables: Sequence[Mapping[str, Any]], *, alive: bool = False) -> list[str]:
    """One row for each quantizer, under the names of the columns that any of them has."""
    shown = {name: key for name, key in columns.items() if any(key in table["values"] for table in tables)}
    rows = [["", *shown]]
    for table in tables:
        rows.append([table["name"], *(format_number(table["values"].get(key)) or "?" for key in shown.values())])
    if alive:
        for row, told in zip(rows, ["alive", *map(_alive, tables)], strict=True):
            row.insert(2, told)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _alive(table: Mapping[str, Any]) -> str:
    return "?" if table["unused"] is None else str(int(table["values"]["codes"]) - len(table["unused"]))


def _judgement(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings, each once for all quantizers that it is found in, and behind those of one cure what helps."""
    by_cures: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for table in tables:
        where = f"{table['name']}: " if len(tables) > 1 else ""
        for each in table["findings"]:
            by_cures.setdefault(tuple(each["cures"]), {}).setdefault(each["name"], []).append(where + each["seen"])
    if not by_cures:
        return ["Well: nothing stands out in these numbers."]
    lines = ["Not well:"]
    for cures, found in by_cures.items():
        for seen in found.values():
            more = f" (and {len(seen) - 1} more like it)" if len(seen) > 1 else ""
            lines += _wrapped(f"{seen[0]}{more}.", "- ")
        if len(cures) == 1:
            lines += _wrapped(f"What helps: {cures[0]}.", "  ")
        else:
            lines += ["  What helps, best evidence first:"]
            lines += [line for number, cure in enumerate(cures, 1) for line in _wrapped(f"{cure}.", f"  {number}. ")]
    for table in tables:
        if any(each["name"] == "unused" for each in table["findings"]):
            lines += _wrapped(f"Unused in {table['name']}: {_ranges(table['unused'])}.", "")
    return lines


def _wrapped(text: str, start: str) -> list[str]:
    """The text in lines of a terminal, those behind the first indented as far."""
    return textwrap.wrap(text, _COLUMNS, initial_indent=start, subsequent_indent=" " * len(start))


def _ranges(numbers: Sequence[int], most: int = 12) -> str:
    """Whole numbers in order, runs of them as ``3-7``.

    Example:
        >>> _ranges([0, 1, 2, 5, 7, 8])
        '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][-1:] = [number] if len(runs[-1]) > 1 else [runs[-1][0], number]
        else:
            runs.append([number])
    texts = ["-".join(map(str, run)) for run in runs[:most]]
    return ", ".join(texts) + (" and more (--json has all)" if len(runs) > most else "")
