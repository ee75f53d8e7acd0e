"""What the name of a folder or file says of the split that is in it.

A name is of a split where all of its words are about splits or about pictures: ``training_set``,
``seg_train`` and ``imagesVal2017`` are, ``train_station`` and ``contest`` are not.
"""

from __future__ import annotations

import re

SPLIT_WORDS = {
    "train": ("train", "training", "trn", "trainset", "trainingset", "traindata"),
    "val": ("val", "valid", "validation", "validate", "validating", "dev", "eval", "evaluation",
            "valset", "validset", "validationset", "devset", "evalset"),
    "test": ("test", "testing", "tst", "testset", "testingset", "testdata", "holdout", "heldout"),
}  # fmt: skip
SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
# Words that say nothing of which split it is.
NEUTRAL = frozenset(
    ("set", "sets", "split", "splits", "data", "dataset", "datasets", "images", "image", "imgs",
     "img", "pics", "pictures", "photos", "jpg", "jpeg", "png", "jpegs", "seg", "cls", "cropped",
     "resized", "folder", "dir", "files", "samples", "part", "raw", "processed", "final", "new",
     "original", "full", "all", "the", "of", "for", "data1", "labelled", "labeled", "public")
)  # fmt: skip
UNLABELLED_WORDS = frozenset(
    ("unlabeled", "unlabelled", "unlabel", "nolabel", "nolabels", "unsup", "unsupervised")
)
# Of folders: what is to be predicted, in competitions.
TO_PREDICT = UNLABELLED_WORDS | {"pred", "prediction", "predictions", "submission"}
# What is numbered and is no class: fold1, part-02.
PARTS = re.compile(r"(?:fold|folds|cv|kfold|part|batch|chunk|shard|subset|split|partition)s?\d+")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")


def words_of(name: str) -> list[str]:
    """Its words in small letters, without digits: ``imagesVal2017`` is images and val."""
    return [word.lower() for word in WORD.findall(name)]


def split_of_folder(name: str) -> str | None:
    """``train``, ``val`` or ``test``; ``None`` where it has other words too, or of two splits."""
    words = words_of(name)
    splits = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    others = [word for word in words if word not in SPLIT_OF and word not in NEUTRAL]
    return splits.pop() if len(splits) == 1 and not others else None


def is_unlabelled(name: str) -> bool:
    """Whether the folder or file is, by its name, of pictures without labels."""
    words = words_of(name)
    joined = "".join(words)
    return joined in TO_PREDICT or (
        any(word in TO_PREDICT for word in words)
        and all(word in TO_PREDICT or word in NEUTRAL or word in SPLIT_OF for word in words)
    )


def is_part(name: str) -> bool:
    """Whether the name is that of a numbered part, as folds have."""
    return PARTS.fullmatch(re.sub(r"[\W_]+", "", name.lower())) is not None


def split_in_path(parts: tuple[str, ...]) -> str:
    """``train``, ``val`` or ``test`` from a file's stem, or else the names of its folders, the
    nearest first; else ``train``. Any word counts: data files are called ``cifar10-test`` too."""
    for text in reversed(parts):
        for word in re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text)):
            if split := SPLIT_OF.get(word.lower()):
                return split
    return "train"
