"""How long something took on the training's device, without making the device wait for it."""

from __future__ import annotations

from time import perf_counter

import torch


class Clock:
    """Start and stop are marks in CUDA's stream; only who reads `seconds` waits for the device. On the CPU the wall."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = torch.device(device).type == "cuda"
        self._marks: list[torch.cuda.Event | float] = []

    def start(self) -> None:
        self._marks = [self._mark()]

    def stop(self) -> None:
        self._marks.append(self._mark())

    @property
    def seconds(self) -> float:
        """Between the last start and stop; 0 before the first."""
        if len(self._marks) < 2:
            return 0.0
        started, stopped = self._marks
        if not self._is_cuda:
            return stopped - started
        stopped.synchronize()
        return started.elapsed_time(stopped) / 1000

    def _mark(self) -> torch.cuda.Event | float:
        if not self._is_cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
