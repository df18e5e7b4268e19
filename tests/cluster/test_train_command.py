"""The command line of training: what options become, and one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.train import OptionError, add_train_command, config_values, main
from tests.unicuco.synthetic import geometry
from tests.unicuco.tables import made_up_table
from unicuco.latency import NamedTable

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    add_train_command(app)
    return app


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_help_shows_examples(app: typer.Typer) -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert "unicuco train smollm2 --run runs/first" in shown.output
    assert "unicuco train --resume runs/first" in shown.output
    alone = subprocess.run(
        [sys.executable, "-m", "cluster.train", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "python -m cluster.train smollm2 --run runs/first" in alone.stdout


def test_options_land_in_the_parts_own_configurations(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"learner": {"batch": 4, "evaluations": 9}, "model": "old"}))
    given = {
        "config": file,
        "model": "m",
        "evaluations": 30,
        "device": "cuda",
        "evaluator_gpus": 0.5,
        "space": "blocks",
    }
    assert config_values(given) == {
        "model": "m",
        "learner": {"batch": 4, "evaluations": 30},
        "evaluator": {"device": "cuda"},
        "pool": {"gpus": 0.5},
        "preparation": {"space": "blocks"},
    }


def test_every_option_has_its_place() -> None:
    import inspect

    from cluster.train import train_command
    from cluster.training import TrainConfig

    names = set(inspect.signature(train_command).parameters) - {"context", "resume", "config"}
    for name in names:
        values = config_values({name: "x"})
        assert values, name
        fields = TrainConfig.model_fields
        while isinstance(values, dict):
            ((key, values),) = values.items()
            assert key in fields, name
            fields = getattr(fields[key].annotation, "model_fields", {})


def test_a_sparsity_pruner_is_a_space_that_reaches_further(tmp_path: Path) -> None:
    from cluster.training import TrainConfig

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"preparation": {"space": {"sparsities": [0, 0.5, 0.9]}}}))
    given = {"model": "m", "run": "r", "pruner": "sparsegpt"}
    config = TrainConfig.model_validate(config_values(given))
    assert config.preparation.space.pruner == "sparsegpt" and len(config.preparation.space.sparsities) > 10
    assert config.learner.kept_low == 0.2
    again = TrainConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    finer = TrainConfig.model_validate(config_values(given | {"config": file}) | {"learner": {"kept_low": 0.4}})
    assert finer.preparation.space.sparsities == (0, 0.5, 0.9) and finer.learner.kept_low == 0.4
    assert TrainConfig(model="m", run="r").learner.kept_low == 0.4


def test_a_latency_table_is_read_into_the_configuration(tmp_path: Path) -> None:
    from cluster.training import TrainConfig

    made_up_table(geometry()).save(tmp_path / "My box.json")
    values = config_values({"model": "m", "run": "r", "latency": str(tmp_path / "My box.json")})
    config = TrainConfig.model_validate(values)
    assert config.latency == NamedTable.of("my-box", made_up_table(geometry()))
    kept = json.loads(json.dumps(config.model_dump(mode="json")))
    assert TrainConfig.model_validate(kept) == config
    kept["latency"]["table"]["fixed_ms"] *= 2
    with pytest.raises(ValueError, match="not what its digest says"):
        TrainConfig.model_validate(kept)
    assert TrainConfig.model_validate({"model": "m", "run": "r"}).latency is None


def test_each_evaluator_is_told_its_devices() -> None:
    from actors.placement import PoolPlan
    from cluster.training import placed
    from unicuco.evaluator import EvaluatorConfig

    on_gpus = EvaluatorConfig(device="cuda", dtype="float32")
    for gpus, device in ((0.5, "cuda"), (1, "cuda"), (2, "cuda:0,cuda:1"), (3.0, "cuda:0,cuda:1,cuda:2")):
        found = placed(on_gpus, PoolPlan(1, 4, gpus, 4))
        assert found == on_gpus.model_copy(update={"device": device})
    assert placed(EvaluatorConfig(), PoolPlan(1, 4, 0, 4)) == EvaluatorConfig(threads=4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["smollm2"], "Say what to train and where"),
        (["smollm2", "--run", "RUN", "--evaluations", "1"], "learner.evaluations: "),
        (["smollm2", "--run", "RUN", "--dtype", "int3"], "evaluator.dtype: "),
        (["smollm2", "--run", "RUN", "--evaluator-gpus", "1.5"], "pool.gpus: an evaluator gets a share of one GPU"),
        (["smollm2", "--run", "RUN", "--space", "depth"], "choose mixed, width, sublayers or blocks"),
        (["smollm2", "--run", "RUN", "--space", "blocks", "--multiple", "128"], "--multiple is for MLPs that become"),
        (["smollm2", "--run", "RUN", "--pruner", "width"], "--pruner is wanda, sparsegpt or sparsellm"),
        (["smollm2", "--run", "RUN", "--pruner", "wanda", "--space", "width"], "give one of them"),
        (["smollm2", "--run", "RUN", "--latency", "/nowhere.json"], "No latency table at /nowhere.json"),
        (["smollm2", "--run", "RUN", "--latency", "README.md"], "README.md is no latency table"),
        (["smollm2", "--run", "RUN", "--config", "/nowhere.json"], "cannot be read as JSON"),
        (["/nowhere/model", "--run", "RUN"], "No folder at /nowhere/model"),
        (["--resume", "RUN"], "holds no run"),
        (["--resume", "RUN", "--seed", "1"], "--seed cannot be given with --resume"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    run = tmp_path / "run"
    code = run_main(monkeypatch, *[str(run) if argument == "RUN" else argument for argument in arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert sentence in error and error.startswith("Error: ") and "Traceback" not in error
    assert not run.exists()


def test_a_space_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"preparation": {"space": {"neuron_multiple": 32}}}')
    with pytest.raises(OptionError, match=r"--space and 'preparation\.space' in .* give one"):
        config_values({"config": tmp_path / "c.json", "space": "width"})
    (tmp_path / "c.json").write_text('{"preparation": {"space": "blocks"}}')
    assert config_values({"config": tmp_path / "c.json", "space": "width"}) == {"preparation": {"space": "width"}}


@pytest.mark.parametrize("multiple", [64, 128, 256])
def test_widths_are_multiples_of_what_was_asked_for(multiple: int) -> None:
    from cluster.training import TrainConfig
    from unicuco.levels import build_sites

    for given, least in (({}, 0), ({"space": "width"}, multiple)):
        values = config_values({"model": "m", "run": "r", "multiple": multiple} | given)
        space = TrainConfig.model_validate(values).preparation.space
        assert space.neuron_multiple == multiple
        mlp = build_sites(geometry(neurons=1536), space)[1]
        assert [level.neurons for level in mlp.levels] == list(range(1536, least - 1, -multiple))


def test_a_multiple_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"preparation": {"space": {"neuron_multiple": 32}}}')
    with pytest.raises(OptionError, match=r"--multiple and 'neuron_multiple' .* give one"):
        config_values({"config": tmp_path / "c.json", "multiple": 128})
    (tmp_path / "c.json").write_text('{"preparation": {"space": {"sites": "block"}}}')
    both = {"preparation": {"space": {"sites": "block", "neuron_multiple": 128}}}
    assert config_values({"config": tmp_path / "c.json", "multiple": 128}) == both


def test_broken_config_file(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(OptionError, match="holds no JSON object"):
        config_values({"config": tmp_path / "c.json"})
    (tmp_path / "c.json").write_text('{"learner": 3}')
    with pytest.raises(OptionError, match="'learner' must be a JSON object"):
        config_values({"config": tmp_path / "c.json", "seed": 1})
