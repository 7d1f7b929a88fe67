"""Studies: a published claim, the variants of a plan that test it, what decides it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from bench.config import Plan, build_plan, parse_toml, read_shipped, shipped, validate
from bench.errors import ConfigError
from bench.identity import flatten
from bench.recipe import Frozen

BEGINS_WITH = "begins_with"
"""In a variant, the one whose weights it begins with; that one is run with the first seed alone."""

Text = Annotated[str, Field(min_length=1)]


class Comparison(Frozen):
    """One statement that can be wrong: ``better`` is above ``than`` in ``metric`` by more than ``margin``.

    Where less of the metric is better, "above" means below. With ``ratio`` the two are divided, the better one's value
    by the other's (the other way round where less is better), and ``margin`` is a factor; otherwise it is in the
    metric's own unit. A margin below 0 (or a factor below 1) states that ``better`` is not worse by as much as that.
    """

    claim: Text
    source: Text | None = None
    better: Text
    than: Text
    metric: Text = "test_top1"
    ratio: bool = False
    margin: float = Field(allow_inf_nan=False)


class Study(Frozen):
    """A study: what is claimed and by whom, the plan that all variants share, and what each does otherwise.

    ``plan`` is a plan's table, which may build on a plan that ships (``base = "dilation"``); a variant's table is laid
    over it. ``cost`` says how long it takes, and what a larger budget would be.
    """

    name: Text
    title: Text
    claim: Text
    source: Text
    cost: Text
    plan: dict[str, Any]
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=2)]
    comparisons: Annotated[tuple[Comparison, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _variants_are_there(self) -> Self:
        for comparison in self.comparisons:
            for name in (comparison.better, comparison.than):
                if name not in self.variants:
                    raise ValueError(f"a comparison names {name!r}; the variants are {', '.join(self.variants)}")
            if comparison.ratio and comparison.margin <= 0:
                raise ValueError(f"the margin of a ratio is a factor above 0, not {comparison.margin}")
        names = list(self.variants)
        for k, (name, table) in enumerate(self.variants.items()):
            if BEGINS_WITH in table and table[BEGINS_WITH] not in names[:k]:
                raise ValueError(f"{name} {BEGINS_WITH} {table[BEGINS_WITH]!r}, which is no variant before it")
        return self

    def begins_with(self, variant: str) -> str | None:
        """The variant whose weights this one begins with."""
        return self.variants[variant].get(BEGINS_WITH)

    def begins_with_weights(self, variant: str) -> bool:
        """Whether a variant does not begin at random: with another one's weights, or with published ones."""
        return bool(self.plan_of(variant).pretrained)

    def gives_weights(self, variant: str) -> bool:
        """Whether another variant begins with this one's weights."""
        return any(table.get(BEGINS_WITH) == variant for table in self.variants.values())

    def plan_of(self, variant: str, overrides: Mapping[str, Any] | None = None) -> Plan:
        """The plan of a variant, with the user's overrides laid over it.

        ``pretrained`` is among these once the weights that it begins with are there. Raises `ConfigError`.
        """
        where = f"study {self.name!r}, variant {variant!r}"
        base = self.plan.get("base")
        table = parse_toml(*read_shipped("plans", "plan", base)) if base is not None else {}
        table |= {key: value for key, value in self.plan.items() if key != "base"} | {"name": f"study-{self.name}"}
        changes = {key: value for key, value in self.variants[variant].items() if key != BEGINS_WITH}
        recipe = changes.pop("recipe", {})
        replaced = isinstance(recipe, str) or "base" in recipe  # another recipe, rather than some keys of the plan's
        own = flatten(changes) | ({"recipe": recipe} if replaced else flatten(recipe, "recipe."))
        budget = {key.partition(".")[2]: own.pop(key) for key in list(own) if key.startswith("budget.")}
        own |= {"recipe.name": variant} | ({"budget": budget} if budget else {})  # one in another unit is replaced
        if (source := self.begins_with(variant)) is not None:
            own["pretrained"] = f"the weights of {source!r}"
        return build_plan(table, where, own | dict(overrides or {}))


def load_study(name_or_path: str) -> Study:
    """The study of that name among those that ship, or in that TOML file. Raises `ConfigError`."""
    text, where = read_shipped("studies", "study", name_or_path)
    study = validate(Study, {"name": Path(name_or_path).stem} | parse_toml(text, where), where)
    for variant in study.variants:
        if len(study.plan_of(variant).models) > 1:
            raise ConfigError(
                f"{where}: the variant {variant!r} has several models. A variant is one model trained in one way; give "
                "each model a variant of its own."
            )
    return study


def list_studies() -> list[str]:
    """Names of the studies that ship."""
    return sorted(shipped("studies"))
