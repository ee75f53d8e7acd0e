"""Machines of a test's own: network namespaces, each with a cable to a switch."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SUBNET = "10.77.0"


@dataclass(frozen=True)
class Lan:
    """``prefix`` tells its namespaces from those of others; machines are known by their names."""

    prefix: str
    machines: tuple[str, ...]

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def address(self, machine: str) -> str:
        return f"{SUBNET}.{1 + self.machines.index(machine)}"

    def on(self, machine: str) -> list[str]:
        """What to put before a command, so that it runs there."""
        return ["ip", "netns", "exec", self.namespace(machine)]

    def cut(self, machine: str) -> None:
        """Pull the cable: packets vanish, no connection is closed."""
        ip("-n", self.namespace("switch"), "link", "set", machine, "down")

    def processes(self, machine: str) -> set[int]:
        return {int(pid) for pid in ip("netns", "pids", self.namespace(machine)).split()}


def ip(*arguments: str) -> str:
    """Raises ``OSError`` with what the command said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def lan(*machines: str) -> Iterator[Lan]:
    """Skips the test, with the reason, where namespaces cannot be had."""
    net = Lan(f"lan{secrets.token_hex(4)}", machines)
    try:
        try:
            lay(net)
        except OSError as refusal:
            pytest.skip(f"needs root and network namespaces: {refusal}")
        yield net
    finally:
        for name in (*machines, "switch"):
            if Path("/run/netns", net.namespace(name)).exists():
                for pid in net.processes(name):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                ip("netns", "delete", net.namespace(name))


def lay(net: Lan) -> None:
    """The switch has a namespace of its own, so that nothing of this is seen by the machine."""
    switch = net.namespace("switch")
    ip("netns", "add", switch)
    ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    ip("-n", switch, "link", "set", "bridge", "up")
    for machine in net.machines:
        there = net.namespace(machine)
        ip("netns", "add", there)
        cable = ("type", "veth", "peer", "name", "eth0", "netns", there)
        ip("-n", switch, "link", "add", machine, *cable)
        ip("-n", switch, "link", "set", machine, "master", "bridge", "up")
        ip("-n", there, "address", "add", f"{net.address(machine)}/24", "dev", "eth0")
        ip("-n", there, "link", "set", "lo", "up")
        ip("-n", there, "link", "set", "eth0", "up")
        # Without a road to anywhere Ray would not find the machine's own address.
        ip("-n", there, "route", "add", "default", "dev", "eth0")
