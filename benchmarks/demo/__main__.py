"""`python -m benchmarks.demo --out demo-out`: what pre-training on unlabelled images adds to ImageNet weights.

An FPN on EfficientNet-Lite0 starts from ImageNet weights with a random decoder. It is pre-trained on unlabelled
rendered scenes with SlotCon (encoder alone), with DeCon over SlotCon (encoder and decoder), both with the preset
`continue`, and with encoder targets (decoder alone, the default). It is evaluated with few labels: frozen, with a
linear classifier on its maps, and after fine-tuning. The scenes are in the repository and the weights come with a
Python package, so nothing is downloaded. The demo prints all scores.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo.settings import DemoSettings
from benchmarks.demo.trial import Outcome, Row, finetuned, frozen, labelled, mean_text, pretrained
from dovetail.errors import DovetailError, Interrupted


def main() -> None:
    """Run the demo as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="output folder")
    out = parser.parse_args().out
    try:
        demonstrate(out, DemoSettings())
    except (KeyboardInterrupt, Interrupted):
        sys.exit(stopped(out))
    except DovetailError as error:
        print(f"benchmarks.demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        sys.exit(f"benchmarks.demo: {error}")


def stopped(out: Path) -> int:
    """Print that a stopped demo can be continued, and return the exit code."""
    print(
        f"The demo was stopped; the same command keeps the finished pre-trainings in {out}.",
        file=sys.stderr,
    )
    return 130


def demonstrate(out: Path, settings: DemoSettings) -> list[Outcome]:
    """Pre-train, measure, print the table and the files it made."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    rows = pretrained_rows(out, settings)
    outcomes = [measured(row, out, settings) for row in rows]
    print(table(outcomes, settings))
    made = pictures(outcomes, out, settings)
    seconds = time.monotonic() - began
    made.append((save_results(outcomes, out / "results.json", settings, seconds), "every number, settings, versions"))
    made.append((out / "targets", "the pre-trained model: dovetail.load_into(model, this folder)"))
    print(f"Finished in {seconds:.0f} s. Results in {out}:")
    for path, what in made:
        print(f"  {path.relative_to(out)!s:<18}{what}")
    return outcomes


def pretrained_rows(out: Path, settings: DemoSettings) -> list[Row]:
    """Pre-train in every way for the same number of steps and return the rows."""
    images = settings.scenes / "images" / "unlabelled"
    print("\n== 1 of 5: SlotCon on unlabelled scenes, encoder alone ==", flush=True)
    base = pretrained(settings.base, images, out / "slotcon")
    print("\n== 2 of 5: DeCon over SlotCon on the same scenes, encoder and decoder ==", flush=True)
    decon = pretrained(settings.decon, images, out / "decon")
    print("\n== 3 of 5: encoder targets on the same scenes, decoder on a frozen encoder ==", flush=True)
    targets = pretrained(settings.targets, images, out / "targets")
    return [
        Row("ImageNet, random decoder"),
        Row("+ SlotCon, encoder", base, "encoder"),
        Row("+ DeCon, encoder and decoder", decon),
        Row("+ encoder targets, decoder", targets),
    ]


def measured(row: Row, out: Path, settings: DemoSettings) -> Outcome:
    """Return what a row's weights are worth, frozen and fine-tuned."""
    print(f"\n== 4 and 5 of 5: {row.name}: frozen maps, then fine-tuning ==", flush=True)
    train, test = (labelled(settings.scenes, split) for split in ("train", "test"))
    maps = frozen(row, out / "frozen" / (row.run.name if row.run else "imagenet"), settings)
    scores, model = finetuned(row, train, test, settings.finetuning, settings.seeds)
    print(f"{row.name}: {mean_text([100 * score.miou for score in scores])} mIoU after fine-tuning", flush=True)
    return Outcome(row, maps, scores, model)


def table(outcomes: Sequence[Outcome], settings: DemoSettings) -> str:
    """Return the table: rows down, frozen maps and fine-tuning across."""
    most, last = max(settings.labels), len(settings.seeds)
    heads = [f"{tap}, {count} labels" for tap in ("encoder", "decoder") for count in settings.labels]
    lines = [
        f"\nTest mIoU in %, mean ± standard deviation over {settings.probe_seeds} draws of the labels (frozen maps, "
        f"linear classifier) and {last} seeds (fine-tuning)\n",
        f"{'':<32}" + "".join(f"{head:>20}" for head in heads) + f"{f'fine-tuned, {most}':>18}",
    ]
    for one in outcomes:
        cells = "".join(
            f"{mean_text(one.frozen[tap, count]):>20}" for tap in ("encoder", "decoder") for count in settings.labels
        )
        lines.append(f"{one.row.name:<32}{cells}{mean_text(one.mious):>18}")
    return "\n".join([*lines, ""])


def pictures(outcomes: Sequence[Outcome], out: Path, settings: DemoSettings) -> list[tuple[Path, str]]:
    """Draw the pictures and return their paths, each with what it shows."""
    from benchmarks.demo.pictures import features_picture, predictions_picture, scores_picture

    test, options = labelled(settings.scenes, "test"), settings.finetuning
    stages = [("random decoder", outcomes[0].row.model(seed=0)), ("pre-trained", outcomes[-1].row.model(seed=0))]
    return [
        (scores_picture(outcomes, settings, out / "scores.png"), "the table as a picture, every seed a dot"),
        (
            predictions_picture(outcomes, test, out / "predictions.png", options=options),
            "test images, the truth, and what each row predicts after fine-tuning",
        ),
        (
            features_picture(stages, test, out / "features.png", options=options),
            "the decoder's map before and after pre-training, without any label",
        ),
    ]


def save_results(outcomes: Sequence[Outcome], path: Path, settings: DemoSettings, seconds: float) -> Path:
    """Write all scores of all seeds, the settings and the versions."""
    rows: list[dict[str, Any]] = [
        {
            "row": one.row.name,
            "frozen": {f"{tap}, {count} labels": values for (tap, count), values in one.frozen.items()},
            "finetuned": one.mious,
        }
        for one in outcomes
    ]
    results = {
        "rows": rows,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    path.write_text(json.dumps(results, indent=2, default=str) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
