"""Models of transformers against its own post-processing."""

import numpy as np
import pytest
import torch
import transformers
from helpers import hub_models
from helpers.hub_models import COCO_LABELS, PIXELS, QUERIES, saved

from refine.errors import RefineError
from refine.inference.predictor import Predictor
from refine.networks.hub.network import OUTPUTS
from refine.networks.load import load_network
from refine.structures import VOID, Categories

SIZES = [(48, 70), (70, 48)]
DETR_LABELS = ["N/A", *COCO_LABELS, "LABEL_134"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of each model, made once, and the network loaded from it."""
    folder, made = tmp_path_factory.mktemp("hub"), {}

    def get(make):
        if make not in made:
            labels = DETR_LABELS if make is hub_models.detr else COCO_LABELS
            path = saved(folder / make.__name__, make, labels)
            network = load_network(path, device="cpu")
            network.model.forward = varied(network.model.forward)
            made[make] = (path, network)
        return made[make]

    return get


def varied(forward):
    """Wrap the forward pass of a model: outputs of the same shapes, in which queries and pixels differ.

    The outputs of networks with random weights hardly do.
    """

    def outputs_of(**inputs):
        outputs, g = forward(**inputs), torch.Generator().manual_seed(7)
        for name in OUTPUTS:
            old = outputs.get(name)
            if old is not None and old.ndim == 4:  # disjoint masks, and one that crosses them
                best = torch.randn(*old.shape[:2], 5, 4, generator=g).argmax(1)
                coarse = torch.nn.functional.one_hot(best, old.shape[1]).movedim(-1, 1) * 12.0 - 6
                coarse[:, 0] = torch.randn(5, 4, generator=g) * 6
                outputs[name] = torch.nn.functional.interpolate(coarse, old.shape[-2:], mode="bicubic")
            elif old is not None:
                outputs[name] = torch.randn(old.shape, generator=g) * 8
        return outputs

    return outputs_of


def random_image(size, seed=0):
    """Image of smooth colours, whose parts differ."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=g) * 255
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].byte()


def reference(path, make, image, model):
    """Processor, and outputs of the model for one image, as its documentation says."""
    options = {"class_info_file": None} if make is hub_models.oneformer else {}
    processor = transformers.AutoImageProcessor.from_pretrained(path, **options)
    given = processor(images=[image], return_tensors="pt", input_data_format="channels_first")
    inputs = {name: given[name] for name in ("pixel_values", "pixel_mask") if name in given}
    if make is hub_models.oneformer:
        whole = transformers.OneFormerProcessor(processor, transformers.AutoTokenizer.from_pretrained(path), 7, 7)
        inputs["task_inputs"] = whole(images=[image], task_inputs=["panoptic"], return_tensors="pt")["task_inputs"]
    with torch.no_grad():
        outputs = model(**inputs)
    if "patch_offsets" in given:
        outputs.patch_offsets = given["patch_offsets"]
    return processor, outputs


def in_refine(network, scores):
    """Scores of transformers' labels, Tensor[L, H, W], in the order of refine's classes."""
    known = network.classes >= 0
    ordered = torch.empty(len(network.categories), *scores.shape[1:])
    ordered[network.classes[known]] = scores[known]
    return ordered


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [*QUERIES, hub_models.eomt_semantic, *PIXELS], ids=lambda make: make.__name__)
def test_semantics_equal_those_of_transformers(models, make, size):
    path, network = models(make)
    image = random_image(size)
    (got,) = Predictor(network).predict_raw([image])
    processor, outputs = reference(path, make, image, network.model)
    if make is hub_models.eomt:  # transformers stretches the padding over the image; without it, see below
        height, width = transformers.image_transforms.get_size_with_aspect_ratio(size, 64, 64)
        outputs.masks_queries_logits = torch.nn.functional.interpolate(
            outputs.masks_queries_logits, (64, 64), mode="bilinear"
        )[..., :height, :width]
        expected = torch.einsum(
            "qc,qhw->chw",
            outputs.class_queries_logits[0].softmax(-1)[:, :-1],
            outputs.masks_queries_logits[0].sigmoid(),
        )
        expected = torch.nn.functional.interpolate(expected[None], size, mode="bilinear")[0]
    else:
        (semantic,) = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[size], return_segmentation_scores=True
        )
        expected = semantic.segmentation_scores
    expected = in_refine(network, expected)
    expected = expected.softmax(0) if make in PIXELS else expected / expected.sum(0).clamp(min=1)
    torch.testing.assert_close(got.sem_probabilities(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.sem_confidence, expected.max(0).values, atol=1e-5, rtol=0)
    chosen = expected.gather(0, got.sem_seg[None])[0]
    torch.testing.assert_close(chosen, expected.max(0).values, atol=1e-5, rtol=0)
    assert len(got.sem_seg.unique()) > 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", QUERIES, ids=lambda make: make.__name__)
def test_the_own_merge_equals_that_of_transformers(models, make, size):
    path, network = models(make)
    image = random_image(size, 1)
    predictor = Predictor(network, fusion={"score_threshold": 0.02})
    assert predictor.method == "model"
    assert predictor.methods == ["heuristic", "shr", "model"]
    result = predictor(image)
    processor, outputs = reference(path, make, image, network.model)
    labels = network.classes.tolist()
    stuff = {n for n, index in enumerate(labels) if index >= network.categories.num_things}
    options = {"stuff_classes": list(stuff)} if make is hub_models.eomt else {"label_ids_to_fuse": stuff}
    (expected,) = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.02, target_sizes=[size], **options
    )
    theirs = np.full(size, VOID)
    segments = {}
    for info in expected["segments_info"]:
        if labels[info["label_id"]] >= 0:
            theirs[expected["segmentation"].numpy() == info["id"]] = info["id"]
            segments[info["id"]] = network.categories[labels[info["label_id"]]].id
    assert len(segments) > 1
    # Each pair of segments that share a pixel must be the same: one to one, and of one category.
    ours = result.segment_ids.numpy()
    pairs, counts = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1, return_counts=True)
    category = {segment.id: segment.category_id for segment in result.segments}
    best = {}
    for (mine, other), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if (mine == 0) == (other == VOID) and category.get(mine) == segments.get(other):
            best[other] = max(best.get(other, 0), count)
    assert sum(best.values()) >= 0.999 * ours.size
    assert len(result.segments) == len(segments)


def test_queries_become_instances_with_all_rules(models):
    _, network = models(hub_models.mask2former)
    predictor = Predictor(network, method="heuristic", fusion={"score_threshold": 0.0, "stuff_area": 0})
    image = random_image((48, 70))
    (raw,) = predictor.predict_raw([image])
    masks = raw.instances.mask_runs().dense()
    assert len(masks) > 1
    assert masks.flatten(1).any(1).all()
    for mask, box in zip(masks, raw.instances.boxes.tolist(), strict=True):
        ys, xs = torch.nonzero(mask, as_tuple=True)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    for method in ("heuristic", "shr", "model"):
        assert predictor.fuse(raw, method).segments
    half = float(raw.instances.scores.median())
    (fewer,) = predictor.predict_raw([image], half)
    assert len(fewer.instances) == int((raw.instances.scores >= half).sum())


def test_test_size_is_the_processors_and_can_be_changed(models):
    _, network = models(hub_models.maskformer)
    predictor = Predictor(network)
    assert predictor.test_size == (64, 96)
    (small,) = predictor.predict_raw([random_image((128, 128))])
    assert small.scale == 0.5
    predictor.test_size = (128, 200)
    (large,) = predictor.predict_raw([random_image((128, 128))])
    assert large.scale == 1.0
    predictor.test_size = (64, 96)
    fixed = Predictor(models(hub_models.segformer)[1])
    assert fixed.test_size is None
    with pytest.warns(UserWarning, match="small objects may be missed; cut the image into tiles"):
        fixed(random_image((200, 200)))
    with pytest.raises(RefineError, match="number of objects of this model is fixed"):
        predictor.limit_detections(3)


def test_a_model_of_patches_gives_stuff_by_fusion(models):
    predictor = Predictor(models(hub_models.eomt_semantic)[1], fusion={"stuff_area": 0})
    assert (predictor.method, predictor.methods) == ("heuristic", ["heuristic", "shr"])
    result = predictor(random_image((48, 70)))
    assert result.segments
    assert not any(segment.isthing for segment in result.segments)


@pytest.mark.parametrize("make", [hub_models.mask2former, hub_models.eomt], ids=lambda make: make.__name__)
def test_images_too_narrow_for_a_model_are_told(models, make):
    predictor = Predictor(models(make)[1])
    assert predictor(random_image((1, 1))).segment_ids.shape == (1, 1)
    with pytest.raises(RefineError, match=r"the image: 2 × 500 pixels cannot be resized for this model; crop"):
        predictor(random_image((500, 2)))


def test_a_segment_never_shares_its_id_with_another(models):
    """Stuff, thing, the same stuff, thing: transformers gives both things one id."""
    from refine.networks.hub.queries import Queries

    categories = Categories.from_json([{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 0}])
    labels = torch.tensor([1, 0, 1, 0])
    maps = torch.zeros(4, 2, 4)
    for n in range(4):
        maps[n, :, n] = 1
    scores = torch.nn.functional.one_hot(labels, 2) * 0.9
    queries = Queries(
        scores=scores,
        best=scores.amax(1),
        is_object=torch.ones(4, dtype=torch.bool),
        label=labels,
        maps=maps,
        of_logits=False,
        semantic=torch.einsum("qc,qhw->chw", scores, maps),
        size=(2, 4),
    )
    result = queries.prediction(categories, 0.0, 1.0).merge(0.5)
    assert [(s.category_id, s.area) for s in result.segments] == [(1, 2), (1, 2), (2, 4)]
    module = transformers.models.mask2former.image_processing_mask2former
    theirs, _ = module.compute_segments(maps.clone(), scores.amax(1), labels, label_ids_to_fuse={1})
    assert len(theirs.unique()) == 2
