"""The progress bar of the training commands."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar


class RunBar(RichProgressBar):
    """Lightning's, without the number of a logger's version and without a last epoch where there is none."""

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1:
            return str(super()._get_train_description(current_epoch))
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))
