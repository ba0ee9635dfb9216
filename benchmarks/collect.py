"""Takes finished studies into ``benchmarks/results/`` and shows them in ``docs/results.md``.

    python benchmarks/collect.py studies/autoencoder-small studies/maskgit-small
    python benchmarks/collect.py                                    # the page only, from what is there

Report, tables, numbers and the pictures that the report shows are taken, and what `straightvq analyze` wrote of the
runs into ``comparison``, with the pictures of single runs that the page shows. Runs and their configurations, which
name places on the machine, are not. Pictures get a palette, which makes them a third as large.
"""

import argparse
import re
import shutil
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
FILES = ("report.md", "report.tex", "results.csv", "curves.csv")
COLOURS = 128  # of a picture
COMPARISON = "comparison"  # where `straightvq analyze RUNS --out STUDY/comparison` writes
PICTURE = re.compile(r"(?<=\]\()[^)]+\.png(?=\))")
BEFORE = re.compile(r"(?<=\]\()([\w.-]+)/report\.md(?=\))")  # studies that this one is built upon
BLOCK = re.compile(r"(<!-- study: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collect(study: Path, results: Path = RESULTS) -> Path:
    """Copies what there is to show of a study; returns the new folder."""
    report = study / FILES[0]
    if not report.is_file():
        raise SystemExit(f"collect: {str(study)!r} has no {FILES[0]}; pass the folder of a study, studies/NAME-SIZE.")
    target = results / study.resolve().name  # a dot has no name, and would be all results
    if target.resolve() == study.resolve():
        raise SystemExit(f"collect: {str(study)!r} is where the results are taken to.")
    shutil.rmtree(target, ignore_errors=True)
    for name in [*FILES, *PICTURE.findall(report.read_text())]:
        if (study / name).is_file():
            _take(study / name, target / name)
    for name in BEFORE.findall(report.read_text()):
        collect(study / name, target)
    if (study / COMPARISON / "comparison.md").is_file():
        _collect_comparison(study.resolve(), target)
    return target


def _collect_comparison(study: Path, target: Path) -> None:
    """What `straightvq analyze` wrote of the study's runs into its folder, and those of their pictures on the page."""
    own, page = study / COMPARISON, PAGE.read_text()
    kept = []
    for section in re.split(r"(?=^## )", (own / "comparison.md").read_text(), flags=re.MULTILINE):
        pictures = [(own / name).resolve() for name in PICTURE.findall(section)]
        if all(file.parent == own or f"{study.name}/{file.relative_to(study)})" in page for file in pictures):
            kept.append(section)
            for file in pictures:
                _take(file, target / file.relative_to(study))
    _take(own / "comparison.csv", target / COMPARISON / "comparison.csv")
    (target / COMPARISON / "comparison.md").write_text("".join(kept))


def _take(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix != ".png":
        shutil.copyfile(source, target)
        return
    with Image.open(source) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(target, optimize=True)


def excerpt(name: str, results: Path = RESULTS) -> str:
    """The report of a study for the page: one heading lower, without title, tuning and list of failures."""
    text = (results / name / FILES[0]).read_text()
    body = re.split(r"^## (?:Tuning|Failed runs)$|^All metrics of ", text.partition("\n")[2], flags=re.MULTILINE)[0]
    body = re.sub(r"^#(?=#+ )", "##", body, flags=re.MULTILINE)
    for link in (PICTURE, BEFORE):
        body = link.sub(lambda found: f"../benchmarks/results/{name}/{found[0]}", body)
    return f"\n{body.strip()}\n\nThe whole report: [{name}](../benchmarks/results/{name}/report.md).\n\n"


def filled(page: str, results: Path = RESULTS) -> str:
    """The page with every study's block made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{excerpt(found[2], results)}{found[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path)
    for study in parser.parse_args().studies:
        print(collect(study))
    PAGE.write_text(filled(PAGE.read_text()))
    print(PAGE)


if __name__ == "__main__":
    main()
