"""The main optimizer's side of a codebook: parameter groups, and moments of rewritten rows."""

import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from straightvq.nn.codebook import Codebook
from straightvq.nn.part import check_float, check_module


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
    owned = {p: None for book in _codebooks(module) for p in book.parameters()}
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
    """Before each step, clears the optimizer's moments of the code rows that were rewritten since the last one.

    A row that a reset moved has nothing to do with the old row's momentum. The rows are flagged on the device, so
    nothing waits for the host.

    Args:
        optimizer: any ``torch.optim`` optimizer whose state has tensors of the parameters' shapes.
        module: the network with the quantizers.

    Returns:
        A handle; ``handle.remove()`` detaches.

    Raises:
        TypeError: if ``optimizer`` is not one.
        ValueError: as ``parameter_groups``.

    Warns:
        UserWarning: if a codebook parameter that needs a gradient is missing from the optimizer: it would not move.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`attach_optimizer`: `optimizer` must be a torch.optim.Optimizer. Got {type(optimizer).__name__}."
        )
    check_module("attach_optimizer", module)
    _check_whole("attach_optimizer", module)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, child in module.named_modules() if isinstance(child, Codebook)
        for p in child.parameters() if p.requires_grad and p not in held
    ]  # fmt: skip
    if missing:
        warnings.warn(
            f"{len(missing)} parameters of the codebooks {sorted(set(missing))} are not in the optimizer and will not "
            "be trained by it. Build it from svq.parameter_groups(module, ...), or freeze the codebooks.",
            UserWarning,
            stacklevel=2,
        )

    @torch.no_grad()
    def clear(*_: Any) -> None:
        for book in _codebooks(module):
            own = any(p is book.raw for group in optimizer.param_groups for p in group["params"])
            if isinstance(book.raw, nn.Parameter) and not own:
                continue  # another optimizer trains it, and has yet to see the flags
            state = optimizer.state.get(book.raw, {}) if isinstance(book.raw, nn.Parameter) else {}
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.shape == book.raw.shape:
                    value.masked_fill_(book.rewritten[:, None], 0)
            book.rewritten.fill_(False)

    return optimizer.register_step_pre_hook(clear)


def _codebooks(module: nn.Module) -> list[Codebook]:
    return [m for m in module.modules() if isinstance(m, Codebook)]


def _check_whole(owner: str, module: nn.Module) -> None:
    for name, book in module.named_modules():
        if not isinstance(book, Codebook):
            continue
        is_written = book.init.needs_data or book.reset is not None or book.update.writes
        if is_written and hasattr(book.raw, "device_mesh"):  # a DTensor, without importing its package
            raise ValueError(
                f"`{owner}`: the table of the codebook {name!r} must be whole, because training forwards write into "
                "it and fully_shard loses what they write. Got a sharded one: pass "
                "fully_shard(..., ignored_params=set(quantizer.parameters()))."
            )
