"""Study files: what they say, which runs follow, and the mistakes in them."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests import small_study

import straightvq as svq
from straightvq.studies import Study, ablation, load_study, study_names
from straightvq.studies.plan import Plan
from straightvq.studies.results import FINAL, Cell, Results, Run
from straightvq.studies.study import Config
from straightvq.studies.train import words

CLASSIFICATION = load_study("classification")

SMALL: dict[str, Any] = {
    "title": "A study",
    "measures": {"test/accuracy": {"label": "accuracy", "better": "higher"}},
    "tune": {"by": "val/accuracy", "settings": {"low": {"a.b": 1}, "high": {"a.b": 2}}},
    "base": {"a": {"b": 0, "c": 0}},
    "sets": {"digits": {"config": {"data": 1}}, "cifar": {"folder": "cifar", "config": {}}},
    "rows": {
        "first": {"config": {}},
        "second": {"config": {"a.c": 5}, "settings": {"one": {"a.d": 1}, "two": {"a.d": 2}}},
    },
    "sizes": {
        "s": {
            "sets": ["cifar"],
            "without_data": ["digits"],
            "seeds": 2,
            "models": {"net": {"config": {"net": 1}}},
            "config": {"trainer.max_epochs": 4},
            "tune": {"trainer.max_epochs": 2},
        }
    },
}
edited = functools.partial(small_study.edited, SMALL)


def load(tmp_path: Path, content: Any) -> Study:
    file = tmp_path / "mine.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return load_study(str(file))


def plan_of(study: Study, size: str = "s", source: str | None = None) -> Plan:
    """All cells, on data that is not there."""
    chosen = study.sizes[size]
    cells = [Cell(p, model, row) for p in study.sets for model in chosen.models for row in study.rows]
    return Plan(study, chosen, Results(Path("nowhere")), dict.fromkeys(study.sets, source), cells, cells, 2)


def test_packaged_studies_are_read() -> None:
    networks = ["autoencoder", "classification", "maskgit", "maskgit_features", "maskgit_tokenizer"]
    assert study_names() == sorted([*networks, "binary", "dynamics", "toy"])
    for name in study_names():
        study = load_study(name)
        assert study.title
        # Inception takes the place of a classifier of ours in the paper's size.
        sizes = {"tiny", "small"} if name == "maskgit_features" else {"tiny", "small", "paper"}
        assert name == "toy" or sizes == set(study.sizes)


def test_shipped_rows_are_those_of_the_paper_and_the_baselines() -> None:
    table1 = ["VQ", "affine", "affine (running)", "sync", "alternated", "replace", "all", "all (running)"]
    assert list(CLASSIFICATION.rows) == [*table1, "EMA + reset", "straight", "straight (narrow)", "unquantized"]
    assert list(CLASSIFICATION.sizes["small"].models) == ["AlexNet", "ResNet-18", "ViT"]
    assert CLASSIFICATION.rows["all"].paper["AlexNet"] == {"accuracy": 57.9, "perplexity": 753.8}
    table3 = ["VQ", "affine", "OPT", "affine + OPT", "replace", "l2 + replace", "all"]
    assert list(load_study("autoencoder").rows) == [
        *table3,
        "EMA + reset",
        "straight",
        "straight (narrow)",
        "unquantized",
    ]
    assert load_study("autoencoder").rows["all"].paper["cifar10"] == {"MSE": 1.74, "perplexity": 608.6}


def test_maskgit_has_the_rows_of_the_paper_and_a_tokenizer_for_each() -> None:
    study = load_study("maskgit")
    assert {name: row.paper["celeba"] for name, row in study.rows.items()} == {
        "VQ": {"FID": 90.4, "rFID": 93.75},
        "l2 + replace": {"FID": 79.8, "rFID": 86.3},
        "all": {"FID": 74.85, "rFID": 74.2},
    }
    tokenizers, autoencoders = load_study("maskgit_tokenizer"), load_study("autoencoder")
    assert tokenizers.rows == autoencoders.rows
    for size in study.sizes.values():
        for place in [*size.sets, *size.without_data]:
            for row in study.rows:
                other = Cell(place, "MaskGIT", row)
                run = plan_of(tokenizers, size.name).serving(other, 1)
                assert (run.cell.set, run.cell.row, run.seed) == (place, row, 1)


def test_what_a_file_does_not_say_is_that_of_the_study_it_is_like(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    own = {"like": str(tmp_path / "first.yaml"), "title": "Another", "sets": {"cifar": {"config": {}}}}
    sizes = {"s": {**SMALL["sizes"]["s"], "without_data": []}}
    study, first = load(tmp_path, {**own, "sizes": sizes}), load(tmp_path, SMALL)
    assert (study.title, list(study.sets)) == ("Another", ["cifar"])
    assert (study.rows, study.base, study.measures) == (first.rows, first.base, first.measures)


def test_rows_of_another_study_may_have_values_for_sets_that_this_one_has_not(tmp_path: Path) -> None:
    first = edited(rows__first__paper={"cifar": {"accuracy": 1}})
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first, sort_keys=False))
    own = {"like": str(tmp_path / "first.yaml"), "sets": {"digits": {"config": {}}}}
    own["measures"] = {"test/mse": {"label": "MSE", "better": "lower"}}
    own["sizes"] = {"s": {**SMALL["sizes"]["s"], "sets": ["digits"]}}
    assert load(tmp_path, own).rows["first"].paper == {"cifar": {"accuracy": 1}}
    (tmp_path / "first.yaml").write_text("- a list")
    with pytest.raises(ValueError, match=r"`the study` must be a section with keys. Got \['a list'\]"):
        load(tmp_path, own)


def test_a_study_serves_the_same_row_and_seed_or_all_with_its_only_one(tmp_path: Path) -> None:
    plan, other = plan_of(load(tmp_path, SMALL)), Cell("cifar", "another net", "second")
    same, single = plan.serving(other, 3), plan_of(load(tmp_path, edited(rows__second=None))).serving(other, 3)
    assert (same.cell, same.seed) == (Cell("cifar", "net", "second"), 3)
    assert (single.cell, single.seed) == (Cell("cifar", "net", "first"), 0)
    two = plan_of(load(tmp_path, edited(sizes__s__models={"net": {"config": {}}, "wide": {"config": {}}})))
    for asked, cell, missing in (
        (plan, Cell("cifar", "net", "third"), "row 'third'"),
        (plan, Cell("faces", "net", "first"), "set 'faces'"),
        (two, other, "network 'another net'"),
    ):
        with pytest.raises(ValueError, match=f"`reproduce`: mine is built upon, but has no {missing}"):
            asked.serving(cell, 0)


@pytest.mark.parametrize("l2", [False, True])
def test_all_methods_together_are_the_preset(l2: bool) -> None:
    own = ablation(8, 16, channel_dim=1, lr_scale=2.0, sync=0.2, fraction=0.1, patience=20, l2=l2)
    preset = svq.presets.vq_ste_pp(8, 16, channel_dim=1, l2=l2)
    assert repr(own) == repr(preset)
    for name, value in preset.state_dict().items():
        assert own.state_dict()[name].shape == value.shape


def test_each_method_changes_one_part() -> None:
    plain = repr(ablation(8, 16))
    assert "GradientUpdate" in plain
    assert "DeadCodeReset" not in plain
    assert "AlternatedUpdate(" in repr(ablation(8, 16, fraction=0.1))
    assert "DeadCodeReset(" in repr(ablation(8, 16, patience=20))
    assert "KMeansInit(" in plain
    assert "NormalInit(std=1.0)" in repr(ablation(8, 16, kmeans=False))
    assert "RunningAffine(momentum=0.1, groups=4" in repr(ablation(8, 16, running=True, groups=4))
    assert ablation(8, 16, l2=True)(torch.randn(4, 8)).quantized.norm(dim=1).allclose(torch.ones(4), atol=1e-5)


def test_affine_codes_are_learned_or_running() -> None:
    with pytest.raises(ValueError, match=r"not both\. Got lr_scale=2\.0, running=True"):
        ablation(8, 16, lr_scale=2.0, running=True)


def test_overlays_come_in_the_order_of_their_generality(tmp_path: Path) -> None:
    plan, cell = plan_of(load(tmp_path, SMALL), source="/data/cifar"), Cell("cifar", "net", "second")
    run = plan.final(cell, 1)
    base, net = {"a": {"b": 0, "c": 0}}, {"net": 1}
    row, one = {"a": {"c": 5}}, {"a": {"d": 1}}  # nothing is tuned yet: the first setting
    assert run.overlays == [base, net, {"trainer": {"max_epochs": 4}}, row, one]
    options = words(run, Path("out/seed1"))
    assert [yaml.safe_load(options[number]) for number in range(1, 10, 2)] == run.overlays
    assert options[10:] == [
        "--seed_everything", "1", "--data.init_args.seed", "1", "--data.init_args.source", "/data/cifar", "--runs",
        "out", "--name", "seed1",
    ]  # fmt: skip
    tuning = plan.tuning(cell)
    assert [(r.kind, r.number, r.setting, r.seed) for r in tuning] == [("tune", 0, "one", 0), ("tune", 1, "two", 0)]
    assert tuning[1].overlays[-2:] == [{"a": {"d": 2}}, {"trainer": {"max_epochs": 2}}]


def test_every_row_tries_the_same_number_of_settings() -> None:
    for name in ("classification", "autoencoder"):
        plan = plan_of(load_study(name), "small")
        assert {len(plan.tuning(cell)) for cell in plan.cells} == {3}


def test_fingerprints_are_those_of_the_results_that_are_kept() -> None:
    """Of the same overlays as ever: 12 letters of the SHA-256 of their JSON."""
    run = Run(Cell("a", "b", "c"), FINAL, 1, "", [Config({"x.y": 1}), Config({"z": "32-true"})])
    assert run.settings == hashlib.sha256(b'[[{"x": {"y": 1}}, {"z": "32-true"}], 1]').hexdigest()[:12]
    upon = dataclasses.replace(run, upon={"model.tokenizer": ("here", "1234")})
    content = b'[[{"x": {"y": 1}}, {"z": "32-true"}], 1, {"model.tokenizer": "1234"}]'
    assert upon.settings == hashlib.sha256(content).hexdigest()[:12]


def test_a_configuration_is_kept_as_it_is_written(tmp_path: Path) -> None:
    """Parts of it are not filled up with what the named classes take."""
    part = {"class_path": "straightvq.studies.ablation", "init_args": {"lr_scale": 2.0, "x": "1e-3"}}
    study = load(tmp_path, edited(base={"model": part}, rows__first__config={"model.init_args.quantizer": part}))
    assert study.base == {"model": part}
    assert study.rows["first"].config == {"model": {"init_args": {"quantizer": part}}}


def test_fingerprint_depends_on_settings_and_seed_but_not_on_the_place_of_the_data(tmp_path: Path) -> None:
    study, cell = load(tmp_path, SMALL), Cell("cifar", "net", "first")
    plan = plan_of(study, source="/here")
    here = plan.final(cell, 0).settings
    assert here == plan_of(study, source="/there").final(cell, 0).settings
    assert here != plan.final(cell, 1).settings
    assert (
        here != plan_of(load(tmp_path, edited(tune__settings={"low": {"a.b": 3}, "high": {}}))).final(cell, 0).settings
    )
    changed = plan_of(load(tmp_path, edited(sizes__s__config={"trainer.max_epochs": 5})))
    assert here != changed.final(cell, 0).settings


def test_fingerprint_depends_on_what_a_run_is_built_upon_but_not_on_its_place(tmp_path: Path) -> None:
    alone = plan_of(load(tmp_path, SMALL)).final(Cell("cifar", "net", "first"), 0)
    here, there, other = (
        dataclasses.replace(alone, upon={"model.tokenizer": place})
        for place in (("here/seed0", "1234"), ("there/seed0", "1234"), ("here/seed0", "5678"))
    )
    assert words(here, Path("a/b"))[-6:-4] == ["--model.tokenizer", "here/seed0"]
    assert here.settings == there.settings
    assert len({alone.settings, here.settings, other.settings}) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clasification", r"`reproduce`: the study 'clasification' is not there. Did you mean 'classification'\?"),
        ("nowhere/mine.yaml", r"`reproduce`: there is no file 'nowhere/mine.yaml'"),
    ],
)
def test_unknown_study(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_study(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", r"mine.yaml' is not readable as YAML"),
        ("- a list", r"`the study` must be a section with keys. Got \['a list'\]"),
        ({**SMALL, "rwos": {}}, r"`the study` has no key 'rwos'. Did you mean 'rows'\? It takes about, base"),
        (edited(title=None), r"in '.*mine.yaml', `the study`: the following arguments are required: title"),
        (edited(rows__first__confg={}), r"`rows.first` has no key 'confg'. Did you mean 'config'\?"),
        (edited(rows__first__config=3), r'`rows.first`: .*"config": Not of type Config'),
        (edited(sizes__s__seeds=0), r'`sizes.s`: .*"seeds": Not of type PositiveInt: 0'),
        (edited(rows__first__bound="maybe"), r'`rows.first`: .*"bound": .*maybe'),
        (edited(rows__first__against="second"), r'`rows.first`: .*"against": .*list.*second'),
        (edited(rows__first__against=["third"]), r"`rows.first.against` names the row 'third', which is not there"),
        (edited(sizes__s__sets="cifar"), r'`sizes.s`: .*"sets": .*list.*cifar'),
        (
            "sizes: {s: {sets: }}\nlike: classification",
            r"`sizes.s`: the following arguments are required: seeds, config",
        ),
        (edited(sizes__s__sets=[]), r"`sizes.s` must have at least one of `sets` and of `models`"),
        (edited(sizes__s__models={}), r"`sizes.s` must have at least one of `sets` and of `models`"),
        (
            edited(sizes__s__models={"net": {"config": {}, "seconds": "fast"}}),
            r'`sizes.s.models.net`: .*"seconds": .*fast',
        ),
        (edited(sizes={}), r"`sizes` must have at least one"),
        (edited(rows={}), r"`rows` must have at least one"),
        (edited(sets__cifar__folder=[3]), r'`sets.cifar`: .*"folder": .*\[3\]'),
        (edited(rows__first__paper=5), r'`rows.first`: .*"paper": .*dict.*5'),
        (edited(rows__first__paper={"net": 5}), r'`rows.first`: .*"paper": .*dict.*5'),
        (edited(rows__first__paper={"net": {"accuracy": "47.2%"}}), r'`rows.first`: .*"paper": .*float.*47.2%'),
        (edited(measures={"test/a": {"label": ["a"]}}), r'`measures.test/a`: .*"label": .*str.*\[.a.\]'),
        (edited(measures={"test/a": {"label": "a", "digits": "one"}}), r'`measures.test/a`: .*"digits": .*one'),
        (edited(measures={"test/a": {"label": "a", "scale": "x"}}), r'`measures.test/a`: .*"scale": .*x'),
        (edited(like="mine.yaml"), r"`like` itself"),
        (edited(sizes__s__sets=["cifar11"]), r"`sizes.s` names the set 'cifar11'"),
        (edited(tune={"settings": {"low": {}, "high": {}}}), r"`tune.by` does not say by which value"),
        (edited(rows__second__settings={"one": {}}), r"`rows.second.settings` must be as many .* fair comparison: 2"),
        (edited(measures={"test/a": {"label": "a"}}), r"the first of `measures` must say with `better`"),
        (
            edited(measures={"test/a": {"label": "a", "better": "more"}}),
            r'`measures.test/a`: .*"better": .*.higher., .lower..*more',
        ),
        (edited(sizes__s__follows="x"), r'`sizes.s`: .*"follows": .*dict.*x'),
        (edited(rows={"a b": {"config": {}}, "a+b": {"config": {}}}), r"`rows` has names that differ in signs only"),
        (
            edited(sets={"dig its": {"config": {}}, "dig/its": {"config": {}}}),
            r"`sets` has names that differ in signs only, and would share a folder: 'dig its' and 'dig/its'",
        ),
        (
            edited(sizes__s__models={"a-b": {"config": {}}, "a b": {"config": {}}}),
            r"`sizes.s.models` has names that differ in signs only, and would share a folder: 'a-b' and 'a b'",
        ),
        (edited(tune__settings={"1e-3": {}, "1e+3": {}}), r"`tune.settings` has names that .*: '1e-3' and '1e\+3'"),
        (edited(rows__second__settings={"a(b": {}, "a)b": {}}), r"`rows.second.settings` has names that differ"),
        (edited(rows={"+": {"config": {}}}), r"`rows` has the name '\+', of which no folder can be made"),
        (edited(sizes__s__models={"..": {"config": {}}}), r"`sizes.s.models` has the name '\.\.', of which no folder"),
        (edited(sets={".": {"config": {}}}), r"`sets` has the name '\.', of which no folder can be made"),
        (
            edited(rows__first__paper={"nett": {"accuracy": 1}}),
            r"`rows.first.paper` names 'nett', which is no network and no set. Did you mean 'net'\? There are: .*cifar",
        ),
        (
            edited(rows__first__paper={"cifar": {"acuracy": 1}}),
            r"`rows.first.paper.cifar` names 'acuracy', which is the label of no measure. Did you mean 'accuracy'\?",
        ),
        (edited(sizes__s__seeds=True), r'`sizes.s`: .*"seeds": .*True not a number'),
        (
            edited(measures={"test/a": {"label": "a", "digits": True}}),
            r'`measures.test/a`: .*"digits": .*True not a number',
        ),
        (edited(measures={"test/a": {"label": "a", "scale": 0}}), r'`measures.test/a`: .*"scale": .*0 does not .*v>0'),
        (
            edited(measures={"test/a": {"label": "a", "scale": float("nan")}}),
            r"`measures.test/a`: .*nan does not conform",
        ),
        (edited(sizes__s__models={"net": {"config": {}, "seconds": -3}}), r'`sizes.s.models.net`: .*"seconds": .*-3'),
        (edited(title=["A", "B"]), r'`the study`: .*"title": .*str.*\[.A., .B.\]'),
        ({**SMALL, "title": None}, r"`the study`: the following arguments are required: title"),
        ({"title": "A", "about": "B", "script": [3]}, r'`the study`: .*"script": .*\[3\]'),
        (
            {"title": "A", "script": "straightvq.studies.toy.draw_toy", "sets": {"digits": {"config": {}}}},
            r"`sizes` must have at least one, which says on which `sets` the script runs",
        ),
        ({**SMALL, "script": "straightvq.studies.toy.draw_toy"}, r"`measures` must have nothing beside a `script`"),
        (edited(rows__first__paper={"net": {"accuracy": float("nan")}}), r"accuracy` must be a number. Got nan"),
    ],
)
def test_mistakes_in_a_study_file_are_explained(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content)
