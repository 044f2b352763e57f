"""Instances of some networks with the semantic map of others, and ensembles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from refine.errors import RefineError, counted, shown
from refine.fusion.config import OWN_MERGE, AnyMethod, Head, methods_with
from refine.networks.ensemble import merge_instances
from refine.networks.hub.categories import ClassMap, check_used
from refine.networks.hub.network import HubNetwork
from refine.networks.network import Network, check_probabilities
from refine.structures import VOID, Categories, Category, Instances, Prediction


class Compose(Network):
    """Network that combines the instances of some networks with the semantic map of others.

    Instances of several networks are merged (see `merge_instances`); the probabilities of several semantic maps are
    averaged, and those of classes that become one are added. Each network runs once per image, even if it serves
    for both.

    Classes are matched by name. Without `categories`, the result has the things of the first network for instances
    and the stuff of the first network for semantics; if their ids clash, the stuff gets new ones, which is noted.
    A thing that the semantic networks know, but not the ones for instances, becomes void where it is best.
    So does their stuff that is a thing of the result, where no instance is found; this is noted.

    Args:
        instances: networks whose instances are used, on one device.
        semantic: networks whose semantic maps are used; None stands for those of `instances`.
        categories: categories of the result.
        class_map: names of classes of any of the networks → name of a category, or None to drop the class.

    Attributes:
        remarks: what a user must know of dropped classes and new ids.
        without_probabilities: files of `semantic` without probabilities; see `check_probabilities`.

    Raises:
        RefineError: a class is not in the categories and is not dropped, or semantic maps or classes cannot be
            joined.
    """

    test_size = None

    def __init__(
        self,
        instances: Sequence[Network],
        semantic: Sequence[Network] | None = None,
        *,
        categories: Categories | None = None,
        class_map: ClassMap | None = None,
    ) -> None:
        self.instances, self.semantic = list(instances), list(instances if semantic is None else semantic)
        if not self.instances or not self.semantic:
            raise RefineError("instances, semantic: the list is empty; give at least one network for each")
        if len(self.semantic) > 1:
            check_probabilities(
                self.semantic,
                "several semantic maps are averaged by; give the models that were exported, or one model for the "
                "semantic map (--semantic)",
            )
        self.without_probabilities = getattr(self.semantic[0], "without_probabilities", [])
        self.networks = list({id(network): network for network in [*self.instances, *self.semantic]}.values())
        self.class_map = dict(class_map or {})
        check_used(self.class_map, {name for network in self.networks for name in _names(network)})
        first = self.instances[0]
        self.device = first.device
        if any(network.device != self.device for network in self.networks):
            raise RefineError("instances, semantic: the networks are on different devices; load them on one")
        self.remarks: list[str] = []
        self._origin = "" if categories else ", which are those of the first model"
        self.categories = categories or self._derived()
        self._of_instances = [self._classes(network, True) for network in self.instances]
        self._of_semantic = [self._classes(network, False) for network in self.semantic]
        if any(map(_joined, self._of_semantic)):
            check_probabilities(
                self.semantic,
                "classes that become one add up; give the model that was exported, or drop all but one of them "
                "(--class-map)",
            )
        self._alone = len(self.instances) == 1
        self.method: AnyMethod = "heuristic"
        if self._alone and first.method != OWN_MERGE and first.method in methods_with(self.fusion_heads()):
            self.method = first.method
        self.fusion = first.fusion
        self.max_detections = first.max_detections if self._alone else None

    def predict(self, images: Sequence[Tensor], min_score: float = 0.0) -> list[Prediction]:
        least = min_score if self._alone else 0.0  # other models may raise or lower a score
        every = {id(network): network.predict(images, least) for network in self.networks}
        return [
            self._combined({number: found[n] for number, found in every.items()}, min_score)
            for n in range(len(images))
        ]

    def digest(self) -> str:
        """Return a digest of the weights of all networks and of how they are combined."""
        parts = [[network.digest() for network in part] for part in (self.instances, self.semantic)]
        content = repr([parts, self._of_instances, self._of_semantic])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def fusion_heads(self) -> dict[Head, Any]:
        """Return the heads of the network for instances, if it is alone and has the same things."""
        first = self.instances[0]
        things = [c.name for c in first.categories if c.isthing]
        same = things == [c.name for c in self.categories if c.isthing]
        return first.fusion_heads() if same and len(self.instances) == 1 else {}

    def limit_detections(self, most: int) -> None:
        for network in self.instances:
            network.limit_detections(most)
        self.max_detections = most if self._alone else None

    def _name(self, network: Network, category: Category) -> str | None:
        """Return the name of the result's category for a class of a network; None if it is dropped."""
        names = network.names if isinstance(network, HubNetwork) else None
        if names is not None and not names:
            return category.name  # the class map has renamed it when the network was loaded
        label = (names or {}).get(category.name, category.name)
        return self.class_map.get(label, self.class_map.get(category.name, category.name))

    def _derived(self) -> Categories:
        """Return the things of the first network for instances and the stuff of the first one for semantics."""
        first, semantic = self.instances[0], self.semantic[0]
        things = {c.name: c for c in first.categories if c.isthing}
        stuff = {c.name: c for c in semantic.categories if not c.isthing and c.name not in things}
        known = things | stuff
        names = [
            *(self._name(first, c) for c in things.values()),
            *(self._name(semantic, c) for c in stuff.values()),
        ]
        chosen = [known[name] for name in names if name is not None and name in known]
        chosen = list(dict.fromkeys(chosen))
        used = {c.id for c in chosen if c.isthing}
        if any(not c.isthing and c.id in used for c in chosen):
            start = max(c.id for c in chosen if c.isthing) + 1
            self.remarks.append(f"stuff has new category ids, from {start} on, because the ids of the models clash")
            rest = [c for c in chosen if not c.isthing]
            chosen = [c for c in chosen if c.isthing]
            chosen += [replace(c, id=start + n) for n, c in enumerate(rest)]
        return Categories(chosen)

    def _classes(self, network: Network, isthing: bool) -> list[int]:
        """Return the result's class of each class of a network, or `VOID`.

        Args:
            network: one of the networks.
            isthing: True for the classes of instances, of which stuff is irrelevant; False for semantic classes.
        """
        index = {c.name: n for n, c in enumerate(self.categories)}
        classes, dropped, stuff = [], [], []
        for category in network.categories:
            name = self._name(network, category)
            found = VOID if name is None else index.get(name, VOID)
            if isthing and found >= self.categories.num_things:
                found = VOID
            if found == VOID and (category.isthing or not isthing):
                if name is not None and category.isthing == isthing:
                    raise RefineError(
                        f"class {shown(category.name)} is not among the {'things' if isthing else 'categories'} of "
                        f"the result{self._origin}; give a file with all classes as --categories, or rename "
                        f"or drop it: --class-map '{json.dumps({category.name: None})}'"
                    )
                dropped.append(category.name)
            elif not category.isthing and 0 <= found < self.categories.num_things:
                stuff.append(category.name)
            classes.append(found)
        if dropped:
            kind = "instances of them are left out" if isthing else "where they are best, the semantic map is void"
            number = counted(len(dropped), "class", "classes")
            self.remarks.append(f"{number} without a category in the result ({_some(dropped)}): {kind}")
        if stuff:
            self.remarks.append(
                f"classes that are stuff in the semantic model but things in the result ({_some(stuff)}): "
                f"where they are best and no instance is found, the result is void"
            )
        return classes

    def _combined(self, predictions: Mapping[int, Prediction], min_score: float) -> Prediction:
        """Combine the predictions of one image, by `id` of the network."""
        found = [
            _relabelled(predictions[id(network)].instances, classes)
            for network, classes in zip(self.instances, self._of_instances, strict=True)
        ]
        maps = [
            Relabelled(predictions[id(network)], classes, len(self.categories))
            for network, classes in zip(self.semantic, self._of_semantic, strict=True)
        ]
        sem_seg, confidence, probabilities = _mean(maps)
        return Prediction(
            found[0] if self._alone else merge_instances(found, min_score),
            sem_seg,
            confidence,
            probabilities,
            min(prediction.scale for prediction in predictions.values()),
        )


@dataclass(frozen=True)
class Relabelled:
    """Semantic map of one network in the classes of the result; calling it computes its probabilities.

    Attributes:
        prediction: prediction of the network.
        classes: class of the result of each class of the network, or `VOID`.
        count: number of classes of the result.
    """

    prediction: Prediction
    classes: list[int]
    count: int

    def __call__(self) -> Tensor:
        if self.prediction.sem_probabilities is None:
            raise RefineError("sem_probabilities: a network does not give them, but this combination needs them")
        given = self.prediction.sem_probabilities()
        index = torch.tensor(self.classes, device=given.device)[: len(given)]
        known = index >= 0
        of_result = given.new_zeros(self.count, *given.shape[1:])
        return of_result.index_add_(0, index[known], given[known])

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the best class, Tensor[H, W] int64 or `VOID`, and its confidence, Tensor[H, W]."""
        sem_seg, confidence = self.prediction.sem_seg, self.prediction.sem_confidence
        index = torch.tensor([*self.classes, VOID], device=sem_seg.device)  # VOID = -1 is the last entry
        labels = index[sem_seg]
        if not _joined(self.classes):
            return labels, confidence
        total, best = self().max(0)
        is_void = (labels == VOID) & (confidence >= total)
        return torch.where(is_void, VOID, best), torch.where(is_void, confidence, total)


@dataclass(frozen=True)
class MeanProbabilities:
    """Function that computes the mean probabilities of several networks."""

    maps: list[Relabelled]

    def __call__(self) -> Tensor:
        total = self.maps[0]()
        for other in self.maps[1:]:
            total = total + other()
        return total / len(self.maps)


def _joined(classes: Sequence[int]) -> bool:
    """Return whether several classes of a network are one class of the result."""
    known = [n for n in classes if n != VOID]
    return len(set(known)) < len(known)


def _some(names: Sequence[str]) -> str:
    """Return the first five names for a message."""
    return ", ".join([*map(shown, names[:5]), *(["…"] if len(names) > 5 else [])])


def _names(network: Network) -> list[str]:
    """Return the names of a network's categories, and of the labels of a model of transformers."""
    labels = network.model.config.id2label.values() if isinstance(network, HubNetwork) else []
    return [*(category.name for category in network.categories), *labels]


def _mean(maps: list[Relabelled]) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Return semantic map, confidence and probabilities; several maps are averaged.

    Averaged maps know only the classes of the result, so no pixel becomes void because of a dropped class.
    """
    if len(maps) == 1:
        return *maps[0].best(), maps[0]
    mean = MeanProbabilities(maps)
    confidence, sem_seg = mean().max(0)
    return sem_seg, confidence, mean


def _relabelled(instances: Instances, classes: list[int]) -> Instances:
    """Return instances with labels of the result, without those of dropped classes."""
    labels = torch.tensor(classes, device=instances.labels.device)[instances.labels]
    return replace(instances, labels=labels)[labels >= 0]
