"""Attacks by options in a config file, and in the `config.yaml` of a run that is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.attacks import claims
from benchmarks.attacks.arena import RUN, Arena, Attack, BrokenError

COMMANDS = (
    "pipe:touch MADE", "{pipe:touch MADE;true ,x}.tar", "{pipe:touch MADE;true,pipe:touch MADE;false}.tar",
    "p{ipe:touch MADE;true ,x}.tar", "{pi,x}pe:touch MADE;echo .tar", "{{pipe:touch MADE #,y},x}.tar",
    "file:///$(touch MADE)/{a,b}.tar", "{`touch MADE`,x}.tar", "|touch MADE", "$(touch MADE).tar", "; touch MADE;",
    "pipe:touch MADE|.tar",
)  # fmt: skip
TAGS = (
    "!!python/object/apply:os.mkdir [MADE]", "!!python/object/new:os.mkdir [MADE]",
    "!!python/object/apply:os.system ['mkdir MADE']", "!!python/name:os.system", "!!python/module:os",
    "!!python/object:os.PathLike {}", "!!python/object/apply:builtins.eval ['__import__(\"os\").mkdir(\"MADE\")']",
    "!!python/object/apply:subprocess.Popen [[mkdir, MADE]]", "!!python/tuple [1, 2]", "!!python/bytes YQ==",
    "!include /etc/passwd", "!ENV $HOME", "!!binary bm8=x", "!custom {a: 1}", "!!set {? a, ? [b]}",
)  # fmt: skip
ADDRESSES = (
    "http://127.0.0.1:9/a.tar", "https://127.0.0.1:9/a-{000..001}.tar", "{http://127.0.0.1:9/a,x}.tar",
    "{x,http://127.0.0.1:9/a}.tar", "hf:somebody/set", "hf:http://127.0.0.1:9/set.parquet#train", "s3://bucket/a.tar",
    "gs://bucket/{0..3}.tar", "ftp://127.0.0.1/a.tar", "{htt,x}p://127.0.0.1:9/a.tar", "HTTP://127.0.0.1:9/a.tar",
)  # fmt: skip
OTHER_SOURCES = ("knn_data", "dense_data", "init")
MODELS = (
    "timm/hf-hub:somebody/model", "timm/local-dir:/tmp", "timm/hf_hub:somebody/model", "smp/unet/tu-hf-hub:a/b",
    "smp.Unet('resnet18', encoder_weights='imagenet')", "timm.create_model('test_resnet', pretrained=True)",
    "timm.create_model('hf-hub:somebody/model')", "torchvision.models.segmentation.fcn_resnet50(weights='DEFAULT')",
    "smp.from_pretrained('somebody/model')", "torch.hub.load('a/b', 'c')", "timm/test_resnet+fpn(pretrained=True)",
    "timm.create_model('test_resnet', pretrained_cfg={'url': 'http://127.0.0.1:9/x'})", "os.system('mkdir MADE')",
    "timm.create_model('test_resnet', checkpoint_path='SECRET')", "timm/http://127.0.0.1:9/model",
)  # fmt: skip
TYPED = ({"overwrite": True}, {"resume": True}, {"out": "elsewhere"}, {"overwrite": 1}, {"overwrite": "yes"})
ODD: tuple[Any, ...] = (-7, 10**30, float("nan"), float("inf"), {"a": 1}, [[1]], "\x00\x1b[2Jx", 1e-320, "a" * 3000)
NESTED = (
    "[" * 100_000,
    "{a: " * 5_000,
    "- " * 20_000,
    "a: &a [*a]",
    "&a {b: *a}",
    "? " * 5_000,
    "a: " + "[" * 9_000,
    "model: '" + "[" * 50_000 + "'",
)


def attacks() -> Iterator[Attack]:
    """Yield all attacks of this module."""
    for place in (in_config, in_run):
        where = "run's config" if place is in_run else "--config"
        for command in COMMANDS:
            for form in ("text", "list", "list of lists"):
                yield Attack(claims.COMMAND, f"{where}: {command} as {form}", partial(commands, place, command, form))
        for tag in TAGS:
            yield Attack(claims.COMMAND, f"{where}: {tag}", partial(tagged, place, tag))
        yield from addresses(place, where)
        for model in MODELS:
            yield Attack(claims.MODEL, f"{where}: {model}", partial(modelled, place, model))
        for name, text in (("bomb", bomb()), ("many", many()), ("keys", bomb(keys=True)), ("long", "a: 1\n" * 300_000)):
            yield Attack(claims.ALIASES, f"{where}: {name}", partial(written, place, text))
        for text in NESTED:
            yield Attack(claims.NESTING, f"{where}: {text[:12]}", partial(written, place, text))
    yield from decided()
    yield from odd()


def addresses(place: Any, where: str) -> Iterator[Attack]:
    """Yield attacks that name something on the network."""
    for address in ADDRESSES:
        yield Attack(claims.DOWNLOAD, f"{where}: data {address}", partial(given_in, place, {"data": address}))
    for name in OTHER_SOURCES:
        for address in ADDRESSES[:2] + ADDRESSES[4:6]:
            yield Attack(
                claims.DOWNLOAD,
                f"{where}: {name} {address}",
                partial(given_in, place, {name: address}, needed=name != "init"),
            )
    for loggers in (["wandb"], ["mlflow"], ["wandb", "mlflow"], "wandb", {"wandb": 1}):
        yield Attack(claims.LOGGERS, f"{where}: {loggers}", partial(given_in, place, {"loggers": loggers}))


def decided() -> Iterator[Attack]:
    """Yield attacks that decide what only the command line may."""
    for given in ({"init": "imagenet"}, {"init": ["imagenet"]}, {"init": {"imagenet": 1}}):
        yield Attack(claims.IMAGENET, f"--config: {given}", partial(given_in, in_config, given))
    yield Attack(claims.IMAGENET, "run's config without checkpoints", imagenet_anew)
    for given in TYPED:
        yield Attack(claims.TYPED, f"--config: {given}", partial(decides, given))
        yield Attack(claims.REDIRECT, f"run's config: {given}", partial(redirects, given))
    for name in ("..", "/", "/etc", "checkpoints", "~"):
        yield Attack(claims.REDIRECT, f"run's config: out {name}", partial(redirects, {"out": name}))


def odd() -> Iterator[Attack]:
    """Yield odd values of every option of `pretrain`; some are allowed, and none may show a traceback."""
    from dovetail.options import option_infos
    from dovetail.run.options import PretrainOptions

    for name in sorted(option_infos(PretrainOptions).keys() - {"out", "overwrite", "resume"}):
        for value in ODD:
            act = partial(given_in, in_run, {name: value}, needed=False)
            yield Attack(claims.CONFIG, f"{name}: {str(value)[:20]!r}", act)
    for value in ODD:
        yield Attack(
            claims.CONFIG, f"the whole file: {str(value)[:20]!r}", partial(written, in_run, yaml.safe_dump(value))
        )
        for option in ("dim", "decoder_grid", "min_scale"):
            yield Attack(
                claims.CONFIG,
                f"recipe.{option}: {str(value)[:20]!r}",
                partial(given_in, in_run, {"recipe": {option: value}}),
            )


def given_in(place: Any, given: dict[str, Any], arena: Arena, *, needed: bool = True) -> None:
    """Give options in a place."""
    place(arena, given, needed=needed)


def in_config(arena: Arena, given: dict[str, Any], *, text: str | None = None, needed: bool = True) -> None:
    """Give options in a file of the user's choice."""
    config = arena.here / "evil.yaml"
    config.write_text(yaml.safe_dump({**RUN, "data": str(arena.photos), **given}) if text is None else text)
    arena.command("pretrain", "--config", config, "--out", arena.here / "new", refused=True if needed else None)


def in_run(arena: Arena, given: dict[str, Any], *, text: str | None = None, needed: bool = True) -> None:
    """Give options in a run's own config."""
    run = arena.copied(arena.run)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(saved | given) if text is None else text)
    arena.resumed(run, refused=True if needed else None)


def commands(place: Any, command: str, form: str, arena: Arena) -> None:
    """Name a command as data."""
    text = command.replace("MADE", str(arena.made))
    data = {"text": text, "list": [text, text], "list of lists": [[text]]}[form]
    place(arena, {"data": data})


def tagged(place: Any, tag: str, arena: Arena) -> None:
    """Write a YAML tag where the method's name belongs."""
    place(arena, {}, text=f"method: {tag.replace('MADE', str(arena.made))}\n")


def modelled(place: Any, model: str, arena: Arena) -> None:
    """Name a model."""
    place(arena, {"model": model.replace("MADE", str(arena.made)).replace("SECRET", str(arena.secret))})


def written(place: Any, text: str, arena: Arena) -> None:
    """Write a text as the file."""
    place(arena, {}, text=text)


def imagenet_anew(arena: Arena) -> None:
    """Ask for ImageNet weights in a run that has none of its own."""
    import shutil

    run = arena.copied(arena.run)
    shutil.rmtree(run / "checkpoints")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(saved | {"init": "imagenet"}))
    arena.resumed(run)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def decides(given: dict[str, Any], arena: Arena) -> None:
    """Start in a folder that holds a run."""
    run = arena.copied(arena.run)
    before, config = contents(run), arena.here / "evil.yaml"
    config.write_text(yaml.safe_dump({**RUN, "data": str(arena.photos), **given}))
    arena.command("pretrain", "--config", config, *([] if "out" in given else ["--out", run]))
    if contents(run) != before or (arena.here / "elsewhere").exists():
        raise BrokenError("a folder was changed")


def redirects(given: dict[str, Any], arena: Arena) -> None:
    """Resume a run whose config says where it goes."""
    run = arena.copied(arena.run)
    kept = (run / "checkpoints" / "last.ckpt").read_bytes()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(saved | given))
    arena.resumed(run, refused=None)
    if (run / "checkpoints" / "last.ckpt").read_bytes() != kept or (arena.here / "elsewhere").exists():
        raise BrokenError("the run was redirected")


def bomb(depth: int = 9, *, keys: bool = False) -> str:
    """Return aliases of aliases that stand for a billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for number in range(1, depth + 1):
        inner = [f"{'k' + str(one) + ': ' if keys else ''}*a{number - 1}" for one in range(9)]
        lines.append(f"a{number}: &a{number} {'{' if keys else '['}{', '.join(inner)}{'}' if keys else ']'}")
    return "\n".join(lines)


def many() -> str:
    """Return one long list and a thousand aliases of it."""
    return f"a: &a [{', '.join(['x'] * 1000)}]\n" + "\n".join(f"b{number}: *a" for number in range(1000))
