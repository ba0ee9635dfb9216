"""Random numbers inside a layer: a function of (seed, step, stream, place), so that ranks and resumed runs agree."""

import torch
from torch import Tensor

from straightvq.functional.draws import draw_distinct, draw_gumbel, draw_integers, draw_normal, draw_uniform
from straightvq.functional.soft.logits import Noise
from straightvq.nn.part import Part


class Clock(Part):
    """Seed and step of a layer's random draws: the only state that every training forward changes.

    Attributes:
        seed: Int64 scalar, drawn once from torch's global generator.
        step: Int64 scalar, number of training forwards.
    """

    seed: Tensor
    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.randint(1 << 62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def tick(self) -> None:
        self.step.add_(1)

    def reset_parameters(self) -> None:
        """Starts over with a new seed."""
        self.seed.copy_(torch.randint(1 << 62, ()))
        self.step.zero_()


class Draws:
    """The random draws of one training step.

    Each method takes the name of a stream: draws of different names are independent, and two parts that ask for the
    same name and shape get the same numbers. With ``rows``, Int64 (n,), the first axis is numbered by them instead of
    0, 1, ...: ``Batch.rows()`` numbers the valid vectors of all ranks.

    Args:
        clock: its seed and step.
        level: tells apart the levels of a composite that share one clock.
    """

    def __init__(self, clock: Clock, level: int = 0) -> None:
        self.seed, self.step, self.level = clock.seed, clock.step, level

    def _stream(self, name: str) -> int:
        number = 0
        for letter in name:  # a hash that a compiler can follow
            number = (16777619 * number + ord(letter)) & 0xFFFFFFFF
        return number + (self.level << 32)

    def integers(self, stream: str, shape: tuple[int, ...], *, rows: Tensor | None = None) -> Tensor:
        """Uniform integers in [0, 2^53)."""
        return draw_integers(self.seed, self.step, self._stream(stream), shape, rows=rows)

    def uniform(self, stream: str, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None) -> Tensor:
        """Uniform numbers in (0, 1)."""
        return draw_uniform(self.seed, self.step, self._stream(stream), shape, dtype, rows=rows)

    def normal(self, stream: str, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None) -> Tensor:
        """Standard normal numbers."""
        return draw_normal(self.seed, self.step, self._stream(stream), shape, dtype, rows=rows)

    def gumbel(self, stream: str, shape: tuple[int, ...], dtype: torch.dtype, *, rows: Tensor | None = None) -> Tensor:
        """Standard Gumbel numbers."""
        return draw_gumbel(self.seed, self.step, self._stream(stream), shape, dtype, rows=rows)

    def noise(self, stream: str, rows: Tensor) -> Noise:
        """Where the Gumbel numbers of ``gumbel`` with these rows come from, for a backward that makes them again."""
        return Noise(self.seed.clone(), self.step.clone(), self._stream(stream), rows)  # the next step changes both

    def distinct(self, stream: str, count: int, population: Tensor | int) -> Tensor:
        """``count`` places out of ``population``, without repetition; see ``straightvq.functional``."""
        return draw_distinct(self.seed, self.step, self._stream(stream), count, population)

    def generator(self, stream: str) -> torch.Generator:
        """A generator on the CPU. Waits for the host."""
        return torch.Generator().manual_seed(int(self.integers(stream, (1,))))
