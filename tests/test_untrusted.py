"""Files that somebody else wrote: none runs code, none reaches the network, each gets one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import dovetail
from dovetail.cli import run as run_command
from dovetail.data.reading.decode import UnreadableError, open_bytes
from dovetail.errors import DovetailError
from dovetail.files.sidecar import read_sidecar
from dovetail.networks.construct import construct
from dovetail.train.checksummed import seal
from dovetail.weights.exported import load, read_exported
from dovetail.weights.matching import load_into
from tests.data.fuzz import png_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def pretrain(photos: Path, out: Path, **options: Any) -> dovetail.Run:
    return dovetail.pretrain(
        **{
            "data": photos,
            "model": "timm/test_resnet+fpn(channels=16)",
            "out": out,
            "image_size": 64,
            "batch_size": 4,
            "max_steps": 2,
            "workers": 0,
            "precision": "32-true",
            "recipe": {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8},
            **options,
        }
    )


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests change copies of it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    pretrain(photos, out, report_every_minutes=0.0)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that hostile files would make."""
    path = tmp_path / "made"
    monkeypatch.setenv("DOVETAIL_TEST_FOLDER", str(path))
    return path


class Code:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"mkdir {os.environ['DOVETAIL_TEST_FOLDER']}",)


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every attempt to reach another machine fail, and return the list where each is noted."""
    tried: list[Any] = []

    def forbidden(*address: Any, **options: Any) -> Any:
        tried.append(address)
        raise OSError("the network is forbidden here")

    def unless_local(name: str) -> Any:
        call = getattr(socket.socket, name)

        def guarded(self: socket.socket, *address: Any) -> Any:
            # Loading processes hand images over through sockets that no other machine can reach.
            return call(self, *address) if self.family == socket.AF_UNIX else forbidden(*address)

        return guarded

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, unless_local(name))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, forbidden)
    return tried


@pytest.mark.parametrize("workers", [0, 1])
def test_the_main_job_makes_no_connection(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """With its page, and then export and loading; libraries that would go online are not kept from it otherwise."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    tried = forbid_network(monkeypatch)
    drawn = workers == 0  # once is enough
    run = pretrain(photos, tmp_path / "run", report_every_minutes=5.0 if drawn else 0.0, workers=workers)
    run.load()
    dovetail.export(run=run.folder, format="encoder", to=tmp_path / "encoder.safetensors")
    assert tried == []
    if drawn:
        assert (run.folder / "report.html").read_text(encoding="utf-8").count("data:image/") > 3
    with pytest.raises(OSError, match="forbidden"):
        socket.create_connection(("127.0.0.1", 9))
    with socket.socket() as outside, pytest.raises(OSError, match="forbidden"):
        outside.connect(("127.0.0.1", 9))
    assert len(tried) == 2


def test_weights_are_safetensors_only(finished: Path) -> None:
    files = sorted(path.suffix for path in (finished / "exported").iterdir())
    assert set(files) == {".json", ".safetensors"}
    assert load_file(finished / "exported" / "model.safetensors")


@pytest.mark.parametrize("kind", ["pickle", "torch", "zip"])
def test_a_pickle_named_safetensors_runs_nothing(copied: Path, made: Path, kind: str) -> None:
    path = copied / "exported" / "model.safetensors"
    if kind == "torch":
        torch.save({"weight": Code()}, path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(Code()))
    else:
        path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(DovetailError, match=r"not a \.safetensors file"):
        load(copied)
    with pytest.raises(DovetailError, match=r"not a \.safetensors file"):
        load_into(torch.nn.Linear(1, 1), copied)
    assert not made.exists()


def test_resuming_from_a_checkpoint_with_code_runs_nothing(
    copied: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        path = copied / "checkpoints" / name
        path.unlink(missing_ok=True)
        torch.save({"format": 1, "step": Code()}, path)
        seal(path)
    assert run_command(["pretrain", "--out", str(copied), "--resume"]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("dovetail: All checkpoints in ")
    assert not made.exists()
    os.system(f"mkdir {made}")
    assert made.exists()


HOSTILE_CALLS = [
    "os.system('mkdir made')",
    "__import__('os').system('mkdir made')",
    "eval(\"__import__('os').system('mkdir made')\")",
    "subprocess.run(['mkdir', 'made'])",
    "(lambda: __import__('os').system('mkdir made'))()",
    "timm.create_model(__import__('os').system('mkdir made'))",
    "timm.create_model('resnet18', **{'x': __import__('os').system('mkdir made')})",
    "timm.create_model('hf-hub:somebody/model', pretrained=True)",
    "timm.create_model('hf-hub:somebody/model')",
    "timm.create_model('local-dir:/tmp/model')",
    "timm.create_model('test_resnet', pretrained=True)",
    "timm.create_model('test_resnet', checkpoint_path='evil.pth')",
    "timm.create_model('test_resnet', pretrained_cfg={'file': 'evil.pth'})",
    "timm.create_model('test_resnet', no_such_argument=1)",
    "timm.create_model('test_resnet', **{'pretrained': True})",
    "timm.create_model('test_resnet', True)",
    "smp.Unet('resnet18')",
    "smp.Unet('resnet18', 5, 'imagenet')",
    "torchvision.models.segmentation.fcn_resnet50()",
    "torchvision.models.segmentation.fcn_resnet50('DEFAULT')",
    "dovetail.networks.decoders.encoder_fpn(name='test_resnet', encoder_options={'pretrained': True})",
    "dovetail.networks.decoders.encoder_fcn(name='test_resnet', encoder_options={'checkpoint_path': 'evil.pth'})",
    "dovetail.networks.vit_fpn.vit_fpn('test_vit', encoder_options={'pretrained_cfg': {'file': 'evil.pth'}})",
    "dovetail.networks.vit_fpn.vit_fpn('test_vit', encoder_options={'pretrained_cfg_overlay': {'url': 'x'}})",
    "dovetail.networks.vit_fpn.vit_fpn('test_vit', encoder_options='pretrained')",
    "timm.create_model()",
    "smp.Unet(encoder_name='resnet18', encoder_weights='imagenet')",
    "smp.Unet(encoder_name='tu-hf-hub:somebody/model', encoder_weights=None)",
    "smp.from_pretrained('somebody/model')",
    "torchvision.models.segmentation.fcn_resnet50(weights='DEFAULT')",
    "torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone='DEFAULT')",
    "torch.hub.load('somebody/repository', 'model')",
    "torch.load('evil.pth')",
    "dovetail.networks.construct.importlib('os')",
    "dovetail.networks.build.build_network('timm/resnet18')",
    "dovetail.networks.decoders.rescale(1)",
    "dovetail.networks.decoders.__builtins__('x')",
    "dovetail.networks..os.system('x')",
    "",
    "1 + 1",
    "(" * 500,
]


@pytest.mark.parametrize("call", HOSTILE_CALLS)
def test_a_hostile_constructor_runs_nothing(
    copied: Path, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *address: connected.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **options: connected.append(address))
    monkeypatch.chdir(tmp_path)
    sidecar = copied / "exported" / "model.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "constructor": call}))
    before = set(sys.modules)
    with pytest.raises(DovetailError) as raised:
        load(copied)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()
    assert connected == []
    assert not {name for name in set(sys.modules) - before if name.startswith(("os.", "subprocess"))}


def test_calls_of_known_models_are_made() -> None:
    assert isinstance(construct("timm.create_model('test_resnet', pretrained=False)"), torch.nn.Module)
    assert isinstance(construct("dovetail.networks.decoders.encoder_fpn(name='test_resnet')"), torch.nn.Module)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["constructor", "encoder_prefix", "decoder_prefixes", "untrained", "format"])


@given(st.binary(max_size=60) | st.dictionaries(names, values).map(lambda one: json.dumps(one).encode()))
@examples(max_examples=60)
def test_any_sidecar_is_read_or_gets_a_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        path.write_bytes(content)
        with contextlib.suppress(DovetailError):
            assert isinstance(read_sidecar(path)["constructor"], str)


def test_a_folder_with_a_broken_sidecar_gets_a_sentence(copied: Path) -> None:
    (copied / "exported" / "model.json").write_text('{"constructor": ')
    with pytest.raises(DovetailError, match="export the weights again"):
        read_exported(copied)


@pytest.mark.parametrize("where", ["run", "config"])
def test_yaml_with_code_runs_nothing(
    copied: Path, made: Path, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"method: !!python/object/apply:os.system ['mkdir {made}']\n"
    if where == "run":
        (copied / "config.yaml").write_text(text)
        arguments = ["pretrain", "--out", str(copied), "--resume"]
    else:
        (tmp_path / "evil.yaml").write_text(text)
        arguments = ["pretrain", "--config", str(tmp_path / "evil.yaml"), "--out", str(tmp_path / "new")]
    assert run_command(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("dovetail: ")
    assert shown.count("\n") == 1
    assert not made.exists()


def test_nested_yaml_does_not_grow(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Aliases of aliases stand for a billion values; nothing writes them out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (copied / "config.yaml").write_text("\n".join(lines))
    assert run_command(["pretrain", "--out", str(copied), "--resume"]) == 2
    assert len(capsys.readouterr().err) < 2000


def test_decompression_is_bounded() -> None:
    """A small file of 1.6 thousand million pixels is refused before its pixels are made."""
    with pytest.raises(UnreadableError, match="exceed the limit"):
        open_bytes(png_of(40000, 40000, bytes(10_000)), 3)
