"""What `make test-oldest` installs is what pyproject.toml promises."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTED = ("fast", "train", "sound")


def test_the_oldest_constraints_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in TESTED for line in extras[extra])]
    bounds = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(wanted), re.MULTILINE))
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))
    assert pins.pop("pytorch-lightning") == pins["lightning"]
    assert pins.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert re.fullmatch(re.escape(bound) + r"(\.0)*", pins[name]), f"{name}: {pins[name]} is not {bound}"
