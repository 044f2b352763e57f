"""Two models together, and ensembles."""

import pytest
import torch

from refine.errors import RefineError
from refine.formats.adapters import from_masks
from refine.fusion import FusionConfig
from refine.inference.predictor import Predictor
from refine.networks.compose import Compose
from refine.networks.ensemble import merge_instances
from refine.networks.network import Network
from refine.structures import VOID, Categories, Category, Instances, Prediction

SIZE = (4, 6)


def categories(things, stuff, first=1):
    """Categories with ids from `first` on."""
    kinds = [(name, True) for name in things] + [(name, False) for name in stuff]
    return Categories([Category(first + n, name, isthing) for n, (name, isthing) in enumerate(kinds)])


class Fixed(Network):
    """Network with the same prediction for every image of `SIZE`."""

    def __init__(self, categories, instances=None, semantic=None, heads=None):
        self.categories, self.device, self.test_size = categories, torch.device("cpu"), None
        self.method, self.fusion, self.max_detections = "heuristic", FusionConfig(stuff_area=0), 5
        self.heads, self.calls = heads or {}, []
        self.instances = Instances.empty(SIZE) if instances is None else instances
        self.semantic = torch.zeros(len(categories), *SIZE) if semantic is None else semantic

    def predict(self, images, min_score=0.0):
        self.calls.append(min_score)
        confidence, sem_seg = self.semantic.max(0)
        found = self.instances[self.instances.scores >= min_score]
        return [Prediction(found, sem_seg, confidence, lambda: self.semantic, 0.5) for _ in images]

    def digest(self):
        return repr(self.categories)

    def fusion_heads(self):
        return self.heads


def boxes(labels, scores, *columns):
    """Instances that cover all rows of columns first..last-1 each."""
    masks = torch.zeros(len(columns), *SIZE)
    for mask, (first, last) in zip(masks, columns, strict=True):
        mask[:, first:last] = 1
    return from_masks(masks, torch.tensor(labels), torch.tensor(scores))


def maps(*columns):
    """Probability of each class by columns: a map is 0.9 at columns first..last-1 and 0.05 elsewhere."""
    semantic = torch.full((len(columns), *SIZE), 0.05)
    for part, (first, last) in zip(semantic, columns, strict=True):
        part[:, first:last] = 0.9
    return semantic


THINGS = Fixed(categories(["cat", "dog"], ["wall"]), boxes([1, 0], [0.9, 0.8], (0, 2), (1, 4)))
STUFF = Fixed(categories(["dog", "bed"], ["sky", "grass"], 2), None, maps((0, 1), (1, 2), (2, 4), (4, 6)))
IMAGE = torch.zeros(3, *SIZE, dtype=torch.uint8)


def test_classes_are_matched_by_name():
    network = Compose([THINGS], [STUFF])
    assert [c.name for c in network.categories] == ["cat", "dog", "sky", "grass"]
    assert [c.id for c in network.categories] == [1, 2, 4, 5]
    (raw,) = network.predict([IMAGE], 0.3)
    assert raw.instances.labels.tolist() == [1, 0]
    assert raw.sem_seg[0].tolist() == [1, VOID, 2, 2, 3, 3]
    assert raw.scale == 0.5
    expected = STUFF.semantic[[0, 0, 2, 3]]
    expected[0] = 0
    expected[1] = STUFF.semantic[0]
    assert torch.equal(raw.sem_probabilities(), expected)
    assert THINGS.calls[-1] == 0.3
    assert any("'bed'" in remark and "void" in remark for remark in network.remarks)
    assert Predictor(network)(IMAGE).segments[0].category_id == 2


def test_stuff_that_is_a_thing_of_the_result_is_told():
    other = Fixed(categories(["dog"], ["cat", "sky"], 2), None, maps((0, 1), (1, 4), (4, 6)))
    network = Compose([Fixed(THINGS.categories)], [other])
    assert not Predictor(network)(IMAGE).segment_ids[:, :4].any()  # no instance of the cat is found
    (remark,) = [remark for remark in network.remarks if "'cat'" in remark]
    assert "stuff in the semantic model" in remark
    assert "void" in remark
    assert "'dog'" not in remark
    assert not any("stuff in the semantic model" in remark for remark in Compose([THINGS], [STUFF]).remarks)


def test_a_class_map_renames_and_drops():
    network = Compose([THINGS], [STUFF], class_map={"bed": "cat", "sky": None})
    assert [c.name for c in network.categories] == ["cat", "dog", "grass"]
    (raw,) = network.predict([IMAGE])
    assert raw.sem_seg[0].tolist() == [1, 0, VOID, VOID, 2, 2]
    with pytest.raises(RefineError, match="no model has the class 'bet'"):
        Compose([THINGS], [STUFF], class_map={"bet": "cat"})


def test_classes_that_become_one_add_their_probabilities():
    columns = [  # wall, road, path, sky, rug
        (0.10, 0.30, 0.20, 0.40, 0.00),
        (0.10, 0.20, 0.10, 0.60, 0.00),
        (0.10, 0.10, 0.20, 0.10, 0.50),
        (0.10, 0.30, 0.20, 0.00, 0.40),
        (0.60, 0.20, 0.20, 0.00, 0.00),
        (0.35, 0.30, 0.30, 0.05, 0.00),
    ]
    semantic = torch.tensor(columns).T[:, None].expand(5, *SIZE)
    stuff = categories([], ["wall", "road", "path", "sky", "rug"], 3)
    one, other = (Fixed(stuff, None, semantic) for _ in range(2))
    names = {"path": "road", "rug": None}
    (alone,) = Compose([THINGS], [one], class_map=names).predict([IMAGE])
    wall, road, sky = 2, 3, 4
    assert alone.sem_seg[0].tolist() == [road, sky, VOID, road, wall, road]
    torch.testing.assert_close(alone.sem_confidence[0], torch.tensor([0.5, 0.6, 0.5, 0.5, 0.6, 0.6]))
    (both,) = Compose([THINGS], [one, other], class_map=names).predict([IMAGE])
    known = alone.sem_seg != VOID  # which an ensemble does not give
    assert torch.equal(both.sem_seg[known], alone.sem_seg[known])
    torch.testing.assert_close(both.sem_confidence[known], alone.sem_confidence[known])
    one.without_probabilities = ["a.onnx"]
    with pytest.raises(RefineError, match=r"a.onnx: has no probabilities .*, which classes that become one add up"):
        Compose([THINGS], [one], class_map=names)
    Compose([THINGS], [one], class_map={"path": None, "rug": None})


def test_an_ensemble_needs_the_same_classes():
    other = Fixed(categories(["cat", "dog", "owl"], []), None)
    with pytest.raises(RefineError, match=r"class 'owl' is not among .*, which are those of the first model"):
        Compose([THINGS, other], [STUFF])


def test_given_categories_must_have_every_class_that_is_not_dropped():
    wanted = categories(["cat", "dog"], ["sky"], 50)
    with pytest.raises(RefineError, match=r"class 'grass' is not among .*--class-map '\{.grass.: null\}'"):
        Compose([THINGS], [STUFF], categories=wanted)
    network = Compose([THINGS], [STUFF], categories=wanted, class_map={"grass": None})
    assert network.categories == wanted
    with pytest.raises(RefineError, match="class 'dog' is not among the things of the result; give"):
        Compose([THINGS], [STUFF], categories=categories(["cat"], ["sky", "grass"]))


def test_clashing_ids_are_renumbered_and_told():
    other = Fixed(categories([], ["sky", "grass"], 1), None, maps((0, 3), (3, 6)))
    network = Compose([THINGS], [other])
    assert [c.id for c in network.categories] == [1, 2, 3, 4]
    assert "new category ids, from 3 on" in network.remarks[0]


def test_heads_and_limits_are_those_of_the_only_model_for_instances():
    head = {"ranking": lambda instances: instances.scores}
    alone = Fixed(THINGS.categories, THINGS.instances, heads=head)
    assert Predictor(Compose([alone], [STUFF])).methods == ["heuristic", "shr", "srm"]
    assert Compose([alone], [STUFF]).max_detections == 5
    assert Predictor(Compose([alone, THINGS], [STUFF])).methods == ["heuristic", "shr"]
    fewer = Compose([alone], [STUFF], class_map={"cat": None})
    assert fewer.fusion_heads() == {}  # the classes of the head are others


def test_every_network_runs_once_per_image():
    one, two = replace_calls(THINGS), replace_calls(THINGS)
    Compose([one, two]).predict([IMAGE], 0.5)
    assert one.calls == two.calls == [0.0]  # averaged scores may rise above the minimum


def replace_calls(network):
    return Fixed(network.categories, network.instances, network.semantic)


def test_ensembles_average_scores_and_maps():
    one = Fixed(categories(["cat"], ["sky"]), boxes([0, 0], [0.8, 0.4], (0, 4), (4, 6)), maps((0, 3), (3, 6)))
    two = Fixed(one.categories, boxes([0, 0], [0.6, 0.5], (0, 3), (0, 4)), maps((0, 5), (5, 6)))
    (raw,) = Compose([one, two]).predict([IMAGE], 0.3)
    assert raw.instances.scores.tolist() == pytest.approx([0.7])  # (0.8 + 0.6) / 2; the other is (0.4 + 0) / 2
    assert raw.instances.boxes.tolist() == [[0, 0, 4, 4]]
    torch.testing.assert_close(raw.sem_probabilities(), (one.semantic + two.semantic) / 2)
    assert raw.sem_seg[0].tolist() == [0, 0, 0, 0, 0, 1]


def reference(detections, min_score):
    """The rule of `merge_instances`, one detection after the other, on dense masks."""
    every = [
        (float(found.scores[n]), int(found.labels[n]), found.masks[n], model)
        for model, found in enumerate(detections)
        for n in range(len(found))
    ]
    every.sort(key=lambda entry: -entry[0])
    merged = []
    while every:
        _, label, mask, _ = every[0]
        same = [e for e in every if e[1] == label and (e[2] & mask).sum() * 2 >= (e[2] | mask).sum()]
        best = [max([e[0] for e in same if e[3] == model], default=0.0) for model in range(len(detections))]
        merged.append((sum(best) / len(detections), label, mask))
        every = [e for e in every if not any(e is s for s in same)]
    return sorted([m for m in merged if m[0] >= min_score], key=lambda m: -m[0])


@pytest.mark.parametrize("seed", range(5))
def test_merging_equals_a_plain_loop(seed):
    g = torch.Generator().manual_seed(seed)
    detections = []
    for count in (6, 0, 9) if seed else (0, 0):
        corner = torch.randint(0, 4, (count, 2), generator=g)
        masks = torch.zeros(count, 8, 8, dtype=torch.bool)
        for mask, (y, x) in zip(masks, corner.tolist(), strict=True):
            mask[y : y + 4, x : x + 3] = True
        labels = torch.randint(0, 2, (count,), generator=g)
        detections.append(from_masks(masks, labels, torch.rand(count, generator=g)))
    got = merge_instances(detections, 0.1)
    expected = reference(detections, 0.1)
    assert got.labels.tolist() == [label for _, label, _ in expected]
    assert got.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    masks = got.mask_runs().dense()
    assert all(torch.equal(mask, m) for mask, (_, _, m) in zip(masks, expected, strict=True))


def test_networks_on_different_devices_are_refused():
    elsewhere = replace_calls(STUFF)
    elsewhere.device = torch.device("meta")
    with pytest.raises(RefineError, match="different devices"):
        Compose([THINGS], [elsewhere])
    with pytest.raises(RefineError, match="list is empty"):
        Compose([THINGS], [])
