"""A pickle reader for CIFAR's python archives that admits numpy arrays and containers only."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy._core import numeric
from numpy._core.multiarray import _reconstruct


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes ``bytes`` in old protocols; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} is not admitted")
    return text.encode("latin1")


_frombuffer = vars(numeric)["_frombuffer"]  # private, so unknown to the type stubs
ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def load_arrays(file: IO[bytes]) -> dict[str, Any]:
    """The dict pickled in ``file`` (by Python 2 or 3), its keys as ``str``.

    Raises ``pickle.UnpicklingError`` on anything but arrays, containers, text and numbers: what
    a pickle names is looked up in a fixed table and never imported.
    """
    try:
        value = _ArraysOnly(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise pickle.UnpicklingError(f"broken pickle: {error}") from None
    if not isinstance(value, dict):
        raise pickle.UnpicklingError(f"holds a {type(value).__name__}, not a dict")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in value.items()}
