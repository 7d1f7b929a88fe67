"""The zoo: convolutional architectures, found by name and built for any input size and number of classes."""

from zoo.info import DuplicateModelError, ModelInfo, Published, UnknownModelError, ZooError
from zoo.pretrained import LoadedWeights, loaded_weights
from zoo.registry import create_meta_model, create_model, list_models, model_info, register_model

__all__ = [
    "DuplicateModelError",
    "LoadedWeights",
    "ModelInfo",
    "Published",
    "UnknownModelError",
    "ZooError",
    "create_meta_model",
    "create_model",
    "list_models",
    "loaded_weights",
    "model_info",
    "register_model",
]
