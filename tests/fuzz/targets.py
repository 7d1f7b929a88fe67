"""What reads files of others, each as a function of bytes: it returns, or raises an error that its caller expects.

`SEEDS` has valid inputs of each, for the mutations to begin from.
"""

import contextlib
import hashlib
import io
import json
import struct
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from bench.config import load_plan, parse_models, parse_override, parse_seeds
from bench.data.decoding import DECODING_ERRORS, decode_image
from bench.data.sources import load_dataset
from bench.errors import UserError
from bench.events import from_json
from bench.gate.baselines import load_baseline
from bench.gate.pytest_benchmark import import_pytest_benchmark
from bench.records import RunRecord, read_record
from bench.runs.ledger import Ledger
from bench.runs.observers.live import read_live
from bench.runs.shards import parse_shard
from bench.training.checkpoint import STATE, SUMS, WEIGHTS, Checkpoints
from reports.data.loading import load_results
from zoo.checkpoints import read_checkpoint
from zoo.info import ZooError
from zoo.pretrained import METADATA_KEY, saved_preprocessing

Target = Callable[[bytes], None]


IN_MEMORY = Path("/dev/shm")
_OWN = tempfile.TemporaryDirectory(prefix="zoobench-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None)


def _folder() -> Path:
    return Path(_OWN.name)


def _file(name: str, content: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def plan(content: bytes) -> None:
    path = _file("plan.toml", content)
    with contextlib.suppress(UserError):
        load_plan(str(path))


def options(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    for parse in (parse_override, parse_models, parse_seeds, parse_shard):
        with contextlib.suppress(UserError):
            parse(text)


def record(content: bytes) -> None:
    path = _file("plan/runs/r.json", content)
    with contextlib.suppress(UserError):
        read_record(path)
    load_results(_folder() / "plan")


def baseline(content: bytes) -> None:
    _file("baselines/b.json", content)
    with contextlib.suppress(UserError):
        load_baseline(_folder() / "baselines", "b")


def pytest_benchmark(content: bytes) -> None:
    path = _file("benchmark.json", content)
    with contextlib.suppress(UserError):
        import_pytest_benchmark("b", [path])


def event(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        from_json(content)


def live(content: bytes) -> None:
    _file("live/live.json", content)
    with contextlib.suppress(UserError):
        read_live(_folder() / "live")


def _checkpoint(name: str, content: bytes) -> None:
    """One file of a checkpoint, with the checksum that belongs to it: only then is it looked into."""
    files = {WEIGHTS: SEEDS["checkpoint_weights"][0], STATE: SEEDS["checkpoint_state"][0]} | {name: content}
    if name != SUMS:
        files[SUMS] = json.dumps({each: hashlib.sha256(files[each]).hexdigest() for each in (WEIGHTS, STATE)}).encode()
    for each, data in files.items():
        _file(f"checkpoints/step-000000000001/{each}", data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Checkpoints(_folder() / "checkpoints").load()


def checkpoint_sums(content: bytes) -> None:
    _checkpoint(SUMS, content)


def checkpoint_weights(content: bytes) -> None:
    _checkpoint(WEIGHTS, content)


def checkpoint_state(content: bytes) -> None:
    _checkpoint(STATE, content)


def attempts(content: bytes) -> None:
    _file("attempts/checkpoints/run/attempts/0001.json", content)
    ledger = Ledger(str(_folder() / "attempts"), "run", "j")
    ledger.describe()
    ledger.end("killed")
    ledger.begin({"step": 0})
    ledger.describe()
    (_folder() / "attempts/checkpoints/run/attempts/0002.json").unlink()


def weights_torch(content: bytes) -> None:
    _weights("w.pth", content)


def weights_safetensors(content: bytes) -> None:
    _weights("w.safetensors", content)


def _weights(name: str, content: bytes) -> None:
    path = _file(name, content)
    with contextlib.suppress(ZooError):
        read_checkpoint(path)


def weights_metadata(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    path = _file("m.safetensors", save({"w": torch.zeros(1)}, {METADATA_KEY: text}))
    with contextlib.suppress(ZooError):
        saved_preprocessing(path)


def image(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels, _ = decode_image(io.BytesIO(content), 8)
        except DECODING_ERRORS:
            return
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8


def parquet(content: bytes) -> None:
    path = _file("parquet/train.parquet", content)
    _file("parquet/test.parquet", SEEDS["parquet"][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UserError):
            load_dataset(f"parquet:{path.parent}", size=8)


def _image_bytes(format: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7), 100 if mode != "RGB" else (100, 50, 20)).save(buffer, format)
    return buffer.getvalue()


def _parquet_bytes() -> bytes:
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": _image_bytes("PNG"), "path": None}] * 4, image_type)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"img": images, "label": pa.array([0, 1, 0, 1])}), buffer)
    return buffer.getvalue()


def _torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


RECORD = RunRecord(
    run_id="r", status="completed", config={"model": "lenet5", "seed": 0}, environment={"started_at": "2026-01-02"},
    metrics={"test_top1": 0.5, "macs": 10**6}, history=[{"epoch": 0, "train_loss": 1.0}],
    samples={"test_calibration": [[0.5, 0.5, 2]]},
).model_dump_json().encode()  # fmt: skip
PLAN = b'models = ["lenet5", "vgg*"]\nseeds = [0, 1]\nrecipe = { base = "quick", lr = 0.1 }\n[budget]\nseconds = 2.0'
BENCHMARK = json.dumps(
    {
        "machine_info": {"cpu": {"brand_raw": "c"}}, "commit_info": {"id": "a", "dirty": False},
        "datetime": "2026-01-01T00:00:00", "version": "5.1",
        "benchmarks": [{"name": "t", "fullname": "f::t", "stats": {"data": [0.1, 0.2, 0.3], "iterations": 1}}],
    }
).encode()  # fmt: skip
DEEP = b"[" * 100_000
SEEDS: dict[str, list[bytes]] = {
    "plan": [PLAN, b"models = " + DEEP, b"models = ['a']\nseeds = [9223372036854775808]\n"],
    "options": [b"2/4", b"recipe.lr=0.1", b"0-4,7", b"a=[" + DEEP, b"0-99999999999", b"1" * 5000],
    "record": [RECORD, DEEP, b'{"schema_version": 1, "metrics": {"macs": 1' + b"0" * 5000 + b"}}", RECORD[:60]],
    "baseline": [b'{"schema_version": 1, "name": "b", "entries": {}}', DEEP],
    "pytest_benchmark": [BENCHMARK, DEEP, BENCHMARK.replace(b"0.1", b"1e400"), BENCHMARK.replace(b'"b"', DEEP)],
    "event": [b'{"event":"phase","phase":"load"}', DEEP],
    "live": [b'{"updated_at": "x", "runs": [{"run_id": "r", "model": "m", "seed": 0}]}', DEEP],
    "checkpoint_sums": [b'{"weights.safetensors": "a", "state.pt": "b"}', b"[]", b"null", DEEP],
    "checkpoint_weights": [save({"w": torch.zeros(3)}), struct.pack("<Q", 2**63) + b"{}"],
    "checkpoint_state": [_torch_bytes({"step": 3, "rng": torch.zeros(4)})],
    "attempts": [b'{"started_at": "x", "job_id": "j", "step": 1}', DEEP],
    "weights_torch": [_torch_bytes({"conv.weight": torch.zeros(2, 3, 1, 1), "conv.bias": torch.zeros(2)})],
    "weights_safetensors": [save({"conv.weight": torch.zeros(2, 3, 1, 1)}, {"a": "b"})],
    "weights_metadata": [
        b'{"mean": [0.5], "std": [0.5], "input_size": 8, "interpolation": "bilinear", "crop_pct": 1.0}',
        b"[]",
        DEEP,
    ],
    "image": [
        _image_bytes(*kind) for kind in (("PNG",), ("JPEG",), ("GIF", "P"), ("BMP",), ("TIFF", "I;16"), ("WEBP",))
    ],
    "parquet": [_parquet_bytes()],
}
TARGETS: dict[str, Target] = {name: globals()[name] for name in SEEDS}
assert tomllib.loads(PLAN.decode())
