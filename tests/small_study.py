"""A study of toy size, and what its tests look at."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from straightvq.cli import main
from straightvq.studies import engine
from straightvq.studies.results import Run

# Two rows in one network of toy size, tuned over two settings; a second or so for each run.
STUDY: dict[str, Any] = {
    "title": "Two rows",
    "measures": {
        "test/accuracy": {"label": "accuracy", "better": "higher", "scale": 100, "unit": "%"},
        "test/perplexity": {"label": "perplexity"},
    },
    "tune": {
        "by": "val/accuracy",
        "settings": {f"lr {lr}": {"model.init_args.optimizer.lr": float(lr)} for lr in ("1e-2", "1e-3")},
    },
    "base": {
        "model": {
            "class_path": "straightvq.training.Classification",
            "init_args": {
                "optimizer": {"warmup_steps": 2},
                "model": {
                    "class_path": "straightvq.models.AlexNet",
                    "init_args": {"num_classes": 10, "in_channels": 1, "width": 2, "small_images": True},
                },
            },
        },
        "data": {
            "class_path": "straightvq.data.Images",
            "init_args": {"size": 8, "channels": 1, "batch_size": 16, "on_error": "raise"},
        },
        "trainer": {"accelerator": "cpu", "max_steps": -1, "num_sanity_val_steps": 0, "log_every_n_steps": 2},
        "checkpoint": {"monitor": None, "save_top_k": 0},
        "monitor": {"pictures_every": 0},
        "save_every": 3,
    },
    "sets": {
        "digits": {"config": {"data.init_args": {"source": "digits", "num_train": 80, "num_test": 32}}},
        "own": {"folder": "own", "config": {}},
    },
    "rows": {
        "VQ": {
            "config": {
                "model.init_args.model.init_args.quantizer": {
                    "class_path": "straightvq.studies.ablation",
                    "init_args": {"dim": 12, "codebook_size": 8, "channel_dim": 1},
                }
            },
            "paper": {"net": {"accuracy": 47.2}},
        },
        "unquantized": {"config": {"model.init_args.model.init_args.quantizer": None}},
    },
    "sizes": {
        "s": {
            "sets": ["digits"],
            "seeds": 2,
            "models": {"net": {"seconds": 2, "config": {}}},
            "config": {"trainer.max_epochs": 2},
            "tune": {"trainer.max_epochs": 1},
        },
        "own": {"sets": ["own"], "seeds": 1, "models": {"net": {"config": {}}}, "config": {"trainer.max_epochs": 1}},
        "both": {
            "sets": ["own"],
            "without_data": ["digits"],
            "seeds": 1,
            "models": {"net": {"config": {}}},
            "config": {"trainer.max_epochs": 1},
        },
    },
}


def edited(study: dict[str, Any] = STUDY, /, **changes: Any) -> dict[str, Any]:
    """A study with values at paths replaced, such as ``sizes__s__seeds=0``; None removes a key."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(study, sort_keys=False))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for key in parents:
            place = place[key]
        place[last] = value
        if value is None:
            del place[last]
    return content


UNTUNED = edited(tune={"by": "val/accuracy", "settings": {}})


def table(folder: Path = Path("out")) -> list[dict[str, str]]:
    """Without the seconds, which no two runs share."""
    with (folder / "results.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


class Command:
    """Runs a study in its own folder: ``study("--rows", "VQ", size="s", content=STUDY)``."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *options: str, size: str = "s", content: dict[str, Any] = STUDY) -> int:
        Path("mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return main(["reproduce", "mine.yaml", "--size", size, "--out", "out", *options])

    def says(self, *options: str, **changed: Any) -> str:
        """What a call prints that succeeds."""
        self.capsys.readouterr()
        assert self(*options, **changed) == 0
        return self.capsys.readouterr().out

    def refuses(self, *options: str, **changed: Any) -> str:
        """What a call says that is refused."""
        self.capsys.readouterr()
        assert self(*options, **changed) == 2
        return self.capsys.readouterr().err


class CommandUponOthers(Command):
    """Like `Command`, built upon two others: ``same`` has the same rows, ``single`` has one row, which serves all."""

    def __call__(self, *options: str, lr: float = 1e-2, follows: str = "same.yaml", **changed: Any) -> int:
        contents = {
            "same": edited(tune={}, base__model__init_args__optimizer__lr=lr),
            "single": edited(tune={}, rows={"classifier": STUDY["rows"]["unquantized"]}),
            "mine": edited(tune={}),
        }
        for name, content in contents.items():
            del content["sizes"]["s"]["tune"]
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        own = contents["mine"]
        own["sizes"]["s"]["follows"] = {"model.init_args.tokenizer": follows, "model.init_args.features": "single.yaml"}
        return super().__call__(*options, content=own, **changed)


class Counter:
    """Counts the trainings; stops before a given one as Ctrl-C would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None, at: int = -1) -> None:
        self.titles: list[str] = []
        real = engine.train

        def counted(run: Run, *args: Any, **kwargs: Any) -> Any:
            if len(self.titles) == at and error is not None:
                raise error
            self.titles.append(run.title)
            return real(run, *args, **kwargs)

        monkeypatch.setattr(engine, "train", counted)
