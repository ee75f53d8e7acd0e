"""python -m orchestrator sweep examples/own_backbone.py:regnet --dry-run

Any timm classifier can be swept by its name: `python -m orchestrator sweep timm:regnetx_002`.
With a function you also give it a space of its own, in place of the generic one. A family that
should stand beside resnet and vit, with members by scale, is one file in
trainables/backbones/families and one entry in the table of its __init__.py: members and their
sizes, learning rates, how it adapts to small images; convnext.py is the shortest to copy.
"""

from dataclasses import replace

from orchestrator.spec import named_sweeps, spaces
from orchestrator.spec.run import SweepSpec


def regnet() -> SweepSpec:
    """RegNetX-200MF from scratch on digits, SGD as in its paper (Radosavovic et al. 2020)."""
    sweep = named_sweeps.family_sweep(
        "timm", model="regnetx_002", weights="none", trials=6, max_epochs=6
    )
    return replace(
        sweep,
        recipe=replace(sweep.recipe, optimizer="sgd", weight_decay=5e-5),
        space={
            "recipe.learning_rate": spaces.LogUniform(0.01, 1.0, "0.8 at batch 1024 in the paper"),
            "recipe.label_smoothing": spaces.Uniform(0.0, 0.2),
        },
    )
