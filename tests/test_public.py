"""The names that users may rely on: everything else may change without notice."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from tests.test_imports import SOURCE

DOCS = Path(__file__).parents[1] / "docs"
PUBLIC = {
    "dovetail": (
        "DataError DovetailError Interrupted MatchReport MissingFilesError ModelError OptionsError "
        "RecipeError ResourceError Run RunError WeightsError compare embed evaluate_dense evaluate_knn "
        "evaluate_linear export finetune_classify finetune_detect finetune_segment load load_into predict "
        "pretrain register_method show try_out visualize"
    ),
    "dovetail.recipes": (
        "BYOL_PAIR METHODS MOCO_VIEW adclr barlow build byol decon densecl detcon dino encoder_targets ibot image_tap "
        "lars moco_v2 moco_v3 options_of pair_views pixpro pqcl register_method selfpatch simclr simsiam slotcon "
        "vicreg zerocl"
    ),
    "dovetail.objectives": (
        "BarlowSpec DenseContrastSpec DistillSpec FeaturePredictionSpec KeyContrastSpec Loss MaskedPatchSpec "
        "NTXentSpec Objective ObjectiveSpec PixelConsistencySpec PredictorSpec QueueContrastSpec RegressSpec "
        "SegmentContrastSpec SelfPatchSpec SlotSpec VICRegSpec ZeroCLSpec connected_zero"
    ),
    "dovetail.heads": (
        "DenseHeadSpec DenseOutput HeadSpec Kind PixelHeadSpec PixelOutput PooledPrototypeHeadSpec PrototypeHeadSpec "
        "RawHeadSpec SegmentHeadSpec SelfPatchHeadSpec SelfPatchOutput SlotHeadSpec SlotOutput TeacherAware "
        "VectorHeadSpec mlp"
    ),
    "dovetail.views": (
        "IMAGENET_MEAN IMAGENET_STD MaskSpec Photometric PointSpec Purpose QuerySpec Role SegmentSpec View ViewBatch "
        "ViewPlan ViewSpec ViewTransform align augment collate draw_views overlap_box overlaps stream to_views"
    ),
    "dovetail.train": "Learner Teacher",
    "dovetail.networks": (
        "Network Rotations Streams at_points build_network decoder_taps deepest_encoder_tap finest_decoder_tap "
        "list_models takes_queries two_streams"
    ),
}


@pytest.mark.parametrize("package", PUBLIC)
def test_what_is_public_is_listed_and_there(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    for name in module.__all__:
        value = getattr(module, name)
        assert not inspect.ismodule(value)
        assert inspect.getdoc(value) or not (inspect.isclass(value) or inspect.isfunction(value))
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        module.nothing_of_this_name  # noqa: B018


@pytest.mark.parametrize(
    "package", ["dovetail", "dovetail.recipes", "dovetail.objectives", "dovetail.networks", "dovetail.train"]
)
def test_what_is_imported_late_is_what_type_checkers_see(package: str) -> None:
    tree = ast.parse((SOURCE / package.removeprefix("dovetail").removeprefix(".") / "__init__.py").read_text())
    late = importlib.import_module(package)._PUBLIC
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == late
    assert sorted(late) == sorted(importlib.import_module(package).__all__)


def test_pages_import_public_names() -> None:
    found = 0
    for page in sorted(DOCS.rglob("*.md")):
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(tuple(PUBLIC)[1:]):
                    found += 1
                    assert {alias.name for alias in node.names} <= set(PUBLIC[node.module or ""].split()), page
    assert found
