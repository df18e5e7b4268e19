"""The task definitions ask what lm-eval's own ask, and scores are compared example by example."""

import json
from pathlib import Path

import pytest

from benchmarks.lm_eval_tasks import DEFINITIONS, HEADLINE, TASKS, Score, average, average_change, from_json, to_json

ARC = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
EXAMPLES = {
    "piqa": {"goal": "dresser", "sol1": "a", "sol2": "it's b", "label": 1},
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "winogrande": {"sentence": "Ann thanked _ for it_s help.", "option1": "Bob", "option2": "Cy", "answer": "2"},
    "hellaswag": {"query": "Cooking: A man", "choices": ["eats.", "sits, then rises."], "label": 0},
}
EXPECTED = {
    "piqa": [("Question: dresser\nAnswer:", " a"), ("Question: dresser\nAnswer:", " it's b")],
    "arc_easy": [("Question: Why?\nAnswer:", " x"), ("Question: Why?\nAnswer:", " y")],
    "arc_challenge": [("Question: Why?\nAnswer:", " x"), ("Question: Why?\nAnswer:", " y")],
    "winogrande": [("Ann thanked Bob", " for it_s help."), ("Ann thanked Cy", " for it_s help.")],
    "hellaswag": [("Cooking: A man", " eats."), ("Cooking: A man", " sits, then rises.")],
}
RIGHT = {"piqa": 1, "arc_easy": 1, "arc_challenge": 1, "winogrande": 1, "hellaswag": 0}


@pytest.mark.parametrize("name", TASKS)
def test_what_a_model_is_asked(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'bench'")
    import yaml
    from lm_eval.tasks import TaskManager

    (tmp_path / f"{name}.jsonl").write_text(json.dumps(EXAMPLES[name]) + "\n", encoding="utf-8")
    definition = yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text(encoding="utf-8"))
    definition["dataset_kwargs"]["data_files"]["validation"] = str(tmp_path / f"{name}.jsonl")
    task = TaskManager(include_defaults=False).load([definition])["tasks"][name]
    task.build_all_requests(limit=None, rank=0, world_size=1)
    assert [instance.args for instance in task.instances] == EXPECTED[name]
    gold = task.doc_to_text(EXAMPLES[name]) if name == "winogrande" else task.doc_to_target(EXAMPLES[name])
    assert int(gold) == RIGHT[name]


def test_changes_are_paired() -> None:
    one = {task: {metric: Score(0.5, 0.29, [1, 0, 1, 0])} for task, metric in HEADLINE.items()}
    other = {task: {metric: Score(0.5, 0.29, [0, 1, 0, 1])} for task, metric in HEADLINE.items()}
    assert average(one) == pytest.approx((0.5, 0.29 / 5**0.5))
    assert average_change(one, one) == (0.0, 0.0)
    assert average_change(one, other)[0] == 0.0
    assert average_change(one, other)[1] > 0.2
    assert from_json(json.loads(json.dumps(to_json(one)))) == one
