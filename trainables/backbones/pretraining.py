"""What published weights have learned from, read from the tag that timm gives them.

A tag lists its data in the order of training, ``laion2b_ft_in12k_in1k``, and says where the model
was distilled (``dist``). What no tag says is not known: ``None``, never a guess. No timm here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby


class Corpus(StrEnum):
    """Images that weights were trained on.

    ImageNet-21k and -22k are one: the release of 2011, of which authors count 21,841 to 21,843
    classes. ImageNet-12k is timm's subset of it, of the classes with enough images.
    """

    IN1K = "ImageNet-1k"
    IN12K = "ImageNet-12k"
    IN21K = "ImageNet-21k"
    INSTAGRAM = "Instagram"
    JFT = "JFT"
    YFCC = "YFCC"
    LAION_400M = "LAION-400M"
    LAION_2B = "LAION-2B"
    LAION_AESTHETIC = "LAION-Aesthetic"
    OPENAI = "OpenAI's 400M pairs"
    WEBLI = "WebLI"
    METACLIP = "MetaCLIP"
    DATACOMP = "DataComp"
    DFN = "DFN"
    LVD = "LVD"
    MERGED = "EVA's Merged"
    CC12M = "CC12M"
    SA1B = "SA-1B"
    SAT493M = "SAT-493M"


# By a part of a tag. Parts that name no data (``a1``, ``augreg``, ``384``) are not here.
CORPORA: Mapping[str, Corpus] = {
    "in1k": Corpus.IN1K, "in12k": Corpus.IN12K, "in21k": Corpus.IN21K, "in22k": Corpus.IN21K,
    "inw21k": Corpus.IN21K, "fcmae": Corpus.IN1K,  # ConvNeXt V2 masks the images of ImageNet-1k
    "ig1b": Corpus.INSTAGRAM, "swag": Corpus.INSTAGRAM, "seer": Corpus.INSTAGRAM,
    "jft": Corpus.JFT, "yfcc100m": Corpus.YFCC, "yfcc15m": Corpus.YFCC,
    "laion400m": Corpus.LAION_400M, "laion2b": Corpus.LAION_2B, "laiona": Corpus.LAION_AESTHETIC,
    "openai": Corpus.OPENAI, "webli": Corpus.WEBLI, "metaclip": Corpus.METACLIP,
    "metaclip2": Corpus.METACLIP, "datacomp1b": Corpus.DATACOMP, "datacompxl": Corpus.DATACOMP,
    "dfn2b": Corpus.DFN, "dfn5b": Corpus.DFN, "dfndr2b": Corpus.DFN, "lvd142m": Corpus.LVD,
    "lvd1689m": Corpus.LVD, "merged2b": Corpus.MERGED, "m30m": Corpus.MERGED,
    "m38m": Corpus.MERGED, "cc12m": Corpus.CC12M, "sa1b": Corpus.SA1B, "sat493m": Corpus.SAT493M,
}  # fmt: skip
TEACHERS = ("dist", "distilled", "ssl", "ssld", "swsl", "usi", "tinyclip")
FINE_TUNED = "ft"  # the parts before it are of another training
# Of heads, where the tag names no data.
CLASSES = {21_841: Corpus.IN21K, 21_842: Corpus.IN21K, 21_843: Corpus.IN21K, 11_821: Corpus.IN12K}
FROM_SCRATCH = "none"


@dataclass(frozen=True)
class Pretraining:
    """What weights have learned from: ``corpora`` in the order of training, and whether a teacher
    taught them, whose own data are not counted."""

    corpora: tuple[Corpus, ...]
    distilled: bool = False

    def __str__(self) -> str:
        return ", then ".join(self.corpora) + ", distilled" * self.distilled


def pretraining_of(
    tag: str | None, *, model: str = "", classes: int | None = None
) -> Pretraining | None:
    """What timm's ``tag`` says of the weights of ``model``, whose published head has so many
    ``classes``; ``None`` where neither says all of it."""
    parts = (tag or "").split("_")
    distilled = bool({*TEACHERS} & {*parts, *re.split(r"[._]", model)})
    if FINE_TUNED in parts and not any(
        part in CORPORA for part in parts[: parts.index(FINE_TUNED)]
    ):
        return None
    # masked and then trained on the same images is one training on them
    named = tuple(corpus for corpus, _ in groupby(CORPORA[p] for p in parts if p in CORPORA))
    if not named and classes in CLASSES:
        named = (CLASSES[classes],)
    return Pretraining(named, distilled) if named else None
