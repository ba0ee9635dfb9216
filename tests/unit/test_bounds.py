"""What `make test-oldest` and `make test-oldest-extras` install is what pyproject.toml promises."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENT = re.compile(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:;.*)?")
EXTRAS = [
    each
    for extra in ("fast", "hub", "train", "sound")
    for each in PROJECT["optional-dependencies"][extra]
    if not each.startswith("straightvq[")
]


def pins_of(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==([\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("file", "requirements", "others"),
    [
        ("constraints-oldest.txt", PROJECT["dependencies"], set()),
        ("constraints-oldest-extras.txt", [*EXTRAS, "numpy>=2.0.2"], {"torch"}),
    ],
)
def test_the_oldest_constraints_are_the_lower_bounds(file: str, requirements: list[str], others: set[str]) -> None:
    found = [REQUIREMENT.fullmatch(each) for each in requirements]
    bounds = {match[1]: match[2] for match in found if match}
    assert len(bounds) == len(requirements)
    pins = pins_of(file)
    assert pins.keys() == bounds.keys() | others
    for name, bound in bounds.items():
        exact = re.escape(bound) + r"(\.0)*(\.post\d+)?"
        assert re.fullmatch(exact, pins[name]), f"{name}: {pins[name]} is not {bound}"
