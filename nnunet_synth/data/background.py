"""A loader in processes of its own, whose user errors reach the training instead of a worker's traceback."""

from __future__ import annotations

from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

from nnunet_synth.errors import UserError

ERROR = "nnunet_synth_user_error"


class BackgroundLoader(NonDetMultiThreadedAugmenter):
    """nnU-Net's own way to run a loader in processes.

    Raises:
        UserError: from `next`, where the loader raised it in its process.
    """

    def __init__(self, loader: Any, **options: Any) -> None:
        super().__init__(data_loader=_Carrier(loader), transform=None, **options)

    def __next__(self) -> dict[str, Any]:
        batch = super().__next__()
        if ERROR in batch:
            self._finish()
            raise UserError(batch[ERROR])
        return batch


class _Carrier:
    """A loader that hands a user error on as if it were a batch."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> _Carrier:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self.loader)
        except UserError as error:
            return {ERROR: str(error)}

    def set_thread_id(self, number: int) -> None:
        self.loader.set_thread_id(number)
