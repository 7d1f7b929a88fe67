"""What every page of a report is: a pure function of one plain JSON value, its snapshot, which it carries.

So a page can be made again from what it carries, and compared: `reports.pages.verify`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from reports.data.safety import visible

SCHEMA = 2
Snapshot = dict[str, Any]


def new_snapshot(kind: str, **content: Any) -> Snapshot:
    """A snapshot for a page of that kind, as it will be read back from the page: JSON has no tuples."""
    head = {"schema": SCHEMA, "kind": kind, "made_with": versions()}
    return dict(json.loads(to_json(head | content)))


def to_json(snapshot: Snapshot) -> str:
    """The one text of a snapshot: ASCII, and harmless inside a script element."""
    plain = json.dumps(snapshot, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def versions() -> dict[str, str]:
    """The versions of what makes a page."""
    return {name: _version(name) for name in ("zoobench", "matplotlib", "seaborn", "pandas")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def pack_array(array: NDArray[Any]) -> dict[str, Any]:
    """An array of numbers or text as JSON; equal arrays may differ in ``zlib`` where the library's version does."""
    raw = np.ascontiguousarray(array).tobytes()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "zlib": base64.b64encode(zlib.compress(raw)).decode()}


def unpack_array(packed: dict[str, Any]) -> NDArray[Any]:
    """The array of `pack_array`. Raises `ValueError`, or `zlib.error`, if it is damaged."""
    raw = zlib.decompress(base64.b64decode(packed["zlib"]))
    return np.frombuffer(raw, dtype=np.dtype(packed["dtype"])).reshape(packed["shape"])


def digest(data: str) -> str:
    """The hash of an embedded snapshot that a page shows."""
    return hashlib.sha256(data.encode()).hexdigest()


def render(template: str, snapshot: Snapshot, **context: Any) -> str:
    """A page from one of our templates: autoescape on, style and script inlined and allowed by their hashes alone."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports.pages", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    data, style, script = to_json(snapshot), asset("page.css"), asset("page.js")
    policy = (
        f"default-src 'none'; script-src '{content_hash(script)}'; style-src '{content_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Our own two files, and a JSON text with < > & escaped: the only values that are not escaped by the template.
    trusted = {"style": Markup(style), "script": Markup(script), "data": Markup(data)}  # noqa: S704
    context |= {"made_with": snapshot["made_with"], "digest": digest(data), "policy": policy}
    return environment.get_template(template).render(context | trusted)


def asset(name: str) -> str:
    """The text of our style or script, as a page holds it."""
    return files("reports.pages").joinpath("templates", name).read_text(encoding="utf-8").strip()


def content_hash(text: str) -> str:
    """The hash of a style or script as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
