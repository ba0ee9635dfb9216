"""The house rules of the source that a tool can check: private names, steering by texts, sizes, arrows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "straightvq"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(file.relative_to(SOURCE)) for file in FILES]
MOST_FILES = 12

# The rooms from the ground up, those of one line side by side: each may import what stands in the lines before it.
FLOORS = [
    ["errors", "version"],
    ["io", "internals", "recipes", "executors"],
    ["kernels", "functional"],  # pure functions, and their kernels
    ["hub"],  # below what is saved: the layer's own methods lead there
    ["nn"],
    ["presets"],
    ["testing", "interop", "models", "data", "checkpoints", "configuration"],
    ["runs"],
    ["diagnostics"],
    ["training"],
    ["generation", "encoding"],
    ["analysis", "demo"],
    ["studies"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TOGETHER = {"functional": {"kernels"}, "kernels": {"functional"}}  # a search and its kernel know each other


def room_of(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


def imports(name: str) -> Iterator[tuple[str, list[str]]]:
    """The modules of this package that a file imports, at any place, and the names that it takes from them."""
    for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "straightvq":
            taken = [alias.name for alias in node.names]
            if node.module == "straightvq":
                # What is no room is a public name of the package, such as `VectorQuantizer`: of `nn` or `presets`.
                yield from ((f"straightvq.{word if word in FLOOR else 'presets'}", []) for word in taken)
            else:
                yield str(node.module), taken
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names if alias.name.startswith("straightvq."))


@pytest.mark.parametrize("name", NAMES)
def test_no_private_name_of_another_package_is_imported(name: str) -> None:
    private = [
        f"{module}.{word}"
        for module, words in imports(name)
        for word in [*module.split(".")[1:], *words]
        if word.startswith("_") and not word.startswith("__") and module.split(".")[1] != room_of(name)
    ]
    assert private == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_steered_by_the_text_of_an_error(name: str) -> None:
    caught: set[str] = set()
    tree = ast.parse((SOURCE / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.name:
            caught.add(node.name)

    def is_text(node: ast.AST) -> bool:
        """``str(error)`` of a caught error."""
        is_str = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str"
        return is_str and any(isinstance(arg, ast.Name) and arg.id in caught for arg in node.args)

    steering = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Compare) and any(is_text(part) for part in [node.left, *node.comparators]))
        or (isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith", "find") and is_text(node.value))
    ]
    assert steering == []


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda folder: folder.name)
def test_a_package_has_few_files(folder: Path) -> None:
    files = sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")
    assert len(files) <= MOST_FILES, files


def test_every_room_has_its_floor() -> None:
    assert sorted({room_of(name) for name in NAMES} - {"__init__"} - FLOOR.keys()) == []


@pytest.mark.parametrize("name", [name for name in NAMES if room_of(name) != "__init__"])
def test_imports_point_down(name: str) -> None:
    room = room_of(name)
    below = {other for other in FLOOR if FLOOR[other] < FLOOR[room]} | {room} | TOGETHER.get(room, set())
    up = [module for module, _ in imports(name) if module.split(".")[1] not in below]
    assert up == []
