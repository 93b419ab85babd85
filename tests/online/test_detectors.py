from __future__ import annotations

import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from local_server import serving
from memvit.online.detectors import (
    DEFAULT_DETECTOR,
    RFDETR_DETECTORS,
    TORCHVISION_DETECTORS,
    check_detector,
    create_detector,
)
from online.people import LIGHT, light_detector_weights


@pytest.fixture(scope="module")
def weights() -> bytes:
    return light_detector_weights()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("no_proxy", "*")
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)


def test_weights_are_downloaded_once_and_people_are_found(weights: bytes, hub: Path) -> None:
    with serving({"/mirror/w.pth": weights}) as (address, asked):
        detector = create_detector(LIGHT, f"{address}/mirror/w.pth")
        again = create_detector(LIGHT, f"{address}/mirror/w.pth")
    assert asked == ["/mirror/w.pth"]
    assert [path.name[12:] for path in hub.iterdir()] == ["-w.pth"]
    boxes, scores = detector.detect(frame())
    assert boxes.shape == (len(scores), 4)
    assert len(scores) > 10
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert ((scores > 0.05) & (scores <= 1)).all()
    np.testing.assert_array_equal(again.detect(frame())[0], boxes)


def test_only_people_are_kept(weights: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(weights)
    detector = create_detector(LIGHT, tmp_path / "w.pth")
    everything = detector.model([torch.from_numpy(frame()).permute(2, 0, 1) / 255])[0]
    people = (everything["labels"] == 1) & (everything["scores"] >= 0.05)
    assert len(detector.detect(frame())[0]) == people.sum()
    width, height = 100, 60
    expected = (everything["boxes"][people] / torch.tensor([width, height, width, height])).clip(0, 1)
    np.testing.assert_allclose(detector.detect(frame())[0], expected.detach().numpy(), atol=1e-5)


def test_without_network_the_way_without_a_detector_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(ConnectionError, match=r"weights of the detector ssdlite.* Name or service not known.* --boxes"):
        create_detector(LIGHT)
    assert not list(hub.glob("*.pth"))


def test_addresses_and_files_that_hold_no_weights_are_named(weights: bytes, hub: Path, tmp_path: Path) -> None:
    with serving({"/text.pth": b"<html>not found</html>"}) as (address, _):
        with pytest.raises(ConnectionError, match=r"none\.pth \(.*Not Found\).* --detector_weights"):
            create_detector(LIGHT, f"{address}/none.pth")
        with pytest.raises(ValueError, match=r"text\.pth is no file of weights, or is damaged .* delete it"):
            create_detector(LIGHT, f"{address}/text.pth")
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth with weights of ssdlite"):
        create_detector(LIGHT, tmp_path / "none.pth")
    (tmp_path / "w.pth").write_bytes(weights)
    with pytest.raises(ValueError, match=r"w\.pth holds no weights of fcos_resnet50_fpn"):
        create_detector("fcos_resnet50_fpn", tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list"):
        create_detector(LIGHT, tmp_path / "list.pth")


def test_every_name_stands_for_a_detector_with_published_weights() -> None:
    for name in TORCHVISION_DETECTORS:
        check_detector(name)
        published = torchvision.models.get_model_weights(name).DEFAULT
        assert published.meta["categories"][1] == "person"
        assert len(published.meta["categories"]) == 91
    assert DEFAULT_DETECTOR in TORCHVISION_DETECTORS
    with pytest.raises(
        ValueError, match="unknown detector 'ssdlite_mobilenet_v3'; did you mean ssdlite320_mobilenet_v3_large"
    ):
        create_detector("ssdlite_mobilenet_v3")


def test_rfdetr_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rfdetr", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'memvit\[rfdetr\]'"):
        create_detector("rfdetr_nano")


@pytest.mark.parametrize("name", list(RFDETR_DETECTORS))
def test_what_rfdetr_finds_is_sifted_for_people(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in: rfdetr is no dependency of the tests."""

    class Model:
        def __init__(self, *, device: str, pretrain_weights: str) -> None:
            assert device == "cpu"
            assert Path(pretrain_weights).is_absolute()

        def predict(self, image: np.ndarray, *, threshold: float, include_source_image: bool) -> object:
            assert image.shape == (60, 100, 3)
            assert not include_source_image
            return types.SimpleNamespace(
                xyxy=np.array([[10, 6, 50, 30], [0, 0, 9, 9], [-5, 0, 120, 60]], np.float32),
                confidence=np.array([0.9, 0.8, 0.7], np.float32),
                data={"class_name": np.array(["person", "dog", "person"], object)},
            )

    monkeypatch.setitem(sys.modules, "rfdetr", types.SimpleNamespace(**dict.fromkeys(RFDETR_DETECTORS.values(), Model)))
    (tmp_path / "w.pth").write_bytes(b"")
    boxes, scores = create_detector(name, tmp_path / "w.pth").detect(frame())
    np.testing.assert_allclose(boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]], atol=1e-6)
    assert scores.tolist() == pytest.approx([0.9, 0.7])
