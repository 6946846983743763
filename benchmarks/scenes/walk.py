"""Runs by itself, in the engine's own process: walk through levels, save the frames worth seeing.

A task comes in as JSON on standard input (see `benchmarks.scenes.corridors.walk`). Each frame is saved as pixels
[240, 320, 3], owners [240, 320] (0: none, k: object k) and labels; what to do with them is told elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TICS = 4  # of 35 in a second, for each step
STEPS = 4000
APART = 10  # steps between two frames that are kept
SHARE = 0.005  # of the picture that an object must take to count
CONTENT = (0.015, 0.6)  # smallest and largest share of the picture that all objects take
BRIGHT = 26.0  # smallest mean grey value


def main() -> None:
    """Walk as the task says."""
    task = json.load(sys.stdin)
    sys.path.insert(0, task["engine"])
    import vizdoom

    game = prepared(vizdoom, task["seed"])
    out = Path(task["out"])
    loaded = ""
    for level in task["levels"]:
        wad, _, name = level.partition(":")
        if wad != loaded:
            if loaded:
                game.close()
            game.set_doom_game_path(str(Path(task["engine"]) / "vizdoom" / f"{wad}.wad"))
            game.set_doom_map(name)
            game.init()
            loaded = wad
        game.set_doom_map(name)
        game.new_episode()
        for number, (pixels, owners, labels) in enumerate(frames(game, level, task)):
            np.savez(out / f"{wad}-{name}-{number:04d}.npz", pixels=pixels, owners=owners, labels=labels)
            if number + 1 == task["per_level"]:
                break
    game.close()


def prepared(vizdoom: Any, seed: int) -> Any:
    """Return the game with masks on and everything off that a camera in the place would not see."""
    game = vizdoom.DoomGame()
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_labels_buffer_enabled(True)
    for off in ("hud", "weapon", "crosshair", "messages", "particles", "screen_flashes", "effects_sprites"):
        getattr(game, f"set_render_{off}")(False)
    button = vizdoom.Button
    game.set_available_buttons([button.MOVE_FORWARD, button.TURN_LEFT, button.TURN_RIGHT, button.USE])
    variable = vizdoom.GameVariable
    game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y])
    game.set_episode_timeout(0)
    game.set_seed(seed)
    return game


def frames(game: Any, level: str, task: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Walk through a level and yield frames worth seeing: pixels, owners and labels.

    The walker cannot be hurt and is not attacked. It goes ahead, turns now and then, turns away from what stops it, and
    tries to open what is before it.
    """
    rng = np.random.default_rng((task["seed"], *level.encode()))
    game.send_game_command("god")
    game.send_game_command("notarget")
    turn, turning, before, went, last = 0, 0, np.zeros(2), False, -APART
    for step in range(STEPS):
        if game.is_episode_finished():
            game.new_episode()
            game.send_game_command("god")
            game.send_game_command("notarget")
        state = game.get_state()
        place = np.array(state.game_variables[:2])
        stuck = went and np.abs(place - before).sum() < 4
        before, went = place, turning == 0 and not stuck
        if turning == 0 and (stuck or rng.random() < 0.08):
            turn, turning = int(rng.integers(2)), int(rng.integers(3, 14))
        turning = max(turning - 1, 0)
        if step - last >= APART:
            found = content_of(state, task["labels"])
            if found is not None:
                last = step
                yield found
        game.make_action([int(went), int(turning > 0 and turn == 0), int(turning > 0 and turn == 1), int(stuck)], TICS)


def content_of(state: Any, labels: dict[str, int]) -> tuple[Any, Any, Any] | None:
    """Return a frame's pixels, owners and labels; None for one that shows too little, too much, or darkness."""
    pixels, buffer = np.array(state.screen_buffer), np.array(state.labels_buffer)
    square = (slice(None), slice((buffer.shape[1] - buffer.shape[0]) // 2, (buffer.shape[1] + buffer.shape[0]) // 2))
    if pixels[square].mean() < BRIGHT:
        return None
    owners = np.zeros(buffer.shape, dtype=np.uint8)
    kept: list[int] = []
    for one in state.labels:
        if one.object_name in labels:
            own = buffer == one.value
            if own[square].mean() >= SHARE:
                kept.append(labels[one.object_name])
                owners[own] = len(kept)
    share = (owners[square] > 0).mean()
    return (pixels, owners, np.array(kept)) if kept and CONTENT[0] <= share <= CONTENT[1] else None


if __name__ == "__main__":
    main()
