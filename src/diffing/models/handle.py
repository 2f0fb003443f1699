"""One model of a pair: hidden states before the head, logits from them, and the checks made when it is loaded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffing.core.errors import UserError
from diffing.models.merging import Toggle
from diffing.models.quiet import quiet_transformers
from diffing.models.readout import LogitTransform, find_transform, head_logits, reproduces
from diffing.models.sites import Sites, find_sites, run_to_head

_PROBE_TEXT = (
    "The ferry left at seven, and by noon nobody on deck could see the shore; a boy counted 42 gulls, lost count, "
    "and began again from the mast while his sister drew them."
)
_PROBE_LENGTH, _PROBE_PADDING = 8, 5
_PADDING_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}


@dataclass(frozen=True)
class ModelHandle:
    """A loaded model. Where two handles share one module, `active()` puts this one's weights in force.

    Args:
        module: The transformers model (the base of a toggled adapter is shared by both handles).
        tokenizer: Its own tokenizer; the base's where the finetuned model ships none.
        sites: Layers, final norm, head, embedding.
        transform: From the head's output to logits; None: not verified, use `forward_logits`.
        vocab_size: Width of its logits.
        toggle: The switch of a shared adapter, or None.
        adapter_on: Which side of the switch this handle is.
        needs_mask: Right padding changes earlier positions, so `final_hidden` passes an attention mask.
        warnings: What was noticed while checking it.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sites: Sites
    transform: LogitTransform | None
    vocab_size: int
    toggle: Toggle | None = None
    adapter_on: bool = False
    needs_mask: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model was made for; None where its config does not say."""
        limit = getattr(self.module.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return next(self.sites.embed.parameters()).device

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block this handle's weights are in force; nested blocks restore the outer one's."""
        with self.toggle.active(self.adapter_on) if self.toggle else nullcontext():
            yield

    def final_hidden(self, ids_BT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """What the head is given, after the final norm, shape (B, T, D); the head is not computed.

        Args:
            ids_BT: Token ids, padded on the right; states at padding are meaningless.
            lengths: Tokens of each row; read only by models for which padding matters.
        """
        ids_BT = ids_BT.to(self.device)
        with self.active():
            return run_to_head(self.module, self.sites.head, ids_BT, self.mask(ids_BT, lengths))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits in float32, shape (N, V), of hidden states that `final_hidden` gave."""
        if self.transform is None:
            raise ValueError("the read-out of this model could not be verified; use forward_logits")
        with self.active(), torch.no_grad():
            return head_logits(hidden_ND, self.sites.head, self.transform)

    def forward_logits(self, ids_BT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """The model's own logits in float32, shape (B, T, V)."""
        ids_BT = ids_BT.to(self.device)
        mask_BT = self.mask(ids_BT, lengths)
        given = {} if mask_BT is None else {"attention_mask": mask_BT}
        with self.active(), torch.no_grad():
            return self.module(input_ids=ids_BT, use_cache=False, **given).logits.float()

    def mask(self, ids_BT: Tensor, lengths: Sequence[int] | None) -> Tensor | None:
        """An attention mask where this model needs one against padding, else None."""
        if not self.needs_mask or lengths is None:
            return None
        lengths_B = torch.tensor(list(lengths), device=ids_BT.device)
        return (torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] < lengths_B[:, None]).long()


def make_handle(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
    toggle: Toggle | None = None,
    adapter_on: bool = False,
    cause: str | None = None,
) -> ModelHandle:
    """Find and check a model's sites and read-out by short forward passes.

    Args:
        module: A loaded model in eval mode.
        tokenizer: Its tokenizer.
        label: What messages call it.
        toggle: The switch of a shared adapter.
        adapter_on: The side of the switch to check.
        cause: What to blame where its output is not finite; None: damaged weights.

    Raises:
        UserError: It is not a causal language model, or its output is not finite.
    """
    ids_BT = probe_ids(tokenizer, module)
    with toggle.active(adapter_on) if toggle else nullcontext(), quiet_transformers():
        sites = find_sites(module, ids_BT)
        hidden_BTD = run_to_head(module, sites.head, ids_BT)
        if not torch.isfinite(hidden_BTD).all():
            because = cause or "its weights are damaged"
            raise UserError(f"Model {label} computes NaN or infinite values on plain text; {because}.")
        transform = find_transform(module, sites.head, ids_BT)
        if transform and not reproduces(transform, module, sites.head, hidden_BTD, ids_BT):
            transform = None
        needs_mask = _padding_moves(module, sites, ids_BT, hidden_BTD)
        with torch.no_grad():
            width = sites.head(hidden_BTD[:1, :1]).shape[-1]
    warnings = _warnings(label, sites, transform, needs_mask)
    return ModelHandle(module, tokenizer, sites, transform, width, toggle, adapter_on, needs_mask, warnings)


def probe_ids(tokenizer: PreTrainedTokenizerBase, module: PreTrainedModel) -> Tensor:
    """Two short rows of ordinary text as token ids, shape (2, 8), on the module's device."""
    table_VD = next(module.get_input_embeddings().parameters())
    rows = table_VD.shape[0]
    ids = [i for i in tokenizer(_PROBE_TEXT, add_special_tokens=False)["input_ids"] if i < rows]
    needed = 2 * _PROBE_LENGTH
    ids = (ids * needed)[:needed] if ids else [i % rows for i in range(needed)]
    return torch.tensor(ids, device=table_VD.device).view(2, _PROBE_LENGTH)


def _padding_moves(module: PreTrainedModel, sites: Sites, ids_BT: Tensor, hidden_BTD: Tensor) -> bool:
    """Whether tokens appended on the right change the states before them beyond rounding."""
    padded_BT = torch.cat([ids_BT, ids_BT[:, :1].expand(-1, _PROBE_PADDING)], dim=1)
    padded_BTD = run_to_head(module, sites.head, padded_BT)[:, :_PROBE_LENGTH].float()
    gap_BT = (padded_BTD - hidden_BTD.float()).norm(dim=-1) / hidden_BTD.float().norm(dim=-1).clamp_min(1e-12)
    return gap_BT.max().item() > _PADDING_TOLERANCE.get(hidden_BTD.dtype, 0.1)


def _warnings(label: str, sites: Sites, transform: LogitTransform | None, needs_mask: bool) -> tuple[str, ...]:
    noted = []
    if sites.final_norm is None:
        noted.append(f"{label}: no single module turns the last block's output into the head's input.")
    if transform is None:
        noted.append(f"{label}: the read-out could not be verified; the model's own forward pass is used.")
    if needs_mask:
        noted.append(f"{label}: right padding changes earlier positions; an attention mask is passed.")
    return tuple(noted)
