"""The main optimizer's side of a codebook: parameter groups, and the steps of code rows that were rewritten."""

import inspect
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Adamax, NAdam, Optimizer, RAdam
from torch.utils.hooks import RemovableHandle

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.codebook import Codebook
from straightvq.nn.part import can_ask, check_float, check_module

_State = dict[str, Any]
_ParameterGroup = dict[str, Any]

# Attached optimizers by their handles: whoever takes a codebook's flags down clears for all that hold the table.
_ATTACHED: weakref.WeakValueDictionary[int, Optimizer] = weakref.WeakValueDictionary()
# In an optimizer's state of a table: how many steps it had taken when each row was last rewritten, 0 if it never was.
_BORN = "rewritten_at"


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, codebook_lr: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the codebooks' parameters apart, with a rate of their own and no decay.

    Weight decay would pull codes to the origin and an affine map to the identity.

    Args:
        module: the network.
        lr: learning rate of everything else, at least 0.
        weight_decay: of everything else, at least 0.
        codebook_lr: learning rate of raw tables and parametrizations; None takes ``lr``.

    Returns:
        One or two dicts with ``params``, ``lr``, ``weight_decay`` and ``name`` (``"network"``, ``"codebook"``);
        a group without parameters is left out.

    Raises:
        ValueError: for a table that ``fully_shard`` has taken apart and that training forwards write into.

    Example:
        >>> import straightvq as svq
        >>> net = nn.Sequential(nn.Linear(4, 8), svq.presets.vq_vae(8, 16))
        >>> [(g["name"], len(g["params"]), g["weight_decay"]) for g in parameter_groups(net, 1e-3, 0.1)]
        [('network', 2, 0.1), ('codebook', 1, 0.0)]
    """
    check_module("parameter_groups", module)
    _check_whole("parameter_groups", module)
    lr = check_float("parameter_groups", "lr", lr, minimum=0)
    weight_decay = check_float("parameter_groups", "weight_decay", weight_decay, minimum=0)
    if codebook_lr is not None:
        codebook_lr = check_float("parameter_groups", "codebook_lr", codebook_lr, minimum=0)
    owned = {p: None for book in _codebooks(module).values() for p in book.parameters()}
    others = [p for p in module.parameters() if p not in owned]
    groups: list[dict[str, Any]] = [
        {"params": others, "lr": lr, "weight_decay": weight_decay, "name": "network"},
        {
            "params": list(owned),
            "lr": lr if codebook_lr is None else codebook_lr,
            "weight_decay": 0.0,
            "name": "codebook",
        },
    ]
    return [group for group in groups if group["params"]]


def attach_optimizer(optimizer: Optimizer, module: nn.Module) -> RemovableHandle:
    """Makes the optimizer treat a rewritten code row as a new one, from the first update after it was rewritten.

    A row that a reset moved has nothing to do with the old row's momentum: the optimizer's state of it is cleared
    before the update, whether the forward pass runs before ``optimizer.step()`` or in its closure.

    Adam divides its moments m and v by ``1 - decay**t``, where t counts the steps of the whole table. The moments of a
    rewritten row are younger, so in every step the row gets the update of its own age, a steps:

        row <- (1 - lr * weight_decay) * row - lr * (m / (1 - b1**a)) / (sqrt(v / (1 - b2**a)) + eps)

    That is what a new Adam would do to this row alone, eps included, up to rounding; by the table's count the row would
    move by as much as 6.6 learning rates a step, with decays of 0.9 and 0.999. The same goes for AdamW (without
    decoupled decay the first factor is 1), AMSGrad, NAdam, RAdam and Adamax. Rows that were never rewritten move bit
    for bit as without ``attach_optimizer``.

    The other optimizers correct no bias: the row's state starts over, and what is of the table goes on, such as
    Adagrad's ``lr_decay``. With ``dampening``, SGD's first steps are shorter than a new one's. Adafactor's factor of
    the row starts at the mean of all rows. LBFGS keeps what it knows, which is of all parameters at once.

    The rows are flagged on the device, so nothing waits for the host. Their ages are saved with the optimizer's state.
    Several optimizers that hold the same table are attached one by one; a rewritten row is new to all of them.

    Args:
        optimizer: any of ``torch.optim``. In others, and in a subclass with a ``step`` of its own, floating-point state
            of the table's shape starts at 0, and ages are not taken into account.
        module: the network with the quantizers.

    Returns:
        A handle; ``handle.remove()`` detaches.

    Raises:
        TypeError: if ``optimizer`` is not one.
        ValueError: as ``parameter_groups``.

    Warns:
        UserWarning: if a codebook parameter that needs a gradient is missing from the optimizer: it would not move.

    Example:
        >>> import straightvq as svq
        >>> layer = svq.VectorQuantizer(1, svq.Codebook(2))
        >>> optimizer = torch.optim.Adam(layer.parameters(), lr=0.5)
        >>> handle = svq.attach_optimizer(optimizer, layer)
        >>> for _ in range(100):
        ...     layer.codebook.raw.grad = torch.ones(2, 1)
        ...     optimizer.step()
        >>> layer.codebook.set_codes(torch.zeros(2, 1))
        >>> layer.codebook.raw.grad = torch.ones(2, 1)
        >>> optimizer.step()
        >>> layer.codes().flatten().tolist()  # the first step of a new Adam is as long as its learning rate
        [-0.5, -0.5]
    """
    if not isinstance(optimizer, Optimizer):
        raise InvalidTypeError(
            f"`attach_optimizer`: `optimizer` must be a torch.optim.Optimizer. Got {type(optimizer).__name__}."
        )
    check_module("attach_optimizer", module)
    _check_whole("attach_optimizer", module)
    missing = [
        name for name, book in _codebooks(module).items()
        for p in book.parameters() if p.requires_grad and _group_of(optimizer, p) is None
    ]  # fmt: skip
    if missing:
        warnings.warn(
            f"{len(missing)} parameters of the codebooks {sorted(set(missing))} are not in the optimizer and will not "
            "be trained by it. Build it from svq.parameter_groups(module, ...), or freeze the codebooks.",
            UserWarning,
            stacklevel=2,
        )
    hooks = _Hooks(module)
    before, after = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    handle = RemovableHandle(before, extra_dict=[after, _ATTACHED])
    before[handle.id], after[handle.id], _ATTACHED[handle.id] = hooks.before, hooks.after, optimizer
    return handle


class _Hooks:
    """What runs around each step of an attached optimizer.

    Args:
        module: the network with the quantizers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        # Tables whose rows have ages of their own, with values and step count just before the update.
        self.found: dict[Tensor, tuple[Tensor, Tensor]] = {}

    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Gets the optimizer ready for its update: now, or whenever its closure has run a forward pass."""
        itself, *given = args
        if given and callable(given[0]):
            given[0] = self._ready_after(given[0], optimizer)
        elif callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": self._ready_after(kwargs["closure"], optimizer)}
        else:
            self._get_ready(optimizer)
        return (itself, *given), kwargs

    def _ready_after(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        def wrapped() -> Any:
            loss = closure()
            self._get_ready(optimizer)
            return loss

        return wrapped

    @torch.no_grad()
    def _get_ready(self, optimizer: Optimizer) -> None:
        self.found.clear()
        for book in _codebooks(self.module).values():
            raw = book.raw
            if isinstance(raw, nn.Parameter):
                if _group_of(optimizer, raw) is None:
                    continue  # another optimizer trains it, and has yet to see the flags
                if not (can_ask(book.rewritten) and not book.rewritten.any()):
                    for each in {optimizer, *_ATTACHED.values()}:
                        _start_over(each, book)
                state = optimizer.state.get(raw, {})
                if _BORN in state:
                    self.found[raw] = raw.clone(), state["step"].clone()
            book.rewritten.zero_()

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Moves the rows that were ever rewritten by the update of their own age instead of the table's."""
        for raw, (table, step) in self.found.items():
            group, direction = _group_of(optimizer, raw), _direction(optimizer)
            if raw.grad is None or group is None or direction is None:
                continue
            state = optimizer.state[raw]
            lr = group["lr"].squeeze() if isinstance(group["lr"], Tensor) else group["lr"]
            if group.get("decoupled_weight_decay", False):
                table.mul_(1 - lr * group["weight_decay"])
            age = (state["step"] - state[_BORN])[:, None]
            own = table.sub_(direction(state, group, age.to(_wide(age)), table, raw.grad).mul_(lr))
            # The optimizer may not have moved: its kernel leaves a step out where a gradient scaler finds an infinity.
            rows = (state[_BORN] > 0) & (state["step"] > step)
            raw.copy_(torch.where(rows[:, None], own, raw))
        self.found.clear()


def _start_over(optimizer: Optimizer, book: Codebook) -> None:
    """Makes the optimizer's state of rewritten rows that of rows it has never seen."""
    raw, state = book.raw, optimizer.state.get(book.raw)
    group = _group_of(optimizer, raw)
    if not state or group is None or _is_sharded(raw) or not book.parametrization.has_inverse:
        return  # it has not taken a step yet; or nobody can have written into the table
    is_new = book.rewritten > 0
    rows = is_new[:, None]
    for name, value in state.items():
        if name == "row_var":  # Adafactor's, (k, 1): its late steps average slowly, and would stay near 0 for long
            value.copy_(torch.where(rows, value.mean(), value))
        elif isinstance(value, Tensor) and value.shape == raw.shape and value.is_floating_point():
            value.copy_(torch.where(rows, _first(name, group, raw), value))
    if _direction(optimizer) is not None:
        born = state.setdefault(_BORN, torch.zeros_like(raw[:, 0], dtype=torch.float32))
        # A product, because the count may live on the host: `where` would wait to copy it.
        born.copy_(torch.where(is_new, state["step"] * is_new, born))


def _first(name: str, group: _ParameterGroup, raw: Tensor) -> Tensor | float:
    """What state of the table's shape is before the first step."""
    if name == "ax":  # ASGD: the average of the codes
        return raw
    if name == "step_size":  # Rprop
        return torch.zeros_like(raw) + group["lr"]
    if name == "sum":  # Adagrad
        return float(group.get("initial_accumulator_value", 0.0))
    return 0.0


# --- the direction of a row's update, of which lr times is subtracted from the row ------------------------------------

# (state, group, age (k, 1) in float64, table before the update (k, d), its gradient (k, d)) -> direction (k, d)
_Direction = Callable[[_State, _ParameterGroup, Tensor, Tensor, Tensor], Tensor]


def _adam(state: _State, group: _ParameterGroup, age: Tensor, table: Tensor, gradient: Tensor) -> Tensor:
    """Source: arXiv 1412.6980, algorithm 1; AMSGrad as in torch, whose maximum is of the biased moment."""
    first, second = (bias.to(table.dtype) for bias in _bias_corrections(group, age))
    square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return (state["exp_avg"] / first).div_((square / second).sqrt_().add_(group["eps"]))


def _adamax(state: _State, group: _ParameterGroup, age: Tensor, table: Tensor, gradient: Tensor) -> Tensor:
    """Source: arXiv 1412.6980, algorithm 2; eps is in the norm already."""
    first, _ = _bias_corrections(group, age)
    return state["exp_avg"] / first.to(table.dtype) / state["exp_inf"]


def _nadam(state: _State, group: _ParameterGroup, age: Tensor, table: Tensor, gradient: Tensor) -> Tensor:
    """Source: Dozat 2016, Incorporating Nesterov momentum into Adam; the row's momentum warms up anew, too."""
    b1, psi = group["betas"][0], group["momentum_decay"]

    def momentum(count: Tensor) -> Tensor:
        return b1 * (1 - 0.5 * 0.96 ** (count * psi))

    # Products of the momenta up to each age. They are at most b1**age: after the last the rest is rounding.
    last = math.ceil(-40 / math.log(b1)) if b1 > 0 else 1
    products = momentum(torch.arange(1, last + 2, dtype=age.dtype, device=age.device)).cumprod(0)
    place = age.clamp(max=last).long() - 1
    now, then = momentum(age), momentum(age + 1)
    of_gradient = ((1 - now) / (1 - products[place])).to(table.dtype)
    of_moment = (then / (1 - products[place + 1])).to(table.dtype)

    gradient = -gradient if group["maximize"] else gradient
    if not group["decoupled_weight_decay"]:
        gradient = gradient + group["weight_decay"] * table
    second = _bias_corrections(group, age)[1].to(table.dtype)
    spread = (state["exp_avg_sq"] / second).sqrt() + group["eps"]
    return (of_gradient * gradient + of_moment * state["exp_avg"]) / spread


def _radam(state: _State, group: _ParameterGroup, age: Tensor, table: Tensor, gradient: Tensor) -> Tensor:
    """Source: arXiv 1908.03265, algorithm 2; while the length rho of the average is at most 5, v is left out."""
    first, second = _bias_corrections(group, age)
    longest = 2 / (1 - group["betas"][1]) - 1
    rho = longest - 2 * age * (1 - second) / second
    rectified = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
    factor = (rectified.clamp(min=0) * second).sqrt().to(table.dtype)
    scale = torch.where(rho > 5, factor / (state["exp_avg_sq"].sqrt() + group["eps"]), 1.0)
    return state["exp_avg"] / first.to(table.dtype) * scale


# By the step that is really taken: a class of one's own may inherit it, or have another one.
_DIRECTIONS: dict[Any, _Direction] = {
    inspect.unwrap(Adam.step): _adam,  # AdamW's, too
    inspect.unwrap(Adamax.step): _adamax,
    inspect.unwrap(NAdam.step): _nadam,
    inspect.unwrap(RAdam.step): _radam,
}


def _direction(optimizer: Optimizer) -> _Direction | None:
    """The direction of an optimizer whose update depends on the table's age; None for others."""
    return _DIRECTIONS.get(inspect.unwrap(type(optimizer).step))


def _bias_corrections(group: _ParameterGroup, age: Tensor) -> tuple[Tensor, Tensor]:
    b1, b2 = group["betas"]
    return 1 - b1**age, 1 - b2**age


def _wide(tensor: Tensor) -> torch.dtype:
    """Small ages need it: in float32 ``1 - 0.999`` has four digits. Apple's GPU has no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _group_of(optimizer: Optimizer, parameter: Tensor) -> _ParameterGroup | None:
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)


def _codebooks(module: nn.Module) -> dict[str, Codebook]:
    """Each codebook once, by the first of its names."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Codebook)}


def _is_sharded(table: Tensor) -> bool:
    """Whether it is a DTensor; asked without importing its package."""
    return hasattr(table, "device_mesh")


def _check_whole(owner: str, module: nn.Module) -> None:
    for name, book in _codebooks(module).items():
        is_written = book.init.needs_data or book.reset is not None or book.update.writes
        if is_written and _is_sharded(book.raw):
            raise InvalidValueError(
                f"`{owner}`: the table of the codebook {name!r} must be whole, because training forwards write into "
                "it and fully_shard loses what they write. Got a sharded one: pass "
                "fully_shard(..., ignored_params=set(quantizer.parameters()))."
            )
