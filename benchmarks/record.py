"""Where results go, and what must stand beside every figure: the device, the versions, the date, how busy it was."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from nnunet_synth.atomic import write_json

RESULTS = Path(__file__).parent / "results"


def write_result(result: dict[str, Any], name: str, device: torch.device, output: Path | None = None) -> None:
    """Write `benchmarks/results/<name>_<device>.json`, or `output`."""
    output = output or RESULTS / f"{name}_{device.type}.json"
    write_json({**circumstances(device), **result}, output)
    print(f"written to {output}")


def circumstances(device: torch.device) -> dict[str, Any]:
    return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "device": device_name(device),
            "threads": torch.get_num_threads(), "load_average": os.getloadavg()[0],
            "versions": {"torch": torch.__version__, "python": platform.python_version()}}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {os.cpu_count()} cores"
