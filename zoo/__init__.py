"""The zoo: convolutional architectures, found by name and built for any input size and number of classes."""

from zoo.registry import (
    DuplicateModelError,
    ModelInfo,
    Published,
    UnknownModelError,
    ZooError,
    create_model,
    list_models,
    model_info,
    register_model,
)

__all__ = [
    "DuplicateModelError",
    "ModelInfo",
    "Published",
    "UnknownModelError",
    "ZooError",
    "create_model",
    "list_models",
    "model_info",
    "register_model",
]
