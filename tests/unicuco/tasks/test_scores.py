"""The definitions ask what lm-eval's own ask, scores are lm-eval's to the digit, and changes are paired."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unicuco import tiny
from unicuco.errors import TaskError
from unicuco.tasks import OFFLINE, check_lm_eval, find_tasks, run_tasks
from unicuco.tasks.scores import (
    HEADLINE,
    Score,
    TaskScore,
    above_chance,
    average,
    average_change,
    change,
    from_json,
    to_json,
)

needs_lm_eval = pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs the extra 'bench'")
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


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(4, tiny.VOCAB, count))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 examples of two of the tasks in the tiny tokenizer's words."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    piqa = [
        {"goal": words(rng, 6), "sol1": words(rng, 3), "sol2": words(rng, 5), "label": i % 2}
        for i in range(30)
    ]  # fmt: skip
    arc = [
        {
            "question": words(rng, 5),
            "choices": {"text": [words(rng, n) for n in (2, 4, 3, 2)[: 3 + i % 2]], "label": list("ABCD")[: 3 + i % 2]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(30)
    ]
    for name, rows in (("piqa", piqa), ("arc_challenge", arc)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


@needs_lm_eval
@pytest.mark.parametrize("name", OFFLINE)
def test_what_a_model_is_asked(name: str, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    (tmp_path / f"{name}.jsonl").write_text(json.dumps(EXAMPLES[name]) + "\n", encoding="utf-8")
    definition = find_tasks([name], tmp_path)[0]
    task = TaskManager(include_defaults=False).load([definition])["tasks"][name]
    task.build_all_requests(limit=None, rank=0, world_size=1)
    assert [instance.args for instance in task.instances] == EXPECTED[name]
    gold = task.doc_to_text(EXAMPLES[name]) if name == "winogrande" else task.doc_to_target(EXAMPLES[name])
    assert int(gold) == RIGHT[name]


@needs_lm_eval
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_lm_evals_own(
    dtype: str, data: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval loads the model by itself, from its own command's arguments; ours goes through ``assess``."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from unicuco.assess import assess

    folder = model_folder("llama")
    tasks = find_tasks(["piqa", "arc_challenge"], data)
    theirs = simple_evaluate(
        "hf", {"pretrained": str(folder), "dtype": dtype}, tasks=find_tasks(["piqa", "arc_challenge"], data),
        limit=20, batch_size=4, device="cpu", task_manager=TaskManager(include_defaults=False), random_seed=3,
        numpy_random_seed=3, torch_random_seed=3, fewshot_random_seed=3,
    )  # fmt: skip
    text = tiny.write_text(data / "words.txt")
    ours = assess(
        str(folder), texts=str(text), tokens=64, window_length=32, seed=3, dtype=dtype, tasks=tasks, limit=20,
        batch_size=4,
    )[0].tasks  # fmt: skip
    assert set(ours) == set(theirs["results"])
    for name, task in ours.items():
        assert task.examples == 20
        for metric, score in task.metrics.items():
            assert score.mean == theirs["results"][name][f"{metric},none"]
            assert score.error == theirs["results"][name][f"{metric}_stderr,none"]
            assert score.each == [s[metric] for s in theirs["samples"][name]]
        assert set(task.metrics) == {"acc", "acc_norm"}
    assert 0.0 < ours["piqa"].score.mean < 1.0
    assert ours["piqa"].chance == 0.5
    assert ours["arc_challenge"].chance == pytest.approx((1 / 3 + 1 / 4) / 2)


@needs_lm_eval
def test_a_metric_of_the_whole_corpus_is_not_paired(data: Path, model_folder: Callable[[str], Path]) -> None:
    (data / "bits.yaml").write_text(
        "task: bits\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: piqa.jsonl}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{goal}}'\n"
        "metric_list:\n  - metric: word_perplexity\n",
        encoding="utf-8",
    )
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float32).eval()
    found = run_tasks(model, tiny.tokenizer(), find_tasks(["bits"], data), limit=4)["bits"]
    assert found.headline == "word_perplexity" and found.chance is None
    assert found.score.mean > 1.0 and found.score.each == []


def test_lm_eval_is_asked_for_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from unicuco.assess import assess

    def missing(name: str, package: str | None = None) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(TaskError, match=r"pip install 'lm_eval"):
        check_lm_eval()
    with pytest.raises(TaskError, match=r"pip install 'lm_eval"):
        assess("./no-such-model", tasks=["piqa"])


def test_definitions_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"piqa needs .*piqa\.jsonl"):
        find_tasks(["piqa"], tmp_path)
    with pytest.raises(TaskError, match="each of them once"):
        find_tasks(["piqa", "piqa"])
    with pytest.raises(TaskError, match="No folder of task data"):
        find_tasks(["piqa"], tmp_path / "nowhere")
    with pytest.raises(TaskError, match=r"no mine\.yaml"):
        find_tasks(["mine"], tmp_path)
    (tmp_path / "mine.yaml").write_text("task: mine\ndoc_to_text: !function code.f\n", encoding="utf-8")
    with pytest.raises(TaskError, match="Python code are refused"):
        find_tasks(["mine"], tmp_path)
    (tmp_path / "mine.yaml").write_text("[1, 2]\n", encoding="utf-8")
    with pytest.raises(TaskError, match="defines no task"):
        find_tasks(["mine"], tmp_path)
    assert find_tasks(["anything"]) == ["anything"]


def of(each: list[float], chance: float | None = 0.5, metric: str = "acc") -> TaskScore:
    error = float(np.std(each, ddof=1) / np.sqrt(len(each)))
    return TaskScore({metric: Score(float(np.mean(each)), error, each)}, metric, chance, len(each))


def test_changes_are_paired() -> None:
    one = {task: of([1, 0, 1, 0], metric=metric) for task, metric in HEADLINE.items()}
    other = {task: of([0, 1, 0, 1], metric=metric) for task, metric in HEADLINE.items()}
    mean, error = average(one)
    assert mean == 0.5 and error == pytest.approx((1 / 3) ** 0.5 / 2 / 5**0.5)
    assert average_change(one, one) == (0.0, 0.0)
    # Every example changed: the error of the change is twice that of either score, not sqrt(2) times.
    assert average_change(one, other) == pytest.approx((0.0, 2 * error))
    assert from_json(json.loads(json.dumps(to_json(one)))) == one
    with pytest.raises(ValueError, match="cannot be paired"):
        change(of([1, 0]).score, of([1, 0, 1]).score)


def test_above_chance_is_counted_from_guessing() -> None:
    assert above_chance({"a": of([1, 1, 1, 0]), "b": of([1, 0], chance=0.25)}) == pytest.approx(0.25)
    assert above_chance({"a": of([1, 0]), "b": of([1, 0], chance=None)}) is None
