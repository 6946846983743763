"""The benchmark of ADCLR's cost measures what it says, at a tiny size."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from benchmarks.adclr_cost import FORMS, DenseMaskViT, Form, Setting, peak_here, peak_of, report, table, times_of

from benchmarks import adclr_cost
from tests.networks.vits import network, view

TINY = Setting("test_vit", batch=1, image_size=32, local_crops=0, prototypes=16, device="cpu")


@pytest.fixture
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the processes that measure memory."""
    monkeypatch.setattr(adclr_cost, "peak_of", lambda form, setting: 1.0)


def test_forms_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = (Form(0), Form(2))
    monkeypatch.setattr(adclr_cost, "FORMS", forms)
    seconds = times_of(TINY, rounds=2)
    assert list(seconds) == list(forms)
    assert all(len(taken) == 2 and min(taken) > 0 for taken in seconds.values())


def test_the_dense_mask_gives_the_same_numbers() -> None:
    streams = network().double()
    dense = DenseMaskViT(copy.deepcopy(streams.model), construction=None).double().eval()
    seen = view(dtype=torch.float64)
    for tap, value in streams(seen, ["cls", "patches", "queries"]).items():
        torch.testing.assert_close(dense(seen, [tap, "queries"])[tap], value, rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_step_adds_to_the_peak() -> None:
    assert peak_of(Form(1), TINY) > 0  # in a process of its own: this one may have freed memory to spare
    large = TINY._replace(prototypes=65536)
    assert peak_here(Form(1), large) > 65536 * 256 * 4  # at least the prototypes' gradient


@pytest.mark.slow
@pytest.mark.usefixtures("known_peaks")
def test_the_page_has_a_line_for_every_form() -> None:
    page = report(TINY, 1, table(TINY, 1), "python -m benchmarks.adclr_cost")
    assert all(f"| {form} |" in page for form in FORMS)
    assert "PyTorch" in page
