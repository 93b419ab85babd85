"""Models by name: presets, downloads from a server on this machine, directories, and a small copy of the Hub."""

import hashlib
import io
import json
import logging
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import memvit
from memvit import MeMViT
from memvit.models import hub, zoo
from memvit.models.presets import PRESETS
from memvit.models.slowfast import load_slowfast, read_checkpoint, read_config
from memvit.models.zoo import PublishedWeights, convert, list_weights

GOLDEN = Path(__file__).parents[1] / "golden"
CLS, DET = GOLDEN / "cls_all", GOLDEN / "det_wide"


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut_at` bytes into an answer it hangs up, and it waits `delay_s` before each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.cut_at: int | None = None
        self.delay_s = 0.0
        self.requests: list[str] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        server = self.server
        server.requests.append(f"{self.command} {self.path}")
        time.sleep(server.delay_s)
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: server.cut_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def pyth(path=CLS, *, keep=lambda name: True, cfg=None, **changed):
    """A release checkpoint as a file's bytes, as a training run leaves it: with its optimiser and epoch."""
    state = {name: tensor for name, tensor in read_checkpoint(f"{path}.pyth").items() if keep(name)} | changed
    buffer = io.BytesIO()
    cfg = Path(f"{path}.yaml").read_text() if cfg is None else cfg
    torch.save({"model_state": state, "cfg": cfg, "epoch": 3, "optimizer_state": {"lr": 0.1}}, buffer)
    return buffer.getvalue()


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """A zoo with one small preset, `small`, whose weights `small.k10` and `small.b` are on the server; its cache."""
    preset, _ = read_config(f"{CLS}.yaml")
    monkeypatch.setitem(PRESETS, "small", preset)
    for tag in ("k10", "b"):
        url = f"{zoo.WEIGHTS_URL}Kinetics/{tag}.pyth"
        weights = PublishedWeights(f"small.{tag}", "small", 10, url, "Kinetics-10")
        monkeypatch.setitem(zoo.WEIGHTS, weights.name, weights)
    monkeypatch.setenv("MEMVIT_WEIGHTS_URL", f"{server.url}/models")
    monkeypatch.setenv("MEMVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    server.files["/models/Kinetics/k10.pyth"] = pyth()
    return tmp_path / "cache"


def assert_same_weights(model, other):
    state = other.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def released():
    return load_slowfast(f"{CLS}.yaml", f"{CLS}.pyth")


# Presets


def test_a_preset_takes_any_config_field():
    model = memvit.create_model("memvit_tiny", num_classes=7, memory_length=3, memory_gap=2, depth=8)
    assert model.config.head.num_classes == (7,)
    assert (model.config.memory.length, model.config.memory.gap) == (3, 2)
    assert model.training


def test_models_are_listed_and_filtered():
    assert memvit.list_models() == list(PRESETS)
    assert memvit.list_models("memvit_16*") == ["memvit_16x4", "memvit_16x4_ava"]
    assert memvit.list_models("nothing") == []


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_can_be_built(name):
    with torch.device("meta"):
        model = MeMViT(PRESETS[name])
    assert model.config == PRESETS[name]


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(
        ValueError, match=r"unknown model 'memvit_16x5'; did you mean memvit_16x4 .*models are mvit_16x4"
    ):
        memvit.create_model("memvit_16x5")


def test_an_unknown_field_is_an_error():
    with pytest.raises(ValueError, match="unknown model option 'memory_lenght'"):
        memvit.create_model("memvit_tiny", memory_lenght=2)


# Published weights


def test_published_weights_belong_to_presets():
    assert len(list_weights()) == 6
    for weights in list_weights():
        assert weights.name == f"{weights.preset}.{weights.tag}"
        assert weights.url.startswith("https://dl.fbaipublicfiles.com/memvit/models/")
        assert weights.licence == "CC BY-NC 4.0"
        assert (weights.num_classes == 80) == (PRESETS[weights.preset].head.task == "boxes")


def test_weights_are_downloaded_once_and_then_load_without_a_network(server, cache, caplog):
    model = memvit.create_model("small", pretrained=True)
    assert "CC BY-NC 4.0" in caplog.text
    assert_same_weights(model, released())
    assert model.config == released().config
    assert not model.training
    assert sorted(os.listdir(cache)) == ["small.k10"]
    assert sorted(os.listdir(cache / "small.k10")) == ["config.json", "model.safetensors", "source.json"]
    source = json.loads((cache / "small.k10" / "source.json").read_text())
    assert source["sha256"] == hashlib.sha256(server.files["/models/Kinetics/k10.pyth"]).hexdigest()

    server.shutdown()
    server.server_close()
    caplog.clear()
    for again in (
        memvit.create_model("small", pretrained=True),
        memvit.create_model("small", pretrained="k10"),
        memvit.create_model("small", pretrained="small.k10"),
        memvit.create_model("small.k10"),
        memvit.create_model(cache / "small.k10"),
    ):
        assert_same_weights(again, model)
    assert server.requests == ["GET /models/Kinetics/k10.pyth"]
    assert "licence" not in caplog.text


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("MEMVIT_CACHE", "~/here")
    assert zoo.cache_dir() == Path.home() / "here"
    monkeypatch.delenv("MEMVIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert zoo.cache_dir() == Path("/var/cache/me/memvit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert zoo.cache_dir() == Path.home() / ".cache" / "memvit"


def test_an_unreadable_config_inside_gives_way_to_the_preset(server, cache):
    for cfg in ("see the yaml file", "MVIT: [", "MVIT:\n  NOVELTY: 1\n", "MVIT:\n  DEPTH: 2\n"):
        server.files["/models/Kinetics/b.pyth"] = pyth(cfg=cfg)
        model = memvit.create_model("small", pretrained="b")
        assert_same_weights(model, released())
        for file in (cache / "small.b").iterdir():
            file.unlink()
        (cache / "small.b").rmdir()


def test_the_config_inside_wins_over_the_preset(server, cache):
    text = Path(f"{CLS}.yaml").read_text().replace("SAMPLER: all", "SAMPLER: gap2")
    server.files["/models/Kinetics/b.pyth"] = pyth(cfg=text)
    assert memvit.create_model("small.b").config.memory.gap == 2


def test_a_checkpoint_without_memory_makes_a_model_without(server, cache, caplog):
    parts = ("compress_", "rel_pos_mem_")
    server.files["/models/Kinetics/b.pyth"] = pyth(keep=lambda name: not any(p in name for p in parts), cfg="")
    model = memvit.create_model("small.b")
    assert model.config.memory_layers == ()
    assert "trained without memory" in caplog.text
    with_memory = memvit.create_model("small.b", memory_length=2)
    assert with_memory.config.memory_layers == (0, 2)
    assert "newly initialised, to be trained: blocks.*.attn.rel_pos_mem_h (2 times)" in caplog.text


def test_memory_length_and_classes_are_read_off_the_tables():
    preset = PRESETS["memvit_16x4"]
    state = {"blocks.0.attn.rel_pos_mem_t": torch.zeros(5 * 8 - 1, 96), "head.projection.weight": torch.zeros(97, 768)}
    config = zoo.config_of_state(state, preset)
    assert (config.memory.length, config.head.num_classes) == (4, (97,))


def test_another_number_of_classes_makes_a_new_head_and_keeps_the_trunk(cache, caplog):
    model = memvit.create_model("small", pretrained=True, num_classes=(3, 5))
    assert "newly initialised, to be trained: head.projection.0.weight, head.projection.0.bias" in caplog.text
    assert [linear.out_features for linear in model.head.projection] == [3, 5]
    trunk = released().blocks.state_dict()
    assert all(torch.equal(tensor, trunk[name]) for name, tensor in model.blocks.state_dict().items())
    assert model(torch.zeros(1, 3, 8, 64, 64))[0][1].shape == (1, 5)


def test_another_memory_length_makes_new_tables_of_time_alone(cache, caplog):
    model = memvit.create_model("small", pretrained=True, memory_length=4)
    (line,) = [record.getMessage() for record in caplog.records if "newly" in record.getMessage()]
    assert line.endswith("newly initialised, to be trained: blocks.*.attn.rel_pos_mem_t (2 times)")
    assert torch.equal(model.blocks[0].attn.compress_k.weight, released().blocks[0].attn.compress_k.weight)


def test_memory_and_boxes_can_be_dropped_and_added(cache, caplog):
    caplog.set_level(logging.INFO)
    assert memvit.create_model("small", pretrained=True, memory_length=0).config.memory_layers == ()
    assert "left out: blocks.*.attn." in caplog.text
    model = memvit.create_model("small", pretrained=True, task="boxes", box_depth=1, spatial_scale_factor=16)
    logits, _ = model(torch.zeros(1, 3, 8, 64, 64), boxes=[torch.tensor([[0.0, 0.0, 9.0, 9.0]])])
    assert logits.shape == (1, 10)
    assert "box_blocks" in caplog.text


@pytest.mark.parametrize(
    "overrides", [{"embed_dim": 32}, {"crop_size": 128}, {"num_frames": 16}, {"residual_pooling": "conv"}]
)
def test_a_changed_trunk_does_not_fit_weights(cache, overrides):
    with pytest.raises(ValueError, match=r"does not fit the model: .*only the head and memory can change"):
        memvit.create_model("small", pretrained=True, **overrides)


def test_unknown_tags_are_answered_with_the_known(cache):
    with pytest.raises(ValueError, match="unknown weights 'k9' of small; it has k10, b"):
        memvit.create_model("small", pretrained="k9")
    with pytest.raises(ValueError, match=r"no published weights for memvit_tiny; there are for memvit_16x4.k400"):
        memvit.create_model("memvit_tiny", pretrained=True)
    with pytest.raises(ValueError, match=r"pretrained='k10' names weights of a preset, and 'small.k10' is none"):
        memvit.create_model("small.k10", pretrained="k10")


def nothing_left(cache):
    return not cache.exists() or os.listdir(cache) == []


def test_a_missing_file_names_its_url_and_leaves_nothing(server, cache):
    with pytest.raises(ConnectionError, match=rf"{server.url}/models/Kinetics/b.pyth .*404.*MEMVIT_WEIGHTS_URL"):
        memvit.create_model("small.b")
    assert nothing_left(cache)


def test_a_transfer_cut_short_is_an_error_and_leaves_nothing(server, cache):
    server.cut_at = 100_000
    with pytest.raises(ConnectionError, match=r"cut short: 100000 of \d+ bytes"):
        memvit.create_model("small.k10")
    assert nothing_left(cache)
    server.cut_at = None
    memvit.create_model("small.k10")


def test_a_server_that_does_not_answer_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(zoo, "TIMEOUT_S", 0.1)
    server.delay_s = 0.5
    with pytest.raises(ConnectionError, match="timed out"):
        memvit.create_model("small.k10")
    assert nothing_left(cache)


def test_no_server_and_no_url_are_errors(server, cache, monkeypatch):
    monkeypatch.setenv("MEMVIT_WEIGHTS_URL", "weights")
    with pytest.raises(ConnectionError, match="unknown url type"):
        memvit.create_model("small.k10")
    monkeypatch.setenv("MEMVIT_WEIGHTS_URL", server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match="refused"):
        memvit.create_model("small.k10")


def test_a_mirror_can_be_a_folder(server, cache, tmp_path, monkeypatch):
    (tmp_path / "mirror/Kinetics").mkdir(parents=True)
    (tmp_path / "mirror/Kinetics/k10.pyth").write_bytes(pyth())
    monkeypatch.setenv("MEMVIT_WEIGHTS_URL", (tmp_path / "mirror").as_uri())
    assert_same_weights(memvit.create_model("small.k10"), released())
    assert server.requests == []


def flipped(content):
    """The same file with one bit of a weight changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (flipped(pyth()), "is damaged"),
        (b"<html>Sign in to the network</html>", "is not a checkpoint, or is cut short"),
        (b"", "is not a checkpoint, or is cut short"),
        (pyth()[:-1000], "is not a checkpoint, or is cut short"),
        (pyth(DET, cfg=""), "is of another model"),
    ],
    ids=["flipped", "html", "empty", "cut", "another"],
)
def test_a_damaged_download_is_refused_and_leaves_nothing(server, cache, content, reason):
    server.files["/models/Kinetics/b.pyth"] = content
    with pytest.raises(
        ValueError, match=rf"what {server.url}/models/Kinetics/b.pyth served cannot be used: .*{reason}"
    ):
        memvit.create_model("small.b")
    assert nothing_left(cache)


def test_weights_changed_in_the_cache_are_refused(cache):
    memvit.create_model("small.k10")
    path = cache / "small.k10" / "model.safetensors"
    original = path.read_bytes()
    path.write_bytes(flipped(original))
    with pytest.raises(ValueError, match=rf"{path} has changed: sha256 .* delete {path.parent} to download them again"):
        memvit.create_model("small.k10")
    path.write_bytes(original)
    memvit.create_model("small.k10")
    (path.parent / "source.json").write_text("{")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        memvit.create_model("small.k10")
    path.unlink()
    with pytest.raises(ValueError, match="incomplete or damaged"):
        memvit.create_model("small.k10")


def test_downloads_at_the_same_time_do_not_disturb_one_another(server, cache):
    server.delay_s = 0.2
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: memvit.create_model("small.k10"), range(4)))
    assert len(server.requests) > 1
    for model in models:
        assert_same_weights(model, released())
    assert os.listdir(cache) == ["small.k10"]


def test_a_cache_that_cannot_be_made_is_named(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMVIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be a directory: a file is in its place"):
        memvit.create_model("small.k10")


# Conversion


@pytest.mark.parametrize("path", [CLS, DET], ids=lambda path: path.name)
def test_a_converted_checkpoint_is_the_released_model(tmp_path, path):
    report = convert(f"{path}.yaml", f"{path}.pyth", tmp_path / "out")
    loaded = load_slowfast(f"{path}.yaml", f"{path}.pyth")
    assert len(report.matched) == len(loaded.state_dict())
    assert report.unused
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors", "source.json"]
    for model in (memvit.create_model(tmp_path / "out"), MeMViT.from_pretrained(tmp_path / "out")):
        assert model.config == loaded.config
        assert_same_weights(model, loaded)
        assert not model.training


def test_the_boundary_is_converted_too(tmp_path):
    convert(f"{CLS}.yaml", f"{CLS}.pyth", tmp_path, boundary="zero")
    assert memvit.create_model(tmp_path).config.memory.boundary == "zero"


def test_conversion_replaces_what_was_there(tmp_path):
    convert(f"{DET}.yaml", f"{DET}.pyth", tmp_path)
    convert(f"{CLS}.yaml", f"{CLS}.pyth", tmp_path)
    assert_same_weights(memvit.create_model(tmp_path), released())


def test_conversion_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.yaml: no such config file"):
        convert("nothing.yaml", f"{CLS}.pyth", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"nothing.pyth: no such checkpoint file"):
        convert(f"{CLS}.yaml", "nothing.pyth", tmp_path / "out")
    with pytest.raises(ValueError, match=r"cls_all.pyth is of another model"):
        convert(f"{DET}.yaml", f"{CLS}.pyth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be a directory: a file is in its place"):
        convert(f"{CLS}.yaml", f"{CLS}.pyth", tmp_path / "file")
    with pytest.raises(ValueError, match="cannot be a directory: a file is in its place"):
        convert(f"{CLS}.yaml", f"{CLS}.pyth", tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_named(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ValueError, match=r"cannot be (made|written)"):
        convert(f"{CLS}.yaml", f"{CLS}.pyth", tmp_path / "out")


# Saved directories


@pytest.fixture(scope="module")
def small():
    return memvit.create_model("memvit_tiny", depth=3, q_strides=(), dim_mul=(), head_mul=(), num_classes=4)


@pytest.fixture
def saved(small, tmp_path):
    small.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(params=[memvit.create_model, MeMViT.from_pretrained], ids=["create_model", "from_pretrained"])
def load(request):
    return request.param


def test_a_saved_model_comes_back(small, saved, load, capsys):
    model = load(saved)
    assert_same_weights(model, small)
    assert model.config == small.config
    assert not model.training
    assert capsys.readouterr().out == ""
    assert json.loads((saved / "config.json").read_text()) == json.loads(json.dumps(small.config.to_dict()))
    assert_same_weights(load(str(saved)), small)


def test_a_saved_model_takes_overrides(saved, load):
    assert load(saved, num_classes=9).head.projection.out_features == 9


def test_the_model_card_says_how_to_load_the_model(saved):
    card = (saved / "README.md").read_text()
    assert 'memvit.create_model("' in card
    assert "4 classes per clip" in card
    assert "library_name: memvit" in card
    assert "| memory | 2 past clips, in 2 of 3 layers |" in card


def test_saving_again_keeps_a_card_that_was_edited(small, saved):
    (saved / "README.md").write_text("mine")
    small.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]


def test_saving_in_the_place_of_a_file_is_an_error(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file is in its place"):
        small.save_pretrained(tmp_path / "file")


def test_a_directory_without_its_files_is_named(saved, load):
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{saved} holds no model.safetensors"):
        load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{saved} holds no config.json; give a directory that save_pretrained"
    ):
        load(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:50], "is no JSON file"),
        (lambda text: "[]", "is no model config: expected an object, not list"),
        (lambda text: text.replace('"depth"', '"deepness"'), "config.json: unknown field deepness"),
        (lambda text: text.replace('"length"', '"size"'), "config.json: unknown field memory.size"),
        (lambda text: text.replace('"depth": 3', '"depth": "3"'), "config.json: .*depth|wrong type"),
        (lambda text: text.replace('"pool_first": true', '"pool_first": false'), "memory needs pool_first"),
    ],
    ids=["cut", "list", "field", "nested", "type", "contradiction"],
)
def test_a_broken_config_is_named(saved, load, change, reason):
    path = saved / "config.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=reason):
        load(saved)


def test_broken_weights_are_named(saved, load):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    for broken in (content[:-100], content[:20], b"", b"<html>"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{path} is not a safetensors file, or is cut short"):
            load(saved)


def test_weights_of_another_model_are_refused(saved, load):
    path = saved / "model.safetensors"
    state = load_file(path)
    for change in (
        lambda: state.pop("norm.weight"),
        lambda: state.update({"norm.weight": torch.ones(3)}),
        lambda: state.update({"norm.weight": torch.ones(32), "extra": torch.ones(1)}),
    ):
        change()
        save_file(state, path)
        with pytest.raises(ValueError, match=rf"{path} does not fit the model: (norm.weight|extra) missing, unknown"):
            load(saved)


def test_a_directory_that_is_not_there_is_an_error():
    for name in ("./nowhere", "/nowhere/at/all", "a/b/c", Path("no/where")):
        with pytest.raises(FileNotFoundError, match="no such directory; give one that save_pretrained"):
            memvit.create_model(name)


def test_an_interrupted_save_leaves_the_old_model(small, saved, monkeypatch):
    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "save_file", fail)
    with pytest.raises(ValueError, match=r"model.safetensors cannot be written .*No space left"):
        hub.save_model(small, small.config, saved)
    assert_same_weights(memvit.create_model(saved), small)
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]


def test_weights_in_half_precision_and_another_layout_can_be_saved(small, tmp_path):
    model = MeMViT(small.config).to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
    model.save_pretrained(tmp_path)
    restored = memvit.create_model(tmp_path)
    assert torch.equal(restored.patch_embed.proj.weight, model.patch_embed.proj.weight.float())


# The Hub


@pytest.fixture
def hub_server(server, monkeypatch):
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("no_proxy", "*")
    server.headers["X-Repo-Commit"] = "0" * 40
    return server


def test_a_model_comes_from_the_hub(small, saved, hub_server, load, tmp_path):
    for name in ("config.json", "model.safetensors"):
        hub_server.files[f"/me/model/resolve/main/{name}"] = (saved / name).read_bytes()
    model = load("me/model", cache_dir=tmp_path / "hub")
    assert_same_weights(model, small)


def test_a_repository_that_is_not_there_is_an_error(hub_server, load, tmp_path):
    with pytest.raises(FileNotFoundError, match="me/nothing is neither a directory here nor a model on the Hub"):
        load("me/nothing", cache_dir=tmp_path / "hub")


def test_push_to_hub_is_there():
    assert callable(MeMViT.push_to_hub)
