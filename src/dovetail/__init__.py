"""Dovetail: pre-train whole dense-prediction models, encoder and decoder together, on unlabelled images.

    run = dovetail.pretrain(data="photos/", model="smp/unet/resnet50", method="decon-sl", out="runs/wheat")
    model = dovetail.load("runs/wheat")
    print(dovetail.load_into(my_unet, "runs/wheat"))

The functions are imported on first use, so `import dovetail` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.public import on_first_use

if TYPE_CHECKING:
    from dovetail.downstream.evaluate import evaluate_dense, evaluate_knn, evaluate_linear
    from dovetail.downstream.finetune import finetune_classify, finetune_detect, finetune_segment
    from dovetail.downstream.predict import predict
    from dovetail.errors import (
        DataError,
        DovetailError,
        Interrupted,
        MissingFilesError,
        ModelError,
        OptionsError,
        RecipeError,
        ResourceError,
        RunError,
        WeightsError,
    )
    from dovetail.recipes.registry import register_method
    from dovetail.report.compare import compare
    from dovetail.report.embedding import embed
    from dovetail.report.visualize import visualize
    from dovetail.run.export import export
    from dovetail.run.folder import Run
    from dovetail.run.load import load, load_into
    from dovetail.run.pretrain import pretrain
    from dovetail.run.show import show
    from dovetail.tryout.job import try_out
    from dovetail.weights.exported import MatchReport

__version__ = "0.1.0"

_PUBLIC = {
    "DataError": "dovetail.errors",
    "DovetailError": "dovetail.errors",
    "Interrupted": "dovetail.errors",
    "MatchReport": "dovetail.weights.exported",
    "MissingFilesError": "dovetail.errors",
    "ModelError": "dovetail.errors",
    "OptionsError": "dovetail.errors",
    "RecipeError": "dovetail.errors",
    "ResourceError": "dovetail.errors",
    "Run": "dovetail.run.folder",
    "RunError": "dovetail.errors",
    "WeightsError": "dovetail.errors",
    "compare": "dovetail.report.compare",
    "embed": "dovetail.report.embedding",
    "evaluate_dense": "dovetail.downstream.evaluate",
    "evaluate_knn": "dovetail.downstream.evaluate",
    "evaluate_linear": "dovetail.downstream.evaluate",
    "export": "dovetail.run.export",
    "finetune_classify": "dovetail.downstream.finetune",
    "finetune_detect": "dovetail.downstream.finetune",
    "finetune_segment": "dovetail.downstream.finetune",
    "load": "dovetail.run.load",
    "load_into": "dovetail.run.load",
    "predict": "dovetail.downstream.predict",
    "pretrain": "dovetail.run.pretrain",
    "register_method": "dovetail.recipes.registry",
    "show": "dovetail.run.show",
    "try_out": "dovetail.tryout.job",
    "visualize": "dovetail.report.visualize",
}

__all__ = [
    "DataError",
    "DovetailError",
    "Interrupted",
    "MatchReport",
    "MissingFilesError",
    "ModelError",
    "OptionsError",
    "RecipeError",
    "ResourceError",
    "Run",
    "RunError",
    "WeightsError",
    "compare",
    "embed",
    "evaluate_dense",
    "evaluate_knn",
    "evaluate_linear",
    "export",
    "finetune_classify",
    "finetune_detect",
    "finetune_segment",
    "load",
    "load_into",
    "predict",
    "pretrain",
    "register_method",
    "show",
    "try_out",
    "visualize",
]

__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
