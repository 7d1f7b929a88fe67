"""The reference workload that baselines are kept relative to: the network's own operators, as they once were.

A baseline is measured at one time and compared with at another, when the machine may be slower or faster, and more so
for one kind of operator than for another. Both times the network is timed in turn with a workload that stays the same,
and the two ratios are compared. That workload is what one step of the network computes when the baseline is saved: its
operators in their order, with the shapes, strides and types of what they work on. The baseline keeps the list, and
replaying it (`bench.gate.timing.replay`) needs none of the network's code, so it follows the machine as the network
does, whatever the mixture of dense, depthwise, streaming and element-wise work. Imports no torch.
"""

from __future__ import annotations

from typing import Any

REFERENCE = "operators-1"
"""The name of the workload, with its version. **Whatever changes what is recorded or replayed changes it**: baselines
that name another are refused."""
OPERATORS = frozenset(
    f"{name}.{overload}"
    for overload, names in {
        "default": "convolution addmm mm bmm baddbmm native_batch_norm native_layer_norm native_group_norm relu "
        "hardtanh hardswish hardsigmoid silu gelu sigmoid tanh elu leaky_relu max_pool2d_with_indices avg_pool2d "
        "_adaptive_avg_pool2d upsample_bilinear2d upsample_nearest2d constant_pad_nd _softmax cat",
        "Tensor": "add sub mul div",
        "dim": "mean",
    }.items()
    for name in names.split()
)
"""What is replayed, as overloads of ``torch.ops.aten``: nothing that reads or writes more than its tensors, since the
list comes from a file. Views cost nothing, and the rest is left out."""

Workload = dict[str, Any]
"""``operators``, each with its ``name`` and ``arguments``, and ``order``: the index of each one that a step calls.

Tensors among the arguments have a ``shape``, a ``stride`` and a ``dtype``. One that an earlier call made has ``back``,
how many calls before this one that was, and the ``offset`` in its storage; any other has ``trained``, whether the step
trains it.
"""


class WorkloadError(ValueError):
    """A stored workload that cannot be replayed."""


def check_workload(workload: Workload) -> Workload:
    """The workload itself. Raises `WorkloadError` for one that was not recorded from a network."""
    try:
        names = [operator["name"] for operator in workload["operators"]]
        calls = [names[index] for index in workload["order"] if index >= 0]
    except (KeyError, TypeError, IndexError) as error:
        raise WorkloadError(f"expected operators and their order, found {error!r}") from error
    unknown = sorted({str(name) for name in names} - OPERATORS)
    if unknown or len(calls) < len(workload["order"]):
        raise WorkloadError(f"no operators of a reference workload: {', '.join(unknown) or 'negative indices'}")
    return workload
