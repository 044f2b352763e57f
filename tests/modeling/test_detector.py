"""The frozen detector: its network against the published graph, boxes and samples by hand."""

import runpy
from pathlib import Path

import pytest
import torch
from helpers.detection_cases import make_targets
from helpers.tiny_network import tiny_config

from refine.errors import RefineError
from refine.modeling.config import DetectorConfig
from refine.modeling.detector import Detector
from refine.modeling.losses import detected_samples
from refine.modeling.model import PanopticModel
from refine.modeling.nanodet import BGR_MEAN, BGR_STD, BINS, NUM_CLASSES, STRIDES, NanoDetOutput, cells, decode
from refine.structures import ImageBatch, Instances, Targets
from refine.tensors import load_weights
from refine.training.config import OptimConfig
from refine.training.optim import parameter_groups
from refine.training.update import train_mode

REPOSITORY = Path(__file__).resolve().parents[2]

COARSE = [n % 3 for n in range(NUM_CLASSES)]
MEAN, STD = (127.0, 120.0, 110.0), (128.0, 64.0, 32.0)


@pytest.fixture(scope="module")
def published(shared_dir, tmp_path_factory):
    """Folder of the published graph, and the file to which the example converts it."""
    folder = shared_dir / "data" / "weights" / "nanodet_g"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    out = tmp_path_factory.mktemp("nanodet") / "nanodet_g.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["nanodet.py", str(folder / "nanodet.json"), "-o", str(out)])
        runpy.run_path(str(REPOSITORY / "examples" / "nanodet.py"), run_name="__main__")
    return folder, out


def test_equals_the_published_graph(published, monkeypatch):
    folder, file = published
    monkeypatch.syspath_prepend(str(folder))
    from tfjs_graph import Graph

    detector = Detector(DetectorConfig(weights=str(file)), NUM_CLASSES, MEAN, STD, "RGB")
    load_weights(detector.network, file)
    x = torch.randn(1, 3, 416, 416, generator=torch.Generator().manual_seed(3))
    graph = Graph(folder / "nanodet.json")
    theirs = graph.run({"input_1": x}, ["Identity:0", "Identity_1:0", "Identity_2:0"])
    sides = graph.run({"input_1": x}, ["Identity_3:0", "Identity_4:0", "Identity_5:0"])
    with torch.no_grad():
        ours = detector.network(x)
    for a, b, c, d in zip(ours.classes, theirs, ours.sides, sides, strict=True):
        torch.testing.assert_close(a.sigmoid(), b, atol=1e-4, rtol=0)
        torch.testing.assert_close(c, d.reshape(c.shape), atol=1e-4, rtol=0)


def detector(num_things=3, **fields) -> Detector:
    return Detector(DetectorConfig(**({"labels": COARSE} | fields)), num_things, MEAN, STD, "RGB")


def test_boxes_decode_by_hand():
    places = cells([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 2)])
    fine = [[x, y, 8] for y in (4, 12) for x in (4, 12, 20)]
    assert places.tolist() == [*fine, [8, 8, 16], [16, 16, 32], [48, 16, 32]]
    sides = torch.full((2, 4, BINS), -100.0)
    sides[0, :, 0] = 0.0  # no extent
    sides[1, 0, 2] = sides[1, 1, 1] = sides[1, 2, 10] = 0.0
    sides[1, 3, :2] = 0.0  # 0 or 1 stride with equal probability
    boxes = decode(sides, places[[2, 4]])
    assert boxes[0].tolist() == pytest.approx([20, 4, 20, 4], abs=1e-4)
    assert boxes[1].tolist() == pytest.approx([12 - 16, 12 - 8, 12 + 80, 12 + 4], abs=1e-4)


def answering(found: Detector, cells: dict[int, tuple[int, float]], monkeypatch) -> None:
    """Patch the network to predict a class and probability in some cells of the coarsest level."""

    def network(x):
        classes, sides = [], []
        maps = [x.new_zeros(len(x), 1, x.shape[2] // stride, x.shape[3] // stride) for stride in (4, *STRIDES)]
        for stride in STRIDES:
            count = (x.shape[2] // stride) * (x.shape[3] // stride)
            classes.append(torch.full((len(x), count, NUM_CLASSES), -50.0))
            sides.append(torch.full((len(x), count, 4, BINS), -50.0))
            sides[-1][..., 1] = 50.0
        for cell, (label, probability) in cells.items():
            classes[2][:, cell, label] = torch.logit(torch.tensor(probability))
        return NanoDetOutput(classes, sides, maps)

    monkeypatch.setattr(found.network, "forward", network)


def test_scores_labels_and_clipping(monkeypatch):
    # COCO's class n is mapped to thing n % 3; cell 0 of 4 × 4 has its centre at (16, 16).
    labels = [*COARSE[:-1], -1]
    found = detector(labels=labels, score_threshold=0.3)
    images = ImageBatch(torch.zeros(1, 3, 128, 128), [(100, 40)])
    answers = {0: (4, 0.6), 1: (5, 0.9), 5: (3, 0.2), 9: (79, 0.9)}
    answering(found, answers, monkeypatch)
    (result,) = found.detect(images, found(images))
    assert result.labels.tolist() == [2, 1]
    assert result.scores.tolist() == pytest.approx([0.9, 0.6])
    assert result.boxes[0].tolist() == pytest.approx([16, 0, 40, 48])  # clipped to the image: 80 → 40, -16 → 0
    assert result.boxes[1].tolist() == pytest.approx([0, 0, 40, 48])
    assert result.image_size == (100, 40)
    (best,) = found.detect(images, found(images), min_score=0.7)
    assert best.labels.tolist() == [2]
    (best,) = found.detect(images, found(images), min_score=float(result.scores[0]))  # which is itself enough
    assert best.labels.tolist() == [2]
    # With scale 2 the input of the network is 256 × 256, and its boxes are halved.
    twice = detector(labels=labels, scale=2.0)
    answering(twice, {0: (4, 0.6)}, monkeypatch)
    (result,) = twice.detect(images, twice(images))
    assert result.boxes[0].tolist() == pytest.approx([0, 0, 24, 24])


def test_cells_in_the_padding_take_no_places(monkeypatch):
    # Boxes of one stride around the centres 16, 48, 80, 112; the image ends at 40.
    found = detector(score_threshold=0.3, max_detections=2)
    images = ImageBatch(torch.zeros(1, 3, 128, 128), [(128, 40)])
    answering(found, {2: (0, 0.9), 3: (0, 0.8), 4: (0, 0.7), 12: (0, 0.6)}, monkeypatch)
    (result,) = found.detect(images, found(images))
    assert result.scores.tolist() == pytest.approx([0.7, 0.6])


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_input_is_normalised_as_the_detector_was_trained(channels):
    found = Detector(DetectorConfig(labels=COARSE), 3, MEAN, STD, channels)
    rgb = torch.randint(0, 256, (3, 32, 64)).float()
    order = rgb if channels == "RGB" else rgb.flip(0)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x = found._input(((order - mean) / std)[None])
    expected = (rgb.flip(0) - torch.tensor(BGR_MEAN).view(3, 1, 1)) / torch.tensor(BGR_STD).view(3, 1, 1)
    torch.testing.assert_close(x[0], expected, atol=1e-4, rtol=1e-4)


def test_samples():
    # Two true boxes and a crowd. Detections: near the first, near it with another class, near the second but below
    # the threshold, in the crowd.
    target = make_targets([[0, 0, 20, 20], [40, 40, 80, 80], [90, 0, 120, 60]], [1, 2, 0], [False, False, True])
    boxes = torch.tensor([[0, 0, 20, 18], [0, 0, 20, 19], [40, 40, 80, 59], [90, 0, 120, 60]]).float()
    found = detector()
    answer = Instances((128, 160), boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 2, 0]))
    positives, scores, false = found.sample([answer, answer[:0]], [target, make_targets()])
    assert positives[0].boxes.tolist() == [boxes[0].tolist(), [0, 0, 20, 20], [40, 40, 80, 80]]
    assert positives[0].labels.tolist() == [1, 1, 2]
    assert positives[0].matched.tolist() == [0, 0, 1]
    assert scores[0].tolist() == pytest.approx([0.9, 0, 0])
    assert false[0].scores.tolist() == pytest.approx([0.8, 0.7, 0.6])
    assert (len(positives[1].boxes), len(scores[1]), len(false[1])) == (0, 0, 0)


@pytest.mark.parametrize(("iterations", "features"), [(0, True), (2, False)])
def test_model_trains_and_predicts_with_a_detector(iterations, features, monkeypatch):
    config = tiny_config(iterations, {}, detector=DetectorConfig(labels=COARSE, features=features))
    model = PanopticModel(config, 3, 5)
    assert not any(name.startswith(("rpn", "box_heads")) for name, _ in model.named_modules())
    index = torch.zeros(64, 96, dtype=torch.int32)
    index[4:40, 4:44] = 1
    target = Targets.from_panoptic(index, torch.tensor([3, 1]), torch.zeros(2, dtype=torch.bool), 3)
    boxes = torch.tensor([[4, 4, 44, 36], [50, 20, 90, 60]]).float()
    answer = Instances((64, 96), boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    monkeypatch.setattr(Detector, "detect", lambda self, images, seen, min_score=0.0: [answer] * len(images))
    train_mode(model)
    before = {name: value.clone() for name, value in model.detector.state_dict().items()}
    losses = model.loss(model.image_batch([torch.zeros(3, 64, 96, dtype=torch.uint8)] * 2), [target] * 2)
    assert set(losses) == {f"loss_sem_{t}" for t in range(iterations + 1)} | {
        f"loss_mask_{t}" for t in range(1, max(iterations, 1) + 1)
    }
    sum(losses.values()).backward()
    trained = [name for group in parameter_groups(model, OptimConfig()) for name in group["names"]]
    assert not [n for n in trained if n.startswith("detector.")]
    assert all(model.get_parameter(name).grad is not None for name in trained)
    assert not model.detector.training
    assert all(torch.equal(before[name], value) for name, value in model.detector.state_dict().items())
    (result,) = model.eval().predict(model.image_batch([torch.zeros(3, 64, 96, dtype=torch.uint8)]))
    assert result.instances.boxes.tolist() == boxes.tolist()
    assert result.instances.roi_masks.shape == (2, 28, 28)


def test_false_positives_reach_the_canvas_but_not_the_mask_loss(monkeypatch):
    model = PanopticModel(tiny_config(1, {}, detector=DetectorConfig(labels=COARSE)), 3, 5)
    index = torch.zeros(64, 96, dtype=torch.int32)
    index[4:40, 4:44] = 1
    target = Targets.from_panoptic(index, torch.tensor([3, 1]), torch.zeros(2, dtype=torch.bool), 3)
    boxes = torch.tensor([[4, 4, 44, 36], [50, 20, 90, 60], [50, 20, 90, 61]]).float()
    answer = Instances((64, 96), boxes, torch.tensor([0.9, 0.8, 0.01]), torch.tensor([1, 2, 2]))
    monkeypatch.setattr(Detector, "detect", lambda self, images, seen, min_score=0.0: [answer])
    images = model.image_batch([torch.zeros(3, 64, 96, dtype=torch.uint8)])
    pyramid = model.pyramid(images)
    features = model.semantic_head.features(pyramid[:4])
    painted, truth = detected_samples(model, images, model.run_detector(images), pyramid, features, [target])
    assert painted.rois[:, 1:].tolist() == [boxes[0].tolist(), [4, 4, 44, 40], boxes[1].tolist()]
    assert painted.scores.tolist() == pytest.approx(
        [0.9, 0, 0.8]
    )  # detections below ibpp.score_threshold are not painted
    assert painted.labels.tolist() == [1, 1, 2]
    assert len(truth) == 2


def test_maps_of_the_detector_are_concatenated():
    config = tiny_config(0, {}, detector=DetectorConfig(labels=COARSE, features=True, scale=1.5))
    model = PanopticModel(config, 3, 5).eval()
    images = model.image_batch([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    seen = model.run_detector(images)
    assert [tuple(m.shape[1:]) for m in seen.maps] == [(64, 24, 32), (128, 12, 16), (128, 6, 8), (128, 3, 4)]
    alone = model.backbone(images.tensor)
    joined = [torch.cat([a, b], 1) for a, b in zip(alone, model.detector.maps(seen, alone), strict=True)]
    assert [tuple(m.shape[2:]) for m in joined] == [tuple(m.shape[2:]) for m in alone]
    for ours, expected in zip(model.pyramid(images), model.fpn(joined), strict=True):
        torch.testing.assert_close(ours, expected)


def test_invalid_labels_are_reported():
    with pytest.raises(RefineError, match=r"detector\.labels: expected 80 indices of the 3 thing classes"):
        detector(labels=[0, 1])
    with pytest.raises(RefineError, match=r"detector\.labels"):
        detector(labels=[3] * NUM_CLASSES)
    with pytest.raises(RefineError, match=r"detector\.labels.*got none"):
        detector(labels=[])
