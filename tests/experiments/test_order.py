"""The value of the order: fusion with the true order, and the table of a checkpoint."""

import re

import pytest
import torch
from helpers.tiny_run import tiny_model, tiny_run, write_dataset
from helpers.two_objects import BACK, CATEGORIES, FRONT, SIZE, Painted, make_prediction

from refine.checkpoint.folder import SavedModel, save_model
from refine.cli.main import main
from refine.config import to_mapping
from refine.data.build import build_dataset
from refine.errors import RefineError
from refine.experiments.order import fuse_in_true_order, measure_order
from refine.files import read_json, write_json
from refine.fusion import FusionConfig
from refine.inference.measures import Example, Fused, OrderAccuracy
from refine.modeling.config import OcclusionConfig
from refine.modeling.model import PanopticModel


def shared_owner(false_pairs, *detections):
    """Return the detection that owns the pixels shared by all, and the pairs right, of the true order."""
    prediction = make_prediction(*zip(*detections, strict=True))
    targets, config = Painted().targets(2), FusionConfig(stuff_area=0)
    result = fuse_in_true_order(prediction, targets, CATEGORIES, config, false_pairs)
    measure = OrderAccuracy()
    measure.reset(CATEGORIES)
    measure.update(
        Example(0, torch.zeros(3, *SIZE), Painted(), 0, "", CATEGORIES, prediction), Fused(result, config)
    )
    owners = {segment.id: segment.instance for segment in result.segments}
    return owners[int(result.segment_ids[13, 13])], measure.totals, measure.false_totals


@pytest.mark.parametrize("scores", [(0.9, 0.6), (0.6, 0.9)])
def test_the_object_in_front_wins_whatever_the_scores(scores):
    detections = [(*BACK, scores[0]), (*FRONT, scores[1])]
    assert shared_owner(False, *detections) == (1, (1, 1), (0, 0))
    assert shared_owner(False, *reversed(detections)) == (0, (1, 1), (0, 0))


def test_false_and_duplicate_detections_lie_behind_on_request():
    false, duplicate = ([8.0, 8, 16, 16], 1, 0.9), ([0.0, 0, 24, 20], 0, 0.9)
    for other in (false, duplicate):
        assert shared_owner(False, (*BACK, 0.6), other) == (1, (0, 0), (0, 1))
        assert shared_owner(True, (*BACK, 0.6), other) == (0, (0, 0), (1, 1))


def test_table_of_a_checkpoint(tmp_path, capsys):
    base = tiny_run(write_dataset(tmp_path / "data", count=3), tmp_path / "x")
    base.data.val = base.data.train
    write_json(tmp_path / "base.json", to_mapping(base))
    dataset = build_dataset(base.data.train)
    words = ["reproduce", "order", "--data", str(tmp_path / "base.json"), "--out", str(tmp_path / "out")]
    for name, occlusion in (("plain", None), ("head", OcclusionConfig(conv_channels=8, fc_channels=8))):
        config = tiny_model(0)
        config.occlusion = occlusion
        model = PanopticModel(config, 2, 3).eval()
        saved = SavedModel(model, dataset.categories, test_size=(64, 96), fusion=FusionConfig(score_threshold=0.0))
        save_model(tmp_path / name, saved)
    main([*words, "--checkpoint", str(tmp_path / "head"), "--device", "cpu"])
    content = read_json(tmp_path / "out/order_base.json")
    true = ["true order", "true order, false detections behind"]
    assert list(content["rows"]) == ["heuristic", "SHR", "strong baseline", "SOE", *true]
    assert content["rows"]["SOE"][0]["images"] == 3
    text = (tmp_path / "out/order_base.md").read_text()
    assert "of a true and a false one" in text
    assert "Calibration of O on pairs of two true detections" in text
    assert "written to" in capsys.readouterr().out
    both = [str(tmp_path / "plain"), str(tmp_path / "head")]
    with pytest.raises(RefineError, match=r"head: has other heads than .*plain"):
        measure_order(both, dataset, tmp_path / "out", max_images=1, device="cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rules --checkpoint nuclei", "--checkpoint: rules trains its models; .* the table order"),
        ("table5 --occlusion head", "--occlusion: table5 trains"),
        ("order", "expected no other table, and --checkpoint"),
        ("order --checkpoint nuclei --rows SOE", "order: trains nothing; omit --rows"),
        ("order --checkpoint nuclei --reference SOE", "order: trains nothing; omit --rows, --reference"),
        (
            "routes --checkpoint nuclei --eval.fusion.sigma=2",
            "--eval.fusion.sigma: routes evaluates checkpoints with their own",
        ),
        ("routes --checkpoint nuclei --budget 1", "routes: trains nothing"),
        ("routes --checkpoint nuclei --occlusion head", "routes: --occlusion is for the table order"),
    ],
)
def test_options_of_the_other_kind_of_table_are_refused(words, message, capsys):
    assert main(["reproduce", *words.split(), "--data", "scenes"]) == 1
    assert re.search(message, capsys.readouterr().err)
