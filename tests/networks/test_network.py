"""The protocol of networks, and what a predictor does with any object that fulfils it."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_run import CATEGORIES

from refine.checkpoint.find import find_model
from refine.checkpoint.folder import SavedModel, load_model
from refine.errors import RefineError
from refine.fusion import FusionConfig
from refine.inference.predictor import Predictor
from refine.modeling.config import BackboneConfig, DetectorConfig, ModelConfig
from refine.modeling.model import PanopticModel
from refine.networks.load import load_network
from refine.networks.native import NativeNetwork
from refine.networks.network import Network
from refine.structures import Categories, Instances, Prediction


class Halves:
    """Network that finds one thing in the left half of every image; it inherits nothing."""

    categories = Categories.from_json(CATEGORIES)
    device = torch.device("cpu")
    method = "heuristic"
    fusion = FusionConfig(stuff_area=0)
    test_size = None
    max_detections = None

    def predict(self, images, min_score=0.0):
        predictions = []
        for image in images:
            _, height, width = image.shape
            masks = torch.zeros(1, height, width, dtype=torch.bool)
            masks[:, :, : width // 2] = True
            boxes = torch.tensor([[0.0, 0.0, width // 2, height]])
            instances = Instances((height, width), boxes, torch.ones(1), torch.zeros(1).long(), masks=masks)
            stuff = torch.full((height, width), 2)
            predictions.append(Prediction(instances, stuff, torch.ones(height, width)))
        return predictions

    def digest(self):
        return "0"

    def fusion_heads(self):
        return {}

    def limit_detections(self, most):
        raise RefineError("fixed")


def test_any_object_with_the_members_of_a_network_predicts():
    assert isinstance(Halves(), Network)
    predictor = Predictor(Halves(), fusion={"score_threshold": 0.3})
    (result,) = predictor([torch.zeros(3, 6, 8, dtype=torch.uint8)])
    assert [(s.isthing, s.area) for s in result.segments] == [(True, 24), (False, 24)]
    assert predictor.methods == ["heuristic", "shr"]
    assert predictor.fusion == replace(Halves.fusion, score_threshold=0.3)
    assert predictor.limits().most is None


def test_options_that_a_given_network_cannot_take_are_refused():
    for options in ({"device": "cpu"}, {"precision": "bf16"}, {"compiled": True}):
        with pytest.raises(RefineError, match="when you create the network"):
            Predictor(Halves(), **options)
    with pytest.raises(RefineError, match="has no occlusion head"):
        Predictor(Halves(), method="soe")
    with pytest.raises(RefineError, match="test_size: cannot be changed"):
        Predictor(Halves()).test_size = (1, 2)
    with pytest.raises(RefineError, match=r"refine's own, got a Halves"):
        Predictor(Halves()).model  # noqa: B018


def test_the_maximum_number_of_detections_is_that_of_the_detector():
    """A detector outside the network has its own maximum; the box head is not even built."""
    config = ModelConfig(
        backbone=BackboneConfig("resnet18", weights=None, frozen_stages=0),
        detector=DetectorConfig(labels=[0] * 80, max_detections=7),
    )
    with torch.device("meta"):
        model = PanopticModel(config, 2, 3)
    network = NativeNetwork(SavedModel(model, Halves.categories))
    assert network.max_detections == 7
    network.limit_detections(3)
    assert network.max_detections == 3
    assert model.detector.config.max_detections == model.config.detector.max_detections == 3


def test_a_loaded_model_has_the_digest_of_its_weights_and_config_and_their_results():
    saved = load_model(find_model("nuclei"))
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    folded, plain = load_network("nuclei", device="cpu"), NativeNetwork(saved)
    assert folded.digest() == plain.digest()
    assert isinstance(folded.model.backbone.body.bn1, torch.nn.Identity)
    logits = [network.predict([image])[0].sem_confidence for network in (folded, plain)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    plain.limit_detections(3)
    assert folded.digest() == plain.digest()
    with torch.no_grad():
        saved.model.rpn.objectness.bias += 1
    assert folded.digest() != plain.digest()
