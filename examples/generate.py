"""Loads a checkpoint with plain transformers, no UniCuCo import, and lets it write.

    python examples/generate.py runs/demo/checkpoint-0.7 "The state of our union is"

``trust_remote_code`` lets transformers read the small model class that lies inside the checkpoint.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit('Usage: python examples/generate.py CHECKPOINT ["How the text starts"]')
    folder = sys.argv[1]
    start = sys.argv[2] if len(sys.argv) > 2 else "The state of our union is"
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    prompt = tokenizer(start, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**prompt, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; it writes:\n")
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
