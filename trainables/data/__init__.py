"""Images: any source -> the pixel store that all workers of a node map."""

from trainables.data.build import prepare
from trainables.data.reading import default_folder
from trainables.data.sources import check_source
from trainables.data.splits import train_indices
from trainables.data.store import DatasetInfo, PixelStore, Split

__all__ = [
    "DatasetInfo",
    "PixelStore",
    "Split",
    "check_source",
    "default_folder",
    "prepare",
    "train_indices",
]
