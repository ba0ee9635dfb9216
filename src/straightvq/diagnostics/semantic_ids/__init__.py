"""Semantic IDs: one code per residual level for every item, made unique, measured and drawn."""

from straightvq.diagnostics.semantic_ids.measure import IdReport, prefix_cosines, report_ids
from straightvq.diagnostics.semantic_ids.picture import id_picture
from straightvq.diagnostics.semantic_ids.unique import (
    assign_last,
    collision_rate,
    number_collisions,
    sinkhorn,
    sinkhorn_last,
    unique_rate,
)

__all__ = [
    "IdReport",
    "assign_last",
    "collision_rate",
    "id_picture",
    "number_collisions",
    "prefix_cosines",
    "report_ids",
    "sinkhorn",
    "sinkhorn_last",
    "unique_rate",
]
