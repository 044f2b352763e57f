"""Occlusion heads for networks without one: training on their detections, and their use by every command."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers import hub_models
from helpers.exported import image_of, tiny_model
from helpers.hub_models import saved
from helpers.painted import PaintedNetwork, painted
from helpers.scenes import CATEGORIES, STUFF, THINGS
from PIL import Image

from refine.checkpoint.folder import save_model
from refine.checkpoint.occlusion import SavedOcclusion, check_out, load_occlusion, save_occlusion
from refine.cli.main import main
from refine.cli.train_occlusion import comparison
from refine.data.coco_panoptic import CocoPanoptic
from refine.data.segments import SegmentMap
from refine.data.synthetic.scenes import CATEGORIES as OF_SCENES
from refine.data.synthetic.scenes import generate
from refine.errors import RefineError
from refine.experiments.order import measure_order
from refine.formats.adapters import add_roi_masks
from refine.inference.evaluate import evaluate
from refine.inference.measures import OrderAccuracy
from refine.inference.predictor import Predictor
from refine.modeling.config import OcclusionConfig
from refine.modeling.model import PanopticModel
from refine.modeling.occlusion import OcclusionHead
from refine.networks.choice import ModelChoice
from refine.networks.occlusion import attach_occlusion
from refine.structures import Categories, Instances
from refine.training.occlusion import OcclusionTraining, train_occlusion

QUICK = OcclusionTraining(min_score=0.0, width=8, steps=100, batch=32, lr=0.01)


class PaintedScenes:
    """Truth of painted images: of two overlapping objects, the one with the lower class is in front."""

    categories, sizes = CATEGORIES, property(lambda self: [(48, 64)] * len(self))

    def __init__(self, first: int, count: int) -> None:
        self.images = [painted(first + n, (48, 64), 14, 36) for n in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> tuple[int, str]:
        return index, f"{index}.png"

    def __getitem__(self, index: int) -> tuple[torch.Tensor, SegmentMap]:
        image = self.images[index]
        red, green = image[0].long(), image[1].long()
        green_in_front = (green > 0) & ((red == 0) | ((256 + green) % THINGS < red % THINGS))
        number = torch.where(green_in_front, 256 + green, red)
        stuff = THINGS + image[2].long() % STUFF
        ids, segment = torch.unique(torch.where(number > 0, number, 1000 + stuff), return_inverse=True)
        labels = torch.where(ids < 1000, ids % THINGS, ids - 1000)
        return image, SegmentMap(segment.int(), labels, torch.zeros(len(ids), dtype=torch.bool))


@pytest.fixture(scope="module")
def learned() -> SavedOcclusion:
    return train_occlusion(Predictor(PaintedNetwork()), PaintedScenes(0, 80), QUICK, {"model": "painted"})


def test_the_order_is_learned_from_detections(learned):
    numbers = learned.training
    assert numbers["pairs"] > 5 * numbers["held_out_pairs"] > 20
    assert numbers["right"] > 0.9 > 0.7 > numbers["right_by_score"]
    assert (numbers["model"], numbers["images"], learned.things) == ("painted", 80, ["c0", "c1", "c2"])
    predictor = Predictor(PaintedNetwork(), occlusion=learned)
    assert predictor.method == "soe"
    rules = [(method, predictor.fusion) for method in ("heuristic", "strong")]
    by_score, by_head = evaluate(predictor, PaintedScenes(1000, 20), rules=rules, measures=[OrderAccuracy()])
    assert by_head[OrderAccuracy].totals[1] > 20
    assert by_head.metrics["pairs_right"] > 0.9 > 0.8 > by_score.metrics["pairs_right"]


def test_training_repeats_exactly():
    few, shown = replace(QUICK, steps=3), []

    @contextmanager
    def progress(total, unit):
        shown.append([total, unit, 0])

        def advance():
            shown[-1][2] += 1

        yield advance

    arguments = (Predictor(PaintedNetwork()), PaintedScenes(0, 12), few, {}, None, progress)
    first, again = (train_occlusion(*arguments) for _ in range(2))
    assert shown == 2 * [[12, "images", 12], [3, "updates", 3]]
    assert again.training == first.training
    assert all(map(torch.equal, again.head.state_dict().values(), first.head.state_dict().values()))
    assert again.head.training is False


def random_head(things: int, seed: int = 0, width: int = 8) -> OcclusionHead:
    torch.manual_seed(seed)
    head = OcclusionHead(OcclusionConfig(["mask", "label"], width, width), 0, things).eval()
    torch.nn.init.normal_(head.predictor.weight)
    return head


@torch.no_grad()
def _spread(saved):
    """Scale the last layer of the random head, so that O differs from pair to pair."""
    head, instances = saved.model.occlusion, Predictor(saved).predict_raw([image_of((96, 128))])[0].instances
    logits = head(instances, torch.combinations(torch.arange(len(instances))))
    factor = 2 / logits.std()
    head.predictor.bias.sub_(logits.mean()).mul_(factor)
    head.predictor.weight.mul_(factor)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Folders of a network with an occlusion head, of the same without it, and of the head alone."""
    folder = tmp_path_factory.mktemp("models")
    whole = tiny_model("residual balanced REFINE")
    whole.fusion = replace(whole.fusion, score_threshold=0.25, stuff_area=0, pair_overlap=0.05)
    _spread(whole)
    part = PanopticModel(replace(whole.model.config, occlusion=None), 3, 6).eval()
    part.load_state_dict(whole.model.state_dict(), strict=False)
    save_model(folder / "with", whole)
    save_model(folder / "without", replace(whole, model=part, method="heuristic"))
    save_occlusion(folder / "head", SavedOcclusion(whole.model.occlusion, ["c0", "c1", "c2"]))
    return folder


def test_an_attached_head_equals_the_same_head_in_the_model(native, tmp_path):
    choice = ModelChoice((str(native / "without"),), occlusion=str(native / "head"))
    own, attached = Predictor(native / "with", device="cpu", method="soe"), Predictor(choice, device="cpu")
    assert attached.methods == ["heuristic", "shr", "ocfusion", "strong", "soe"]
    raw = own.predict_raw([image_of((96, 128))])[0]
    pairs = torch.combinations(torch.arange(len(raw.instances)))
    expected = own.fusion_heads()["occlusion"](raw.instances, pairs)
    assert expected[*pairs.T].std() > 0.01
    for source in (native / "head", native / "with"):
        given = attach_occlusion(source, own.categories, "the model")(raw.instances, pairs)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-4)
    Image.fromarray(image_of((96, 128)).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    own_head, other_head = ["--method", "soe"], ["--occlusion", native / "head"]
    results = {}
    for name, model, words in (
        ("own", "with", own_head),
        ("attached", "without", other_head),
        ("tiles", "without", [*other_head, "--tile", "64"]),
        ("scores", "without", ["--method", "heuristic"]),
    ):
        words = [tmp_path / "a.png", "-o", tmp_path / name, "--checkpoint", native / model, *words]
        assert main(["predict", *map(str, words), "--device", "cpu", "--save", "coco"]) == 0
        results[name] = json.loads((tmp_path / name / "panoptic.json").read_text())
    assert results["own"]["annotations"] == results["attached"]["annotations"] != results["scores"]["annotations"]
    assert (tmp_path / "own/panoptic/a.png").read_bytes() == (tmp_path / "attached/panoptic/a.png").read_bytes()
    assert "occlusion" not in results["own"]["info"]
    assert results["attached"]["info"]["occlusion"] == attached.occlusion.digest()
    assert len(results["tiles"]["annotations"][0]["segments_info"]) > 3


def test_the_given_head_stays_as_it_is():
    saved = SavedOcclusion(random_head(THINGS).train(), ["c0", "c1", "c2"])
    attached = attach_occlusion(saved, CATEGORIES, "x", "meta")
    assert (saved.head.training, saved.head.fc1.weight.device.type) == (True, "cpu")
    assert (attached.head.training, attached.head.fc1.weight.device.type) == (False, "meta")


def test_masks_in_the_image_are_cut_to_the_boxes():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 20, 30, generator=generator) < 0.6
    boxes = torch.tensor([[0.0, 0, 20, 15], [5, 2, 30, 20], [1, 1, 9, 9]])
    instances = Instances((20, 30), boxes, torch.ones(3), torch.tensor([0, 1, 1]), masks=masks)
    head = random_head(THINGS)
    given = attach_occlusion(SavedOcclusion(head, ["c0", "c1", "c2"]), CATEGORIES, "x")(
        instances, torch.tensor([[0, 2]])
    )
    expected = head.predict(add_roi_masks(instances), torch.tensor([[0, 2]]))
    assert torch.allclose(given, expected, atol=1e-6)
    assert given[0, 1] == 0.5 != given[0, 2]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    generate(folder, 3, (64, 96), seed=4)
    return folder


def test_a_model_of_transformers_gets_soe(scenes, tmp_path, capsys):
    names = [category["name"] for category in OF_SCENES]
    model = str(saved(tmp_path / "model", hub_models.mask2former, names))
    data = ["--images", scenes / "images", "--json", scenes / "panoptic.json", "--segments", scenes / "segments"]
    data = [*map(str, data), "--checkpoint", model, "--categories", str(scenes / "panoptic.json")]
    train = ["train-occlusion", *data, "--instances", str(scenes / "instances.json"), "-o", str(tmp_path / "head")]
    assert main([*train, "--steps", "2", "--width", "4", "--device", "cpu"]) == 0
    assert "of annotations" in capsys.readouterr().out
    assert load_occlusion(tmp_path / "head").training["annotated_pairs"] > 0
    words = ["evaluate", *data, "--occlusion", str(tmp_path / "head"), "--score-threshold", "0.05"]
    assert main([*words, "--out", str(tmp_path / "r.json"), "--worst", "0", "--device", "cpu"]) == 0
    dataset = CocoPanoptic(scenes / "images", scenes / "panoptic.json", scenes / "segments")
    choice = ModelChoice((model,), categories=str(scenes / "panoptic.json"))
    table, _, _ = measure_order([choice], dataset, tmp_path, 1, "cpu", [str(tmp_path / "head")])
    assert [row.name for row in table.rows][:5] == ["heuristic", "SHR", "strong baseline", "SOE", "own merge"]
    with pytest.raises(RefineError, match="expected 1 head, one per checkpoint, got 2"):
        measure_order([choice], dataset, tmp_path, 1, "cpu", ["a", "b"])
    capsys.readouterr()
    assert main(["train-occlusion", *data, "-o", str(tmp_path / "none"), "--device", "cpu"]) == 1
    assert "no pairs: in 3 images" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main([*train[:-1], model]) == 1  # before anything is computed
    assert "model: is also an input folder" in capsys.readouterr().err
    assert main([*train[:-1], str(scenes)]) == 1
    assert "scenes0: images in it would be deleted" in capsys.readouterr().err
    assert main([*train, "--lr", "1e9", "--steps", "9", "--width", "4", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.endswith("; lower the learning rate (1000000000.0)\n")


def test_a_head_does_not_replace_a_model(native):
    with pytest.raises(RefineError, match=r"without: config\.json in it is not that of a head"):
        check_out(native / "without")
    check_out(native / "head")


@pytest.mark.parametrize(
    ("pairs", "right", "by_score", "message"),
    [
        (0, None, None, "no pairs in held-out images (every tenth image): it is not known whether"),
        (50, 0.6, 0.5, "50 pairs in held-out images: the head orders 60% correctly, the scores 50%; use it with"),
        (50, 0.5, 0.5, "the scores 50%; the head is no better than the scores, so --method heuristic"),
        (50, 0.4, 0.5, "the scores 50%; the head is no better than the scores, so --method heuristic"),
    ],
)
def test_a_head_that_is_no_better_is_not_recommended(pairs, right, by_score, message):
    numbers = {"held_out_pairs": pairs, "right": right, "right_by_score": by_score}
    assert message in comparison(numbers)


def test_other_classes_are_refused(native):
    for names, message in (
        (["c0", "c2", "c1"], "has 'c1' as thing class 2, but the model has 'c2'"),
        (["c0", "c1"], "knows 3 thing classes, but the model has 2"),
    ):
        entries = [{"id": n, "name": name, "isthing": 1} for n, name in enumerate(names)]
        with pytest.raises(RefineError, match=f"head: the occlusion head {message}"):
            attach_occlusion(native / "head", Categories.from_json(entries), "the model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format is 2, expected 1"),
        ({"things": ["a", "a"]}, "things is ['a', 'a']; expected a list of different class names"),
        ({"things": ["a"]}, "does not fit the model"),
        ({"pool_size": 0}, "pool_size is 0; expected an integer"),
        ({"occlusion": {"cues": ["mask", "feature"]}}, "needs mask, feature, and only its own network"),
        ({"occlusion": {"conv_channels": 16384}}, "needs mask, feature, label"),
        ({"occlusion": {"cues": ["mask"], "conv_channels": 16384}}, "does not fit the model"),
    ],
)
def test_damaged_heads(native, tmp_path, change, message):
    save_occlusion(tmp_path, load_occlusion(native / "head"))
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(RefineError) as caught:
        load_occlusion(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "head"], "is an occlusion head, not a model"),
        (["--checkpoint", "without", "--occlusion", "without"], "without: has no occlusion head; train one with"),
        (["--checkpoint", "without", "--occlusion", "missing"], "missing: no such model"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(native, scenes, tmp_path, capsys, words, message):
    words = [word if word.startswith("-") else str(native / word) for word in words]
    image = str(next((scenes / "images").iterdir()))
    assert main(["predict", image, "-o", str(tmp_path / "out"), "--device", "cpu", *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
