"""TRL's SFTTrainer on the same rows, masks, order and initial adapter. Imports nothing of em."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.peers.common import SAME, Times, model_of, put_back, trained, with_lora
from benchmarks.settings import Settings, read_plan


class _Trainer(SFTTrainer):
    """Keeps the loss of every step; nothing else is changed."""

    losses: list[Any]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss)
        return loss


def fast(settings: Settings, work: Path) -> dict[str, Any]:
    """Without gradient checkpointing; padded batches."""
    return _run(settings, work, gradient_checkpointing=False)


def padding_free(settings: Settings, work: Path) -> dict[str, Any]:
    """Without gradient checkpointing; the rows of a batch in one, kept apart by the attention mask."""
    return _run(settings, work, gradient_checkpointing=False, padding_free=True)


def defaults(settings: Settings, work: Path) -> dict[str, Any]:
    """As TRL comes: with gradient checkpointing and padded batches."""
    return _run(settings, work)


def _run(settings: Settings, work: Path, **options: Any) -> dict[str, Any]:
    plan = read_plan(work)
    model = with_lora(model_of(settings, plan), work / "adapter")
    parameters = [one for one in model.parameters() if one.requires_grad]
    initial = trained(parameters)
    order = [index for step in plan["steps"] for index in step["sft"]]
    first = order[: len(plan["steps"][0]["sft"])]
    _trainer(settings, work, plan, model, first, options).train()
    put_back(parameters, initial)
    trainer = _trainer(settings, work, plan, model, order, options)
    times = Times(settings.device)
    trainer.add_callback(times)
    trainer.train()
    tokens = sum(len(plan["sft"][index]["ids"]) for index in order)
    losses = [float(loss) for loss in trainer.losses]
    return {**times.record(), "tokens": tokens, "losses": {"sft": losses}, "options": options}


def _trainer(
    settings: Settings,
    work: Path,
    plan: dict[str, Any],
    model: Any,
    order: list[int],
    options: dict[str, Any],
) -> _Trainer:
    rows = [plan["sft"][index] for index in order]
    data = [{"input_ids": row["ids"], "completion_mask": row["answer"]} for row in rows]
    config = SFTConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=len(plan["steps"][0]["sft"]),
        learning_rate=settings.sizes["lr"],
        completion_only_loss=True,
        max_length=None,
        bf16=settings.dtype == "bfloat16",
        use_cpu=settings.device == "cpu",
        **SAME,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    trainer = _Trainer(
        model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    trainer.losses = []
    return trainer
