"""Image folders: ``train/CLASS/…``, with ``val/`` and ``test/`` if there are, or ``CLASS/…``.

Which folder is a split, which a class, and which neither. Where that is open the folder is refused
in words: a split that is taken for a class, or a class that shrinks, is a wrong result that nobody
sees.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from trainables.config import DataSpec
from trainables.data.groups import groups_of_paths, pattern_of
from trainables.data.labels import any_missing, warn_of_alike
from trainables.data.listing import Listing, Tree
from trainables.data.pictures import Item, read_pictures
from trainables.data.split_names import is_part, is_unlabelled, split_of_folder
from trainables.data.store import Reading, Source, file_stamp, require_train_classes
from trainables.errors import UserError, raise_if_any
from trainables.storage.pointers import why_absent

log = logging.getLogger(__name__)

SAMPLED_IMAGES = 512
MAYBE_WIDE = (".tif", ".tiff", ".pgm", ".pnm", ".pfm")
NAMED = 3
LAYOUT_HELP = "expected CLASS/picture.jpg, or train/CLASS/picture.jpg with val/ and test/"
DATE = re.compile(r"(?:19|20)\d\d(?:[-_. ]?\d\d){0,2}")  # folders of a class may be by date
Classes = dict[tuple[str, str], Listing]  # what a class's folder holds, by split and class


def locate(path: Path, spec: DataSpec) -> Source:
    """An image folder whose layout is right; decodes no image.

    Raises ``UserError`` where it is empty or has one class only, where splits, folds or pictures
    without labels would be taken for classes, where a split has classes that train lacks, where
    files of pictures are not there, where a class would vanish, and where a picture has no group.
    """
    tree = Tree()
    roots = _split_roots(path, tree)
    classes = {
        (split, folder.name): tree.contents(folder)
        for split, root in roots.items()
        for folder in tree.holding(root)
    }
    names = tuple(name for split, name in classes if split == "train")
    _require_classes(path, roots, classes, tree)
    _require_pictures(roots, classes, spec)
    files = {place: held.pictures for place, held in classes.items()}
    groups = {} if spec.group is None else _groups(path, spec.group, files)

    def identity() -> list[Any]:
        stamps = [[str(path.resolve())], *map(file_stamp, chain.from_iterable(files.values()))]
        # Stores of such pictures from before their values were scaled by their range are not used.
        wide = any(stamp[0].lower().endswith(MAYBE_WIDE) for stamp in stamps)
        return [*stamps, ["values scaled by their range"]] if wide else stamps

    def items(wanted: str) -> Iterator[Item]:
        for (split, name), pictures in files.items():
            if split == wanted:
                label = names.index(name)
                yield from (Item(file, file, label, groups.get(file)) for file in pictures)

    def read() -> Reading:
        _log_unused(path, roots, classes, tree)
        train = [item.picture for item in items("train")]
        return read_pictures(
            tuple(map(_printable, names)),
            {split: partial(items, split) for split in roots},
            sample=train[:: -(-len(train) // SAMPLED_IMAGES)],
            count=sum(map(len, files.values())),
            encoded_bytes=sum(file_stamp(file)[1] for file in chain.from_iterable(files.values())),
            spec=spec,
            group_rule=spec.group,
        )

    return Source(name=path.resolve().name, identity=identity, read=read)


def _groups(path: Path, rule: str, files: Mapping[tuple[str, str], list[str]]) -> dict[str, str]:
    """By picture, its group: by the pattern ``rule``, of its path below ``path``."""
    every = list(chain.from_iterable(files.values()))
    below = [Path(file).relative_to(path).as_posix() for file in every]
    return dict(zip(every, groups_of_paths(pattern_of(rule), below), strict=True))


def _printable(name: str) -> str:
    """A folder's name that is no UTF-8 has its bytes written out: every later file is UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _split_roots(path: Path, tree: Tree) -> dict[str, Path]:
    """The folder of each split, the one that holds the class folders; the whole folder is train
    unless it has ``train/CLASS/``. Raises ``UserError`` where that is open."""
    _refuse_dead_links(path, tree)
    folders = tree.holding(path)
    named = [(folder, split_of_folder(folder.name)) for folder in folders]
    splits: dict[str, Path] = {}
    for folder, split in named:
        if split is None or not tree.holding(folder):
            continue
        if split in splits:
            raise UserError(
                f"each split is one folder; {path} has {splits[split].name} and {folder.name} for "
                f"{split}. Fix: join them, or move one away"
            )
        splits[split] = folder
    if not splits:
        _refuse_pseudo_classes(path, folders, tree)
        return {"train": path}
    others = [folder for folder, split in named if split is None and not is_unlabelled(folder.name)]
    if "train" not in splits:
        names = " and ".join(folder.name for folder in splits.values())
        raise UserError(
            f"an image folder with {names} needs train/ beside them; {path} has "
            f"{', '.join(folder.name for folder in others[:5]) or 'none'} ({LAYOUT_HELP}). "
            "Fix: add train/CLASS/ folders, or rename what is no split"
        )
    if others and len(splits) == 1:
        raise UserError(
            f"a folder's subfolders are splits or classes, not both; {path} has "
            f"{splits['train'].name}, which holds class folders, beside "
            f"{', '.join(folder.name for folder in others[:5])}. Fix: --dataset {splits['train']}, "
            "or rename it where it is a class"
        )
    train = _unwrapped(splits["train"], tree)
    taken = {folder.name for folder in tree.holding(train)}
    roots = {"train": train}
    for split, folder in splits.items():
        if split != "train":
            roots[split] = _unwrapped(folder, tree, taken)
    for root in roots.values():
        _refuse_dead_links(root, tree)
        _refuse_pseudo_classes(root, tree.holding(root), tree, is_split=True)
    return {split: roots[split] for split in ("train", "val", "test") if split in roots}


def _unwrapped(folder: Path, tree: Tree, classes: Collection[str] = ()) -> Path:
    """The folder itself, or where it only holds another that holds the class folders, that one: as
    archives are unpacked, ``train/train/CLASS`` and ``train/images/CLASS``."""
    while True:
        inside = tree.holding(folder)
        only = inside[0] if len(inside) == 1 and not tree.listing(folder).pictures else None
        if only is None or only.name in classes or len(tree.holding(only)) < (1 if classes else 2):
            return folder
        folder = only


def _refuse_dead_links(path: Path, tree: Tree) -> None:
    """A link to a folder that is not mounted would be a class, or a split, less."""
    dead = tree.listing(path).dead_links
    if dead:
        reasons = ", ".join(f"{link} ({why_absent(Path(link))})" for link in dead[:NAMED])
        raise UserError(
            f"every class folder must be there; these are not: {reasons}. "
            "Fix: mount or fetch what they lead to, or remove them"
        )


def _refuse_pseudo_classes(
    path: Path, folders: Sequence[Path], tree: Tree, *, is_split: bool = False
) -> None:
    """Raise ``UserError`` where ``folders``, which would be the classes in ``path``, are splits,
    folds, or pictures without labels, or hold the classes themselves."""
    if len(folders) == 1 and not is_split:
        deepest = _deepest(folders[0], tree)
        inside = tree.holding(deepest)
        if len(inside) > 1:
            raise UserError(
                f"a dataset needs at least two classes; {path} has only {folders[0].name!r}, where "
                f"{deepest} holds the folders {', '.join(sub.name for sub in inside[:5])} "
                f"({LAYOUT_HELP}). Fix: --dataset {deepest}"
            )
    kinds = {folder.name: split_of_folder(folder.name) for folder in folders}
    split_names = [name for name, split in kinds.items() if split]
    if len({split for split in kinds.values() if split}) > 1 or (
        split_names and len(split_names) == len(folders)
    ):
        _refuse(path, split_names, "splits by their names, and hold no class folders")
    unlabelled = [folder.name for folder in folders if is_unlabelled(folder.name)]
    if any_missing(tuple(kinds)):
        unlabelled.append("-1")
    if unlabelled:
        _refuse(path, unlabelled, "pictures without labels by their names")
    parts = [folder.name for folder in folders if is_part(folder.name)]
    if len(parts) > 1 and len(parts) == len(folders):
        _refuse(path, parts, "parts of a data set by their names")
    inside_by_name = {
        folder.name: {
            name
            for sub in tree.holding(folder)
            if not DATE.fullmatch(name := sub.name.strip().lower())
        }
        for folder in folders
    }
    holders = Counter(name for inside in inside_by_name.values() for name in inside)
    shared = sorted(name for name, count in holders.items() if count > 1)
    # One folder in all of them may be where each class keeps its pictures; beside others in some,
    # the rest is more likely a fold that lacks the other classes.
    sizes = {len(inside) for inside in inside_by_name.values() if inside & set(shared)}
    lacks_some = len(shared) == 1 and 1 in sizes and len(sizes) > 1
    within = [
        name
        for name, inside in inside_by_name.items()
        if len({split_of_folder(sub) for sub in inside} - {None}) > 1
    ]
    inner_splits = [name for name in shared if split_of_folder(name)]
    if len(shared) > 1 or lacks_some or inner_splits or within:
        which = [name for name, inside in inside_by_name.items() if inside & set(shared)] or within
        examples = ", ".join((shared or sorted(inside_by_name[within[0]]))[:4])
        _refuse(path, which, f"no classes: they hold the same folders ({examples})")


def _refuse(path: Path, names: Sequence[str], why: str) -> None:
    shown = f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
    raise UserError(
        f"the folders in {path} must be classes, or train, val and test with class folders; "
        f"{shown} are {why} ({LAYOUT_HELP}). Fix: give the folder above the classes as --dataset, "
        "or rename or move away what is no class"
    )


def _deepest(folder: Path, tree: Tree) -> Path:
    """The first folder from here down that holds more than one with pictures."""
    inside = tree.holding(folder)
    while len(inside) == 1:
        folder, inside = inside[0], tree.holding(inside[0])
    return folder


def _require_classes(path: Path, roots: Mapping[str, Path], classes: Classes, tree: Tree) -> None:
    """Raise ``UserError`` where train has not two classes, or another split has one that train
    lacks."""
    names = [name for split, name in classes if split == "train"]
    if not names:
        raise UserError(
            f"an image folder needs pictures in one folder per class; {path} has none "
            f"({LAYOUT_HELP}). Fix: {_where_classes_are(path, tree)}"
        )
    if len(names) == 1:
        raise UserError(
            f"a dataset needs at least two classes; {path} has only {names[0]!r} ({LAYOUT_HELP}). "
            "Fix: add the other classes' folders, or give the folder above"
        )
    for split, root in roots.items():
        seen = [name for of, name in classes if of == split]
        every = [*names, *(name for name in seen if name not in names)]
        numbers = [every.index(name) for name in seen]
        require_train_classes(str(root), every, range(len(names)), split, numbers)


def _where_classes_are(path: Path, tree: Tree) -> str:
    listing = tree.listing(path)
    if listing.pictures and len(tree.holding(path.resolve().parent)) > 1:
        return f"--dataset {path.resolve().parent}, the folder above, if its folders are classes"
    return "give the folder that holds the class folders"


def _require_pictures(roots: Mapping[str, Path], classes: Classes, spec: DataSpec) -> None:
    """Raise ``UserError`` where files of pictures are not here, and where a class has only files
    that are not read as pictures."""
    mistakes = []
    for (split, name), held in classes.items():
        if not set(held.pictures) - set(held.absent) and (held.unread or held.absent):
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in held.unread.most_common(5))
            only = kinds or f"{len(held.absent)} whose files are not here"
            mistakes.append(
                f"a class must not vanish; {roots[split] / name} has no picture that can be read: "
                f"{only}. Fix: store them as JPEG or PNG, fetch them, or remove the folder"
            )
    raise_if_any(mistakes)
    lost = [file for held in classes.values() for file in (*held.absent, *held.dead_links)]
    if lost and not spec.skip_corrupt:
        reasons = [f"{file} ({why_absent(Path(file))})" for file in lost[:NAMED]]
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        raise UserError(
            f"every picture must be there; these are not: {', '.join(reasons)}{more}. Fix: fetch "
            "or remove them, or leave them out with --set data.skip_corrupt=true"
        )


def _log_unused(path: Path, roots: Mapping[str, Path], classes: Classes, tree: Tree) -> None:
    """Say what of the folder is not used, with counts."""
    beside = [tree.listing(root) for root in dict.fromkeys((*roots.values(), path))]
    every = [*classes.values(), *beside]
    strays = sum(one.strays for one in every)
    if strays:
        log.info(f"{strays} files ignored: their names are not those of pictures")
    loose = sum(len(one.pictures) for one in beside)
    if loose:
        log.warning(f"warning: {loose} pictures beside the class folders of {path} are in no class")
    unread = sum((one.unread for one in every), Counter[str]())
    if unread:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in unread.most_common(5))
        log.warning(
            f"warning: {unread.total()} files of {path} are not read as pictures: {kinds}. "
            "Fix: store pictures as JPEG or PNG"
        )
    names = [name for split, name in classes if split == "train"]
    warn_of_alike(path, names)
    if roots["train"] != path:
        for folder in tree.subfolders(path):
            if not any(root == folder or folder in root.parents for root in roots.values()):
                count = len(tree.contents(folder).pictures)
                held = f"; it has {count} pictures" if count else ""
                log.info(f"{folder} is not used: it is not a split with class folders{held}")
    train = roots["train"]
    empty = [folder.name for folder in tree.subfolders(train) if folder.name not in names]
    if empty:
        log.info(f"{len(empty)} folders without a picture are no class: {', '.join(empty[:5])}")
