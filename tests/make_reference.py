"""python -m tests.make_reference: writes tests/reference_smollm2.json, greedy continuations that are not our own.

The forward is transformers' torch LlamaForCausalLM in float32, which reads the embedded target's GGUF file by its own
rules (the `gguf` package dequantises, transformers undoes llama.cpp's order of q and k). Prompts are shipped ones, by
our tokenizer: of each task the first whose answer is no near-tie anywhere. Every row is

    {"task", "id", "prompt_ids", "greedy_ids", "margin"}

`margin` is the least gap between the best logit and the next over the row's steps: far above what a float32 forward
may differ by, or the ids would not be a reference.
"""

import json
from pathlib import Path

from models.sources.gguf import embedded_file
from models.tokenizer import load_tokenizer
from pipelines.prompt_files import load_task

FILE = Path(__file__).parent / "reference_smollm2.json"
TASKS, NEW = ("word-problems", "code", "chat", "knowledge"), 48
LEAST_MARGIN = 0.02


def main() -> None:
    import torch
    from transformers import LlamaForCausalLM

    file, tokenizer = embedded_file(), load_tokenizer("smollm2-135m")
    model = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    torch.set_num_threads(1)
    rows = []
    for task in TASKS:
        for prompt in load_task(task, None):
            prompt_ids = tokenizer.encode_chat(prompt.chat())
            greedy_ids, margin = continuation(model, prompt_ids)
            if margin >= LEAST_MARGIN and len(greedy_ids) == NEW:
                rows.append(
                    {
                        "task": task,
                        "id": prompt.id,
                        "prompt_ids": prompt_ids,
                        "greedy_ids": greedy_ids,
                        "margin": round(margin, 4),
                    }
                )
                break
    FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def continuation(model, prompt_ids: list[int]) -> tuple[list[int], float]:
    """Up to NEW greedy tokens, eos included, and the least margin."""
    import torch

    prompt = torch.tensor([prompt_ids])
    options = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    best = torch.cat(out.logits).topk(2).values
    return out.sequences[0, len(prompt_ids) :].tolist(), float((best[:, 0] - best[:, 1]).min())


if __name__ == "__main__":
    main()
