"""`python -m benchmarks.evidence --scale tabletop`: measure missing scores, then update docs/results.md.

The study continues where it stopped. All rows get their first seed before any row gets its second, so that the results
so far can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.evidence.measure import Bench, run_row
from benchmarks.evidence.records import Records
from benchmarks.evidence.rows import Question, question_named
from benchmarks.evidence.scales import SCALES, Scale
from benchmarks.evidence.summary import update_summary
from benchmarks.evidence.tables import Section, rows_of, update_page
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from dovetail.errors import DovetailError, OptionsError, unknown_name

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
PAGE = ROOT / "docs" / "results.md"
IMAGES = "images.json"


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="tabletop", help="images, models and sizes")
    parser.add_argument("--questions", nargs="+", help="questions to measure (default: those of the scale)")
    parser.add_argument("--rows", nargs="+", help="names of rows (default: all rows of the questions)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to measure (default: all of the scale)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages, scenes and weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the scores")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are updated")
    parser.add_argument("--keep", action="store_true", help="keep the weights of every pre-training in the cache")
    parser.add_argument(
        "--only-page",
        action="store_true",
        help="only update the page, without measuring; --scale, --questions, --rows and --seeds play no part",
    )
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except KeyboardInterrupt:
        print("The study was stopped; the same command continues it with the scores that are missing.", file=sys.stderr)
        return 130
    except (DovetailError, OSError, UnicodeDecodeError) as error:
        print(f"benchmarks.evidence: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, DovetailError) else 1


def run(options: argparse.Namespace) -> int:
    """Measure, unless only the page is to be updated, and update the page."""
    options.page.read_text(encoding="utf-8")  # a page that cannot be read is told before hours of measuring
    if options.only_page:
        if not (options.results / IMAGES).is_file():
            raise OptionsError(f"{options.results} has no scores of the study; specify their folder with --results.")
    else:
        study(options, asked(options))

    @cache
    def section_of(question: str, scale: str) -> Section:
        return section(options.results, question, scale)

    changed = [update(options.page, section_of) for update in (update_summary, update_page)]
    print(f"{options.page} is {'updated' if any(changed) else 'up to date'}.")
    return 0


def asked(options: argparse.Namespace) -> list[Question]:
    """Return the questions that were asked for; raise `DovetailError` for options that do not fit them."""
    scale = SCALES[options.scale]
    questions = [question_named(name) for name in options.questions or scale.questions]
    rows = {row.name: row for one in questions for row in one.rows}
    for name in options.rows or []:
        if name not in rows:
            raise unknown_name(f"row of {', '.join(one.name for one in questions)}", name, rows)
    for network in sorted({row.network for name, row in rows.items() if name in (options.rows or rows)}):
        if network not in scale.networks:
            raise OptionsError(
                f"The scale {scale.name!r} has no network {network!r}, which these questions are about; it has "
                f"{', '.join(scale.networks)}. Choose another scale or other questions."
            )
    if options.seeds and min(options.seeds) < 0:
        raise OptionsError(f"--seeds has {min(options.seeds)}; seeds start at 0.")
    return questions


def study(options: argparse.Namespace, questions: Sequence[Question]) -> None:
    """Measure what is missing of the rows and seeds that were asked for."""
    scale = SCALES[options.scale]
    images = build(scale.images, options.cache, scale.plan)
    remember(options.results, scale, images.fingerprint)
    bench = Bench(scale, images, records_of(options.results, scale), options.cache / "runs")
    for seed in options.seeds or scale.seeds:
        for question in questions:
            for row in rows_of(question, options.rows):
                missing = len(bench.missing(row, question.measure, seed))
                if missing:
                    print(f"\n== {question.title}: {row.name}, seed {seed}: {missing} scores missing ==", flush=True)
                    run_row(bench, row, question.measure, seed, keep=options.keep or len(questions) > 1)


def section(results: Path, question: str, scale: str) -> Section:
    """Return what is known of a question on a scale."""
    return Section(question_named(question), records_of(results, SCALES[scale]))


def records_of(results: Path, scale: Scale) -> Records:
    """Return the scores of a scale, on the images noted beside them."""
    return Records(results / f"{scale.name}.jsonl", scale, known_images(results).get(scale.name, ""))


def remember(results: Path, scale: Scale, fingerprint: str) -> None:
    """Note which images a scale's scores are about, and say so if known scores are about other ones."""
    known = known_images(results)
    before = known.get(scale.name, fingerprint)
    if before != fingerprint:
        print(
            f"The images of {scale.name} have the fingerprint {fingerprint}, but the known scores are about those with "
            f"{before}; these scores stay in the file and no longer count."
        )
    known |= {scale.name: fingerprint}
    results.mkdir(parents=True, exist_ok=True)
    (results / IMAGES).write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def known_images(results: Path) -> dict[str, str]:
    """Return the fingerprints of the images by scale."""
    path = results / IMAGES
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
