"""What the estimator does while a network trains: both indicators, averaged over an epoch."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from straightvq.diagnostics import EstimatingError, GradientInstability
from straightvq.nn import Quantizer, SignEstimator, Step
from straightvq.nn.families.binary import SignQuantizer
from straightvq.nn.families.finite_scalar import FiniteScalarQuantizer

INSTABILITY = "gradient instability"
SHARE = 8  # of a large layer's vectors one in so many is looked at, those of the first images of a batch
LARGE = 20_000


class Indicators:
    """Follows quantizers in training, each time with the estimator as it then is.

    Args:
        quantizers: those whose estimating errors are pooled, by what the value is called.
        parameters: whose gradients' instability is measured.
    """

    def __init__(self, quantizers: Mapping[str, Iterable[Quantizer]], parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.errors = {name: EstimatingError() for name in quantizers}
        self.instability = GradientInstability()
        for name, group in quantizers.items():
            for quantizer in group:
                quantizer.register_step_hook(self._look(self.errors[name]))

    def _look(self, error: EstimatingError) -> Callable[[Quantizer, Step], None]:
        @torch.no_grad()
        def hook(quantizer: Quantizer, step: Step) -> None:
            estimator = quantizer.estimator
            if quantizer.training and isinstance(estimator, SignEstimator):
                assert isinstance(quantizer, (SignQuantizer, FiniteScalarQuantizer))
                z = step.z.detach()
                z = z[: len(z) // SHARE] if len(z) > LARGE else z
                error.update(quantizer.offsets(z), estimator.surrogate)

        return hook

    def see_gradients(self) -> None:
        """Takes in the gradients of one update."""
        self.instability.update([p.grad for p in self.parameters if p.grad is not None])

    def read(self) -> dict[str, float]:
        """Every value since the last reading."""
        metrics = {**self.errors, INSTABILITY: self.instability}
        values = {name: float(metric.compute()) for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values
