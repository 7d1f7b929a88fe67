"""The same bits from the same seed on a GPU, as far as its operators can, and the names of those that cannot."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator

from bench.records import Flag

MESSAGE = r"(\S+) does not have a deterministic implementation|.*not deterministic because it uses (CuBLAS)"
"""How torch warns of an operator that gives other bits each time."""


@contextlib.contextmanager
def deterministic_algorithms(phase: str, flags: list[Flag]) -> Iterator[None]:
    """Choose algorithms that repeat themselves to the last bit; operators without one are named in a flag.

    Afterwards all is as before: some of them are slower.
    """
    import torch

    cudnn, names = torch.backends.cudnn, set[str]()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_before = cudnn.deterministic
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *where: object, **more: object) -> None:
            if found := re.match(MESSAGE, str(message)):
                names.add(found[1] or found[2])
            else:
                show(message, *where, **more)  # type: ignore[arg-type]

        warnings.filterwarnings("default", message=MESSAGE)
        warnings.showwarning = note
        torch.use_deterministic_algorithms(True, warn_only=True)
        cudnn.deterministic = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.deterministic = cudnn_before
            if names:
                message = (
                    f"{', '.join(sorted(names))} have no deterministic form on this device: the same seed gives "
                    "another result in its last digits each time"
                )
                flags.append(Flag(kind="not_deterministic", phase=phase, message=message))
