"""What the benchmarks share: pictures, the record of a measurement, its spread."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.ledger.session import environment

ROOT = Path(__file__).parents[1]
NATURAL_IMAGES = ROOT.parent / "shared" / "data" / "cifar10-train.parquet"
RESULTS = Path(__file__).parent / "results"
NOISE_IMAGES = 2048


def arguments(
    description: str | None, result: str, *, reads_pictures: bool = True
) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if reads_pictures:
        parser.add_argument("--data", type=Path, help="Parquet of encoded images and labels")
    parser.add_argument("--out", type=Path, default=RESULTS / result, help="result file")
    parser.add_argument(
        "--quick", "--smoke", action="store_true", help="as small as can be: a smoke test"
    )
    return parser


def pictures(chosen: Path | None, folder: Path, *, quick: bool = False) -> Path:
    """The Parquet to read: the one chosen, natural images beside the checkout, or noise; of what
    is not chosen a little noise where it has to be ``quick``."""
    if chosen is not None:
        return chosen
    if quick:
        return noise(folder / "noise.parquet", images=512)
    return NATURAL_IMAGES if NATURAL_IMAGES.is_file() else noise(folder / "noise.parquet")


def noise(path: Path, images: int = NOISE_IMAGES, side: int = 32, classes: int = 10) -> Path:
    """Write random pixels as JPEG in Hugging Face's layout: the work of pictures without any."""
    generator = np.random.default_rng(0)
    encoded = []
    for pixels in generator.integers(0, 256, (images, side, side, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    column = pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    labels = pa.array(np.arange(images) % classes, pa.int64())
    pq.write_table(pa.table({"image": column, "label": labels}), path)
    return path


def spread(values: list[float]) -> dict[str, float | int]:
    """Median, quartiles (the value itself where there is one) and n."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0], "n": 1}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def in_words(row: dict[str, float | int]) -> str:
    """A :func:`spread` for the line that is printed as soon as it is known."""
    return f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}] n={row['n']}"


def largest_rss_mb() -> float:
    """Of this process. Not ``ru_maxrss``, which begins with that of the process it came from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _short(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path)


def finish(result: dict[str, Any], out: Path, summary: dict[str, Any]) -> None:
    """Write ``result`` with date, versions and hardware to ``out``; print ``summary`` last."""
    import torch  # here: a benchmark of memory wants it out of its processes

    facts: dict[str, Any] = {
        "schema": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": {
            **environment().as_dict(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load_average_1_min": os.getloadavg()[0],
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**facts, **summary, **result}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"schema": 1, **summary, "result": _short(out)}), flush=True)
