"""Configs of the rows of the tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from refine.experiments.reproduce import _configs
from refine.experiments.tables import load_table, paper_schedule
from refine.training.config import load_run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "name", ["exchange", "exchange_heads", "ibpp", "rules", "settings", "table3", "table4", "table5", "table6"]
)
def test_unknown_erasing_is_on_only_in_rows_that_set_it(name, tmp_path):
    base = CONFIGS / "coco/refine_r50_gn.yaml"  # which has it on
    plan = _configs(load_table(name), base, tmp_path, 0, [])
    assert plan[0][1].eval.fusion.unknown_erasing
    for row, config in plan:
        if row.name != "start":
            assert replace(config.eval.fusion, **row.fusion).unknown_erasing == ("UE" in row.name), row.name


@pytest.mark.parametrize("name", ["exchange", "exchange_heads", "table3", "table4"])
def test_models_without_an_occlusion_head_have_a_rule_that_needs_none(name, tmp_path):
    plan = _configs(load_table(name), CONFIGS / "scenes.yaml", tmp_path, 0, ["--eval.method=soe"])
    without = [config.eval.method for _, config in plan if config.model.occlusion is None]
    assert set(without) == {"heuristic"}
    assert {config.eval.method for _, config in plan if config.model.occlusion is not None} <= {"soe"}


def test_rows_of_the_papers_exchange_do_not_depend_on_the_config(tmp_path):
    (row,) = [row for row in load_table("exchange").rows if row.name == "as the paper has it (T = 3)"]
    changes = ["--model.ibpp.exchange=balanced", "--model.ibpp.residual=true", "--model.losses.instance=[1.0]"]
    plans = [_configs(load_table("exchange"), CONFIGS / "scenes.yaml", tmp_path, 0, w) for w in ([], changes)]
    plain, changed = (next(config.model for r, config in plan if r.name == row.name) for plan in plans)
    assert plain == changed


def test_the_papers_schedule_on_coco(tmp_path, monkeypatch):
    """180k updates of the whole network, then three epochs of the heads as in configs/coco/occlusion_stage.yaml."""
    monkeypatch.setattr("refine.experiments.reproduce.build_dataset", lambda *_: range(118_287))
    words = ["--config", str(CONFIGS / "coco/occlusion_stage.yaml")]
    stage = load_run(CONFIGS / "coco/refine_r50_gn.yaml", words).optim
    first, second = (180_000, [120_000, 160_000], 1000, 0.02), (22_179, [7393, 14_786], 1000, 0.02)
    assert (stage.max_steps, stage.milestones, stage.warmup_steps, stage.lr) == second
    seen = set()
    for name in ("table1", "table3", "table4", "table5", "table6"):
        table = paper_schedule(load_table(name))
        base = CONFIGS / "coco" if name == "table1" else CONFIGS / "coco/refine_r50_gn.yaml"
        for _, config in _configs(table, base, tmp_path, 0, []):
            optim = config.optim
            seen.add(kind := bool(optim.train_only))
            schedule = (optim.max_steps, optim.milestones, optim.warmup_steps, optim.lr)
            assert schedule == (second if kind else first)
            assert (config.init is not None) == kind
    assert seen == {False, True}
