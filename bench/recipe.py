"""The recipe: how to train. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Choice = bool | Literal["auto"]
"""Yes, no, or whatever is faster."""


class Frozen(BaseModel):
    """Immutable, and without fields that nobody asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Recipe(Frozen):
    """How to train.

    Optimizer. ``lr`` is the peak learning rate at ``batch_size``; left open, the architecture's own is taken (given for
    SGD at batch 128) and scaled linearly with the batch size; an open ``weight_decay`` likewise. ``warmup`` is the
    share of the budget in which the learning rate rises linearly from zero, under any ``schedule``; ``linear`` then
    falls to zero (with a warm-up: triangular), ``one_cycle`` rises from 1/25 (Smith 2018), ``step`` is multiplied by
    ``step_factor`` at each of ``steps``, shares of the budget. ``ema`` is the decay, a step, of averaged weights, which
    are then what is evaluated and kept. ``drop_rate`` and ``batch_norm`` are the architecture's own where left open.

    ``muon`` orthogonalises the updates of filters, at ``muon_lr``, and steps all else as SGD does at ``lr``; with
    ``normalize_filters`` it keeps the norm of each layer's filters, for networks with batch norms, which that leaves as
    they are (Jordan 2024). ``norm_bias_lr_factor`` multiplies the rate of batch norms' biases. ``lookahead`` is the
    number of steps after which fast weights return to slow ones (Zhang et al. 2019, arXiv:1907.08610), ever more
    closely to the end.

    Beginning. ``whiten`` makes the first convolution decorrelate patches of the training images, and freezes it;
    ``dirac`` begins the other convolutions as identities. For ``small_epochs`` images are ``small_size`` pixels large.

    Augmentation. ``flip`` mirrors images at random, or ``"alternating"``: each image every second epoch (airbench).
    ``crop_padding`` pixels of shift, filled with black or by reflection; ``rotation`` is in degrees; ``color_jitter``
    is the strength in brightness, contrast and saturation; ``randaugment`` is the number of operations on an image
    (Cubuk et al. 2019); ``cutout`` is the side in pixels of a square that is blanked out (DeVries and Taylor 2017);
    ``mixup`` (Zhang et al. 2017) and ``cutmix`` (Yun et al. 2019) are alpha, 0 for none. ``brightness`` and
    ``contrast`` shift and scale each image's normalised pixels, by up to this. ``test_flip`` evaluates on an image
    and its mirror; ``test_shift`` also on the image shifted by this many pixels up-left and down-right, which counts
    half, for the ``test_share`` of the images that are the least certain.

    Fine-tuning. For ``head_epochs`` a fresh head trains alone, at ``head_lr``, with the backbone and its batch-norm
    statistics frozen; the rest of the budget trains everything under the schedule. ``freeze_batch_norm`` keeps the
    statistics of the pretrained weights to the end. Once everything trains, the head's rate is ``head_lr_factor`` times
    that of the backbone's last layer, and the rate of its first layer ``stem_lr_factor`` times that, with a geometric
    fall between (discriminative rates, Howard and Ruder 2018, arXiv:1801.06146). ``epochs`` is the budget where a plan
    names none.
    """

    name: str = "custom"
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    lr: Positive | None = None
    weight_decay: NotNegative | None = None
    decay_norm_and_bias: bool = False
    momentum: Fraction = 0.9
    nesterov: bool = True
    batch_size: Count = 128
    schedule: Literal["cosine", "linear", "one_cycle", "step", "constant"] = "cosine"
    warmup: Fraction = 0.0
    steps: tuple[Fraction, ...] = (0.5, 0.75)
    step_factor: Fraction = 0.1
    label_smoothing: Fraction = 0.0
    clip_grad_norm: Positive | None = None
    ema: Fraction | None = None
    drop_rate: Fraction | None = None
    batch_norm: bool | None = None
    flip: bool | Literal["alternating"] = True
    test_flip: bool = False
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 4
    crop_fill: Literal["black", "reflect"] = "black"
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    color_jitter: Fraction = 0.0
    randaugment: Annotated[int, Field(ge=0, le=10)] = 0
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    head_epochs: Annotated[int, Field(ge=0)] = 0
    head_lr: Positive | None = None
    muon_lr: Positive = 0.05
    normalize_filters: bool = False
    norm_bias_lr_factor: Positive = 1.0
    lookahead: Annotated[int, Field(ge=0)] = 0
    whiten: bool = False
    dirac: bool = False
    brightness: NotNegative = 0.0
    contrast: Fraction = 0.0
    small_size: Count | None = None
    small_epochs: Annotated[int, Field(ge=0)] = 0
    test_shift: Annotated[int, Field(ge=0, le=16)] = 0
    test_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    freeze_batch_norm: bool = False
    head_lr_factor: Positive = 1.0
    stem_lr_factor: Positive = 1.0
    epochs: Count = 30

    @model_validator(mode="after")
    def _head_has_a_rate(self) -> Self:
        if self.head_epochs and self.head_lr is None:
            raise ValueError("head_epochs needs a head_lr, the learning rate of the head while it trains alone")
        return self

    @model_validator(mode="after")
    def _small_images_have_a_size(self) -> Self:
        if self.small_epochs and self.small_size is None:
            raise ValueError("small_epochs needs a small_size, the side in pixels of the images in these epochs")
        if self.lookahead and self.ema is not None:
            raise ValueError("lookahead and ema both average the weights: set lookahead to 0, or leave ema out")
        return self

    @model_validator(mode="after")
    def _filters_are_muons(self) -> Self:
        if self.normalize_filters and self.optimizer != "muon":
            raise ValueError(f"normalize_filters is Muon's: set optimizer to 'muon' in place of {self.optimizer!r}")
        return self

    @property
    def test_views(self) -> tuple[bool, int, float]:
        """How many ways an image is looked at in a test: mirrored, shifted by pixels, and which share of them is."""
        return self.test_flip, self.test_shift, self.test_share

    @property
    def model_options(self) -> dict[str, Any]:
        """What the recipe asks of the architecture's builder."""
        options = {"drop_rate": self.drop_rate, "batch_norm": self.batch_norm}
        return {name: value for name, value in options.items() if value is not None}
