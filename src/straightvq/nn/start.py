"""The first training steps of a codebook: ranks made equal, codes fitted to data."""

import itertools
import logging
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.functional.kmeans import spread_out
from straightvq.nn.batch import Batch
from straightvq.nn.draws import Clock, Draws
from straightvq.nn.ranks import copy_from_first_rank, rows_over_ranks

if TYPE_CHECKING:
    from straightvq.nn.codebook import Codebook

log = logging.getLogger(__name__)

# An init looks at no more vectors per code than this: more do not improve the centres.
_PLENTY = 64


def start(codebook: "Codebook", batch: Batch) -> None:
    """Takes a codebook that is not ready one step further; waits for the host."""
    if codebook.raw.is_meta:
        return  # there are no values, of vectors neither
    if torch.compiler.is_compiling():
        # Sizes and flags are looked at on the host, which a graph cannot; an opaque op can.
        state = [*_state(codebook), batch.draws.seed, batch.draws.step]
        torch.ops.straightvq.start(state, batch.z, batch.valid, codebook._handle[0])
    else:
        _start_now(codebook, batch)


def _start_now(codebook: "Codebook", batch: Batch) -> None:
    """Makes all ranks equal, then fits the codes, or those that stand for no vector yet, to the vectors of all."""
    for tensor in (*_state(codebook), batch.draws.seed, batch.draws.step):
        copy_from_first_rank(tensor, codebook.process_group)
    if not codebook.init.needs_data or codebook.filled.all():
        codebook.parametrization.observe(batch, codebook.raw)
        _end(codebook)
        return
    rows = rows_over_ranks(batch.z if batch.valid is None else batch.z[batch.valid], codebook.process_group)
    if len(rows) == 0:
        return
    generator = batch.draws.generator("init")
    if len(rows) > _PLENTY * codebook.size:
        keep = torch.randperm(len(rows), generator=generator, device="cpu")[: _PLENTY * codebook.size]
        rows = rows[keep.to(rows.device)]
    if codebook.filled.any():
        _fill(codebook, rows, generator)
    else:
        # The one forward that may take seconds or minutes: whoever wonders finds the reason in the log.
        log.info("%s: starting %d codes on %d vectors", type(codebook.init).__name__, codebook.size, len(rows))
        codes = codebook.init.fit(rows, codebook.size, generator)
        expected = codebook.size, rows.shape[1]
        if tuple(codes.shape) != expected:
            owner = type(codebook.init).__name__
            raise InvalidValueError(f"`{owner}`: `fit` must give codes of shape {expected}. Got {tuple(codes.shape)}.")
        copy_from_first_rank(codes, codebook.process_group)
        codebook.adopt(codes.to(codebook.raw.dtype))
        codebook.filled[: len(rows)] = 1
    log.info("%d of %d codes stand for a vector", int(codebook.filled.sum()), codebook.size)
    if codebook.filled.all():
        _end(codebook)


def _fill(codebook: "Codebook", rows: Tensor, generator: torch.Generator) -> None:
    """Puts rows that stand for no vector onto vectors of this batch, as far as there are any."""
    vacant = (codebook.filled <= 0).nonzero()[: len(rows), 0]
    picked = torch.randperm(len(rows), generator=generator, device="cpu")[: len(vacant)].to(rows.device)
    codes = codebook.codes()
    codes[vacant] = rows[picked].to(codes.dtype)
    codes = spread_out(codes, len(codes), rows, generator)  # no two equal
    copy_from_first_rank(codes, codebook.process_group)
    taken = torch.zeros_like(codebook.rewritten, dtype=torch.bool)
    taken[vacant] = True
    codebook.rewrite(codes, taken)
    codebook.filled[taken] = 1


def _end(codebook: "Codebook") -> None:
    codebook.is_ready.fill_(1)
    codebook.filled.fill_(1)
    codebook.read_flags()


def _state(codebook: "Codebook") -> list[Tensor]:
    return [tensor.detach() for tensor in (*codebook.parameters(), *codebook.buffers())]


# Codebooks by handle: how the opaque op inside a compiled graph finds the one it belongs to.
_OWNERS: "weakref.WeakValueDictionary[int, Codebook]" = weakref.WeakValueDictionary()
_HANDLES = itertools.count()


def register(codebook: "Codebook") -> tuple[Tensor]:
    """A new handle. A tensor, because a graph is made anew for every number that it reads; in a tuple, because it is no
    state."""
    handle = next(_HANDLES)
    _OWNERS[handle] = codebook
    return (torch.tensor(handle, device="cpu"),)


# The schema is written out because torch 2.6 does not read it off `list[Tensor]`.
_SCHEMA = "(Tensor(a!)[] state, Tensor z, Tensor? valid, Tensor owner) -> ()"


@torch.library.custom_op("straightvq::start", mutates_args=("state",), schema=_SCHEMA)
def _start_op(state: list[Tensor], z: Tensor, valid: Tensor | None, owner: Tensor) -> None:
    """``_start_now`` inside a compiled graph, where ``state`` may be copies of the codebook's own."""
    codebook = _OWNERS[int(owner)]
    if codebook._ready:
        return  # by an earlier call in the same graph
    own = _state(codebook)
    clock = Clock()
    clock.seed, clock.step = state[len(own) :]
    for mine, given in zip(own, state[: len(own)], strict=True):
        mine.copy_(given)
    _start_now(codebook, Batch(z, valid, codebook.process_group, Draws(clock)))
    for mine, given in zip(own, state[: len(own)], strict=True):
        given.copy_(mine)


@_start_op.register_fake
def _(state: list[Tensor], z: Tensor, valid: Tensor | None, owner: Tensor) -> None:
    return None
