"""Does a ViT's gap to a ResNet shrink as the data grow?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Preset, Setting
from orchestrator.claims.effects import Measured, Picture, lines, points
from orchestrator.claims.results import RATE, TrialResult, by_level, complete, must_have_learned

Array = np.ndarray
FAMILIES = ("vit", "resnet")
FRACTIONS = (0.1, 0.3, 1.0)


def arms(setting: Setting) -> list[Arm]:
    """Architecture x share of the images, all as many steps long: fewer images, more epochs."""
    return [
        Arm(
            family=family,
            epochs=round(setting.preset.epochs / fraction),
            levels={"data.fraction": fraction, RATE: rate},
        )
        for fraction in FRACTIONS
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """By how much the gap ResNet minus ViT shrinks with every tenfold of the data."""
    results, seeds, notes = complete(results)
    tables = by_level(results, FAMILIES, "data.fraction", FRACTIONS)  # (fractions, n) each
    must_have_learned(
        {f"{family} on all images": float(tables[family][-1].mean()) for family in FAMILIES},
        results[0].chance,
    )
    gaps = tables["resnet"] - tables["vit"]
    slope = np.polyfit(np.log10(FRACTIONS), gaps, 1)[0]  # (n,)
    images = {result.axes["data.fraction"]: float(result.trial.detail["train_images"])
              for result in results}  # fmt: skip
    return Measured(
        seeds=seeds,
        effects=(points("shrinking of ResNet's lead over ViT with ten times the data", -slope),),
        others=tuple(
            points(f"lead of ResNet over ViT on {fraction:.0%} ({images[fraction]:,.0f} images)"
                    .replace("%", " %"), gaps[i])
            for i, fraction in enumerate(FRACTIONS)
        ),
        pictures=lambda: [
            Picture(
                title="Accuracy against training images",
                x_label="training images",
                series=lines([images[fraction] for fraction in FRACTIONS],
                             {family: table.T for family, table in tables.items()}),
                x_log=True,
            )
        ],
        notes=notes,
    )  # fmt: skip


CLAIM = Claim(
    name="vit-needs-more-data",
    statement="Transformers are hungry for data: with few images a ViT falls behind a ResNet.",
    source="Dosovitskiy et al. 2021, figures 3 and 4: ViTs fall behind ResNets when pre-trained on "
    "smaller sets and overtake them on larger ones.",
    literature_for=(
        "Dosovitskiy et al. 2021 (An image is worth 16x16 words).",
        "Lu et al. 2022 (Bridging the gap between vision transformers and convolutional neural "
        "networks on small datasets): a wide gap when trained from scratch on little.",
    ),
    literature_against=(
        "Touvron et al. 2021 (DeiT) and Beyer et al. 2022 (Better plain ViT baselines): with the "
        "right recipe ImageNet-1k suffices.",
        "Chen, Hsieh & Gong 2022 (When vision transformers outperform ResNets without "
        "pre-training or strong data augmentations): with a flatter optimum, too.",
    ),
    families=FAMILIES,
    factors={
        "architecture": "ViT, ResNet",
        "data": "10 %, 30 % and all of the training images, each share inside the next; equal "
        "numbers of steps, so that a smaller share is seen more often and is not trained less",
    },
    presets={
        "smoke": Preset(epochs=5, train_images=4000, val_images=1000, seeds=4, batch_size=32),
        "standard": Preset(epochs=15, train_images=None, val_images=2000, seeds=5),
        "full": Preset(epochs=50, train_images=None, val_images=5000, seeds=10,
                       rates=(0.5, 1, 2)),
    },
    statistic="Validation accuracy of the ResNet minus that of the ViT at each share of the data; "
    "the fall of its least-squares line over log10 of the images, in points for ten times the "
    "data, seed by seed.",
    unit="points",
    smallest_effect=0.01,
    supported="The ResNet's lead is shown to shrink by more than one point with ten times the "
    "data.",
    refuted="It is shown to shrink by less than one point, or to grow.",
    undetermined="Neither is shown: too few seeds, or seeds too unlike each other.",
    fewest_share=FRACTIONS[0],
    arms=arms,
    measure=measure,
)  # fmt: skip
