"""Response-only cross-entropy plus a KL term to the frozen reference, exact for any micro-batching."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torchmetrics import SumMetric

from em import hooks
from em.backbone import Backbone
from em.config.schema import KLConfig, OptimizerConfig
from em.datamodules.rows import MicroBatch, Rows, joined
from em.errors import TrainingError
from em.hooks import keyed_seed
from em.interventions._fixed import FixedIntervention
from em.interventions.base import Intervention
from em.modules.frozen import FrozenStates, Processes, stoppable
from em.modules.losses import ReferenceStates, cross_entropy_term, divergence_term, head_sum, head_values
from em.modules.optimizers import make_optimizer
from em.modules.schedules import kl_factor, lr_factor


class SFTModule(pl.LightningModule):
    """Trains an attached intervention; the reference is the same backbone with it switched off.

    One optimizer step minimises

        (1/N) Σ −log p(answer token)  +  w(t) · (1/M) Σ KL(ref ‖ adapted)

    with N and M the numbers of loss positions in the *whole* step, over micro-batches and processes.

    Args:
        backbone: with `intervention` attached.
        intervention: what is trained.
        kl, optimizer: the configuration.
        steps: optimizer steps of the run.
        accumulate: micro-batches per step and process.
        pad: id of the padding token.
        seed: key of dropout.
        reference: another frozen model for the KL term, instead of the backbone itself.
        during_training: attached fixed interventions that act in the adapted pass of training and in its
            backward pass, and are off everywhere else: in the reference, validation and measurements.

    Raises:
        TrainingError: the loss or its gradient is not finite; the intervention keeps its last good values.
    """

    def __init__(
        self,
        backbone: Backbone,
        intervention: Intervention,
        kl: KLConfig,
        optimizer: OptimizerConfig,
        steps: int,
        accumulate: int = 1,
        pad: int = 0,
        seed: int = 0,
        reference: Backbone | None = None,
        during_training: Sequence[FixedIntervention] = (),
    ):
        super().__init__()
        self.strict_loading = False  # checkpoints hold the intervention only
        self.backbone = backbone
        self.intervention = intervention
        self.kl, self.optimizer_config, self.steps = kl, optimizer, steps
        self.accumulate, self.pad, self.seed = accumulate, pad, seed
        # In a list, because a registered module would be trained, checkpointed and wrapped by DDP.
        self._reference = [reference] if reference is not None else []
        self.during_training = list(during_training)
        self.frozen: FrozenStates | None = None  # states to read in place of passes of the frozen model
        self._switch(False)
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._since: tuple[float, float] = (time.perf_counter(), 0.0)
        self._timed = (0.0, 0.0)  # tokens and seconds of optimizer steps, measurements left out
        self.step_metrics: dict[str, float] = {}
        self.tokens_seen = 0
        self.held_out_nll, self.held_out_tokens = SumMetric(), SumMetric()

    def configure_model(self) -> None:
        strategy = self.trainer.strategy if self._trainer is not None else None
        if not isinstance(strategy, ModelParallelStrategy) or self.backbone.sharded:
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for layer in self.backbone.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.backbone, mesh=mesh)
        register_fsdp_forward_method(self.backbone, "trunk")

    def on_fit_start(self) -> None:
        if self.frozen is None:
            return
        trainer = self.trainer
        processes = Processes(
            trainer.global_rank,
            trainer.world_size,
            trainer.strategy.barrier,
            trainer.strategy.reduce_boolean_decision,
        )
        with stoppable(), trainer.precision_plugin.forward_context():
            self.frozen.prepare(self.reference_model, processes)
        self.restart_clock()

    @property
    def has_other_reference(self) -> bool:
        """Whether the reference is another checkpoint instead of the backbone itself."""
        return bool(self._reference)

    @contextmanager
    def reference_model(self) -> Iterator[Backbone]:
        """The frozen reference: the backbone with its intervention off, or the other checkpoint."""
        if self._reference:
            yield self._reference[0].to(self.device)
        else:
            with self.intervention.disabled():
                yield self.backbone

    def on_train_start(self) -> None:
        # Checkpointing and the adapter's dropout act in training mode only; the Trainer leaves modes as they
        # are. The frozen model's own dropout stays off, or the reference would be random.
        for module in [*self.backbone.layers, *self.intervention.training_modules()]:
            module.training = True

    def on_train_end(self) -> None:
        self.backbone.eval()

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        if batch.micro == 0:
            self._sums = torch.zeros(4, dtype=torch.float64)
        torch.manual_seed(keyed_seed(self.seed, "dropout", batch.step, batch.micro, self.global_rank))
        weight = self.kl_weight(batch.step)
        kl_rows = batch.kl if weight > 0 else None
        rows = batch.sft if kl_rows is None else joined(batch.sft, kl_rows, self.pad)
        try:
            sft_sum, kl_sum = self._losses(rows, batch.sft, kl_rows)
        except BaseException:
            self._switch(False)
            raise
        loss = sft_sum / max(1, batch.sft_tokens)
        if kl_sum is not None:
            loss = loss + weight * kl_sum / max(1, batch.kl_tokens) / self._reduction()
        self._record(batch, rows, sft_sum, kl_sum)
        with self.backbone.steering_positions(rows.predicts_BT):
            steer = self.backbone.packed_steer(rows.input_ids_BT, rows.length_B)
        self.backbone.steer_BT = steer  # checkpointed layers are run again in the backward pass
        # Lightning divides by `accumulate` and DDP/FSDP2 average over processes; both are undone here.
        return loss * self.accumulate * self.trainer.world_size

    def _losses(self, rows: Rows, sft: Rows, kl: Rows | None) -> tuple[Tensor, Tensor | None]:
        """Sums over positions. What lies below the intervention is run once for both models."""
        with self.backbone.steering_positions(rows.predicts_BT):
            lower = None if self.frozen is None else self.frozen.lower(rows)
            if lower is None:
                lower = self.backbone.run_lower(rows.input_ids_BT, self.lowest_layer(), rows.length_B)
            states, at_BT = None, None
            if kl is not None:
                rows_kl = slice(len(sft), len(rows))
                at_BT = (rows.real_BT if self.kl.positions == "all" else rows.predicts_BT)[rows_kl]
                states = None if self.frozen is None else self.frozen.reference(kl, at_BT)
                if states is None:
                    states = self._reference_states(rows, lower, rows_kl, at_BT)
            self._switch(True)  # until the backward pass is over, which may run layers again
            hidden_BTD = self.backbone.trunk(rows.input_ids_BT, lower, rows.length_B)
        sft_hidden_ND = hidden_BTD[: len(sft)][rows.predicts_BT[: len(sft)]]
        sft_term = cross_entropy_term(rows.targets_N[: len(sft_hidden_ND)])
        sft_sum = head_sum(self.backbone, sft_hidden_ND, sft_term)
        if states is None or at_BT is None:
            return sft_sum, None
        term = divergence_term(states, self.kl.direction, self.kl.temperature)
        return sft_sum, head_sum(self.backbone, hidden_BTD[len(sft) :][at_BT], term)

    def lowest_layer(self) -> int:
        """The lowest layer that anything changes in training."""
        return min(each.lowest_layer() for each in (self.intervention, *self.during_training))

    def _switch(self, on: bool) -> None:
        for each in self.during_training:
            each.on = on

    @torch.no_grad()
    def _reference_states(
        self, rows: Rows, lower: tuple[int, Tensor] | None, kl: slice, at_BT: Tensor
    ) -> ReferenceStates:
        # Before the adapted pass: a full finetune's reference swaps weights that autograd would need.
        with self.reference_model() as reference:
            shared = (lower[0], lower[1][kl]) if lower is not None and not self._reference else None
            hidden_BTD = reference.trunk(rows.input_ids_BT[kl], shared, rows.length_B[kl])
            return ReferenceStates.of(reference, hidden_BTD[at_BT])

    def kl_weight(self, step: int) -> float:
        """kl.weight times its schedule at a step."""
        return self.kl.weight * kl_factor(self.kl.schedule, step, self.steps)

    def _reduction(self) -> float:
        # `vocab_mean` only matches coefficients of code that averaged over tokens × vocabulary.
        return float(self.backbone.vocab_size) if self.kl.reduction == "vocab_mean" else 1.0

    def _record(self, batch: MicroBatch, rows: Rows, sft_sum: Tensor, kl_sum: Tensor | None) -> None:
        kl = 0.0 if kl_sum is None else float(kl_sum.detach())
        tokens = int((rows.length_B * (rows.index_B >= 0)).sum())
        self._sums += torch.tensor([float(sft_sum.detach()), kl, tokens, 0.0], dtype=torch.float64)
        self._window = batch

    def on_after_backward(self) -> None:
        self.backbone.steer_BT = None
        self._switch(False)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gather the step's numbers and refuse to step on a loss that is not finite."""
        grads = [p.grad for p in self.intervention.trainable_parameters().values() if p.grad is not None]
        grad_norm = float(hooks.plain(torch.nn.utils.get_total_norm(grads))) if grads else 0.0
        sums = self._over_processes(self._sums)
        batch = self._window
        self._sums = torch.zeros(4, dtype=torch.float64)
        weight = self.kl_weight(batch.step)
        sft = float(sums[0]) / max(1, batch.sft_tokens)
        kl = float(sums[1]) / max(1, batch.kl_tokens)
        loss = sft + weight * kl / self._reduction()
        if not (torch.isfinite(torch.tensor([loss, grad_norm]))).all():
            raise TrainingError(
                f"step {batch.step}: the loss is {loss} and its gradient norm {grad_norm}; the step was not "
                "taken and the last checkpoint is intact. Lower optimizer.lr, set trainer.gradient_clip, or "
                "use backbone.dtype=float32"
            )
        self.tokens_seen += int(sums[2])
        self.step_metrics = {
            "train/loss": loss,
            "train/sft_loss": sft,
            "train/lr": float(optimizer.param_groups[0]["lr"]),
            "train/grad_norm": grad_norm,
            "train/tokens": float(self.tokens_seen),
        }
        if self.kl.weight > 0:
            self.step_metrics |= {"train/kl": kl, "train/kl_weight": weight}

    def _over_processes(self, sums: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return sums
        gathered = self.all_gather(sums.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, len(sums)).sum(dim=0).cpu()

    def on_train_batch_end(self, outputs: Any, batch: MicroBatch, batch_idx: int) -> None:
        """Log the finished optimizer step: losses in nats per token, throughput in tokens per second."""
        if batch.micro + 1 < self.accumulate:
            return
        now, before = time.perf_counter(), self._since
        metrics = dict(self.step_metrics)
        tokens, seconds = self.tokens_seen - before[1], max(1e-9, now - before[0])
        metrics["train/tokens_per_second"] = tokens / seconds
        self._timed = (self._timed[0] + tokens, self._timed[1] + seconds)
        self._since = (now, float(self.tokens_seen))
        self.step_metrics = metrics
        step, every = self.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % max(1, every) == 0 or step == self.steps:
            metrics["train/norm"] = self.intervention.norm()
            for logger in self.loggers:
                logger.log_metrics(metrics, step)

    @property
    def mean_tokens_per_second(self) -> float:
        """Tokens (padding not counted) per second of training, over all steps so far."""
        return self._timed[0] / self._timed[1] if self._timed[1] else 0.0

    def leave_out(self, seconds: float) -> None:
        """Leave a measurement between two steps out of the throughput."""
        self._since = (self._since[0] + seconds, self._since[1])

    def restart_clock(self) -> None:
        """Leave time that was not spent on training out of the throughput."""
        self._since = (time.perf_counter(), float(self.tokens_seen))

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        with self.backbone.steering_positions(batch.predicts_BT), self.intervention.merged():
            hidden_BTD = self.backbone.trunk(batch.input_ids_BT, None, batch.length_B)
        values_N = head_values(
            self.backbone, hidden_BTD[batch.predicts_BT], cross_entropy_term(batch.targets_N)
        )
        self.held_out_nll.update(values_N.double().sum())
        self.held_out_tokens.update(len(values_N))

    def on_validation_epoch_end(self) -> None:
        """Held-out loss (nats per token) and perplexity of the training domain, exact over processes."""
        loss = self.held_out_nll.compute() / self.held_out_tokens.compute()
        self.held_out_nll.reset()
        self.held_out_tokens.reset()
        values = {"val/loss": loss.float(), "val/perplexity": loss.exp().float()}
        self.log_dict(values, logger=False)
        if not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics({name: float(value) for name, value in values.items()}, self.global_step)
        self.restart_clock()

    def configure_optimizers(self) -> Any:
        parameters = list(self.intervention.trainable_parameters().values())
        optimizer = make_optimizer(self.optimizer_config, parameters)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(self.optimizer_config, step, self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The intervention's parameters only (adapter-only checkpoints)."""
        wanted = {id(parameter) for parameter in self.intervention.trainable_parameters().values()}
        names = {name for name, parameter in self.named_parameters() if id(parameter) in wanted}
        full = super().state_dict(*args, **kwargs)
        return {name: value for name, value in full.items() if name in names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["em_tokens_seen"] = self.tokens_seen
        checkpoint["em_timed"] = list(self._timed)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        self.tokens_seen = int(checkpoint["em_tokens_seen"])
        tokens, seconds = checkpoint["em_timed"]
        self._timed = (tokens, seconds)
        self.restart_clock()
