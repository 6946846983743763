"""Fine-tuning learns, repeats itself, and treats each part as told; evaluation gives known answers."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.downstream.labels.labelled import InMemory, Labelled
from dovetail.downstream.segment.augment import Augmentation
from dovetail.downstream.segment.loop import (
    WithAuxiliary,
    confusion_matrix,
    finetune_segmentation,
    loss_of,
    predict,
    sliding_logits,
    training_batch,
)
from dovetail.downstream.segment.options import SegmentOptions, Window, build_optimiser
from dovetail.errors import DovetailError


class Tiny(nn.Module):
    """A model with an encoder, a decoder and a head, logits at half the size."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.segmentation_head = nn.Conv2d(8, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(pixels)))
        return logits


class ColourIsClass(nn.Module):
    """Answers with the class that `squares` painted: perfect predictions."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


def squares(count: int = 6, side: int = 16, seed: int = 0) -> InMemory:
    """Return images of two halves, the class of each half being its one bright channel."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        left, right = torch.randperm(3, generator=generator)[:2].tolist()
        mask = torch.full((side, side), left)
        mask[:, side // 2 :] = right
        image = (F.one_hot(mask, 3) * 200).permute(2, 0, 1).to(torch.uint8)
        items.append(Labelled(image, mask))
    return InMemory(items)


def options(**changes: object) -> SegmentOptions:
    base = SegmentOptions(classes=3, steps=30, batch_size=4, lr=0.02, precision="float32")
    return dataclasses.replace(base, **changes)


def tiny(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny()


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_learns_and_repeats_bit_for_bit(optimiser: str) -> None:
    rate = 0.02 if optimiser == "adamw" else 0.2
    first, second = tiny(), tiny()
    plan = options(optimiser=optimiser, lr=rate, steps=60)
    losses = finetune_segmentation(first, squares(), plan)
    assert losses[-1] < 0.3 * losses[0]
    assert finetune_segmentation(second, squares(), plan) == losses
    assert confusion_matrix(first, squares(seed=5), plan).scores().miou > 0.8


def test_perfect_predictions_score_one() -> None:
    scores = confusion_matrix(ColourIsClass(), squares(), options(mean=(0.0,) * 3, std=(1.0,) * 3)).scores()
    assert (scores.miou, scores.accuracy, scores.mean_accuracy) == (1.0, 1.0, 1.0)


def test_images_of_several_sizes_are_evaluated() -> None:
    mixed = InMemory([*squares(2, 16).items, *squares(3, 24).items, *squares(1, 16).items])
    scores = confusion_matrix(ColourIsClass(), mixed, options()).scores()
    assert scores.pixels == 3 * 16 * 16 + 3 * 24 * 24
    assert scores.miou == 1.0


def test_bfloat16_runs() -> None:
    model = tiny()
    losses = finetune_segmentation(model, squares(), options(precision="bf16"))
    assert losses[-1] < 0.5 * losses[0]
    assert next(model.parameters()).dtype == torch.float32


def test_ignored_pixels_do_not_count() -> None:
    first, *others = squares().items
    outcomes = []
    for label in (255, 77):
        hidden = [Labelled(item.image, torch.full_like(item.mask, label)) for item in others]
        model = tiny()
        finetune_segmentation(model, InMemory([first, *hidden]), options(steps=3, batch_size=6, ignore_index=label))
        outcomes.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*outcomes)
    model = tiny()
    finetune_segmentation(model, squares(), options(steps=3, batch_size=6))
    assert not torch.equal(outcomes[0], torch.cat([parameter.flatten() for parameter in model.parameters()]))


def test_a_batch_without_a_labelled_pixel_changes_no_weight() -> None:
    hidden = [Labelled(item.image, torch.full_like(item.mask, 255)) for item in squares().items]
    model = tiny()
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = finetune_segmentation(model, InMemory(hidden), options(steps=2, optimiser="sgd", weight_decay=0.0))
    assert losses == [0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    with pytest.raises(DovetailError, match=r"loss is (nan|inf)"):
        finetune_segmentation(tiny(), squares(), options(lr=1e30, optimiser="sgd"))


def test_weight_decay_of_vectors() -> None:
    optimiser = build_optimiser(tiny(), options(decay_vectors=True))
    assert {group["weight_decay"] for group in optimiser.param_groups} == {1e-4}


def test_learning_rate_of_each_part() -> None:
    model = tiny()
    optimiser = build_optimiser(model, options(lr=0.1, lr_scale={"encoder": 0.0, "decoder": 0.5}))
    rate = {id(parameter): group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in optimiser.param_groups for parameter in group["params"]}
    assert all(id(parameter) not in rate for parameter in model.encoder.parameters())
    assert {rate[id(parameter)] for parameter in model.decoder.parameters()} == {0.05}
    assert {rate[id(parameter)] for parameter in model.segmentation_head.parameters()} == {0.1}
    assert decay[id(model.segmentation_head.weight)] == 1e-4
    assert decay[id(model.segmentation_head.bias)] == 0.0
    before = copy.deepcopy(model.encoder.state_dict())
    finetune_segmentation(model, squares(), options(steps=2, lr_scale={"encoder": 0.0}))
    assert torch.equal(before["0.weight"], model.encoder[0].weight)


def test_rate_for_a_part_without_parameters_is_refused() -> None:
    with pytest.raises(DovetailError, match=r"part 'neck'.*decoder, encoder, head"):
        build_optimiser(tiny(), options(lr_scale={"neck": 0.1}))


def test_rate_decays_polynomially_after_warmup() -> None:
    plan = options(steps=10, warmup_steps=3, power=1.0)
    assert [plan.rate_share(step) for step in (0, 2, 5, 9)] == pytest.approx([0.25, 0.75 * 0.8, 0.5, 0.1])


def test_batch_norm_statistics() -> None:
    data, model = squares(), tiny()
    norm = model.encoder[1]
    start = norm.running_mean.clone()
    finetune_segmentation(model, data, options(steps=1, batch_norm="frozen"))
    assert torch.equal(norm.running_mean, start)
    once = tiny()
    finetune_segmentation(once, data, options(steps=1, batch_norm="train"))
    again = tiny()
    finetune_segmentation(again, data, options(steps=1, batch_norm="reestimate"))
    images = torch.cat([training_batch(data, options(batch_norm="reestimate"), step)[0] for step in range(8)])
    pixels = (images.float() / 255 - torch.tensor(options().mean)[:, None, None]) / torch.tensor(options().std)[
        :, None, None
    ]
    plain = tiny().encoder[0](pixels).mean((0, 2, 3))
    # One training step moves the mean by a tenth of the way towards its batch; all batches have nearly one mean.
    assert (again.encoder[1].running_mean - plain).abs().max() < 0.1
    assert (once.encoder[1].running_mean - plain).abs().max() > 0.2


def test_only_the_encoder_keeps_its_batch_norm_statistics() -> None:
    """A random decoder has no statistics worth keeping: with them it would be a network without normalisation."""
    torch.manual_seed(0)
    model = smp.Unet("tu-test_resnet", encoder_weights=None, encoder_depth=3, decoder_channels=(16, 8, 8), classes=3)
    before = copy.deepcopy(model.state_dict())
    finetune_segmentation(model, squares(), options(steps=1, batch_norm="frozen"))
    moved = {
        name.partition(".")[0]
        for name, value in model.state_dict().items()
        if name.endswith("running_mean") and not torch.equal(value, before[name])
    }
    kept = [name for name in before if name.startswith("encoder.") and name.endswith("running_var")]
    assert moved == {"decoder"}
    assert kept
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in kept)


def test_batches_are_a_function_of_seed_and_step() -> None:
    data = squares(5)
    for step in (0, 3):
        images, masks = training_batch(data, options(), step)
        assert torch.equal(images, training_batch(data, options(), step)[0])
        assert not torch.equal(masks, training_batch(data, options(seed=1), step)[1])
    small = training_batch(squares(2), options(batch_size=7), 0)
    assert small[0].shape == (7, 3, 16, 16)


def test_sliding_windows_cover_everything_and_agree_with_the_whole() -> None:
    pixels = torch.randn(2, 3, 21, 30)
    local = nn.Conv2d(3, 4, 1)  # sees one pixel, so windows change nothing
    assert torch.allclose(sliding_logits(local, pixels, Window(8, 5)), local(pixels), atol=1e-5)
    assert torch.allclose(sliding_logits(local, pixels, Window(64, 5)), local(pixels), atol=1e-5)
    assert torch.allclose(sliding_logits(local, pixels, Window((8, 16), (5, 10))), local(pixels), atol=1e-5)
    images = torch.randint(0, 255, (2, 3, 20, 20), dtype=torch.uint8)
    model = tiny().eval()
    assert predict(model, images, options(), window=Window(16, 8)).shape == (2, 20, 20)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(DovetailError, match="training set is empty"):
        finetune_segmentation(tiny(), InMemory([]), options())
    with pytest.raises(DovetailError, match="3 classes, but the data has 5"):
        finetune_segmentation(tiny(), squares(), options(classes=5))
    with pytest.raises(DovetailError, match="label 2, but there are 2 classes"):
        finetune_segmentation(Tiny(2), squares(), options(classes=2))


def test_threads_change_nothing() -> None:
    first, second = tiny(), tiny()
    losses = finetune_segmentation(first, squares(), options(steps=6))
    assert finetune_segmentation(second, squares(), options(steps=6), threads=3) == losses
    scores = confusion_matrix(first, squares(), options()).scores()
    assert confusion_matrix(first, squares(), options(batch_size=1), threads=2).scores() == scores


def test_the_rate_ends_at_its_floor() -> None:
    plan = options(steps=10, power=1.0, floor=0.2)
    assert [plan.rate_share(step) for step in (0, 5)] == pytest.approx([1.0, 0.6])


def test_the_auxiliary_loss_is_added_by_its_weight() -> None:
    logits, beside, masks = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2), torch.randint(0, 3, (2, 4, 4))
    masks[0, 0] = 255
    plain, other = loss_of(logits, masks, options()), loss_of(beside, masks, options())
    assert plain.item() == pytest.approx(F.cross_entropy(logits, masks, ignore_index=255).item())
    both = loss_of(WithAuxiliary(logits, beside), masks, options(auxiliary_weight=0.3))
    assert both.item() == pytest.approx((plain + 0.3 * other).item())
    aligned = F.interpolate(beside, (4, 4), mode="bilinear", align_corners=True)
    assert loss_of(beside, masks, options(align_corners=True)).item() == pytest.approx(
        F.cross_entropy(aligned, masks, ignore_index=255).item()
    )


def test_images_are_measured_at_the_size_they_are_brought_to() -> None:
    class Size(nn.Module):
        """Answers class 1 where the image was enlarged to 32 px."""

        def forward(self, pixels: Tensor) -> Tensor:
            large = pixels.shape[2:] == (32, 32)
            return torch.stack([torch.zeros(4, 4), torch.full((4, 4), float(large) - 0.5)])[None].repeat(
                len(pixels), 1, 1, 1
            )

    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    plan = options(classes=2, augmentation=Augmentation(within_px=(99, 32)))
    assert bool((predict(Size(), images, plan) == 1).all())
    assert predict(Size(), images, plan).shape == (2, 16, 16)
    assert bool((predict(Size(), images, options(classes=2)) == 0).all())


def test_logits_are_resized_to_the_pixels_and_then_to_the_image() -> None:
    """As mmsegmentation does: in two steps, which differ from one."""
    coarse = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    class Coarse(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return coarse

    plan = options(augmentation=Augmentation(within_px=(99, 24)))
    found = predict(Coarse(), torch.zeros(1, 3, 16, 16, dtype=torch.uint8), plan)
    large = F.interpolate(coarse, (24, 24), mode="bilinear", align_corners=False)
    expected = F.interpolate(large, (16, 16), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(found, expected)
    assert not torch.equal(found, F.interpolate(coarse, (16, 16), mode="bilinear", align_corners=False).argmax(1))


def test_the_rate_drops_by_tenths() -> None:
    plan = options(steps=10, power=0.0, drops=(0.7, 0.9))
    assert [plan.rate_share(step) for step in (0, 6, 7, 9)] == pytest.approx([1.0, 1.0, 0.1, 0.01])


@pytest.mark.parametrize("batch_norm", ["train", "reestimate"])
def test_a_batch_norm_that_sees_one_value_is_told(batch_norm: str) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    with pytest.raises(DovetailError, match="gets a single value with --batch-size 1; use 2 or more"):
        finetune_segmentation(model, squares(), options(steps=1, batch_size=1, batch_norm=batch_norm))
