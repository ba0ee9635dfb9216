"""What `make test-oldest` installs is what pyproject.toml promises."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_oldest_constraints_are_the_lower_bounds_of_the_layer() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(line.split(">=") for line in project["dependencies"])
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))
    assert pins.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert re.fullmatch(re.escape(bound) + r"(\.0)*", pins[name]), f"{name}: {pins[name]} is not {bound}"
