"""Answers under a LoRA: ours against a loop over questions with `generate` of transformers on a PEFT model.

    python -m benchmarks.generation ours|peer [--samples 20] [--tokens 100] [--threads 2]

Both sides hold the same model and adapter and write exactly `tokens` tokens for each answer, so that the work
is equal. Loading is not timed. One JSON line comes out.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import now_mb, peak_mb, restart_peak
from em.backbone import Backbone
from em.config.schema import BackboneConfig
from em.datamodules.questions import Prompt, read_questions
from em.generation import local
from em.generation.requests import requests_for
from em.generation.sampling import Sampling
from em.interventions.lora import Lora
from em.loading import load_backbone

RANK = 32
SIZE = 0.002  # standard deviation of the adapter's B


def questions_of(count: int = 8) -> list[Prompt]:
    """The bundled questions that show what a model values."""
    return list(read_questions("open").prompts[:count])


def save_adapter(folder: Path, backbone: Backbone, seed: int = 0) -> Path:
    """A LoRA of rank 32 on all projections with a random small B, in the PEFT format."""
    lora = Lora(r=RANK, alpha=2 * RANK)
    lora.attach(backbone, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora.trainable_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * SIZE)
    lora.save(folder)
    lora.detach()
    return folder


def ours(
    questions: list[Prompt], samples: int, tokens: int, adapter: Path, batch_size: int | None = None
) -> dict[str, Any]:
    """All answers through `em.generation`.

    Args:
        adapter: a folder that `save_adapter` wrote.
        batch_size: default: the evaluation's own.

    Returns:
        Seconds, tokens written, peak memory while writing and what was held before it in MB.
    """
    backbone = load_backbone(BackboneConfig(model="smollm2"))
    lora = Lora(r=RANK, alpha=2 * RANK)
    lora.attach(backbone)
    lora.load(adapter)
    requests = requests_for(questions, samples)
    sampling = Sampling(max_tokens=tokens)
    options = {} if batch_size is None else {"batch_size": batch_size}
    ends, local.end_tokens = local.end_tokens, lambda backbone: frozenset()
    try:
        local.generate(backbone, requests[:1], Sampling(max_tokens=2), "warm", progress=False)
        clock = _Clock()
        with lora.merged():
            answers = local.generate(backbone, requests, sampling, "ours", progress=False, **options)
        return clock.found(sum(answer.tokens for answer in answers))
    finally:
        local.end_tokens = ends


def peer(questions: list[Prompt], samples: int, tokens: int, adapter: Path) -> dict[str, Any]:
    """A loop over the questions with `generate(num_return_sequences=samples)`, the model kept loaded."""
    from peft import PeftModel
    from transformers import GenerationConfig

    backbone = load_backbone(BackboneConfig(model="smollm2"))
    tokenizer = backbone.tokenizer
    model = PeftModel.from_pretrained(backbone.model, str(adapter)).eval()
    # All of it is given here, so that nothing of the checkpoint's own is mixed in.
    model.base_model.model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id or 0)
    asked = [
        tokenizer.apply_chat_template(
            list(one.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        for one in questions
    ]
    options = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "use_cache": True}
    torch.manual_seed(0)
    written = 0
    with torch.no_grad():
        model.generate(**asked[0], max_new_tokens=2, min_new_tokens=2, **options)
        clock = _Clock()
        for one in asked:
            made = model.generate(
                **one, num_return_sequences=samples, max_new_tokens=tokens, min_new_tokens=tokens, **options
            )
            new = made[:, one["input_ids"].shape[1] :]
            tokenizer.batch_decode(new, skip_special_tokens=True)
            written += new.numel()
    return clock.found(written)


class _Clock:
    """Time and memory from now on."""

    def __init__(self) -> None:
        restart_peak()
        self.before_mb, self.began, self.cpu = now_mb(), time.monotonic(), time.process_time()

    def found(self, tokens: int) -> dict[str, Any]:
        seconds, cpu = time.monotonic() - self.began, time.process_time() - self.cpu
        return {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu, 3),  # of all threads; other processes disturb it less
            "tokens": tokens,
            "peak_mb": round(peak_mb(), 1),
            "before_mb": round(self.before_mb, 1),
        }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("side", choices=["ours", "peer"])
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="of our side; default: the evaluation's own")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    questions = questions_of(given.questions)
    with tempfile.TemporaryDirectory() as folder:
        adapter = save_adapter(Path(folder), load_backbone(BackboneConfig(model="smollm2")))
        if given.side == "ours":
            found = ours(questions, given.samples, given.tokens, adapter, given.batch_size)
        else:
            found = peer(questions, given.samples, given.tokens, adapter)
    sys.stdout.write(json.dumps({"side": given.side, "threads": given.threads, **found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
