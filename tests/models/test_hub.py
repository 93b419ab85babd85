from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import memvit
from memvit.models import zoo
from tiny_models import small_model

GOLDEN = Path(__file__).parents[1] / "golden"
TWO_HEADS: dict[str, Any] = {
    "num_classes": (60, 2),
    "class_names": (tuple(f"verb {i}" for i in range(60)), ("a_cup", "<b>|plate")),
    "head_names": ("verb", "noun"),
}


class Hub:
    """A server that speaks the Hub's routes for making, filling and reading repositories.

    It takes all files in the commit itself, as the Hub does with small ones.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.refusal: int | None = None
        self.url = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, content: Any = None, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            body = self.body()
            hub.tokens.add(self.headers.get("Authorization", ""))
            if self.path == "/api/validate-yaml":
                self.answer(200, {"warnings": [], "errors": []})
            elif hub.refusal is not None:
                self.answer(hub.refusal, {"error": "no"})
            elif self.path == "/api/repos/create":
                request = json.loads(body)
                hub.created.append(request)
                name = f"{request.get('organization') or 'me'}/{request['name']}"
                hub.repos.setdefault(name, {})
                self.answer(200, {"url": f"{hub.url}/{name}", "name": name})
            elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
                files = [
                    {"path": file["path"], "shouldIgnore": False, "uploadMode": "regular"}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.repos[match[1]][value["path"]] = base64.b64decode(value["content"])
                self.answer(200, {"commitUrl": f"{hub.url}/{match[1]}/commit/{'0' * 40}", "commitOid": "0" * 40})
            else:
                self.answer(404, {"error": self.path})

        def do_GET(self) -> None:
            if hub.refusal is not None:
                self.answer(hub.refusal, {"error": "no"}, X_Error_Code="RepoNotFound")
            elif match := re.fullmatch(r"/(.+)/resolve/main/(.+)", self.path):
                content = hub.repos.get(match[1], {}).get(match[2])
                if content is None:
                    code = "EntryNotFound" if match[1] in hub.repos else "RepoNotFound"
                    self.answer(404, {"error": "no"}, X_Error_Code=code)
                else:
                    tag = f'"{hashlib.sha256(content).hexdigest()}"'
                    self.answer(200, content, ETag=tag, X_Repo_Commit="0" * 40)
            else:
                self.answer(404, {"error": self.path})

        do_HEAD = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as running:
        use(running.url, monkeypatch, tmp_path)
        yield running


def use(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes this address the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", url, raising=False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url, raising=False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("no_proxy", "*")


def test_a_pushed_model_comes_back_with_labels_and_preprocessing(hub: Hub) -> None:
    model = small_model(**TWO_HEADS, mean=(0.1, 0.2, 0.3), fps=12.5, sampling_rate=2)
    address = model.push_to_hub("me/kitchen", license="Apache-2.0", metrics={"val/top1": 0.8125}, private=True)
    assert address == f"{hub.url}/me/kitchen/commit/{'0' * 40}"
    assert sorted(hub.repos["me/kitchen"]) == ["README.md", "config.json", "model.safetensors"]
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert "Bearer hf_secret" in hub.tokens
    restored = memvit.create_model("me/kitchen")
    assert restored.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in restored.state_dict().items())


def test_the_card_has_what_people_and_machines_ask_for() -> None:
    model = small_model(**TWO_HEADS, mean=(0.1, 0.2, 0.3))
    card = model.generate_model_card(
        repo_id="me/kitchen", license="apache-2.0", metrics={"val/top1": 0.8125}, dataset="My kitchen"
    )
    data = ModelCard(str(card)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "memvit", "video-classification")
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.8125, "My kitchen")
    text = card.text
    assert "60 + 2 classes per clip" in text
    assert "**verb**: verb 0, verb 1," in text
    assert text.index("verb 49") < text.index("<summary>and 10 more</summary>") < text.index("verb 50")
    assert r"**noun**: a\_cup, &lt;b&gt;\|plate" in text
    for row in (
        "| clip | 4 frames, 0.53 s |",
        "| frames | 1 in 4 at 30 frames per second |",
        "| size | 32 x 32 pixels |",
        "| mean, RGB in 0..1 | 0.1, 0.2, 0.3 |",
        "| memory | 2 past clips, in 4 of 4 layers |",
        f"| temporal support | {model.config.support_s:.1f} s: 8 clips back, and the clip itself |",
        "| val/top1 | 0.8125 |",
    ):
        assert row in text
    assert "GFLOPs" in text
    assert "memvit predict VIDEO --model me/kitchen" in text
    assert 'memvit.create_model("me/kitchen")' in text
    assert "OWNER/NAME" not in text


def test_a_licence_that_the_hub_does_not_know_is_named() -> None:
    data = small_model().generate_model_card(license="My own").data
    assert (data.license, data.license_name) == ("other", "my-own")
    with pytest.raises(ValueError, match="names none"):
        small_model().generate_model_card(license=" - ")


def test_the_authors_weights_keep_their_licence_from_copy_to_copy(tmp_path: Path, hub: Hub) -> None:
    zoo.convert(GOLDEN / "cls_all.yaml", GOLDEN / "cls_all.pyth", tmp_path / "converted")
    memvit.create_model(tmp_path / "converted").save_pretrained(tmp_path / "copy")
    model = memvit.create_model(tmp_path / "copy")
    with pytest.raises(ValueError, match=r"licence is CC BY-NC 4.0; leave license out"):
        model.push_to_hub("me/copy", license="mit")
    assert not hub.repos
    model.push_to_hub("me/copy")
    text = hub.repos["me/copy"]["README.md"].decode()
    assert "license: cc-by-nc-4.0" in text
    assert "not for commercial use" in text
    small_model().save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "source.json").exists()


@pytest.mark.parametrize(
    ("status", "says"), [(401, "hf auth login"), (403, "may write"), (404, "no such repository"), (500, "answers 500")]
)
def test_a_refused_upload_is_one_sentence(hub: Hub, status: int, says: str) -> None:
    hub.refusal = status
    with pytest.raises(ConnectionError, match=says) as raised:
        small_model().push_to_hub("me/kitchen", license="mit")
    assert str(raised.value).startswith("me/kitchen was not uploaded: ")
    assert "\n" not in str(raised.value)


def test_a_private_or_wrong_repository_is_one_sentence(hub: Hub) -> None:
    for refusal in (None, 401):
        hub.refusal = refusal
        with pytest.raises(
            FileNotFoundError, match=r"me/nothing is neither.*check the name, and `hf auth login`"
        ) as raised:
            memvit.create_model("me/nothing")
        assert "\n" not in str(raised.value)


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use("http://127.0.0.1:9", monkeypatch, tmp_path)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
    with pytest.raises(ConnectionError, match="cannot be reached"):
        small_model().push_to_hub("me/kitchen", license="mit")
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        memvit.create_model("me/kitchen")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode is on"):
        small_model().push_to_hub("me/kitchen", license="mit")


def test_an_impossible_name_is_an_error(hub: Hub) -> None:
    with pytest.raises(ValueError, match="OWNER/NAME"):
        small_model().push_to_hub("me/kitchen/cupboard", license="mit")
