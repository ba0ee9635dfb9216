"""Loading a state into a network whose codebooks have another number of codes."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional.draws import draw_normal
from straightvq.nn.codebook import Codebook
from straightvq.nn.part import Part, at_least_float32, check_float, check_module, count_not_finite, making_float32
from straightvq.nn.slots.anchors import AnchoredReset
from straightvq.nn.slots.resets import DeadCodeReset
from straightvq.nn.slots.updates import EMAUpdate
from straightvq.nn.vector_quantizer import VectorQuantizer

_OWNER = "`resize_codebooks`"
# Noise is at least this many units in the last place of the codes, or it would be rounded away.
_UNITS = 16
# How often codes that came out equal are drawn again, each time with twice the noise.
_ATTEMPTS = 10


def resize_codebooks(state_dict: dict[str, Tensor], module: nn.Module, *, noise: float = 0.01) -> dict[str, Tensor]:
    """A state whose codebooks have grown or shrunk to those of ``module``, which can then load it strictly.

    A codebook grows: the old codes stay where they are, to the bit, and copies of them follow, the most used first,
    each moved by ``noise`` standard deviations of the codes. It shrinks: the most used codes are kept, in their order,
    so that **indices change**. Usage is what the state knows of it: the cluster sizes of ``EMAUpdate``, then the idle
    time of ``DeadCodeReset`` or the usage of ``AnchoredReset``. Where it knows nothing, codes count in the order of the
    table. A warning says for each codebook what was done.

    What belongs to a row (flags, weights, momentum, idle time, also that of a loss) goes with it; a new code starts
    with the values of a new codebook. The map of a parametrization stays. With groups, a row may come into a group
    with another map: it is then written through that map's inverse, which gives the same code up to rounding. So it is
    where the scale of a map has left [1/1024, 1024]. A codebook whose init has not ended goes on with it where it was.

    The state of an optimizer is no part of this: it has moments for the old table, so start with a new optimizer. So
    are other tables over the codes, such as the embedding of a model of the indices.

    Args:
        state_dict: state of the network that was trained, with the names that ``module.state_dict()`` has; for a
            checkpoint of Lightning ``checkpoint["state_dict"]``. It is not changed. Entries that belong to no
            codebook of another size are passed on as they are.
        module: the network that is to load the result, the same but for the number of codes. It is not changed.
        noise: standard deviation of what is added to a copied code, relative to that of all codes in each channel;
            positive, because equal codes never part.

    Returns:
        A new state dict. The same call gives the same numbers, so ranks agree; torch's global generator is left
        as it was.

    Raises:
        TypeError, ValueError: for codes of another width, another number of groups, a parametrization without an
            inverse, codes that are not finite, and a state that is not of such a network.

    Example:
        >>> import straightvq as svq
        >>> small, large = svq.presets.vq_vae(8, 16), svq.presets.vq_vae(8, 32)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     large.load_state_dict(resize_codebooks(small.state_dict(), large))
        <All keys matched successfully>
        >>> print(caught[0].message)
        Codebook 'codebook' grows from 16 to 32 codes: the old ones stay as they are, 16 jittered copies follow.
        >>> bool((large.codes()[:16] == small.codes()).all())
        True
    """
    check_module("resize_codebooks", module)
    noise = check_float("resize_codebooks", "noise", noise, minimum=0, open_minimum=True)
    books = {name: book for name, book in module.named_modules(remove_duplicate=False) if isinstance(book, Codebook)}
    if not books:
        raise InvalidValueError(
            f"{_OWNER}: `module` must hold a codebook. Got {type(module).__name__}, which has none."
        )
    _check_state(state_dict)
    result = copy.copy(state_dict)  # with the versions that torch keeps beside the entries
    told: set[Codebook] = set()
    resized: dict[str, tuple[int, Tensor]] = {}  # the old size, and the old rows that stay
    for name, book in books.items():
        book._require_bound()
        prefix = f"{name}." if name else ""
        raw = _table(state_dict, prefix, book)
        if raw.shape == book.raw.shape:
            continue
        called = f"codebook {name!r}" if name else "the codebook"
        with torch.device("cpu"):  # whatever torch's default is: the same numbers on every rank
            old = _load(_twin(book, len(raw), raw.dtype), state_dict, prefix)
            source, what = _sources(old, book.size)
            new = _resize(old, _twin(book, book.size, raw.dtype), source, noise, called)
        if book not in told:  # it may have several names
            verb = "shrinks" if new.size < old.size else "grows"
            sentence = f"{called[0].upper()}{called[1:]} {verb} from {old.size} to {new.size} codes: {what}."
            warnings.warn(sentence, UserWarning, stacklevel=2)
            told.add(book)
        result.update({prefix + key: tensor.to(raw.device) for key, tensor in new.state_dict().items()})
        resized[name] = old.size, source[: old.size]
    for name, layer in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(layer, VectorQuantizer) and prefix + "codebook" in resized:
            result.update(_loss_rows(layer, state_dict, prefix + "losses.", *resized[prefix + "codebook"]))
    return result


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_state(state_dict: Any) -> None:
    if not isinstance(state_dict, dict):
        raise InvalidTypeError(f"{_OWNER}: `state_dict` must be a dict of tensors. Got {type(state_dict).__name__}.")
    if isinstance(state_dict.get("state_dict"), dict):
        raise InvalidValueError(
            f"{_OWNER}: `state_dict` must be the state of a module. Got a whole checkpoint; "
            'pass checkpoint["state_dict"].'
        )


def _table(state_dict: dict[str, Tensor], prefix: str, book: Codebook) -> Tensor:
    """The raw table of the codebook in the state, which may have another number of rows."""
    raw = state_dict.get(prefix + "raw")
    if not isinstance(raw, Tensor):
        tables = [key for key in state_dict if f".{key}".endswith(".raw")]
        raise InvalidValueError(
            f"{_OWNER}: `state_dict` must hold {prefix + 'raw'!r}, with the names that `module` has. "
            f"Got {'the tables ' + ', '.join(map(repr, tables)) if tables else 'no table of codes'}."
        )
    if raw.shape[1:] != book.raw.shape[1:] or len(raw) == 0:
        raise InvalidValueError(
            f"{_OWNER}: only the number of codes may differ; {prefix + 'raw'!r} must have rows of shape "
            f"{tuple(book.raw.shape[1:])}. Got a table of shape {tuple(raw.shape)}."
        )
    if raw.shape != book.raw.shape and not book.parametrization.has_inverse:
        raise InvalidValueError(
            f"{_OWNER}: the parametrization must have an inverse, through which new codes are written. "
            f"{type(book.parametrization).__name__} has none, so its table of {len(raw)} rows cannot become one of "
            f"{len(book.raw)}."
        )
    return raw


def _load(twin: Codebook, state_dict: dict[str, Tensor], prefix: str) -> Codebook:
    own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    try:
        twin.load_state_dict(own)
    except RuntimeError as error:
        raise InvalidValueError(
            f"{_OWNER}: `state_dict` must fit `module` but for the number of codes. "
            f"Got, under {prefix!r}: {' '.join(str(error).split())}"
        ) from error
    codes = twin.codes()
    if not torch.isfinite(codes).all():
        raise InvalidValueError(f"{_OWNER}: the codes under {prefix!r} must be finite. Got {count_not_finite(codes)}.")
    return twin


# --- one codebook -----------------------------------------------------------------------------------------------------


def _twin(book: Codebook, size: int, dtype: torch.dtype) -> Codebook:
    """A new codebook of the same parts, with ``size`` codes."""
    dim = book.codes().shape[1]
    twin = copy.deepcopy(book)
    twin._unbind()
    twin._bind_once()
    twin.size = size
    with torch.random.fork_rng(devices=[]), making_float32():
        torch.default_generator.manual_seed(0)  # for values that a part draws
        try:
            twin._make(dim)
        except ValueError as error:
            raise InvalidValueError(
                f"{_OWNER}: a codebook of `module` cannot have {size} codes. Got: {error}"
            ) from error
    return twin.to(at_least_float32(dtype))


@torch.no_grad()
def _resize(old: Codebook, new: Codebook, source: Tensor, noise: float, name: str) -> Codebook:
    """``new`` with what ``old`` knows."""
    _carry(old, new, source)
    codes = old.codes()[source]
    new.write(codes, (new.codes() != codes).any(1))  # rows that another map now reads
    _set_apart(new, codes, torch.arange(new.size) >= old.size, _deviation(old.codes(), noise), name)
    return new


def _loss_rows(
    layer: VectorQuantizer, state_dict: dict[str, Tensor], prefix: str, size: int, kept: Tensor
) -> dict[str, Tensor]:
    """What losses remember of each of ``size`` codes: of those ``kept`` as it was, of new ones as at the start."""
    result = {}
    losses = copy.deepcopy(layer.losses)
    for loss in losses.modules():
        if isinstance(loss, Part):
            loss.reset_parameters()
    for key, tensor in losses.state_dict().items():
        given = state_dict.get(prefix + key)
        goes_by_rows = tensor.shape[:1] == (layer.codebook_size,)
        if goes_by_rows and isinstance(given, Tensor) and given.shape == (size, *tensor.shape[1:]):
            result[prefix + key] = tensor.to(given)
            result[prefix + key][: len(kept)] = given[kept.to(given.device)]
    return result


def _sources(old: Codebook, size: int) -> tuple[Tensor, str]:
    """The old row that each of ``size`` new rows comes from, Int64 (size,), and what that means."""
    order, is_known = _by_use(old)
    rows = torch.arange(old.size)
    if size > old.size:
        num_copies = size - old.size
        copies = order[torch.arange(num_copies) % old.size]
        whose = ", of the most used first" if is_known else ""
        return torch.cat([rows, copies]), f"the old ones stay as they are, {num_copies} jittered copies follow{whose}"
    source = order[:size].sort().values
    which = f"the {size} most used" if is_known else f"as nothing tells which are used, the first {size}"
    where = "at their indices" if torch.equal(source, rows[:size]) else "in their order, so indices change"
    return source, f"{which} are kept, {where}"


def _by_use(book: Codebook) -> tuple[Tensor, bool]:
    """The rows, most used first, and whether the state knows anything of their use."""
    keys = []
    if isinstance(book.reset, DeadCodeReset):
        keys.append(book.reset.idle)
    if isinstance(book.reset, AnchoredReset):
        keys.append(-book.reset.usage)
    if isinstance(book.update, EMAUpdate):
        keys.append(-book.update.cluster_size)
    order = torch.arange(book.size)
    for key in (*keys, book.filled <= 0):  # the last one counts most: rows that stand for no vector are last
        order = order[key[order].argsort(stable=True)]
    return order, bool(keys)


def _carry(old: Codebook, new: Codebook, source: Tensor) -> None:
    """Copies the state; row i of what goes by rows comes from row ``source[i]``, if that is not a copy.

    A tensor goes by rows if it has another shape in a codebook of another size.
    """
    before = old.state_dict()
    kept = source[: old.size]
    for key, tensor in new.state_dict().items():
        given = before[key]
        if tensor.shape == given.shape:
            tensor.copy_(given)
        elif tensor.shape == (new.size, *given.shape[1:]):
            tensor[: len(kept)] = given[kept]
        else:
            raise InvalidValueError(
                f"{_OWNER}: state that depends on the number of codes must go by rows. Got {key!r} of shape "
                f"{tuple(given.shape)} where `module` has {tuple(tensor.shape)}."
            )
    new.raw.copy_(old.raw[source])
    new.filled.copy_(old.filled[source])  # a copy stands for what its code does


def _deviation(codes: Tensor, noise: float) -> Tensor:
    """Standard deviation of the noise in each channel, Float64 (d,)."""
    codes, least = codes.double(), _UNITS * torch.finfo(codes.dtype).eps
    size = codes.square().mean(0).sqrt()
    deviation = torch.maximum(noise * codes.std(0, unbiased=False), least * size)
    return deviation if deviation.any() else torch.full_like(deviation, noise)  # all codes are zero


def _set_apart(book: Codebook, codes: Tensor, rows: Tensor, deviation: Tensor, name: str) -> None:
    """Moves the codes of ``rows``, Bool (k,), by random vectors, until none of them equals another code."""
    is_copy, zero = rows, torch.zeros((), dtype=torch.int64)
    for attempt in range(_ATTEMPTS):
        if not rows.any():
            return
        noise = draw_normal(zero, zero + attempt, 0, tuple(codes.shape), torch.float64)
        book.write((codes + 2**attempt * deviation * noise).to(codes.dtype), rows)
        rows = _is_repeated(book.codes()) & is_copy
    if rows.any():
        raise InvalidValueError(
            f"{_OWNER}: {name} must be able to hold {book.size} different codes. "
            f"Got {int(rows.sum())} that equal another one, whatever the noise."
        )


def _is_repeated(codes: Tensor) -> Tensor:
    """Bool (k,): whether some earlier row is the same."""
    place = torch.arange(len(codes))
    _, group = torch.unique(codes, dim=0, return_inverse=True)
    first = torch.full_like(place, len(codes)).scatter_reduce_(0, group, place, "amin")
    return first[group] < place
