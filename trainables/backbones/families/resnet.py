"""Residual networks (He et al. 2016), with the original stem or one for small images."""

from __future__ import annotations

from trainables.backbones.adaptation import (
    SMALL_IMAGE,
    Adapted,
    ExchangedStem,
    Family,
    Geometry,
    LearningRates,
    Member,
    PublishedRecipe,
    Size,
    choose_stem,
)
from trainables.config import BackboneSpec
from trainables.errors import UserError

MEMBERS = {
    "tiny": Member(
        model="test_resnet",
        hub="timm/test_resnet.r160_in1k",
        image_size=160,
        classes=1000,
        size=Size(positions=1024, params_m=0.374, gflops_per_image=0.0860, activation_mb=1.67),
    ),
    "small": Member(
        model="resnet26t",
        hub="timm/resnet26t.ra2_in1k",
        image_size=256,
        classes=1000,
        test_image_size=320,
        size=Size(positions=1024, params_m=13.983, gflops_per_image=1.5045, activation_mb=16.7),
    ),
    "base": Member(
        model="resnet50",
        hub="timm/resnet50.a1_in1k",
        image_size=224,
        classes=1000,
        test_image_size=288,
        size=Size(positions=1024, params_m=23.521, gflops_per_image=2.5957, activation_mb=25.6),
    ),
}

# Big Transfer (Kolesnikov et al. 2020): the smallest ResNet with weights of ImageNet-21k alone.
BIT = Member(
    model="resnetv2_50x1_bit", hub="timm/resnetv2_50x1_bit.goog_in21k", image_size=224,
    classes=21_843, size=None,
)  # fmt: skip
ALIKE = {"in1k": MEMBERS, "in21k": {"small": BIT, "base": BIT}}

RECIPE_2022 = PublishedRecipe(
    source="Liu et al. 2022 (ConvNeXt), facebookresearch/ConvNeXt TRAINING.md, ImageNet-1k: of "
    "ConvNeXt, under AdamW",
    learning_rate=4e-3,
    batch_size=4096,
    weight_decay=0.05,
    warmup_share=20 / 300,
    label_smoothing=0.1,
    augment="heavy",
)
# Of CIFAR-10: 64,000 steps without warm-up, padded crops and mirrored images.
RECIPE_2016 = PublishedRecipe(
    source="He et al. 2016 (Deep Residual Learning), section 4.2",
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=128,
    weight_decay=1e-4,
    warmup_share=0.0,
    label_smoothing=0.0,
    augment="light",
)
TUNED_2022 = PublishedRecipe(
    source="Liu et al. 2022 (ConvNeXt), facebookresearch/ConvNeXt TRAINING.md: of ConvNeXt, since "
    "ResNets were published with SGD (recipe.optimizer=sgd)",
    learning_rate=5e-5,
    batch_size=512,
    weight_decay=1e-8,
    warmup_share=0.0,
    label_smoothing=0.1,
    augment="medium",
    layer_decay=0.8,
)
# Its mixup of 0.1 is left out: no level has it without stronger operations.
TUNED_2020 = PublishedRecipe(
    source="Kolesnikov et al. 2020 (Big Transfer), section 3.3: BiT-HyperRule, medium-sized data",
    optimizer="sgd",
    learning_rate=3e-3,
    batch_size=512,
    weight_decay=0.0,
    warmup_share=500 / 10_000,
    label_smoothing=0.0,
    augment="light",
)


def adapt(spec: BackboneSpec, member: Member, side: int) -> Adapted:
    """Choose the stem; a residual network has no patch. Raises ``UserError`` for a small stem of a
    member that has none."""
    stem = choose_stem(spec, side)
    if stem == "small" and member.model == BIT.model:
        raise UserError(
            f"backbone.stem=small is not known for {member.model}; got it with weights "
            f"{spec.weights}. Fix: --set backbone.stem=original, or --weights hub|in1k"
        )
    reduced = stem == "original" and side < SMALL_IMAGE
    warning = (
        f"{member.model} with its original stem reduces {side} px to {max(1, side // 32)}. "
        "Fix: --set backbone.stem=small or --set backbone.image_size=128"
    )
    return Adapted(stem=stem, warnings=(warning,) if reduced else ())


def exchanged_stem(geometry: Geometry, member: Member) -> ExchangedStem | None:
    """The small stem: 3x3 of stride 1 without max-pool (He et al. 2016, §4.2)."""
    if geometry.stem != "small":
        return None
    # others have three 3x3 convolutions in place of the 7x7, the first of stride 2
    conv = "conv1" if member.model == "resnet50" else "conv1.0"
    return ExchangedStem(conv=conv, pool="maxpool")


FAMILY = Family(
    reference="He et al. 2016, Deep Residual Learning for Image Recognition, CVPR",
    members=MEMBERS,
    adapt=adapt,
    from_scratch=LearningRates(3e-4, 3e-2, "batch norm bears higher rates than attention does"),
    fine_tuned=LearningRates(
        3e-5, 3e-3, "fine-tuning with batch norm: three times the ViT's rates"
    ),
    alike=ALIKE,
    published_scratch=(RECIPE_2022, RECIPE_2016),
    published_tuned=(TUNED_2022, TUNED_2020),
    patches=(),
    exchanged_stem=exchanged_stem,
    is_convolutional=True,
)
