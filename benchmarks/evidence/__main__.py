"""`python -m benchmarks.evidence --budget cpu`: run what is missing of the study, then write docs/results.md.

It goes on where it stopped: by arm, seed, share of the labels, and within a pre-training by checkpoint. All arms get
their first seed before any gets its second, so that what there is so far can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.arms import BUDGETS, TINY, Budget
from benchmarks.evidence.page import page
from benchmarks.evidence.questions import QUESTIONS, arm_named, question_named
from benchmarks.evidence.records import Records
from benchmarks.evidence.trial import Bench, run_arm
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from dovetail.errors import DovetailError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "evidence"
PAGE = ROOT / "docs" / "results.md"
DATA = "data.json"


@dataclass(frozen=True)
class Places:
    """Where the scenes, the weights, the lines and the page lie."""

    cache: Path
    runs: Path
    results: Path
    page: Path


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="cpu", help="how large everything is")
    parser.add_argument("--questions", nargs="+", help="instead of all of the budget")
    parser.add_argument("--arms", nargs="+", help="names of arms, instead of all of the questions")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds, instead of all of the budget")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages, scenes and weights")
    parser.add_argument("--results", type=Path, help="folder of the lines; the repository's unless given")
    parser.add_argument("--page", type=Path, help="the page to write; docs/results.md unless given")
    parser.add_argument("--keep", action="store_true", help="keep the weights of every pre-training in the cache")
    parser.add_argument("--only-page", action="store_true", help="run nothing, write the page from what there is")
    options = parser.parse_args(arguments)
    budget, cache = BUDGETS[options.budget], options.cache
    tiny = budget.name == TINY
    places = Places(
        cache,
        cache / "runs",
        options.results or (cache / "tiny" if tiny else RESULTS),
        options.page or (cache / "tiny" / "results.md" if tiny else PAGE),
    )
    try:
        if not options.only_page:
            seeds = options.seeds if options.seeds is not None else budget.seeds
            questions = options.questions or [one.name for one in QUESTIONS if one.asked_in(budget.name)]
            asked = [arm.name for name in questions for arm in question_named(name).arms]
            study(budget, places, options.arms or asked, seeds, keep=options.keep)
        write_page(places, budget)
    except DovetailError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def study(budget: Budget, places: Places, arms: Sequence[str], seeds: Sequence[int], *, keep: bool = False) -> None:
    """Run what is missing of some arms and seeds.

    Raises:
        DovetailError: For arms or seeds that the budget does not have, and where the scenes cannot be made.
    """
    chosen = [arm_named(name) for name in arms]
    unknown = sorted(set(seeds) - set(budget.seeds))
    if unknown:
        raise DovetailError(f"Budget {budget.name} has no seed {unknown[0]}; its seeds are {list(budget.seeds)}.")
    wanted = sorted({budget.set_of(name) for arm in chosen for name in (arm.measured_on, arm.trained_on)})
    sets = {name: build(name, places.cache, budget.scenes) for name in wanted}
    if not all(one.known for one in sets.values()):
        print("The scenes are made of other versions of the packages than the tables; their numbers stand apart.")
    remember_data(places.results, budget, {name: one.fingerprint for name, one in sets.items()})
    bench = Bench(sets, budget, records_of(places.results, budget), places.runs)
    turns = [(arm, seed) for seed in seeds for arm in chosen]
    for turn, (arm, seed) in enumerate(turns):
        print(f"\n== {arm.name}, seed {seed}: {len(bench.missing(arm, seed))} scores are missing ==", flush=True)
        folder = bench.run_folder(arm, seed)
        later = [one for one in turns[turn + 1 :] if one[1] == seed and bench.run_folder(*one) == folder]
        shared = any(bench.missing(*one) for one in later)
        run_arm(bench, arm, seed, keep=keep or shared)
        write_page(places, budget)


def remember_data(results: Path, budget: Budget, fingerprints: Mapping[str, str]) -> None:
    """Note which scenes a budget's tables are about."""
    known = known_data(results)
    known[budget.name] = known.get(budget.name, {}) | dict(fingerprints)
    results.mkdir(parents=True, exist_ok=True)
    (results / DATA).write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def known_data(results: Path) -> dict[str, dict[str, str]]:
    """Return the fingerprints of the scenes that the tables are about, by budget and set."""
    path = results / DATA
    known: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return known


def records_of(results: Path, budget: Budget) -> Records:
    """Return the lines of a budget, on the scenes noted beside them."""
    return Records(results / f"segmentation-{budget.name}.jsonl", budget, known_data(results).get(budget.name, {}))


def write_page(places: Places, budget: Budget) -> None:
    """Write the page from the lines there are: of all budgets that count, or of the one that does not alone."""
    shown = [budget] if budget.name == TINY else [one for one in BUDGETS.values() if one.name != TINY]
    places.page.parent.mkdir(parents=True, exist_ok=True)
    text = page([records_of(places.results, one) for one in shown])
    fresh = places.page.with_name(f".{places.page.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(places.page)
    print(f"Written: {places.page}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
