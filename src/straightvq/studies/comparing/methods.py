"""What is compared: presets by name or quantizers of one's own, all with as many bits per vector."""

import copy
import importlib
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jsonargparse import ArgumentParser

import straightvq as svq
from straightvq import presets
from straightvq.configuration import deny_foreign_code, explained
from straightvq.errors import InvalidValueError, did_you_mean
from straightvq.nn import Quantizer
from straightvq.nn.part import check_choice, check_float, check_part
from straightvq.studies.study import Config

OWNER = "compare"
ALL, BOUND = "all", "unquantized"
# Indices that lead nowhere: these codes are targets, and nothing is decoded from them.
NOT_COMPARED = ("best_rq",)
FREE = ("fsq", "lfq", "bsq")  # presets that take levels or bits
LEVELS = range(5, 9)  # of a channel: fewer than 5 are worse at equal bits (arXiv 2309.15505, section 4.1)
PATIENCE = 20  # steps without use, of a reset that all get
Choice = Literal["own", "with", "without"]


@dataclass(frozen=True)
class Method:
    """One row of the comparison."""

    name: str
    config: Config  # the quantizer as a recipe writes it: `class_path`, `init_args`
    bits: float  # per vector
    codes: int  # per vector
    has_reset: bool | None  # None where there is no codebook
    has_commitment: bool  # whether its weight can be tuned
    trains_codes: bool  # whether a gradient reaches the codebook


def preset_names() -> list[str]:
    """The presets that `all` stands for: one codebook of a given size, and those without one at matched bits.

    Example:
        >>> {"vq_vae", "ema", "straight", "fsq"} <= set(preset_names()), "dac" in preset_names()
        (True, False)
    """
    names = [name for name in presets.__all__ if name not in NOT_COMPARED]
    return [name for name in names if name in FREE or _is_single(getattr(presets, name))]


def _is_single(preset: Callable[..., Any]) -> bool:
    required = [p.name for p in inspect.signature(preset).parameters.values() if p.default is p.empty]
    return required == ["dim", "codebook_size"] and not preset(8, 16).is_composite


def nearest_levels(codebook_size: int) -> list[int]:
    """Levels of finite scalar quantization whose number of codes is nearest to a codebook's, counted in bits.

    Channels have 5 to 8 levels; small codebooks that no such channels come near to are one channel.

    Example:
        >>> nearest_levels(1000), nearest_levels(256), nearest_levels(16)
        ([8, 5, 5, 5], [7, 6, 6], [16])
    """
    if codebook_size < LEVELS[0] ** 2:
        return [codebook_size]
    most = math.ceil(math.log(codebook_size, LEVELS[0]))
    found = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(reversed(LEVELS), channels) for channels in range(2, most + 1)
    )
    return list(min(found, key=lambda levels: abs(math.log2(math.prod(levels) / codebook_size))))


def adjusted(
    quantizer: svq.Quantizer,
    *,
    init: Literal["own", "kmeans"] = "own",
    reset: Choice = "own",
    commitment: float | None = None,
) -> svq.Quantizer:
    """Gives a fresh quantizer the conditions that all in a comparison share.

    A codebook that nothing can be written into, because its codes are made by a map without inverse, keeps its own.

    Args:
        quantizer: as it was made, before its first training step.
        init: "kmeans" starts every codebook from k-means of the first batch; "own" leaves it.
        reset: "with" replaces codes that were not used for 20 steps, "without" replaces none; "own" leaves it.
        commitment: weight of its commitment losses; None leaves them.

    Returns:
        the quantizer itself.

    Raises:
        TypeError, ValueError: for other values.

    Example:
        >>> adjusted(svq.presets.vq_vae(4, 8), reset="with").codebook.reset
        DeadCodeReset(patience=20, noise=0.01, relative_to='spread')
    """
    check_part(OWNER, "quantizer", quantizer, Quantizer)
    check_choice(OWNER, "init", init, ("own", "kmeans"))
    check_choice(OWNER, "reset", reset, ("own", "with", "without"))
    if commitment is not None:
        check_float(OWNER, "commitment", commitment, minimum=0)
        for loss in commitments(quantizer):
            loss.coefficient = commitment
    for book in _writable(quantizer):
        if init == "kmeans":
            book.init = svq.KMeansInit()
        if reset != "own":
            book.reset = None
        if reset == "with":
            part = svq.DeadCodeReset(PATIENCE)
            part.bind(book.size, book.codes().shape[1])
            book.reset = part
    return quantizer


def commitments(quantizer: Quantizer) -> list[svq.CommitmentLoss]:
    return [part for part in quantizer.modules() if isinstance(part, svq.CommitmentLoss)]


def _books(quantizer: Quantizer) -> list[svq.Codebook]:
    return [part for part in quantizer.modules() if isinstance(part, svq.Codebook)]


def _writable(quantizer: Quantizer) -> list[svq.Codebook]:
    return [book for book in _books(quantizer) if book.parametrization.has_inverse]


def of_presets(names: Sequence[str]) -> dict[str, Config]:
    """Presets as a file would write them, `all` for every one that fits.

    Raises:
        ValueError: for a name that is no preset, or one whose number of bits cannot be that of the others.
    """
    known = preset_names()
    chosen = dict.fromkeys(name for given in names for name in (known if given == ALL else [given]))
    for name in chosen:
        if name not in known:
            is_other = name in presets.__all__
            why = "has no single codebook of which the number of bits can be set" if is_other else "is not there"
            raise InvalidValueError(
                f"`{OWNER}`: the preset {name!r} {why}.{'' if is_other else did_you_mean(name, known)} "
                f"There are: {', '.join(known)}; `{ALL}` takes them all. Others can be written in a file (--config)."
            )
    return {name: Config({"class_path": f"straightvq.presets.{name}"}) for name in chosen}


def described(name: str, config: Config, dim: int, codebook_size: int, channel_dim: int, **shared: Any) -> Method:
    """A row, built once to be looked at.

    Args:
        name: of the row.
        config: the quantizer as a recipe writes it. Sizes that it leaves out are those of the comparison.
        dim: channels of the network's latent.
        codebook_size: number of codes that all have, or come near to.
        channel_dim: axis of the channels in the network.
        shared: conditions for all, as `adjusted` takes them; none leave the quantizer as it is.

    Raises:
        ValueError: for what is no quantizer, a mistake in its configuration, or another width than the network's.
    """
    whole = _completed(name, config, dim, codebook_size, channel_dim)
    if shared:
        whole = Config({"class_path": "straightvq.studies.adjusted", "init_args": {"quantizer": whole, **shared}})
    quantizer = _built(name, whole)
    if (quantizer.dim, quantizer.channel_dim) != (dim, channel_dim):
        raise InvalidValueError(
            f"`{OWNER}`: the quantizer {name!r} must have dim={dim} and channel_dim={channel_dim}, for the network "
            f"that all share. Got {quantizer.dim} and {quantizer.channel_dim}; leave both out, and they are filled in."
        )
    books = _books(quantizer)
    return Method(
        name,
        whole,
        bits=sum(map(math.log2, quantizer.codebook_sizes)),
        codes=quantizer.num_quantizers,
        has_reset=any(book.reset is not None for book in books) if books else None,
        has_commitment=bool(commitments(quantizer)),
        trains_codes=any(parameter.requires_grad for book in books for parameter in book.parameters()),
    )


def refuse_unequal(methods: Sequence[Method]) -> None:
    """Refuses rows that spend more bits on a vector than others, or spread them over more codes.

    Raises:
        ValueError: naming the first two that differ.
    """
    first = methods[0]
    for other in methods:
        for what, own, theirs, most in (
            ("codes per vector", other.codes, first.codes, 0),
            ("bits per vector, within half a bit", other.bits, first.bits, 0.5),
        ):
            if abs(own - theirs) > most:
                raise InvalidValueError(
                    f"`{OWNER}`: all quantizers must have as many {what}. {first.name!r} has {theirs:.4g}, "
                    f"{other.name!r} has {own:.4g}: give them one size, or compare them in a table of their own."
                )


def _completed(name: str, config: Config, dim: int, codebook_size: int, channel_dim: int) -> Config:
    """The configuration with the sizes of the comparison, where the class takes them and the file says nothing."""
    own: dict[str, Any] = {"dim": dim, "codebook_size": codebook_size, "channel_dim": channel_dim}
    own |= {"levels": nearest_levels(codebook_size), "bits": max(1, round(math.log2(codebook_size)))}
    module, _, called = str(config.get("class_path", "")).rpartition(".")
    try:
        taken = inspect.signature(getattr(importlib.import_module(module), called)).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InvalidValueError(
            f"`{OWNER}`: the quantizer {name!r} must name a class or a function with `class_path`, such as "
            f"straightvq.presets.ema. Got {dict(config)!r}."
        ) from error
    fitting = {key: value for key, value in own.items() if key in taken}
    return Config({**config, "init_args": {**fitting, **(config.get("init_args") or {})}})


def _built(name: str, config: Config) -> Quantizer:
    deny_foreign_code()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--quantizer", type=Quantizer)
    try:
        with explained({"quantizer": config}), torch.random.fork_rng(devices=[]):
            given = copy.deepcopy({"quantizer": dict(config)})  # the parser writes its own objects into lists
            return cast(Quantizer, parser.instantiate(parser.parse_object(given)).quantizer)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"`{OWNER}`: the quantizer {name!r} cannot be made: {error}") from error
