"""Loading of models of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from refine.errors import RefineError, counted, missing_extra, shown
from refine.files import read_json
from refine.networks.hub.categories import ClassMap, check_used, find_categories
from refine.networks.hub.network import HubNetwork, PixelNetwork, QueryNetwork
from refine.networks.native import Precision
from refine.runtime import find_device
from refine.structures import VOID, Categories
from refine.tensors import first_line

UNIVERSAL = (
    "DetrForSegmentation",
    "EomtDinov3ForUniversalSegmentation",
    "EomtForUniversalSegmentation",
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
    "OneFormerForUniversalSegmentation",
)
"""Classes whose queries are understood."""

SEMANTIC = "ForSemanticSegmentation"
"""End of the names of classes with one logit per class and pixel."""


def load_hub_network(
    folder: Path,
    name: str,
    device: str | torch.device | None = None,
    precision: Precision = "32",
    compiled: bool = False,
    categories: Categories | None = None,
    class_map: ClassMap | None = None,
    combined: bool = False,
) -> HubNetwork:
    """Load a model that transformers saved. Only safetensors are read, and no code from the folder is run.

    Args:
        folder: folder with config.json, preprocessor_config.json and *.safetensors.
        name: name of the model, for messages.
        device: "cpu", "cuda", …; None stands for the GPU if there is one.
        precision, compiled: as for `NativeNetwork`.
        categories, class_map: arguments `given` and `names` of `find_categories`.
        combined: whether the model is one of several, which the caller renames to `categories` by `class_map`: both
            are used only for labels that are in no known list.

    Raises:
        RefineError: transformers is not installed, the model is of another kind or damaged, or its classes are
            unknown.
    """
    kind, model, processor, tokens = _read(folder, name)
    numbers = sorted(model.config.id2label)
    if numbers != list(range(len(numbers))):  # the model has as many outputs as labels: which is whose is unknown
        raise RefineError(
            f"{name}: config.json: id2label has the keys {shown(numbers)}; expected 0 to {len(numbers) - 1}, one "
            f"for each output of the model; correct it"
        )
    labels = [model.config.id2label[number] for number in numbers]
    names: dict[str, str] | None = None
    if not combined:
        check_used(class_map or {}, labels)
        found, classes = find_categories(labels, name, categories, class_map)
    else:
        found, classes, names = _known_classes(labels, name, categories, class_map or {})
    kind_of_network = QueryNetwork if kind in UNIVERSAL else PixelNetwork
    model = model.eval().requires_grad_(False).to(find_device(device))
    network = kind_of_network(model, processor, found, classes, precision, compiled, tokens)
    network.names = names
    return network


def _read(folder: Path, name: str) -> tuple[str, Any, Any, torch.Tensor | None]:
    """Return the class of a model, the model, its image processor, and the tokens of its task, if it has one."""
    content: Any = read_json(folder / "config.json")
    kind = (content.get("architectures") or [None])[0]
    if kind not in UNIVERSAL and not str(kind).endswith(SEMANTIC):
        raise RefineError(
            f"{name}: is a {shown(kind)}, expected one of {', '.join(UNIVERSAL)}, or a model for semantic "
            f"segmentation; choose another model"
        )
    if not any(folder.glob("*.safetensors")):
        raise RefineError(f"{name}: has no *.safetensors, and other weights may run code; choose another model")
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("models of the Hugging Face Hub need transformers", "transformers") from error
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with _quiet(transformers), _reported(name):
        if not hasattr(transformers, str(kind)):
            raise RefineError(f"{name}: is a {kind}, which transformers {transformers.__version__} does not have")
        model, report = getattr(transformers, str(kind)).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
        )
        if kind == "OneFormerForUniversalSegmentation":
            options["class_info_file"] = None  # which only training needs
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **options)
        tokens = _task(transformers, folder, model) if kind == "OneFormerForUniversalSegmentation" else None
    if missing := sorted(report["missing_keys"]):
        raise RefineError(
            f"{name}: {counted(len(missing), 'missing weight')}, first {missing[0]}; get the whole model"
        )
    if getattr(processor, "pad_size", None):
        raise RefineError(f"{name}: preprocessor_config.json pads images to a fixed size; set pad_size to null")
    return kind, model, processor, tokens


def _known_classes(
    labels: list[str], name: str, categories: Categories | None, class_map: ClassMap
) -> tuple[Categories, list[int], dict[str, str]]:
    """Return categories and classes of a model of several, and `HubNetwork.names`; see `find_categories`."""
    try:
        found, classes = find_categories(labels, name)
        pairs = list(zip(classes, labels, strict=True))
        are_known = not any(n == VOID and class_map.get(label) for n, label in pairs)  # renamed placeholders
    except RefineError:
        are_known = False
    if not are_known:
        return *find_categories(labels, name, categories, class_map), {}
    return found, classes, {found[n].name: label for n, label in pairs if n != VOID}


def _task(transformers: Any, folder: Path, model: Any) -> torch.Tensor:
    """Return the tokens of OneFormer's task."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    length = model.config.task_seq_len
    given = tokenizer(["the task is panoptic"], padding="max_length", max_length=length, truncation=True)
    return torch.tensor(given["attention_mask"]) * torch.tensor(given["input_ids"])


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence the log messages and progress bars of transformers inside the context."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Raise RefineError for exceptions of transformers about files."""
    try:
        yield
    except ImportError as error:
        raise RefineError(f"{name}: needs another package ({first_line(error)}); install it") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise RefineError(f"{name}: cannot be loaded ({first_line(error)}); get the whole model again") from error
