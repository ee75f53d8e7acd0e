"""Steps of training use freed memory again without asking the kernel; at the end it goes back."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys

import pytest

# In a thread that is not the first, as in a slot: such threads have heaps of their own.
STEPS = """
import json, resource, sys, threading
from pathlib import Path
import torch
from trainables.config import BackboneSpec
from trainables.backbones import build
from trainables.train.memory import freed_memory_kept

def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20

def step(module, images):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    module.zero_grad()
    module(images).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def run():
    torch.set_num_threads(1)
    spec = BackboneSpec(family="resnet", weights="none")
    module = build(spec, num_classes=10, height=32, width=32).module
    with freed_memory_kept(sys.argv[1]):
        faults = [step(module, torch.zeros(32, 3, 32, 32)) for _ in range(16)]
        within_mb = resident_mb()
    told = {"faults": faults, "within_mb": within_mb, "after_mb": resident_mb()}
    print(json.dumps(told))

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def trained(device: str) -> tuple[list[int], float]:
    """Page faults of each step, and how many MB are given back at the end."""
    command = [sys.executable, "-c", STEPS, device]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(ran.stdout)
    return told["faults"], told["within_mb"] - told["after_mb"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_what_was_freed_is_used_again_and_given_back_at_the_end() -> None:
    (kept, given_back_mb), (by_default, _) = trained("cpu"), trained("cuda")
    assert kept[0] > 10_000
    # the first steps move blocks to where they fit; one later may, now and then
    assert statistics.median(kept[-8:]) < 500
    assert statistics.median(by_default[-8:]) > 2_000, "there is nothing left to mend"
    assert given_back_mb > 30
