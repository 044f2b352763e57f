"""FLOPs and time of a network per stage."""

import time
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from refine.checkpoint.folder import SavedModel
from refine.experiments.cost import Stage, measure_cost, random_model
from refine.experiments.stages import count_stages, time_stages
from refine.inference.predictor import Predictor
from refine.modeling.config import (
    BackboneConfig,
    BoxHeadConfig,
    IBPPConfig,
    MaskHeadConfig,
    ModelConfig,
    OcclusionConfig,
    SemanticHeadConfig,
)
from refine.modeling.spans import PREFIX, span
from refine.structures import Categories

SIZE = (64, 96)
CPU = torch.device("cpu")
CATEGORIES = Categories.from_json([{"id": n + 1, "name": f"{n}", "isthing": n < 3} for n in range(5)])


def tiny(iterations: int, deform: tuple[int, ...] = ()) -> ModelConfig:
    return ModelConfig(
        backbone=BackboneConfig(
            "resnet50", None, deform_stages=list(deform), stem_width=8, width_per_group=8, res2_channels=32
        ),
        fpn_channels=16,
        box_head=BoxHeadConfig(num_convs=1, conv_channels=16, fc_channels=32, max_detections=10),
        mask_head=MaskHeadConfig(num_convs=2, channels=16),
        semantic_head=SemanticHeadConfig(channels=16),
        ibpp=IBPPConfig(iterations, sem_channels=16),
    )


@pytest.mark.parametrize(("iterations", "shared"), [(0, False), (2, False), (2, True)])
def test_stages_add_up_to_the_whole(iterations, shared):
    config = tiny(iterations)
    config.ibpp.shared = shared
    model = random_model(config, 3, 5)
    cost = measure_cost(SavedModel(model, CATEGORIES), size=SIZE, rounds=1)
    assert sum(stage.seconds for stage in cost.stages.values()) == pytest.approx(cost.seconds)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, count_stages() as stages:
        model.predict(model.image_batch([torch.zeros(3, *SIZE)]))
    assert sum(stages.values()) == counter.get_total_flops()
    masks = [name for name in stages if name.startswith("masks")]
    assert masks == (["masks"] if iterations == 0 else ["masks 1", "masks 2"])


def test_fusion_heads_are_stages():
    config = replace(tiny(0), occlusion=OcclusionConfig(conv_channels=8, fc_channels=8), ranking=True)
    saved = SavedModel(random_model(config, 3, 5), CATEGORIES, test_size=SIZE)
    predictor = Predictor(saved, fusion={"score_threshold": 0.0, "pair_overlap": 0.0})
    image = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8)
    with time_stages(CPU) as network:
        (raw,) = predictor.predict_raw([image])
    assert not {"occlusion", "ranking"} & network.keys()
    with time_stages(CPU) as fusion:
        for method in ("soe", "srm"):
            predictor.fuse(raw, method)
    assert fusion.keys() == {"occlusion", "ranking"}
    assert min(fusion.values()) > 0


def test_deformable_convolutions_count_as_convolutions():
    """res5: three 3×3 convolutions of 64 channels, on 2 × 3 cells, and the 18 offsets of each."""

    def backbone(deform: tuple[int, ...]) -> Stage:
        saved = SavedModel(random_model(tiny(0, deform), 3, 5), CATEGORIES)
        return measure_cost(saved, size=SIZE, rounds=1).stages["backbone"]

    plain, deformable = (backbone(deform) for deform in ((), (5,)))
    offsets = sum(2 * 18 * 9 * 64 * 2 * 3 for _ in range(3))
    assert deformable.gflops - plain.gflops == pytest.approx(offsets / 1e9)


def test_iterations_are_separate_stages_in_forward_order():
    model = random_model(tiny(2), 3, 5)
    with time_stages(CPU) as stages:
        for _ in range(2):
            model.predict(model.image_batch([torch.zeros(3, *SIZE)]))
    before = ["backbone", "fpn", "semantic head", "rpn", "box heads", "roi features"]
    assert list(stages) == [*before, "masks 1", "semantics 1", "masks 2", "semantics 2"]


def test_stages_end_with_their_context_and_after_an_error():
    def broken():
        with span("broken"):
            time.sleep(0.01)
            raise RuntimeError

    with time_stages(CPU) as seconds, pytest.raises(RuntimeError):
        broken()
    with span("later"):
        pass
    assert seconds.keys() == {"broken"}
    assert seconds["broken"] >= 0.01


def test_the_profiler_records_spans():
    with profile(activities=[ProfilerActivity.CPU]) as profiler, span("part"):
        torch.ones(2) + 1
    assert PREFIX + "part" in {event.key for event in profiler.key_averages()}


def test_spans_of_torch_are_not_stages():
    x = torch.ones(8, 8)
    with count_stages() as flops, time_stages(CPU) as seconds, record_function("of torch"):
        with span("outer"), record_function("inner"):
            x @ x
        x @ x
    assert dict(flops) == {"outer": 2 * 8**3}
    assert seconds.keys() == {"outer"}
