"""The Hub, as far as a test without a network sees it: a server of the test's own, and the client's own errors."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

import straightvq as svq
from straightvq.hub.transfer import find_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def layer() -> svq.VectorQuantizer:
    torch.manual_seed(0)
    return svq.presets.ema(4, 8)


class Asked:
    """Takes the place of a function of the client: keeps what it was asked, and answers or raises."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, []

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append((args, options))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def test_a_name_is_downloaded_without_its_other_files(
    layer: svq.VectorQuantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.save_pretrained(tmp_path / "there")
    asked = Asked(str(tmp_path / "there"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    again = svq.from_pretrained("some/layer", revision="v2", token="secret", cache_dir=tmp_path / "cache")
    assert torch.equal(again.codes(), layer.codes())
    assert asked.calls == [
        (
            ("some/layer",),
            {
                "revision": "v2",
                "token": "secret",
                "cache_dir": tmp_path / "cache",
                "allow_patterns": ["config.json", "model.safetensors"],
            },
        )
    ]


def test_a_folder_comes_before_a_name_of_the_hub(
    layer: svq.VectorQuantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Asked(AssertionError("asked")))
    layer.save_pretrained("some/layer")
    assert find_folder("some/layer") == Path("some/layer")


@pytest.mark.parametrize("name", ["layer", "../etc/passwd", "a/../b", "/nowhere/at/all", "a/b/c", "some/..", "a b/c"])
def test_what_is_neither_folder_nor_name_is_refused_before_the_hub_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Asked(AssertionError("asked")))
    with pytest.raises(ValueError, match="`name` must be a folder, or owner/name on the Hugging Face Hub"):
        svq.from_pretrained(name)


def test_another_class_than_the_one_asked_is_refused(layer: svq.VectorQuantizer, tmp_path: Path) -> None:
    layer.save_pretrained(tmp_path)
    assert type(svq.Quantizer.from_pretrained(tmp_path)) is svq.VectorQuantizer
    with pytest.raises(TypeError, match=r"must hold a ResidualQuantizer\. Got a VectorQuantizer"):
        svq.ResidualQuantizer.from_pretrained(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository, from whose folder it serves, that only people with the token may see."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if "Bearer wrong" in (self.headers["authorization"] or "") or "nobody" in self.path:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if "old" in self.path:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if parts[0] == "api":
            names = sorted(file.name for file in self.folder.iterdir())
            tree = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in names]
            files = {"id": "some/layer", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return self.answer(200, json.dumps(tree if "tree" in parts else files).encode(), {})
        content = (self.folder / parts[-1]).read_bytes()
        return self.answer(200, content, {"ETag": f'"{parts[-1]}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a server of this process gives as some/layer."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    download, address = huggingface_hub.snapshot_download, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **options: download(*args, **options, endpoint=address)
    )
    yield folder
    server.shutdown()
    server.server_close()


def test_the_real_client_brings_config_and_weights_alone(hub: Path, layer: svq.VectorQuantizer, tmp_path: Path) -> None:
    layer.save_pretrained(hub)
    (hub / "evil.py").write_text("raise SystemExit")
    again = svq.from_pretrained("some/layer", token="right", cache_dir=tmp_path / "cache")
    assert torch.equal(again.codes(), layer.codes())
    names = {file.name for file in (tmp_path / "cache").rglob("*") if file.parent.name == COMMIT}
    assert names == {"config.json", "model.safetensors"}
    shutil.rmtree(hub)  # the cache is enough
    assert find_folder("some/layer", COMMIT, cache_dir=tmp_path / "cache").name == COMMIT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "nobody/layer"}, "the Hub has no nobody/layer, or nothing that you may see there"),
        ({"token": "wrong"}, "the Hub has no some/layer, or nothing that you may see there"),
        ({"revision": "old"}, "the Hub has no some/layer at the revision 'old'"),
    ],
)
def test_what_the_hub_does_not_have_is_a_sentence(
    hub: Path, layer: svq.VectorQuantizer, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    layer.save_pretrained(hub)
    with pytest.raises(ValueError, match=words):
        svq.from_pretrained(**{"name": "some/layer", "cache_dir": tmp_path / "cache", **options})


def test_a_repository_of_something_else_is_a_sentence(hub: Path, tmp_path: Path) -> None:
    (hub / "README.md").write_text("text")
    with pytest.raises(ValueError, match=r"has no config.json: it was not made by save_pretrained"):
        svq.from_pretrained("some/layer", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("x"), "the Hub cannot be reached, and some/layer is not in its cache here"),
        (errors.OfflineModeIsEnabled("offline mode"), "the Hub did not give or take some/layer: offline mode"),
        (ConnectionError("no route"), "the Hub did not give or take some/layer: no route"),
        (errors.HFValidationError("bad name"), "the Hub did not give or take some/layer: bad name"),
    ],
)
def test_a_hub_out_of_reach_is_a_sentence(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Asked(error))
    with pytest.raises(ValueError, match=f"`from_pretrained`: {words}"):
        svq.from_pretrained("some/layer")


class Api:
    """Takes the place of the client's object for uploads, and keeps what it is given."""

    def __init__(self, token: Any = None) -> None:
        Api.calls = [("token", token)]

    def create_repo(self, name: str, **options: Any) -> str:
        Api.calls.append(("create", name, options))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, folder_path: Any, **options: Any) -> None:
        Api.calls.append(("upload", sorted(file.name for file in Path(folder_path).iterdir()), options))
        Api.card = (Path(folder_path) / "README.md").read_text()

    calls: list[Any]
    card: str


def test_a_layer_is_uploaded_with_a_card_that_names_it(
    layer: svq.VectorQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = layer.push_to_hub("some/layer", private=True, revision="v2", token="secret")
    assert address == "https://huggingface.co/some/layer"
    assert Api.calls == [
        ("token", "secret"),
        ("create", "some/layer", {"private": True, "exist_ok": True}),
        (
            "upload",
            ["README.md", "config.json", "model.safetensors"],
            {"repo_id": "some/layer", "revision": "v2", "commit_message": "VectorQuantizer of straightvq"},
        ),
    ]
    assert 'svq.from_pretrained("some/layer")' in Api.card


def test_an_upload_that_the_hub_refuses_is_a_sentence(
    layer: svq.VectorQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "create_repo", Asked(ConnectionError("no route")))
    with pytest.raises(ValueError, match="`push_to_hub`: the Hub did not give or take some/layer: no route"):
        layer.push_to_hub("some/layer")
    for name in ("layer", "a/../b", "", 3):
        with pytest.raises((ValueError, TypeError), match=r"`name` must be owner/name\. Got"):
            layer.push_to_hub(name)
