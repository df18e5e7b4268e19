"""Run as a script by ``test_vllm.py``, with the Python of a virtual environment that has vLLM and no UniCuCo.

    python vllm_tokens.py < CASES.json > TOKENS.json

``CASES``: a list of {"folder": ..., "prompts": [[token, ...], ...], "new": how many, "engine": options of ``LLM``}.
Its last line of output is the list of the new tokens of every prompt of every case, and the versions that made them.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    import transformers
    import vllm

    found = []
    for case in json.load(sys.stdin):
        engine = vllm.LLM(
            case["folder"], dtype="float32", max_model_len=128, max_num_seqs=4, seed=0, skip_tokenizer_init=True,
            **case["engine"],
        )  # fmt: skip
        greedy = vllm.SamplingParams(temperature=0, max_tokens=case["new"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in case["prompts"]]
        outputs = engine.generate(prompts, greedy, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
        del engine
    print(json.dumps({"tokens": found, "vllm": vllm.__version__, "transformers": transformers.__version__}))


if __name__ == "__main__":  # vLLM starts processes that read this file again
    main()
