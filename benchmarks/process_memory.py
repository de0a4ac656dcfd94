"""Resident memory of this process, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path


def resident() -> int:
    """Bytes now."""
    return _bytes("VmRSS")


def peak() -> int:
    """Bytes at most since `forget_peak`, or since the process began."""
    return _bytes("VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _bytes(key: str) -> int:
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
