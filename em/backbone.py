"""A frozen chat model: load it, know its layers and head, run all or only its upper part."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from em import hooks
from em.errors import BackboneError
from em.hooks import Site
from em.packing import Layout, arguments, install, shared_prefix

Packing = Literal["auto", "always", "never"]


class Backbone(nn.Module):
    """A frozen causal language model and its tokenizer.

    Interventions put their parameters into this module tree; everything else has no gradient.

    Args:
        model: a Hugging Face causal LM of the Llama layout (Llama, Qwen2/3, Gemma2/3, Mistral, …).
        tokenizer: its fast tokenizer with a chat template.
        name: how the user named it (hub id, folder, alias).
        packing: run rows without their padding where the caller gives their lengths. `auto`: on a CPU,
            where padding costs its full share; a GPU prefers one large kernel to many small ones.

    Raises:
        BackboneError: no decoder layers or head are found, or the head does more than a linear map and
            a soft cap, so that losses over selected positions would not be the model's own; or rows shall
            always be packed and its attention does not allow it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        packing: Packing = "auto",
    ):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name or str(model.config._name_or_path)
        config = model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.steer_BT: Tensor | None = None
        if not isinstance(getattr(self.decoder, "layers", None), nn.ModuleList) or self.head is None:
            raise BackboneError(
                f"{self.name}: no decoder layers and output head were found in {type(model).__name__}; "
                "use a decoder-only model of the Llama, Qwen, Gemma or Mistral layout"
            )
        self.num_layers = len(self.layers)
        self.vocab_size = self.head.weight.shape[0]
        self._check_head()
        self._packing: Packing = packing
        self._can_pack = packing != "never" and self._check_packing()
        if packing == "always" and not self._can_pack:
            raise BackboneError(
                f"backbone.packing: always is not possible with the attention of {self.name}; "
                "set it to auto, or backbone.attention to sdpa where the model has no soft cap in it"
            )
        self.fingerprint = self._fingerprint()

    @property
    def decoder(self) -> nn.Module:
        return cast(nn.Module, self.model.get_decoder())

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.decoder.layers)

    @property
    def head(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_output_embeddings())

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 has split the parameters over processes; then only whole passes gather them."""
        return isinstance(self, FSDPModule)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def module_at(self, site: Site) -> nn.Module:
        """The module whose output is the site.

        Raises:
            BackboneError: the layer does not exist or has no such part.
        """
        if not 0 <= site.layer < self.num_layers:
            raise BackboneError(f"layer {site.layer}: {self.name} has layers 0 to {self.num_layers - 1}")
        layer = self.layers[site.layer]
        part = {"block": layer, "mlp": getattr(layer, "mlp", None)}.get(
            site.point, getattr(layer, "self_attn", None)
        )
        if part is None:
            raise BackboneError(f"{self.name}: layer {site.layer} has no part {site.point!r}")
        return part

    @contextmanager
    def steering_positions(self, steer_BT: Tensor | None) -> Iterator[None]:
        """Tell interventions with `positions: answer` which positions of the next passes are theirs.

        Args:
            steer_BT: bool; true where the model predicts an answer token.
        """
        before, self.steer_BT = self.steer_BT, steer_BT
        try:
            yield
        finally:
            self.steer_BT = before

    def trunk(
        self, input_ids_BT: Tensor, lower: tuple[int, Tensor] | None = None, length_B: Tensor | None = None
    ) -> Tensor:
        """Final hidden states (after the last norm) of right-padded rows.

        Rows are padded on the right, so causal attention alone keeps padding out of every real position
        and no mask is needed; what stands at padded positions is meaningless.

        Args:
            input_ids_BT: token ids.
            lower: (layer, hidden_BTD): start at `layer` from what `run_lower` returned for it.
            length_B: real tokens of each row; with it padding may be left out of the computation, and
                leading tokens that all rows share are computed once. Interventions then see the tokens of
                all rows in one row (1, N, D).

        Returns:
            hidden_BTD in the model's dtype.
        """
        layout = self._layout(input_ids_BT, length_B)
        if layout is None:
            return self._decoded(input_ids_BT, lower)
        packed = None if lower is None else (lower[0], layout.pack(lower[1]))
        with self.steering_positions(self._packed_steer(layout)):
            return layout.unpack(self._decoded(layout.pack(input_ids_BT), packed, layout))

    def _decoded(
        self, input_ids_BT: Tensor, lower: tuple[int, Tensor] | None, layout: Layout | None = None
    ) -> Tensor:
        more = {} if layout is None else arguments(layout, input_ids_BT)
        if lower is None:
            output = self.decoder(input_ids=input_ids_BT, use_cache=False, **more)
            return cast(Tensor, output.last_hidden_state)
        start, hidden_BTD = lower
        with hooks.starting_at(self.layers[:start], hidden_BTD):
            output = self.decoder(inputs_embeds=hidden_BTD, use_cache=False, **more)
        return cast(Tensor, output.last_hidden_state)

    @torch.no_grad()
    def run_lower(
        self, input_ids_BT: Tensor, layer: int, length_B: Tensor | None = None
    ) -> tuple[int, Tensor] | None:
        """What reaches `layer`, without gradient, for `trunk(lower=…)`; None: there is nothing to share."""
        if layer == 0 or self.sharded:
            return None
        layout = self._layout(input_ids_BT, length_B)
        if layout is None:
            run = partial(self.decoder, input_ids=input_ids_BT, use_cache=False)
            return layer, hooks.run_until(self.layers[layer], run)
        more = arguments(layout, input_ids_BT)
        run = partial(self.decoder, input_ids=layout.pack(input_ids_BT), use_cache=False, **more)
        with self.steering_positions(self._packed_steer(layout)):
            return layer, layout.unpack(hooks.run_until(self.layers[layer], run))

    def packed_steer(self, input_ids_BT: Tensor, length_B: Tensor) -> Tensor | None:
        """`steer_BT` in the shape in which `trunk` runs the rows: (1, N) where it packs them."""
        layout = self._layout(input_ids_BT, length_B)
        return self.steer_BT if layout is None else self._packed_steer(layout)

    def _layout(self, input_ids_BT: Tensor, length_B: Tensor | None) -> Layout | None:
        if length_B is None or not self._can_pack:
            return None
        if self._packing == "auto" and input_ids_BT.device.type != "cpu":
            return None
        steer_BT = self.steer_BT
        if self._random() or (steer_BT is not None and steer_BT.shape != input_ids_BT.shape):
            return Layout(length_B, input_ids_BT.shape[1])
        prefix = shared_prefix(input_ids_BT, length_B, steer_BT)
        return Layout(length_B, input_ids_BT.shape[1], prefix)

    def _random(self) -> bool:
        """Whether dropout is on, which makes equal tokens differ."""
        return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in self.modules())

    def _packed_steer(self, layout: Layout) -> Tensor | None:
        # Told for other rows than these: nothing that acts at answer positions may be on.
        fits = self.steer_BT is not None and self.steer_BT.shape == (len(layout.length_B), layout.width)
        return layout.pack(self.steer_BT) if self.steer_BT is not None and fits else None

    def logits(self, hidden_ND: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The head's logits in fp32, soft cap included.

        Args:
            hidden_ND: final hidden states at selected positions.
            weight, bias: stand-ins for the head's own parameters.
        """
        weight = self.head.weight if weight is None else weight
        bias = self.head.bias if bias is None else bias
        logits = nn.functional.linear(hidden_ND.to(weight.dtype), weight, bias).float()
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @torch.no_grad()
    def _check_head(self) -> None:
        ids_BT = torch.arange(2, 6, device=self.device).remainder(self.vocab_size)[None]
        own = self.model(input_ids=ids_BT, use_cache=False).logits[0].float()
        ours = self.logits(self.trunk(ids_BT)[0])
        if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
            raise BackboneError(f"{self.name}: its logits are not the output head's alone; not supported")

    @torch.no_grad()
    def _check_packing(self) -> bool:
        """Whether rows run without padding give what they give alone, in this family."""
        if not install(self.model):
            return False
        ids_BT = torch.arange(2, 10, device=self.device).remainder(self.vocab_size).view(2, 4)
        length_B = torch.tensor([2, 4], device=self.device)
        layout = Layout(length_B, 4, 1)
        ids_BT[:, 0] = ids_BT[0, 0]
        together_BTD = layout.unpack(self._decoded(layout.pack(ids_BT), None, layout)).float()
        alone_BTD = self._decoded(ids_BT, None).float()
        room = 2e-2 * float(alone_BTD.abs().max())
        return bool(torch.allclose(layout.pack(together_BTD), layout.pack(alone_BTD), rtol=0, atol=room))

    @torch.no_grad()
    def _fingerprint(self) -> str:
        """Identifies the weights, in float32 or bfloat16: a hash over a sample rounded to bfloat16."""
        digest = hashlib.sha256(f"{self.num_layers} {self.hidden_size} {self.vocab_size}".encode())
        for name, parameter in sorted(self.model.named_parameters()):
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].to("cpu", torch.bfloat16)
            digest.update(name.encode() + sample.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """What an adapter records about the backbone it was trained on."""
        return {
            "model": self.name,
            "fingerprint": self.fingerprint,
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
        }
