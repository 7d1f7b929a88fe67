"""`zoobench report --model NAME`: one architecture's page, from its record and what is stored beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.errors import RecordError, did_you_mean
from bench.records import (
    Folders,
    each_folder,
    find_stored,
    list_stored,
    parse_json,
    unwritable,
    write_atomically,
)
from bench.stores import file_system, read_arrays
from reports.data.leaderboard import SHOWN, extreme, rank_text, ranked_by
from reports.data.loading import Results, number, text
from reports.data.metrics import counted, format_number, metric, whole
from reports.data.report_data import ReportData, load_report_data
from reports.data.safety import shorten
from reports.figures import anatomy
from reports.figures.comparison import plot_accuracy_against, points_shown
from reports.figures.svg import figure_svg, inline_svg
from reports.pages.gallery import Picture
from reports.pages.page import Snapshot, new_snapshot, pack_array, render, unpack_array

ROWS = 400
"""The most layers listed; a network with more is listed by stages."""
MAPS = 8
"""The most layers whose feature maps are shown."""
_POINT = ("model", "setting", "rank")
"""What the figure among the others needs of every model, besides the numbers on its axes."""


@dataclass(frozen=True)
class Beside:
    """What is stored beside a record: the architecture's card, and the arrays of its probes; empty where missing."""

    run_id: str
    card: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, NDArray[Any]] = field(default_factory=dict)


def write_architecture_report(results: Folders, model: str, out: str | Path) -> Path:
    """Write the page of one architecture into ``out/models``, and return its path.

    Raises `RecordError` if no record is of that model, or the page cannot be written.
    """
    return write_page(load_report_data(results), model, out)


def write_page(data: ReportData, model: str, out: str | Path) -> Path:
    """As `write_architecture_report`, of results already in memory."""
    path = Path(out) / page_name(model)
    page = build_architecture_page(take_architecture_snapshot(data, model))
    try:
        write_atomically(str(path), page, durable=False)
    except OSError as error:
        raise unwritable(out, error) from error
    return path


def page_name(model: str) -> str:
    """The path of a model's page inside a report: safe for any name, and different for each model."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip(".-")[:60]
    mark = "" if safe == model else f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"models/{safe}{mark}.html"


def models_with_pages(data: ReportData) -> list[str]:
    """Models of the main setting with something stored besides a record, sorted by name."""
    stored = list_stored(data.folder, "cards") | list_stored(data.folder, "probes")
    main = data.main_runs
    return sorted(set(main.model[main.run_id.isin(stored)]))


def beside(data: ReportData, model: str) -> Beside:
    """What is stored beside the record of the model's first completed run that has any; damaged files count as none.

    Of the runs in the setting that its page shows, and then of others.
    """
    runs = data.results.runs[data.results.runs.model == model]
    shown = data.table[data.table.model == model].setting
    runs = runs.assign(other=runs.setting != shown.iloc[0] if len(shown) else False)
    runs = runs.assign(lost=runs.status != "completed").sort_values(["other", "lost", "seed"], kind="stable")
    for run_id in runs.run_id:
        card, probes = (find_stored(data.folder, kind, run_id) for kind in ("cards", "probes"))
        found = Beside(run_id, _card(card) if card else {}, _probes(probes) if probes else {})
        if found.card or found.probes:
            return found
    return Beside(str(runs.run_id.iloc[0]))


def take_architecture_snapshot(data: ReportData, model: str) -> Snapshot:
    """Everything that the page of one architecture shows. Raises `RecordError` if no record is of that model."""
    names = sorted(set(data.results.runs.model))
    if model not in names:
        folders = ", ".join(map(repr, each_folder(data.folder)))
        raise RecordError(
            f"no record in {folders} is of the model {model!r}.{did_you_mean(model, names)} "
            f"Models with a record: {', '.join(shorten(name) for name in names[:50]) or 'none'}."
        )
    row = data.table[data.table.model == model].iloc[0]
    table = data.table[data.table.setting == row.setting]
    score = ranked_by(table)
    columns = [*_POINT, *(f"{key}{end}" for key in (score, "macs") for end in ("", "_low", "_high"))]
    stored = beside(data, model)
    return new_snapshot(
        "architecture",
        model=model,
        run_id=stored.run_id,
        row=_plain(row.to_dict()),
        score=score,
        others={column: [_plain_value(value) for value in table[column]] for column in columns},
        card=stored.card,
        probes={name: pack_array(array) for name, array in _drawn(stored.probes).items()},
        classes=_classes(data.results, stored.run_id),
    )


def build_architecture_page(snapshot: Snapshot) -> str:
    """One architecture's page as HTML. Everything it shows is computed from the snapshot, which it carries."""
    row, card, layers = snapshot["row"], snapshot["card"], _layers(snapshot)
    return render(
        "architecture.html.j2",
        snapshot,
        title=snapshot["model"],
        setting=row["setting"],
        facts=_facts(card),
        place=_place(row),
        groups=architecture_pictures(snapshot),
        layers=_rows(layers if len(layers) <= ROWS else anatomy.fold(layers, ROWS).assign(kind="")),
        home="../index.html",
    )


def _drawn(probes: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The part of the probes that the page draws: plain arrays, and the maps of one image."""
    plain = {name: array for name, array in probes.items() if array.ndim and array.dtype.kind in "biufU"}
    drawn = {name: array for name, array in plain.items() if name.startswith(("kernels", "cam_", "layer_"))}
    drawn |= {name: plain[name][:MAPS] for name in ("map_layers",) if name in plain}
    maps = ("map_images", *(f"maps_{k}" for k in range(MAPS)))
    return drawn | {name: plain[name][:1] for name in maps if name in plain}


def _card(path: str) -> dict[str, Any]:
    try:
        fs, local = file_system(path)
        card = parse_json(fs.cat_file(local))
        json.dumps(card, allow_nan=False)
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _probes(path: str) -> dict[str, NDArray[Any]]:
    return read_arrays(*file_system(path))


def _plain_value(value: Any) -> Any:
    plain = value if isinstance(value, str | bool) else number(value)
    return None if plain != plain else plain


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of the leaderboard as JSON takes it; what was not measured is left out."""
    values = {str(key): _plain_value(value.item() if hasattr(value, "item") else value) for key, value in row.items()}
    return {key: value for key, value in values.items() if value is not None}


def _facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The card as pairs of a label and a text; what the card does not hold is left out."""
    counts = {key: number(card.get(key)) for key in ("params", "macs", "activations")}
    sees, size = number(card.get("receptive_field")), text(card.get("input_size"))
    return [
        ("Paper", text(card.get("paper"))),
        ("Year", text(card.get("year"))),
        ("Family", text(card.get("family"))),
        ("Input", f"{text(card.get('in_chans'))}×{size}×{size}" if size else ""),
        *((metric(k).label, f"{metric(k).text(n)} {metric(k).unit}") for k, n in counts.items() if n == n),
        ("Receptive field", f"{whole(sees)} pixels" if sees == sees else ""),
        ("At small images", text(card.get("small_image"))),
    ]


def _place(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The model's place among the others; the row of the leaderboard lacks what was not measured."""
    rank, worst = (number(row.get(key)) for key in ("rank", "rank_worst"))
    basis = {"images": " (of single runs, by their answers to the test images)", "order": " (not tested)"}
    pairs = [
        ("Rank", rank_text(rank, worst, row["tested"]) + (basis.get(row["rank_basis"], "") if rank == rank else ""))
    ]
    for key in SHOWN:
        m, (value, low, high) = metric(key), (number(row.get(k)) for k in (key, f"{key}_low", f"{key}_high"))
        if value == value:
            pairs.append((m.label, f"{m.text_with_interval(value, low, high)} {m.unit}"))
    return [*pairs, ("Seeds", f"{row['seeds']:.0f}"), ("Failed runs", f"{row['failed']:.0f}" if row["failed"] else "")]


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


def _probes_of(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    return {name: unpack_array(packed) for name, packed in snapshot["probes"].items()}


def _layers(snapshot: Snapshot) -> pd.DataFrame:
    return anatomy.layer_table(snapshot["card"], _probes_of(snapshot))


def architecture_pictures(snapshot: Snapshot) -> dict[str, list[Picture]]:
    """The figures of one architecture by section; a figure without data is left out, a section without figures too."""
    model, score, card, classes = (snapshot[key] for key in ("model", "score", "card", "classes"))
    probes, layers = _probes_of(snapshot), _layers(snapshot)
    others = pd.DataFrame(snapshot["others"])
    numbers = [column for column in others if column not in ("model", "setting")]
    others = others.astype(dict.fromkeys(numbers, float))
    groups: dict[str, list[Picture]] = {"Among the others": [], "How it is built": [], "What it has learned": []}
    shown = points_shown(others, y=score)

    def add(group: str, name: str, title: str, figure: Callable[[], Figure], caption: str) -> None:
        try:
            drawn = figure()
            svg = figure_svg(drawn)
        except (ValueError, TypeError, IndexError, KeyError):  # an array or a card of an unexpected shape
            return
        groups[group].append(Picture(name, title, inline_svg(svg, name, title, f"{name}-caption"), caption, svg, drawn))

    if model in set(shown.model) and len(shown) > 1:
        add("Among the others", "place", f"{metric(score).label} against MACs",
            lambda: plot_accuracy_against(others, y=score, highlight=model),
            f"{shorten(model)} is circled, among {counted(len(shown), 'model')} in this setting; up and to the left is "
            "better.")  # fmt: skip
    if len(layers):
        stages = anatomy.fold(layers)
        heavy = extreme(stages, "macs") if stages.macs.notna().any() else None
        most = f" {shorten(str(heavy['name']))} has the most MACs." if heavy is not None else ""
        add("How it is built", "stages", "Stages", lambda: anatomy.plot_stages(stages),
            "From input to output: a box is as high as the side of its feature maps and as wide as their channels "
            f"(log scale), the darker the larger its share of MACs. Below it, channels × side².{most}")  # fmt: skip
        add("How it is built", "shares", "Where the cost goes", lambda: anatomy.plot_shares(stages),
            "Share of each stage; times are of a forward pass of a batch of test images, layer by layer.")  # fmt: skip
        size = number(card.get("input_size"))
        add("How it is built", "field", "How far it sees",
            lambda: anatomy.plot_receptive_field(layers, size if size == size else None),
            "Receptive field after each layer, in the order of execution.")  # fmt: skip
    if "kernels" in probes:
        add("What it has learned", "kernels", "First-layer kernels", lambda: anatomy.plot_kernels(probes["kernels"]),
            "Each kernel scaled to its own range.")  # fmt: skip
    names = [str(name) for name in probes.get("map_layers", [])]
    for k, name in enumerate(names[:MAPS]):
        if f"maps_{k}" in probes and "map_images" in probes and len(probes["map_images"]) and len(probes[f"maps_{k}"]):
            add("What it has learned", f"maps{k}", f"Feature maps after {shorten(name)}",
                lambda k=k: anatomy.plot_feature_maps(probes[f"maps_{k}"][0], probes["map_images"][0]),  # type: ignore[misc]
                "A test image and the channels that vary most, each scaled to its own range.")  # fmt: skip
    if "cam_heat" in probes and "cam_label" in probes and "cam_predicted" in probes:
        true, answers = ([classes[i] if 0 <= i < len(classes) else str(i) for i in map(int, probes[key])]
                      for key in ("cam_label", "cam_predicted"))  # fmt: skip
        sure = [float(share) for share in probes.get("cam_confidence", [])]
        add("What it has learned", "cam", "What it looked at",
            lambda: anatomy.plot_grad_cam(probes["cam_images"], probes["cam_heat"], true, answers, sure),
            "Grad-CAM: bright regions contributed most to the answer. Titles give the answer and its confidence; where "
            "it is wrong, a second line gives the true class.")  # fmt: skip
    return {group: found for group, found in groups.items() if found}
