"""Evaluation during and after training, against expected results constructed by hand."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import tiny_model, tiny_run, write_dataset
from PIL import Image

from refine.checkpoint.folder import SavedModel, load_model
from refine.data.coco_panoptic import CocoPanoptic
from refine.drawing.overlay import overlay
from refine.drawing.series import Series, worst_images
from refine.errors import RefineError
from refine.evaluation.pq import PanopticQuality
from refine.fusion import FusionConfig
from refine.inference.drawings import Drawings, to_result, write_worst
from refine.inference.evaluate import Evaluation, evaluate, gathered, merged
from refine.inference.measures import BoxAndMaskAP, Measure, OrderAccuracy, Quality
from refine.inference.predictor import Predictor
from refine.modeling.model import PanopticModel
from refine.runtime import Processes
from refine.structures import Categories, Instances, PanopticResult, Prediction
from refine.training.logs import read_log
from refine.training.train import train


class Oracle(Predictor):
    """Predictor that returns the ground truth of a data set without one segment per image, which is void."""

    def __init__(self, dataset: CocoPanoptic) -> None:
        self.categories = dataset.categories
        pairs = [dataset[n] for n in range(len(dataset))]
        self.method, self.fusion = "heuristic", FusionConfig()
        self.known = {tuple(image.flatten().tolist()[:60]): truth for image, truth in pairs}

    def predict_raw(self, images: list[torch.Tensor], min_score: float = 0.0) -> list[Prediction]:
        (image,) = images
        self.truth = self.known[tuple(image.flatten().tolist()[:60])]
        t = self.truth.targets(2, 0, "")
        roi_masks = torch.ones(len(t), 28, 28)
        size = (image.shape[1], image.shape[2])
        instances = Instances(size, t.boxes, torch.full((len(t),), 0.9), t.labels, roi_masks)
        return [Prediction(instances, t.sem_seg, torch.ones(size))]

    def fuse(self, raw: Prediction, method=None, fusion=None) -> PanopticResult:
        result = to_result(self.truth, self.categories)
        ids = torch.where(result.segment_ids == 2, 0, result.segment_ids)
        return PanopticResult(ids, [s for s in result.segments if s.id != 2], self.categories)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoPanoptic:
    folder = write_dataset(tmp_path / "data", 6)
    return CocoPanoptic(folder / "images", folder / "panoptic.json", folder / "segments")


def test_oracle_misses_one_thing_per_image(dataset: CocoPanoptic, tmp_path: Path) -> None:
    evaluation = evaluate(Oracle(dataset), dataset, measures=[Quality(), BoxAndMaskAP()])
    # 6 images of 2 or 3 things, one missed in each: every IoU is 1, so PQ is RQ.
    rows = {c.category.name: (c.tp, c.fp, c.fn) for c in evaluation.report.classes}
    assert rows["ground"] == (6, 0, 0)
    assert rows["red"][0] + rows["green"][0] == 15 - 6
    assert rows["red"][2] + rows["green"][2] == 6
    assert evaluation.metrics["SQ"] == 1
    expected = sum(tp / (tp + 0.5 * fn) for tp, _, fn in rows.values()) / 3
    assert evaluation.metrics["PQ"] == pytest.approx(expected)
    # All boxes and (rectangular) masks were predicted.
    assert evaluation.metrics["AP_box"] == evaluation.metrics["AP_mask"] == pytest.approx(1)
    evaluation.write(tmp_path / "result.json", model="oracle")
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["All"]["pq"] == pytest.approx(expected)
    assert (written["images"], written["model"]) == (6, "oracle")


def test_counts_of_shards_sum_to_the_whole(dataset: CocoPanoptic) -> None:
    whole = evaluate(Oracle(dataset), dataset).report
    parts = []
    for rank in range(2):
        group = Processes(rank, 2, torch.device("cpu"))
        object.__setattr__(group, "gather", lambda value: [value])
        parts.append(evaluate(Oracle(dataset), dataset, group=group).report)
    assert len(parts[0].images) == len(parts[1].images) == 3
    for a, b, c in zip(whole.classes, parts[0].classes, parts[1].classes, strict=True):
        assert (a.tp, a.fn) == (b.tp + c.tp, b.fn + c.fn)


def test_measures_of_shards_merge_to_the_whole(dataset: CocoPanoptic) -> None:
    def measures() -> list[Measure]:
        return [Quality(), BoxAndMaskAP(100), OrderAccuracy(), Drawings(3)]

    whole, parts = evaluate(Oracle(dataset), dataset, measures=measures()), []
    for rank in range(2):
        group = Processes(rank, 2, torch.device("cpu"))
        object.__setattr__(group, "gather", lambda value: [pickle.loads(pickle.dumps(value))])
        parts.append(evaluate(Oracle(dataset), dataset, measures=measures(), group=group))
    group = Processes(0, 2, torch.device("cpu"))
    others = [part[kind] for part in parts for kind in (Quality, BoxAndMaskAP, OrderAccuracy, Drawings)]
    object.__setattr__(group, "gather", lambda value: [others[: len(value)], others[len(value) :]])
    joined = Evaluation(gathered(others[:4], dataset.categories, group))
    assert joined.metrics == pytest.approx(whole.metrics)
    assert joined.report.to_json() == whole.report.to_json()
    assert joined[Drawings].drawn.keys() == whole[Drawings].drawn.keys()
    assert joined[OrderAccuracy].totals == whole[OrderAccuracy].totals


def test_ap_follows_the_images_that_are_added(dataset: CocoPanoptic) -> None:
    def measured(rank: int, count: int) -> Evaluation:
        group = Processes(rank, count, torch.device("cpu"))
        object.__setattr__(group, "gather", lambda value: [value])
        return evaluate(Oracle(dataset), dataset, measures=[BoxAndMaskAP()], group=group)

    first, second, whole = measured(0, 2), measured(1, 2), measured(0, 1)
    second[BoxAndMaskAP].precision._detections.clear()
    assert first.metrics["AP_box"] == pytest.approx(1)
    joined = merged([first, second])
    assert joined.metrics["AP_box"] < 1
    again = evaluate(Oracle(dataset), dataset, measures=[joined[BoxAndMaskAP]])
    assert again.metrics == whole.metrics


def test_ap_without_objects_is_not_a_number(dataset: CocoPanoptic) -> None:
    measure = BoxAndMaskAP()
    measure.reset(dataset.categories)
    assert Evaluation([measure]).metrics == {}


def test_a_data_set_given_by_its_fields(dataset: CocoPanoptic, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    fields = {"images": folder / "images", "json": folder / "panoptic.json", "segments": folder / "segments"}
    named = evaluate(Oracle(dataset), {name: str(path) for name, path in fields.items()})
    assert named.metrics == evaluate(Oracle(dataset), dataset).metrics
    with pytest.raises(RefineError, match=r"dataset: .*image: unknown field"):
        evaluate(Oracle(dataset), {"image": "x"})
    with pytest.raises(KeyError):
        named[BoxAndMaskAP]


def test_drawings(dataset: CocoPanoptic, tmp_path: Path) -> None:
    oracle = Oracle(dataset)
    evaluation = evaluate(oracle, dataset, measures=[Quality(), Drawings(2)])
    drawn = evaluation[Drawings].drawn
    assert sorted(drawn) == ["000.png", "001.png"]
    panels, (image, truth) = drawn["001.png"], dataset[1]
    assert panels.shape == (3, 64, 3 * 96)
    assert torch.equal(panels[:, :, :96], image)
    assert torch.equal(panels[:, :, 96:192], overlay(image, to_result(truth, dataset.categories)))
    worst = write_worst(evaluation.report, oracle, dataset, tmp_path / "r.json", 3)
    assert len(worst) == len(list((tmp_path / "worst").iterdir())) == 3
    assert [int(path.name[:4]) for path in worst] == [
        round(1000 * entry.pq) for entry in evaluation.report.worst(3)
    ]
    assert Image.open(worst[0]).size == (4 * 96, 64)


def test_drawings_of_an_earlier_evaluation_are_removed(dataset: CocoPanoptic, tmp_path: Path) -> None:
    oracle, folder = Oracle(dataset), tmp_path / "worst"
    report = evaluate(oracle, dataset).report
    first = write_worst(report, oracle, dataset, tmp_path / "a.json", 3)
    copy, foreign = folder / "kept.png", folder / "x" / "0500_mine.png"
    foreign.parent.mkdir()
    shutil.copy(first[0], copy)
    Image.new("RGB", (2, 2)).save(foreign)
    (folder / "0500_broken.png").write_bytes(b"no PNG")
    others = {copy, foreign, folder / "0500_broken.png"}
    second = write_worst(report, oracle, dataset, tmp_path / "b.json", 1)
    assert {path for path in folder.rglob("*") if path.is_file()} == {*others, *second}
    worst_images(tmp_path / "a.json").remove(any_subject=False)
    assert second[0].is_file()
    assert write_worst(report, oracle, dataset, tmp_path / "b.json", 0) == []
    assert {path for path in folder.rglob("*") if path.is_file()} == others


def test_a_drawing_may_have_any_name_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # above which Pillow opens no image
    series = Series(tmp_path, "refine evaluate", "\udcff\n.json")
    path = series.write("\udce4\n.png", torch.zeros(3, 2, 2, dtype=torch.uint8))
    series.remove(any_subject=False)
    assert not path.exists()


def test_images_of_one_name_in_subfolders_are_all_drawn(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", 3)
    content = json.loads((folder / "panoptic.json").read_text())
    for image, part in zip(content["images"], "xyz", strict=True):
        image["file_name"] = f"{part}/0.png"
        (folder / f"images/{part}").mkdir()
        shutil.copy(folder / "images/000.png", folder / f"images/{part}/0.png")  # one image, so one PQ
    for annotation in content["annotations"]:
        annotation |= {key: content["annotations"][0][key] for key in ("file_name", "segments_info")}
    (folder / "panoptic.json").write_text(json.dumps(content))
    dataset = CocoPanoptic(folder / "images", folder / "panoptic.json", folder / "segments")
    oracle = Oracle(dataset)
    evaluation = evaluate(oracle, dataset, measures=[Quality(), Drawings(3)])
    assert sorted(evaluation[Drawings].drawn) == ["x/0.png", "y/0.png", "z/0.png"]
    worst = write_worst(evaluation.report, oracle, dataset, tmp_path / "r.json", 3)
    assert [path.parent.name for path in worst] == ["x", "y", "z"]
    assert all(path.is_file() for path in worst)


def test_max_images(dataset: CocoPanoptic) -> None:
    assert len(evaluate(Oracle(dataset), dataset, max_images=2, workers=1).report.images) == 2


def test_other_categories_are_rejected(dataset: CocoPanoptic) -> None:
    oracle = Oracle(dataset)
    oracle.categories = Categories(
        replace(c, isthing=not c.isthing) if c.name == "red" else c for c in dataset.categories
    )
    with pytest.raises(RefineError, match="the data set: category 3 is 'red'"):
        evaluate(oracle, dataset)


def test_an_untrained_network_is_evaluated(dataset: CocoPanoptic) -> None:
    saved = SavedModel(PanopticModel(tiny_model(), 2, 3), dataset.categories, test_size=(64, 96))
    metrics = evaluate(Predictor(saved), dataset, measures=[BoxAndMaskAP(), Quality()]).metrics
    assert 0 <= metrics["PQ"] < 0.5


def test_rules_share_one_forward_pass_and_equal_separate_evaluations(dataset: CocoPanoptic) -> None:
    class Counting(Predictor):
        calls = 0

        def predict_raw(self, images: list[torch.Tensor], min_score: float = 0.0) -> list[Prediction]:
            self.calls += 1
            return super().predict_raw(images, min_score)

    torch.manual_seed(0)
    saved = SavedModel(PanopticModel(tiny_model(), 2, 3), dataset.categories, test_size=(64, 96))
    configs = [FusionConfig(score_threshold=s, stuff_area=a) for s, a in ((0.0, 64), (0.3, 64), (0.0, 4000))]
    predictor = Counting(saved, device="cpu")
    rules = [("heuristic", configs[0]), ("shr", configs[1]), ("heuristic", configs[2])]
    measures = [Quality(), BoxAndMaskAP(), OrderAccuracy()]
    together = evaluate(predictor, dataset, rules=rules, measures=measures)
    assert predictor.calls == len(dataset)
    for (method, config), evaluation in zip(rules, together, strict=True):
        alone = evaluate(Predictor(saved, method=method, fusion=config), dataset, measures=measures)
        assert evaluation.report.to_json() == alone.report.to_json()
        assert evaluation[OrderAccuracy].totals == alone[OrderAccuracy].totals
        assert evaluation.metrics == alone.metrics
        sums = PanopticQuality.from_state(dataset.categories, evaluation.counts.pq.sum(0)).compute()
        assert sums.to_json() == alone.report.to_json()
        assert tuple(evaluation.counts.pairs.sum(0)) == alone[OrderAccuracy].totals
    assert together[0].report.to_json() != together[2].report.to_json()


def test_best_checkpoint_of_a_run_is_kept(tmp_path: Path) -> None:
    config = tiny_run(write_dataset(tmp_path / "data"), tmp_path / "out")
    config.data.val = config.data.train
    config.eval.every, config.eval.max_images = 2, 2
    config.log.keep, config.log.checkpoint_every, config.optim.max_steps = 1, 100, 6
    train(config)
    lines = [line for line in read_log(tmp_path / "out" / "log.jsonl") if line["group"] == "val"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    best = max(lines, key=lambda line: line["PQ"])
    name = (tmp_path / "out" / "best").read_text().strip()
    assert name == f"step_{best['step']:06d}"
    kept = {p.name for p in (tmp_path / "out" / "checkpoints").iterdir()}
    assert kept == {name, "step_000006"}
    assert load_model(tmp_path / "out").metrics["PQ"] == pytest.approx(best["PQ"], rel=1e-5)
