"""What a law examines: a quantizer that can be made again and again, and data that exercise it."""

import copy
import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from straightvq.nn import Loss, Quantizer, QuantizerOutput, VectorQuantizer, attach_optimizer, parameter_groups
from straightvq.nn.codebook import Codebook
from straightvq.nn.draws import Clock
from straightvq.testing.law import NotApplicable, hold, same


class Subject:
    """The quantizer under test, of width ``dim`` with ``size`` codes.

    Args:
        make: gives a new quantizer at each call; its start may be drawn from torch's global generator.

    Attributes:
        n: vectors in a batch: a multiple of 5, and more than four per code, so that one batch ends a k-means init.
    """

    def __init__(self, make: Callable[[], Quantizer]) -> None:
        self._make = make
        self._trained: dict[int, Quantizer] = {}
        layer = self.made()
        self.dim = layer.dim
        self.size = int(getattr(layer, "codebook_size", 16))
        self.n = 5 * (4 * self.size // 5 + 2)

    def made(self, channel_dim: int = -1, seed: int = 0) -> Quantizer:
        """A new quantizer with its channels on ``channel_dim``."""
        torch.manual_seed(seed)
        layer = self._make()
        layer.channel_dim = channel_dim
        return layer

    def trained(self, steps: int = 6) -> Quantizer:
        """One that has seen ``steps`` training steps; a copy, without gradients."""
        if steps not in self._trained:
            trainer = Trainer(self)
            trainer.run(0, steps)
            trainer.layer.zero_grad()
            self._trained[steps] = trainer.layer
        return copy.deepcopy(self._trained[steps])

    def of_each_age(self) -> Iterator[Quantizer]:
        """A new quantizer, then a trained one."""
        yield self.made()
        yield self.trained()

    def data(self, seed: int, n: int | None = None) -> Tensor:
        """Vectors (n, dim) in six drifting clusters: some codes die, some are shared."""
        n = self.n if n is None else n
        generator = torch.Generator().manual_seed(seed)
        centres = 3 * torch.randn(6, self.dim, generator=torch.Generator().manual_seed(99))
        home = torch.randint(6, (n,), generator=generator)
        return centres[home] + 0.02 * seed + 0.3 * torch.randn(n, self.dim, generator=generator)


class Trainer:
    """An encoder, the quantizer and AdamW: enough for gradients to reach everything that takes them."""

    def __init__(self, subject: Subject, layer: Quantizer | None = None) -> None:
        self._subject = subject
        self.layer = subject.made() if layer is None else layer
        torch.manual_seed(5)
        self.encoder = nn.Linear(subject.dim, subject.dim)
        self.net = nn.ModuleList([self.encoder, self.layer])
        groups = parameter_groups(self.net, lr=3e-3, weight_decay=0.1, codebook_lr=1e-2)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        attach_optimizer(self.optimizer, self.net)

    def step(self, number: int, n: int | None = None) -> Tensor:
        z = self._subject.data(number, n)
        out = self.layer(self.encoder(z))
        loss = (out.quantized - z).square().mean() + out.loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self, start: int, stop: int) -> Tensor:
        """The losses of the steps ``start`` to ``stop - 1``."""
        return torch.stack([self.step(number) for number in range(start, stop)])

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.net.load_state_dict(state["net"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])


def backward(out: QuantizerOutput, z: Tensor) -> Tensor:
    """The gradient at ``z`` of all that the layer gives."""
    (out.quantized.float().sum() + out.loss).backward()
    hold(z.grad is not None, "a gradient at z", None)
    assert z.grad is not None
    return z.grad


def same_output(got: QuantizerOutput, expected: QuantizerOutput, what: str) -> None:
    """Raises unless what two layers give is equal bit for bit."""
    for name in ("quantized", "indices", "loss"):
        same(getattr(got, name).detach(), getattr(expected, name).detach(), f"the same `{name}` {what}")


def with_codes(layer: Quantizer) -> Quantizer:
    """The layer, if it has a table of codes."""
    if not layer.codebooks():
        raise NotApplicable(f"{type(layer).__name__} has no table of codes")
    return layer


def with_table(layer: Quantizer) -> VectorQuantizer:
    """The layer, if its codes are one table."""
    if not isinstance(layer, VectorQuantizer):
        raise NotApplicable(f"{type(layer).__name__} is no VectorQuantizer: its codes are not one table")
    return layer


def with_inverse(layer: Quantizer) -> VectorQuantizer:
    """The layer, if its codes are one table that can be written by hand."""
    layer = with_table(layer)
    part = layer.codebook.parametrization
    if not part.has_inverse:
        raise NotApplicable(f"{type(part).__name__} has no inverse: its codes cannot be written")
    return layer


def codes_of(layer: Quantizer) -> list[Tensor]:
    """Effective codes of all codebooks, copied."""
    return [book.codes().clone() for book in layer.codebooks()]


def all_losses(layer: Quantizer) -> list[tuple[str, Loss]]:
    """The losses of the layer and of the quantizers inside, with the name of their module."""
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, Loss)]


def names_of(layer: nn.Module, kind: type[nn.Module]) -> set[str]:
    """Entries of the state dict that belong to modules of this kind."""
    prefixes = [f"{name}." if name else "" for name, module in layer.named_modules() if isinstance(module, kind)]
    return {entry for entry in layer.state_dict() if any(entry.startswith(prefix) for prefix in prefixes)}


def clock_of(layer: nn.Module) -> set[str]:
    """What a batch without vectors may change: clocks, and the flags that a data-free init sets in its first step."""
    books = [f"{name}." if name else "" for name, module in layer.named_modules() if isinstance(module, Codebook)]
    return names_of(layer, Clock) | {prefix + flag for prefix in books for flag in ("is_ready", "filled")}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.clone() for name, value in module.state_dict().items()}
