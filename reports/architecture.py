"""`zoobench report --model NAME`: one architecture's page, from its record and what was stored beside it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.errors import RecordError, did_you_mean
from bench.records import runs_folder, unwritable
from reports import anatomy
from reports.figures import plot_accuracy_against, points_shown
from reports.gallery import Picture
from reports.html import digest, render
from reports.loading import Results, load_results, number, text
from reports.metrics import format_number, metric, whole
from reports.safety import shorten
from reports.snapshot import main_runs, to_json, versions
from reports.svg import figure_svg, inline_svg
from reports.tables import SHOWN, extreme, leaderboard, rank_text, ranked_by

ROWS = 400
"""So many layers are listed; a network with more shows its stages."""


@dataclass(frozen=True)
class Beside:
    """What is stored beside a record: the architecture's card, and the arrays of its probes; empty where missing."""

    run_id: str
    card: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, NDArray[Any]] = field(default_factory=dict)


def write_architecture_report(results: str | Path, model: str, out: str | Path) -> Path:
    """Write the page of one architecture into ``out/models``, and return its path.

    Raises `RecordError` if no record is of that model, or the page cannot be written.
    """
    loaded = load_results(results)
    names = sorted(set(loaded.runs.model))
    if model not in names:
        raise RecordError(
            f"no record in {str(results)!r} is of the model {model!r}.{did_you_mean(model, names)} "
            f"Those with one: {', '.join(shorten(name) for name in names[:50]) or 'none'}."
        )
    return write_page(loaded, results, model, out)


def write_page(loaded: Results, results: str | Path, model: str, out: str | Path) -> Path:
    """As `write_architecture_report`, of results already in memory."""
    path = Path(out) / page_name(model)
    page = build_architecture_page(loaded, model, beside(loaded, results, model))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise unwritable(out, error) from error
    return path


def page_name(model: str) -> str:
    """The path of a model's page inside a report: safe whatever the model is called, and different for each."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip(".-")[:60]
    mark = "" if safe == model else f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"models/{safe}{mark}.html"


def models_with_pages(results: str | Path, runs: pd.DataFrame) -> list[str]:
    """Models of the main setting that something is stored beside the record of, in the order of their names."""
    fs, folder = fsspec.url_to_fs(runs_folder(results))
    stored = {str(name).rpartition("/")[2] for name in fs.glob(f"{folder}/*") if not str(name).endswith(".json.tmp")}
    main = main_runs(runs)
    has = [f"{run}.card.json" in stored or f"{run}.probes.npz" in stored for run in main.run_id]
    return sorted(set(main.model[has])) if len(main) else []


def beside(loaded: Results, results: str | Path, model: str) -> Beside:
    """What is stored beside the record of the model's first completed run that has anything; damage counts as none."""
    main = main_runs(loaded.runs)
    runs = pd.concat([main[main.model == model], loaded.runs[loaded.runs.model == model]])
    runs = runs.assign(lost=runs.status != "completed").sort_values(["lost", "seed"], kind="stable")
    for run_id in runs.run_id:
        path = f"{runs_folder(results)}/{run_id}"
        found = Beside(run_id, _card(f"{path}.card.json"), _probes(f"{path}.probes.npz"))
        if found.card or found.probes:
            return found
    return Beside(str(runs.run_id.iloc[0]))


def build_architecture_page(loaded: Results, model: str, stored: Beside) -> str:
    """One architecture's page as HTML."""
    main = main_runs(loaded.runs)
    here = main if model in set(main.model) else loaded.runs[loaded.runs.model == model]
    table = leaderboard(here)
    row = table[table.model == model].iloc[0].to_dict()
    card = stored.card
    layers = anatomy.layer_table(card, stored.probes)
    data = to_json({"model": model, "run_id": stored.run_id, "row": _plain(row), "card": card})
    return render(
        "architecture.html.j2",
        data=data,
        digest=digest(data),
        verifiable=False,
        made_with=versions(),
        title=model,
        setting=str(row["setting"]),
        facts=_facts(card),
        place=_place(row),
        groups=_pictures(table, model, layers, stored, _classes(loaded, stored.run_id)),
        layers=_rows(layers if len(layers) <= ROWS else anatomy.fold(layers, ROWS).assign(kind="")),
        home="../index.html",
    )


def _card(path: str) -> dict[str, Any]:
    try:
        fs, local = fsspec.url_to_fs(path)
        card = json.loads(fs.cat_file(local))
        json.dumps(card, allow_nan=False)
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _probes(path: str) -> dict[str, NDArray[Any]]:
    try:
        fs, local = fsspec.url_to_fs(path)
        with np.load(io.BytesIO(fs.cat_file(local)), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of the leaderboard as JSON takes it."""
    values = {str(key): value if isinstance(value, str) else number(value) for key, value in row.items()}
    return {key: value for key, value in values.items() if value == value}


def _facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The card as pairs of a label and a text; what the card does not hold is left out."""
    counted = {key: number(card.get(key)) for key in ("params", "macs", "activations")}
    sees, size = number(card.get("receptive_field")), text(card.get("input_size"))
    return [
        ("Paper", text(card.get("paper"))),
        ("Year", text(card.get("year"))),
        ("Family", text(card.get("family"))),
        ("Input", f"{text(card.get('in_chans'))}×{size}×{size}" if size else ""),
        *((metric(k).label, f"{metric(k).text(n)} {metric(k).unit}") for k, n in counted.items() if n == n),
        ("Receptive field", f"{whole(sees)} pixels" if sees == sees else ""),
        ("At small images", text(card.get("small_image"))),
    ]


def _place(row: dict[Any, Any]) -> list[tuple[str, str]]:
    """The model's place among the others."""
    pairs = [("Rank", rank_text(row["rank"], row["rank_worst"], bool(row["tested"])))]
    for key in SHOWN:
        m, (value, low, high) = metric(key), (number(row[k]) for k in (key, f"{key}_low", f"{key}_high"))
        if value == value:
            pairs.append((m.label, f"{m.text_with_interval(value, low, high)} {m.unit}"))
    return [*pairs, ("Seeds", str(row["seeds"])), ("Failed runs", str(row["failed"]) if row["failed"] else "")]


def _rows(layers: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "name": str(row["name"]),
            "kind": str(row["kind"]),
            "shape": anatomy.shape_text(row["output_shape"]),
            "params": whole(row["params"]),
            "macs": metric("macs").text(row["macs"]),
            "field": whole(row["receptive_field"]),
            "time": format_number(row["seconds"] * 1000),
        }
        for row in layers.to_dict("records")
    ]


def _classes(loaded: Results, run_id: str) -> list[str]:
    record = loaded.records.get(run_id)
    data = record.environment.get("data") if record else None
    names = data.get("classes") if isinstance(data, dict) else None
    return [text(name) for name in names] if isinstance(names, list) else []


def _pictures(
    table: pd.DataFrame, model: str, layers: pd.DataFrame, stored: Beside, classes: list[str]
) -> dict[str, list[Picture]]:
    groups: dict[str, list[Picture]] = {"Among the others": [], "How it is built": [], "What it has learned": []}

    score = ranked_by(table)
    shown = points_shown(table, y=score)

    def add(group: str, name: str, title: str, figure: Callable[[], Figure], caption: str) -> None:
        try:
            svg = figure_svg(figure())
        except (ValueError, TypeError, IndexError, KeyError):  # an array or a card of another shape than ours
            return
        groups[group].append(Picture(name, title, inline_svg(svg, name, title, f"{name}-caption"), caption, svg))

    if model in set(shown.model):
        add("Among the others", "place", f"{metric(score).label} against MACs",
            lambda: plot_accuracy_against(table, y=score, highlight=model),
            f"{shorten(model)} is marked; {len(shown)} models under the same terms.")  # fmt: skip
    if len(layers):
        stages = anatomy.fold(layers)
        heavy = extreme(stages, "macs") if stages.macs.notna().any() else None
        dear = f" {shorten(str(heavy['name']))} has most MACs." if heavy is not None else ""
        add("How it is built", "stages", "Stages", lambda: anatomy.plot_stages(stages),
            "From left to right: height is the side of the maps, width their channels (log), depth of colour the share "
            f"of MACs. Below, channels × side².{dear}")  # fmt: skip
        add("How it is built", "shares", "Where the cost goes", lambda: anatomy.plot_shares(stages),
            "By stage; the times are of one forward pass, layer by layer.")  # fmt: skip
        size = number(stored.card.get("input_size"))
        add("How it is built", "field", "How far it sees",
            lambda: anatomy.plot_receptive_field(layers, size if size == size else None),
            "Receptive field after each layer, in the order of execution.")  # fmt: skip
    probes = stored.probes
    if "kernels" in probes:
        add("What it has learned", "kernels", "First-layer kernels", lambda: anatomy.plot_kernels(probes["kernels"]),
            "Each kernel scaled to its own range.")  # fmt: skip
    names = [str(name) for name in probes.get("map_layers", [])]
    for k, name in enumerate(names[:8]):
        if f"maps_{k}" in probes and "map_images" in probes and len(probes["map_images"]) and len(probes[f"maps_{k}"]):
            add("What it has learned", f"maps{k}", f"Feature maps after {shorten(name)}",
                lambda k=k: anatomy.plot_feature_maps(probes[f"maps_{k}"][0], probes["map_images"][0]),  # type: ignore[misc]
                "A test image, and the channels that vary most; each scaled to its own range.")  # fmt: skip
    if "cam_heat" in probes and "cam_label" in probes and "cam_predicted" in probes:
        true, said = ([classes[i] if 0 <= i < len(classes) else str(i) for i in map(int, probes[key])]
                      for key in ("cam_label", "cam_predicted"))  # fmt: skip
        sure = [float(share) for share in probes.get("cam_confidence", [])]
        add("What it has learned", "cam", "What it looked at",
            lambda: anatomy.plot_grad_cam(probes["cam_images"], probes["cam_heat"], true, said, sure),
            "Grad-CAM: bright is where the answer came from. Titles are the network's answers with its confidence; "
            "those with a second line are wrong.")  # fmt: skip
    return {group: found for group, found in groups.items() if found}
