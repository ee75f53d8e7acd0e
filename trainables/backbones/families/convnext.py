"""ConvNeXt (Liu et al. 2022); its stem is a patch, resized as a ViT's."""

from __future__ import annotations

from dataclasses import replace

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
)
from trainables.config import BackboneSpec

MEMBERS = {
    "tiny": Member(
        model="test_convnext",
        hub="timm/test_convnext.r160_in1k",
        image_size=160,
        classes=1000,
        patch=4,
        size=Size(positions=256, params_m=0.207, gflops_per_image=0.0095, activation_mb=0.78),
    ),
    "small": Member(
        model="convnext_nano",
        hub="timm/convnext_nano.in12k_ft_in1k",
        image_size=224,
        classes=1000,
        test_image_size=288,
        patch=4,
        size=Size(positions=256, params_m=14.956, gflops_per_image=0.3977, activation_mb=5.56),
    ),
    "base": Member(
        model="convnext_base",
        hub="timm/convnext_base.fb_in22k_ft_in1k",
        image_size=224,
        classes=1000,
        test_image_size=288,
        patch=4,
        size=Size(positions=256, params_m=87.572, gflops_per_image=2.5044, activation_mb=18.9),
    ),
}

# The smallest with weights of ImageNet-21k alone.
TINY = Member(
    model="convnext_tiny", hub="timm/convnext_tiny.fb_in22k", image_size=224, classes=21_841,
    patch=4, size=None,
)  # fmt: skip
ALIKE = {
    "in1k": {
        "tiny": MEMBERS["tiny"],
        "small": replace(MEMBERS["small"], hub="timm/convnext_nano.d1h_in1k"),
        "base": replace(MEMBERS["base"], hub="timm/convnext_base.fb_in1k"),
    },
    "in21k": {
        "small": TINY,
        "base": replace(
            MEMBERS["base"],
            hub="timm/convnext_base.fb_in22k",
            classes=21_841,
            test_image_size=None,
        ),
    },
}
RECIPE = PublishedRecipe(
    source="Liu et al. 2022 (ConvNeXt), facebookresearch/ConvNeXt TRAINING.md, ImageNet-1k",
    learning_rate=4e-3,
    batch_size=4096,
    weight_decay=0.05,
    warmup_share=20 / 300,
    label_smoothing=0.1,
    augment="heavy",
)
# Published without mixup or CutMix but with RandAugment: ``medium`` is the nearest level, ours.
TUNED = PublishedRecipe(
    source="Liu et al. 2022 (ConvNeXt), facebookresearch/ConvNeXt TRAINING.md, from ImageNet-22k",
    learning_rate=5e-5,
    batch_size=512,
    weight_decay=1e-8,
    warmup_share=0.0,
    label_smoothing=0.1,
    augment="medium",
    layer_decay=0.8,
)


def adapt(spec: BackboneSpec, member: Member, side: int) -> Adapted:
    """Choose the stem's patch: 2 below 64 px, else the published 4."""
    patch = (2 if side < SMALL_IMAGE else 4) if spec.patch is None else spec.patch
    return Adapted(patch=patch, resized=patch != member.patch)


def exchanged_stem(geometry: Geometry, member: Member) -> ExchangedStem | None:
    """The stem's convolution where its patch is not the published one."""
    if geometry.patch is None or geometry.patch == member.patch:
        return None
    return ExchangedStem(conv="stem.0", kernel=geometry.patch, stride=geometry.patch)


FAMILY = Family(
    reference="Liu et al. 2022, A ConvNet for the 2020s, CVPR",
    members=MEMBERS,
    adapt=adapt,
    from_scratch=LearningRates(
        3e-4, 2e-2, "layer norm and depthwise kernels: between ViT and ResNet"
    ),
    fine_tuned=LearningRates(1e-5, 1e-3, "Liu et al. 2022 fine-tune at 5e-5"),
    exchanged_stem=exchanged_stem,
    alike=ALIKE,
    published_scratch=(RECIPE,),
    published_tuned=(TUNED,),
    patches=(4, 2, 1),  # of the stem
    is_convolutional=True,
)
