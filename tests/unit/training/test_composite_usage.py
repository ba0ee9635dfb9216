"""A task counts the codes of every level, each against the size of its own codebook."""

import torch

import straightvq as svq
from straightvq.diagnostics import CodebookUsage
from straightvq.training.base import SetMetrics


def test_codebooks_of_different_sizes_are_counted_apart() -> None:
    metric = CodebookUsage([4, 2])
    metric.update(torch.tensor([[0, 1], [1, 1], [2, -1]]))
    values = metric.compute()
    assert values["dead_codes"].tolist() == [1, 1]
    assert values["usage"].tolist() == [0.75, 0.5]
    torch.testing.assert_close(values["perplexity"], torch.tensor([3.0, 1.0]))


def test_a_task_reports_the_codes_of_each_level() -> None:
    q = svq.ResidualQuantizer(6, [svq.presets.vq_vae(6, 16), svq.presets.vq_vae(6, 8)])
    metrics = SetMetrics(q)
    out = q(torch.randn(200, 6))
    metrics.count(out)
    values = metrics.compute()
    assert values["codes_used_0"] == len(out.indices[:, 0].unique())
    assert values["codes_used_1"] == len(out.indices[:, 1].unique())
    assert {"perplexity_0", "perplexity_1"} <= set(values)
