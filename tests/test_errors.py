"""Sentences are whole and count right, and their classes say what they are about."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import dovetail
from dovetail.data.open import open_source
from dovetail.data.order import steps_per_epoch
from dovetail.errors import DovetailError, counted
from tests.test_imports import SOURCE, module_of


def test_a_sentence_that_quotes_another_has_one_full_stop(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"x" * 257 + b"ustar" + b"x" * 300)
    with pytest.raises(DovetailError, match=r"cannot be listed .*again.*\.$") as caught:
        open_source(tmp_path)
    assert ".." not in str(caught.value).replace(str(tmp_path), "")
    assert str(DovetailError("It is broken (no such thing.); mend it.")) == "It is broken (no such thing); mend it."
    assert str(DovetailError("Its name leads to '..'.")) == "Its name leads to '..'."
    assert str(DovetailError("There are: a, b, ...")) == "There are: a, b, ..."


def test_one_thing_is_no_plural() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1234)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,234 images",
    ]
    with pytest.raises(DovetailError, match="1 image, but a batch needs 2"):
        steps_per_epoch(1, 2)


def leaves() -> set[type[DovetailError]]:
    """Return all classes below `DovetailError`."""
    found, fresh = set[type[DovetailError]](), [DovetailError]
    while fresh:
        below = fresh.pop().__subclasses__()
        found |= {*below}
        fresh += below
    return found


def raised_in(path: Path) -> Iterator[str]:
    """Yield the names of the exceptions that a file raises by calling or naming their classes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            exc = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(exc, ast.Name) and exc.id[0].isupper():
                yield exc.id


# What code around them catches, or what says that a caller within Dovetail is wrong: no user meets these.
NOT_FOR_USERS = {
    ("public", "AttributeError"),  # a name that a package does not have
    ("data.reading.watch", "RuntimeError"),  # data.loader says it in a sentence
    ("downstream.labels.coco_faults", "ValueError"),  # becomes one of the listed faults
    ("files.options_file", "ValueError"),  # becomes an OptionsError
    ("parsing", "TypeError"),  # jsonargparse makes a sentence of it
    ("report.live", "TypeError"),  # a callback of another module than ours
    ("train.engine", "KeyboardInterrupt"),
    ("train.interrupts", "KeyboardInterrupt"),
    ("train.overseer", "TypeError"),  # a callback of another module than ours
    ("train.sharded_checkpoints", "OSError"),  # train.checkpoints and `together` say it in a sentence
}


def test_errors_say_what_they_are_about() -> None:
    assert not issubclass(DovetailError, ValueError | RuntimeError | TypeError | OSError)
    exported = {name for name in dovetail.__all__ if name.endswith("Error") or name == "Interrupted"}
    assert {one.__name__ for one in leaves()} | {"DovetailError"} == exported
    for name in exported:
        assert issubclass(getattr(dovetail, name), DovetailError)


def test_files_raise_a_class_that_says_what_it_is_about() -> None:
    raised = {(module_of(path, SOURCE), name) for path in SOURCE.rglob("*.py") for name in raised_in(path)}
    assert "DovetailError" not in {name for _, name in raised}
    builtin = {(module, name) for module, name in raised if hasattr(builtins, name)}
    assert builtin == NOT_FOR_USERS
