"""Training a masked token model on the codes of a frozen tokenizer, and sampling from it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from straightvq.diagnostics.fid import FrechetDistances, load_features
from straightvq.errors import InvalidValueError
from straightvq.generation.sampling import decode_tokens, guided_logits, random_mask
from straightvq.generation.tokenizer import Tokenizer
from straightvq.models import MaskGIT
from straightvq.nn.part import check_float, check_int, check_part, evaluating
from straightvq.nn.ranks import num_ranks, rank
from straightvq.training.base import SHARE, Batch, MeasuredTask, OptimizerSettings, SetMetrics

_OPTIMIZER = OptimizerSettings(betas=(0.9, 0.96), weight_decay=0.045)
RECONSTRUCTIONS = "reconstructions"


class Generation(MeasuredTask):
    """Trains MaskGIT to fill in masked tokens.

    Training masks a random share of each grid, by the cosine schedule; the loss is the cross-entropy on the masked
    positions alone, with label smoothing. Now and then the null class, -1, replaces a label, so that the network also
    learns to do without, which guidance needs.

    The tokenizer is neither trained nor written into the checkpoints, which remember its fingerprint. Batches are those
    of `straightvq.data.Tokens`, encoded once, or of `straightvq.data.Images`, encoded in every step. A network without
    classes ignores their labels.

    Logged per step: ``train/loss``. Per evaluation, over the whole set: ``val/cross_entropy`` in nats per masked
    token, without smoothing, and ``val/accuracy`` in [0, 1], both at masks that are the same every time. The test logs
    both and compares images: ``test/fid`` is the mean over ``fid_seeds`` of the Fréchet distance from the test images
    to as many samples of the same classes, ``test/fid_std`` its standard deviation, ``test/rfid`` the distance to the
    tokenizer's reconstructions, a bound for all samples.

    Args:
        model: the network; its ``codebook_size`` and ``grid`` must be those of the tokens.
        tokenizer: folder of the run of an autoencoder, or one of its checkpoints; or a `Tokenizer`.
        optimizer: the optimizer and its rates. The default has betas of 0.9 and 0.96 and a ``weight_decay`` of 0.045,
            which acts on the weights of linear layers, never on biases, normalizations and embeddings.
        label_smoothing: probability spread over all codes, in [0, 1).
        class_dropout: probability of replacing a label by the null class, in [0, 1).
        steps: decoding steps, for sampling and test.
        temperature: of the noise on the confidences, for sampling and test; larger is more varied.
        guidance: weight of the class against the null class, for sampling and test; 0 for none.
        features: for the test: folder of a classifier's run; "inception" or None for Inception v3.
        fid_seeds: for the test: number of sets of samples.

    Raises:
        TypeError, ValueError: for values out of range, a tokenizer that cannot be read, sizes that do not agree.

    Source: arXiv 2202.04200 and its code (schedule, loss, betas, weight decay); guidance as in arXiv 2301.00704.
        Deviation from the code: training masks exact counts, as the paper says.

    Example:
        >>> import straightvq as svq
        >>> from straightvq.models import Autoencoder
        >>> tokenizer = Tokenizer(Autoencoder(svq.presets.vq_vae(4, 32, channel_dim=1), hidden=8))
        >>> task = Generation(MaskGIT(32, grid=(2, 2), layers=1, width=8, heads=2), tokenizer, steps=2)
        >>> tokens = torch.tensor([[[-1, 3], [-1, -1]]])
        >>> task.fill(tokens, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 2, 2])
    """

    # While a test lasts.
    _distances: FrechetDistances
    _generators: dict[str, torch.Generator]

    def __init__(
        self,
        model: MaskGIT,
        tokenizer: str | Tokenizer,
        *,
        optimizer: OptimizerSettings = _OPTIMIZER,
        label_smoothing: float = 0.1,
        class_dropout: float = 0.1,
        steps: int = 8,
        temperature: float = 4.5,
        guidance: float = 0.0,
        features: str | None = None,
        fid_seeds: int = 3,
    ) -> None:
        super().__init__()
        self.model: MaskGIT = check_part(self, "model", model, MaskGIT)
        self.optimizer: OptimizerSettings = check_part(self, "optimizer", optimizer, OptimizerSettings)
        if optimizer.codebook_lr is not None:
            raise InvalidValueError(
                "`Generation`: `codebook_lr` of the optimizer must be None, because the codebook is not trained. "
                f"Got {optimizer.codebook_lr:g}."
            )
        self.label_smoothing = check_float(self, "label_smoothing", label_smoothing, **SHARE)
        self.class_dropout = check_float(self, "class_dropout", class_dropout, **SHARE)
        self.steps = check_int(self, "steps", steps, 1)
        self.temperature = check_float(self, "temperature", temperature, minimum=0)
        self.guidance = self._check_guidance(guidance)
        self.features = features
        self.fid_seeds = check_int(self, "fid_seeds", fid_seeds, 1)
        self.tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)
        if self.tokenizer.codebook_size != model.codebook_size:
            sizes = f"{self.tokenizer.codebook_size}. Got {model.codebook_size}."
            raise InvalidValueError(f"`Generation`: `codebook_size` of the model must be the tokenizer's, {sizes}")
        self.metrics = SetMetrics(None, cross_entropy=MeanMetric(), accuracy=MeanMetric())

    def _check_guidance(self, guidance: float) -> float:
        guidance = check_float(self, "guidance", guidance, minimum=0)
        if guidance and self.model.num_classes is None:
            raise InvalidValueError(
                "`Generation`: `guidance` needs classes, and the network has num_classes=None. Leave it at 0. "
                f"Got {guidance:g}."
            )
        if guidance and not self.class_dropout:
            raise InvalidValueError(
                "`Generation`: `guidance` compares with the null class, which is not trained with class_dropout=0. "
                f"Leave it at 0, or train with a class_dropout such as 0.1. Got {guidance:g}."
            )
        return guidance

    def encode_all(self, images: Tensor) -> Tensor:
        """Images, UInt8 (n, C, H, W) -> tokens, Int32 (n, h, w), remembered in the tokenizer's folder."""
        if len(images):
            self._check_size(images)
        return self.tokenizer.encode_all(images, self.device)

    def _check_size(self, images: Tensor) -> None:
        grid = tuple(side // self.tokenizer.downsample for side in images.shape[2:])
        if grid != self.model.grid:
            (height, width), cell = images.shape[2:], self.tokenizer.downsample
            raise InvalidValueError(
                f"`Generation`: `grid` of the model must be {grid}, because images of {height} x {width} pixels have "
                f"a token per {cell} x {cell}. Got {self.model.grid}."
            )

    def _tokens(self, batch: Batch) -> Tensor:
        if "tokens" in batch:
            return batch["tokens"].long()
        self._check_size(batch["image"])
        return self.tokenizer.to(self.device).encode(batch["image"])

    def _labels(self, batch: Batch) -> Tensor | None:
        return None if self.model.num_classes is None else batch.get("label")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        tokens, labels = self._tokens(batch), self._labels(batch)
        masked = random_mask(self._uniform(len(tokens)), self._uniform(*tokens.shape))
        if labels is not None and self.class_dropout:
            labels = labels.masked_fill(self._uniform(len(labels)) < self.class_dropout, -1)
        logits = self.model(tokens.masked_fill(masked, -1), labels)
        loss = masked_cross_entropy(logits, tokens, masked, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(tokens))
        return loss

    def _uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1): torch's generator is the same on all ranks, so each takes its own part of all numbers."""
        return torch.rand(num_ranks(None), *shape, device=self.device)[rank(None)]

    def configure_optimizers(self) -> Any:
        decayed = {m.weight: None for m in self.model.modules() if isinstance(m, nn.Linear)}
        others = [p for p in self.model.parameters() if p not in decayed]
        groups = [
            {"params": list(decayed), "weight_decay": self.optimizer.weight_decay, "name": "weights"},
            {"params": others, "weight_decay": 0.0, "name": "biases, normalizations and embeddings"},
        ]
        optimizer = self.optimizer.build(groups)
        schedule = self.optimizer.scheduler(optimizer, float(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tokenizer"] = self.tokenizer.fingerprint
        # `generate` knows the classes by name, even without the images.
        checkpoint["class_names"] = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that was trained on the codes of another tokenizer, with a ValueError."""
        if checkpoint.get("tokenizer") != self.tokenizer.fingerprint:
            raise InvalidValueError(
                "`Generation`: `tokenizer` must be the one of the training; this one has other weights, and so its "
                "codes mean something else. Was it trained further? Pass the checkpoint of that time."
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures loss and accuracy at masks that depend on the number of the batch alone."""
        tokens = self._tokens(batch)
        generator = torch.Generator().manual_seed(batch_idx)
        progress, order = torch.rand(len(tokens), generator=generator), torch.rand(tokens.shape, generator=generator)
        masked = random_mask(progress, order).to(self.device)
        self._measure(self.model(tokens.masked_fill(masked, -1), self._labels(batch)).float(), tokens, masked)

    def _measure(self, logits: Tensor, tokens: Tensor, masked: Tensor) -> None:
        weight = masked.sum()
        self.metrics.own["cross_entropy"].update(masked_cross_entropy(logits, tokens, masked), weight)
        self.metrics.own["accuracy"].update(((logits.argmax(-1) == tokens) & masked).sum() / weight, weight)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        # Ranks see different images and draw different samples.
        first = 1_000_003 * self.global_rank
        self._generators = {f"seed {n}": torch.Generator().manual_seed(first + n) for n in range(self.fid_seeds)}
        names = [*self._generators, RECONSTRUCTIONS]
        self._distances = FrechetDistances(load_features(self.features), names, self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if "image" not in batch:
            raise InvalidValueError("`Generation`: the test compares images; its batches must have `image`.")
        self.validation_step(batch, batch_idx)
        self._distances.add_reference(batch["image"].float())
        self._distances.add(RECONSTRUCTIONS, self.tokenizer.decode(self._tokens(batch)))
        for name, generator in self._generators.items():
            samples = self.sample(len(batch["image"]), self._labels(batch), generator=generator)
            self._distances.add(name, self.tokenizer.decode(samples))

    def on_test_epoch_end(self) -> None:
        distances = self._distances.compute()
        values = {"rfid": distances.pop(RECONSTRUCTIONS), **self.metrics.compute()}
        seeds = torch.stack(list(distances.values()))
        values["fid"] = seeds.mean()
        if len(seeds) > 1:
            values["fid_std"] = seeds.std()
        # Loggers of some devices take no float64.
        self.log_set("test", {name: value.float() for name, value in values.items()})
        self.print(f"FID in the features of {self._distances.features.name}")
        del self._distances, self._generators

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        raise InvalidValueError("`Generation`: samples are made by `straightvq generate --run RUN`, not by `predict`.")

    def sample(self, num: int, labels: Tensor | None = None, **options: Any) -> Tensor:
        """Grids from nothing: Int64 (num, h, w); options and labels as in `fill`."""
        return self.fill(torch.full((num, *self.model.grid), -1, device=self.device), labels, **options)

    @torch.no_grad()
    def fill(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        *,
        generator: torch.Generator,
        steps: int | None = None,
        temperature: float | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Decodes the masked positions of token grids; the given tokens stay.

        Args:
            tokens: Int64 (B, h, w), -1 where masked; so is the result, without -1.
            labels: classes, Int64 (B,), -1 for the null class; None for the null class everywhere.
            generator: source of all random numbers.
            steps, temperature, guidance: None takes those of the task.
        """
        weight = self._check_guidance(self.guidance if guidance is None else guidance)
        steps = self.steps if steps is None else steps
        temperature = self.temperature if temperature is None else temperature

        def predict(grids: Tensor) -> Tensor:
            logits = model(grids, labels)
            is_guided = weight > 0 and labels is not None
            return guided_logits(logits, model(grids), weight) if is_guided else logits

        with evaluating(self.model) as model:
            return decode_tokens(predict, tokens, steps=steps, temperature=temperature, generator=generator)


def masked_cross_entropy(logits: Tensor, tokens: Tensor, masked: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy in nats over the masked positions of all grids.

    Shape: logits Float (B, h, w, K), tokens Int64 (B, h, w), masked Bool (B, h, w) with at least one True.

    Example:
        >>> logits = torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]]]).log()
        >>> masked_cross_entropy(logits, torch.tensor([[[0, 0]]]), torch.tensor([[[True, False]]]))
        tensor(0.6931)
    """
    targets = tokens.masked_fill(~masked, -1).flatten()
    return F.cross_entropy(logits.flatten(0, 2), targets, ignore_index=-1, label_smoothing=label_smoothing)
