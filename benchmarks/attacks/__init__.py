"""Attacks on every file that the program reads and every number that it takes, counted by claim.

`python -m benchmarks.attacks` makes tiny runs and datasets, changes copies of them in every way that the tables of this
package list, and gives them to the commands and functions that read them. A claim is a line of `docs/security.md`.

    watch.py        what an attack may not do: run something, connect, write elsewhere, take memory or time
    arena.py        the folder of runs and datasets, and how a command is called
    claims.py       the claims on the page
    configs.py      options and YAML
    numbers.py      numbers out of range, of every command
    weights.py      files of weights and `model.json`
    checkpoints.py  checkpoints and logs
    labels.py       COCO files, `task.json`, `results.json`
    archives.py     archives, shards and images
    names.py        names of files and classes
"""
