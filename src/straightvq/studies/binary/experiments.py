"""The parts of the study: formulas, binary networks by set, tokenizers by quantizer."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import torch

import straightvq as svq
from straightvq.diagnostics import estimating_error
from straightvq.errors import InvalidValueError
from straightvq.studies.binary.estimators import ENDS, METHODS, SECANTS
from straightvq.studies.binary.settings import Settings
from straightvq.studies.binary.training import QUANTIZERS, train_classifier, train_tokenizer
from straightvq.studies.parts import Part, Values

FORMULA, TOKENIZER = "formula", "tokenizer"
NORMAL, SPREAD = 100_000, 0.5  # vectors of the formulas: quantiles of a normal distribution
VARIANCE, SQUARE = "variance of the factor", "error"


def plan(settings: Settings, sources: Mapping[str, str | None]) -> list[Part]:
    """All parts: formulas, tokenizers, then the networks, set by set and seed by seed.

    Args:
        settings: of the size.
        sources: place of each set, None for embedded ones; it decides no result beside the set's name.

    Raises:
        ValueError: for a set without settings.
    """
    if unknown := [name for name in sources if name not in settings.classifiers]:
        known = ", ".join(settings.classifiers)
        raise InvalidValueError(f"`reproduce`: this size says nothing of the set {unknown[0]!r}. It has {known}.")
    parts = [_formula(end) for end in ENDS]
    for seed in range(settings.seeds):
        parts += _tokenizers(settings, seed)
    for name, place in sources.items():
        for seed in range(settings.seeds):
            parts += _classifiers(settings, name, place or name, seed)
    return parts


def tokenizer(quantizer: str) -> str:
    """Name of the experiment with one quantizer."""
    return f"{TOKENIZER}, {quantizer}"


def normal_vectors() -> torch.Tensor:
    """Quantiles of N(0, 1/4), Float64."""
    shares = (torch.arange(NORMAL, dtype=torch.float64) + 0.5) / NORMAL
    return SPREAD * torch.special.ndtri(shares)


def _formula(power: int) -> Part:
    def run() -> Values:
        z = normal_vectors()
        rows: Values = []
        for secant in SECANTS:
            estimator = svq.ReSTE(float(power), secant=secant)
            rows.append([f"{VARIANCE}, {secant}", power, float(estimator.factor(z).var(correction=0))])
        return [[SQUARE, power, float(estimating_error(z, estimator.surrogate))], *rows]

    return Part(FORMULA, f"o = {power}", "normal vectors", 0, {"vectors": NORMAL, "spread": SPREAD}, run)


def _classifiers(settings: Settings, name: str, source: str, seed: int) -> Iterator[Part]:
    own = settings.classifiers[name]
    for row in METHODS:
        run = functools.partial(train_classifier, own, source, row, seed)
        yield Part(name, row, f"seed {seed}", 0, asdict(own), run)


def _tokenizers(settings: Settings, seed: int) -> Iterator[Part]:
    own = settings.tokenizer
    for quantizer in QUANTIZERS:
        for row in METHODS:
            run = functools.partial(train_tokenizer, own, quantizer, row, seed)
            yield Part(tokenizer(quantizer), row, f"seed {seed}", 0, asdict(own), run)
