"""Training a codec for sound, and measuring what each of its bits buys."""

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

import straightvq as svq
from straightvq.diagnostics import save
from straightvq.diagnostics.sound import MelDistance, rate_distortion, spectrograms, waveform_distance
from straightvq.errors import InvalidValueError
from straightvq.io import replacing
from straightvq.models import AudioCodec, AutoencoderOutput
from straightvq.nn.part import check_float, check_int, check_part
from straightvq.training.base import Batch, OptimizerSettings, Pass, QuantizedTask, SetMetrics

_OPTIMIZER = OptimizerSettings()
_PERCEPTUAL = {"stoi": "pystoi", "pesq": "pesq"}  # and the package behind each

# Levels at which predictions are heard and seen.
SHOWN = (1, 2, 4, 8)


class AudioReconstruction(QuantizedTask):
    """Trains a codec to give back clips of sound.

    The loss is ``waveform_weight`` times the mean absolute error of the samples plus ``mel_weight`` times the distance
    of the mel spectra at several resolutions (`MelDistance`), plus the quantizer's loss. Clips count by their length,
    and padding in nothing: a padded batch has the loss of its clips.

    Batches are ``{"audio": Float (B, 1, T), "length": Int64 (B), "index": Int64 (B)}``, those of
    `straightvq.data.Sound`.

    Logged per step: ``train/loss``, ``train/reconstruction`` and each unweighted quantizer term. Per evaluation, over
    the whole set: ``val/mel`` and ``val/l1``, weighted by length; ``val/si_sdr`` in dB, a mean over clips that are not
    silent; ``val/bits_per_second`` of the indices, and ``val/entropy_bits_per_second`` if each level's indices were
    coded by their frequency; perplexity and codes used of each level. The same for ``test/``, which adds ``test/stoi``
    and ``test/pesq`` (8 and 16 kHz), means over the clips that are long enough for them, where `pystoi` and `pesq` are
    installed.

    A codec with several levels also gets its rate-distortion curve, from the first 1, 2, ... indices of each frame:
    ``rate_distortion.csv`` and ``.png`` of all test clips, and ``curves/`` of the first validation clips, in the run's
    folder.

    Args:
        model: the codec.
        sample_rate: of the clips, in Hz; must agree with the data's.
        optimizer: the optimizer and its rates.
        waveform_weight: factor of the error of the samples, which is in units of the full scale.
        mel_weight: factor of the distance of the spectra, which is in factors of ten.
        windows: of the spectra, in samples.
        num_mels: bands of each.
        quantize: False trains and measures the codec without its quantizer.
        curve_clips: how many validation clips the curve is measured on, at least (whole batches), 0 for no curve.
        num_pictures: how many predicted clips are also written at fewer levels and as pictures.

    Raises:
        TypeError, ValueError: for values out of range, and for data of another sample rate.

    Source: losses after DAC (arXiv 2306.06546, section 3.4) and EnCodec (arXiv 2210.13438, eq. 1); adversarial losses
    are left out.

    Example:
        >>> from straightvq.models import AudioCodec
        >>> codec = AudioCodec(svq.presets.straight_residual(8, 16, num_quantizers=2, channel_dim=1), hidden=4)
        >>> AudioReconstruction(codec).bits_per_second()
        [400.0, 800.0]
    """

    model: AudioCodec
    error_name = "reconstruction"
    input_name = "audio"

    def __init__(
        self,
        model: AudioCodec,
        *,
        sample_rate: int = 8000,
        optimizer: OptimizerSettings = _OPTIMIZER,
        waveform_weight: float = 10.0,
        mel_weight: float = 1.0,
        windows: Sequence[int] = (64, 128, 256, 512, 1024),
        num_mels: Sequence[int] = (8, 16, 32, 64, 64),
        quantize: bool = True,
        curve_clips: int = 64,
        num_pictures: int = 8,
    ) -> None:
        super().__init__(
            check_part(self, "model", model, AudioCodec),
            {name: MeanMetric() for name in ("mel", "l1", "si_sdr")},
            optimizer=optimizer,
            alternate=None,
            quantize=quantize,
        )
        self.sample_rate = check_int(self, "sample_rate", sample_rate, 100)
        self.waveform_weight = check_float(self, "waveform_weight", waveform_weight, minimum=0)
        self.mel_weight = check_float(self, "mel_weight", mel_weight, minimum=0)
        self.windows, self.num_mels = windows, num_mels
        self.distance = MelDistance(sample_rate, windows, num_mels)
        self.curve_clips = check_int(self, "curve_clips", curve_clips, 0)
        self.num_pictures = check_int(self, "num_pictures", num_pictures, 0)
        self.levels = list(range(1, model.quantizer.num_quantizers + 1)) if model.quantizer.is_composite else []
        # One for each number of levels, and those of the test alone.
        self._curve = nn.ModuleList(_clip_metrics() for _ in self.levels)
        self.perceptual = SetMetrics(None, **{name: MeanMetric() for name in _perceptual(sample_rate)})
        self._clips = 0  # that the curve of the moment has seen

    def setup(self, stage: str) -> None:
        rate = getattr(getattr(self.trainer, "datamodule", None), "sample_rate", self.sample_rate)
        if rate != self.sample_rate:
            raise InvalidValueError(
                f"`AudioReconstruction`: `sample_rate` must be that of the data, {rate}. Got {self.sample_rate}."
            )

    @property
    def curve(self) -> list[SetMetrics]:
        """What is measured at each number of levels."""
        return [metrics for metrics in self._curve if isinstance(metrics, SetMetrics)]

    def bits_per_second(self) -> list[float]:
        """Of the indices, for each number of levels that may be kept; of one code per frame a single number."""
        bits = [math.log2(size) * self.sample_rate / self.model.hop for size in self.model.quantizer.codebook_sizes]
        return [sum(bits[: number + 1]) for number in range(len(bits))]

    # --- the network --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, length: Tensor | None = None) -> AutoencoderOutput:
        """Clips (B, 1, T) and their lengths (B) -> the model's output."""
        if self.quantize:
            return self.model(x, length)
        with svq.bypass(self.model):
            return self.model(x, length)

    def compute(self, batch: Batch) -> Pass:
        out = self(batch["audio"], batch["length"])
        return self.error(out.reconstruction, batch), out.quantizer

    def error(self, output: Tensor, batch: Batch) -> Tensor:
        """The weighted distances, a mean over samples: clips (B, 1, T) -> a scalar."""
        x, length = batch["audio"], batch["length"]
        by_clip = self.waveform_weight * waveform_distance(output, x, length)
        by_clip = by_clip + self.mel_weight * self.distance(output, x, length)
        return (by_clip * length).sum() / length.sum()

    def latent(self, batch: Batch) -> Tensor:
        return self.model.encode(batch["audio"], batch["length"])

    def head_loss(self, latent: Tensor, batch: Batch) -> Tensor:
        x, length = batch["audio"], batch["length"]
        clips = self.model.head(latent, self.model.valid(x, length))
        return self.error(self.model.within(clips, x, length), batch)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def measure(self, batch: Batch) -> None:
        x, length = batch["audio"].float(), batch["length"]
        out = self(batch["audio"], length)
        self.metrics.count(out.quantizer)
        is_test = bool(self.trainer.testing)
        self._take(self.metrics, x, out.reconstruction.float(), length)
        if is_test:
            self._take_perceptual(x, out.reconstruction.float(), length)
        if self.quantize and self.curve and (is_test or self._clips < self.curve_clips):
            self._clips += len(x)
            for level, metrics in zip(self.levels, self.curve, strict=True):
                self._take(metrics, x, self._at(out.quantizer.indices, level, x, length).float(), length)

    def _at(self, indices: Tensor, level: int, x: Tensor, length: Tensor) -> Tensor:
        """What the first ``level`` indices of each frame give: clips like ``x``."""
        return self.model.within(self.model.detokenize(indices[..., :level]), x, length)

    def _take(self, metrics: Any, x: Tensor, y: Tensor, length: Tensor) -> None:
        """Updates the metrics of clips (B, 1, T) and what became of them."""
        metrics.own["mel"].update(self.distance(x, y, length), weight=length)
        metrics.own["l1"].update(waveform_distance(x, y, length), weight=length)
        for clip, other, samples in zip(x[:, 0], y[:, 0], length.tolist(), strict=True):
            if clip[:samples].any():  # of silence there is no such ratio
                metrics.own["si_sdr"].update(si_sdr(other[:samples], clip[:samples]))

    def _take_perceptual(self, x: Tensor, y: Tensor, length: Tensor) -> None:
        for name, metric in self.perceptual.own.items():
            for clip, other, samples in zip(x[:, 0], y[:, 0], length.tolist(), strict=True):
                value = _perceived(str(name), other[:samples].cpu(), clip[:samples].cpu(), self.sample_rate)
                if value is not None:
                    metric.update(value)

    def _start(self) -> None:
        self.metrics.reset()
        self.perceptual.reset()
        self._clips = 0
        for metrics in self.curve:
            metrics.reset()

    def on_validation_epoch_start(self) -> None:
        self._start()

    def on_test_epoch_start(self) -> None:
        self._start()
        if missing := [package for name, package in _PERCEPTUAL.items() if name not in self.perceptual.own]:
            self.print(f"Not measured, for want of {' and '.join(missing)} or of a rate that they know.")

    def log_set(self, stage: str, values: Mapping[str, Tensor]) -> None:
        super().log_set(stage, values)
        rates = self.bits_per_second()
        more = {"bits_per_second": rates[-1]} if self.quantize else {}
        if self.metrics.usage is not None:
            nats = self.metrics.usage.compute()["perplexity"].log().sum()
            more["entropy_bits_per_second"] = float(nats) / math.log(2) * self.sample_rate / self.model.hop
        if stage == "test" and self.perceptual.own:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no clip was long enough: the value is NaN
                more |= {name: float(value) for name, value in self.perceptual.own.compute().items()}
        self.log_dict({f"{stage}/{name}": value for name, value in more.items()}, rank_zero_only=False)
        if self.quantize and self.curve and (stage == "test" or self.curve_clips):
            self._write_curve(stage, rates)

    def _write_curve(self, stage: str, rates: list[float]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a rank without clips
            rows = [
                {"levels": level, "bits_per_second": rate, **{k: float(v) for k, v in metrics.own.compute().items()}}
                for level, rate, metrics in zip(self.levels, rates, self.curve, strict=True)
            ]
        folder = self.trainer.log_dir  # all ranks ask
        if folder is None or not self.trainer.is_global_zero or self.trainer.sanity_checking:
            return
        import pandas as pd

        name = "rate_distortion" if stage == "test" else f"curves/step-{self.global_step:08d}"
        with replacing(Path(folder) / f"{name}.csv") as unfinished:
            pd.DataFrame(rows).to_csv(unfinished, index=False)
        save(rate_distortion({"codec": rows}, title="What each level buys"), Path(folder) / f"{name}.png")

    # --- prediction ---------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Writes ``predictions/NUMBER.wav`` into the run's folder; of the first clips also the original, what fewer
        levels give, and a picture of the spectrograms.

        Returns:
            ``{"indices": Int64 (frames of all clips, ...), "frames": Int64 (B)}``: the indices of one clip behind those
            of the other. Without ``quantize`` there are no indices.
        """
        x, length = batch["audio"], batch["length"]
        out = self(x, length)
        if self.trainer.log_dir is not None:
            self._write_clips(Path(self.trainer.log_dir) / "predictions", batch, out)
        valid = self.model.valid(x, length)
        result = {"frames": valid.sum(1)}
        return {"indices": out.quantizer.indices[valid], **result} if self.quantize else result

    def _write_clips(self, folder: Path, batch: Batch, out: AutoencoderOutput) -> None:
        x, length, numbers = batch["audio"], batch["length"], batch["index"].tolist()
        shown = [level for level in SHOWN if level in self.levels] if self.quantize else []
        made = {}
        if shown and min(numbers, default=0) < self.num_pictures:
            made = {level: self._at(out.quantizer.indices, level, x, length) for level in shown}
        for i, (number, samples) in enumerate(zip(numbers, length.tolist(), strict=True)):
            write_wav(folder / f"{number:05d}.wav", out.reconstruction[i, 0, :samples], self.sample_rate)
            if number >= self.num_pictures:
                continue
            original = x[i, 0, :samples]
            write_wav(folder / f"{number:05d}-original.wav", original, self.sample_rate)
            rows = {"original": original}
            for level, clips in made.items():
                rate = self.bits_per_second()[level - 1] / 1000
                rows[f"{level} level{'s' * (level > 1)}\n{rate:.1f} kbit/s"] = clips[i, 0, :samples]
                write_wav(folder / f"{number:05d}-{level}.wav", clips[i, 0, :samples], self.sample_rate)
            if not made:
                rows["reconstruction"] = out.reconstruction[i, 0, :samples]
            save(spectrograms(rows, self.sample_rate, title=f"Clip {number}"), folder / f"{number:05d}.png")


def write_wav(path: Path, clip: Tensor, sample_rate: int) -> None:
    """A clip Float (T,) as 16-bit WAV; what is beyond full scale is cut."""
    from straightvq.data.sound.decode import needed

    samples = clip.detach().float().clamp(-1, 1).cpu().numpy()
    with replacing(path) as unfinished:
        needed("soundfile").write(unfinished, samples, sample_rate, format="WAV", subtype="PCM_16")


def _clip_metrics() -> SetMetrics:
    return SetMetrics(None, **{name: MeanMetric() for name in ("mel", "l1", "si_sdr")})


def _perceptual(sample_rate: int) -> list[str]:
    """The measures of hearing that can be computed here."""
    found = [name for name, package in _PERCEPTUAL.items() if importlib.util.find_spec(package) is not None]
    return [name for name in found if name != "pesq" or sample_rate in (8000, 16000)]


def _perceived(name: str, clip: Tensor, original: Tensor, sample_rate: int) -> Tensor | None:
    """STOI or PESQ of a clip (T,); None where it is too short or too silent for the measure."""
    from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality
    from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # pystoi's way to say so, and then a value of no meaning
        try:
            if name == "stoi":
                return short_time_objective_intelligibility(clip, original, sample_rate)
            mode = "nb" if sample_rate == 8000 else "wb"
            return perceptual_evaluation_speech_quality(clip, original, sample_rate, mode)
        except (RuntimeError, RuntimeWarning, ValueError):  # pesq's errors are RuntimeErrors
            return None
