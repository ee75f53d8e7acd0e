"""python -m orchestrator sweep examples/own_sweep.py:short_vit

A sweep of your own is a function that returns a SweepSpec. Start from a family's sweep and
replace what you want otherwise; options such as --trials or --set still change the result.
"""

from dataclasses import replace

from orchestrator.spec import named_sweeps, spaces
from orchestrator.spec.run import SweepSpec


def short_vit() -> SweepSpec:
    """A ViT on digits: two axes searched, the others fixed, six trials of four epochs."""
    sweep = named_sweeps.family_sweep("vit", dataset="digits", trials=6, max_epochs=4)
    return replace(
        sweep,
        recipe=replace(sweep.recipe, augment="light", weight_decay=0.05, warmup_epochs=0.5),
        space={
            "recipe.learning_rate": spaces.LogUniform(3e-4, 1e-2, "around the usual 1e-3"),
            "backbone.patch": spaces.Choice((4, 8), "64 or 16 tokens of a 32-pixel image"),
        },
        scheduler=replace(sweep.scheduler, grace_epochs=1, reduction_factor=2),
    )
