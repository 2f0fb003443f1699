"""Patching: a forward pass that goes on from another model's states, taken at all positions of one point.

Points are numbered through the depth of an L-layer decoder: `EMBEDDING` (−1) is what the first block is given, 0 to
L − 1 what each block gives, L what the head is given (after the final norm), L + 1 the logits. Whatever stands before
the point is the donor's, whatever follows is the receiver's. Blocks before the point do not run.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffing.core.errors import UserError
from diffing.models.handle import ModelHandle, probe_ids
from diffing.models.quiet import quiet_transformers
from diffing.models.readout import tolerance
from diffing.models.sites import first_tensor
from diffing.models.stream_hook import with_stream

EMBEDDING = -1
_OTHERS = "kl, diff_mining, logit_amplification and perplexity_diff"


@dataclass(frozen=True, eq=False)
class States:
    """What one model computes for a batch, at every point.

    Args:
        given_BTD: What the first block is given.
        outputs: What each block gives, in the container it gives it in.
        hidden_BD: What the head is given at the last token of each row.
        logits_BV: The logits there, float32.
    """

    given_BTD: Tensor
    outputs: tuple[Any, ...]
    hidden_BD: Tensor
    logits_BV: Tensor

    def stream(self, point: int) -> Tensor:
        """The residual stream at a point from `EMBEDDING` to L − 1, as the model holds it."""
        found = self.given_BTD if point == EMBEDDING else first_tensor(self.outputs[point])
        assert found is not None, "a block gives no tensor"
        return found


def points(handle: ModelHandle) -> range:
    """All points of a model, from the embedding to the logits."""
    return range(EMBEDDING, len(handle.sites.layers) + 2)


def read_states(handle: ModelHandle, ids_BT: Tensor, lengths: Sequence[int]) -> States:
    """States of a batch padded on the right.

    Args:
        handle: The model.
        ids_BT: Token ids.
        lengths: Tokens of each row.
    """
    given: list[Tensor] = []
    outputs: list[Any] = []
    with ExitStack() as stack:

        def keep_given(module: nn.Module, args: Any, kwargs: Any) -> None:
            given.append(_streamed(args, kwargs, ids_BT.shape).clone())

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(_cloned(output))

        first = handle.sites.layers[0]
        stack.callback(first.register_forward_pre_hook(keep_given, with_kwargs=True).remove)
        for block in handle.sites.layers:
            stack.callback(block.register_forward_hook(keep_output).remove)
        hidden_BD, logits_BV = _last(handle, ids_BT, lengths)
    return States(given[0], tuple(outputs[: len(handle.sites.layers)]), hidden_BD, logits_BV)


def patched_logits(
    receiver: ModelHandle, own: States, donor: States, point: int, ids_BT: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Logits at the last token of each row when the receiver goes on from the donor's states, (B, V), float32.

    Args:
        receiver: The model that goes on; see `refuse_unpatchable`.
        own: Its own states on this batch.
        donor: The other model's.
        point: Up to where the states are the donor's.
        ids_BT: The token ids that both were read on.
        lengths: Tokens of each row.
    """
    n_layers = len(receiver.sites.layers)
    if point == n_layers + 1:
        return donor.logits_BV
    if point == n_layers:
        return _head(receiver, own, donor.hidden_BD, ids_BT, lengths)
    if _same(own.stream(point), donor.stream(point)):
        return own.logits_BV
    with _resumed(receiver, own, point, donor.stream(point)):
        return _last(receiver, ids_BT, lengths)[1]


def refuse_unlike(base: ModelHandle, finetuned: ModelHandle) -> None:
    """Raises UserError: The two models differ in number of blocks or width."""
    n_base, n_finetuned = (len(h.sites.layers) for h in (base, finetuned))
    if n_base != n_finetuned:
        raise UserError(
            f"The base has {n_base} layers and the finetuned model {n_finetuned}, so that states of one cannot stand "
            f"in for the other's; {_OTHERS} work."
        )
    w_base, w_finetuned = (h.module.config.get_text_config(decoder=True).hidden_size for h in (base, finetuned))
    if w_base != w_finetuned:
        raise UserError(
            f"The base's residual stream has width {w_base} and the finetuned model's {w_finetuned}, so that states of "
            f"one cannot stand in for the other's; {_OTHERS} work."
        )


def refuse_unpatchable(handle: ModelHandle) -> None:
    """Go on from another text's states at every point: that must give the other text's logits.

    It does not where blocks take more than the residual stream, such as keys, values or embeddings of their own.

    Raises:
        UserError: It does not.
    """
    ids_BT = probe_ids(handle.tokenizer, handle.module)
    lengths = [ids_BT.shape[1]] * len(ids_BT)
    with quiet_transformers():
        own = read_states(handle, ids_BT, lengths)
        other = read_states(handle, ids_BT.flip(0), lengths)
        for point in points(handle):
            if _gap(handle, own, other, point, ids_BT, lengths) > tolerance(other.hidden_BD.dtype):
                raise UserError(_cannot(handle, point))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b.to(a.device))


def _gap(handle: ModelHandle, own: States, donor: States, point: int, ids_BT: Tensor, lengths: Sequence[int]) -> float:
    """Largest difference of the patched from the donor's logits, relative; infinite where the model fails."""
    try:
        found_BV = patched_logits(handle, own, donor, point, ids_BT, lengths)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # What an architecture raises whose later blocks miss what earlier ones leave is its own affair.
        return float("inf")
    gap = ((found_BV - donor.logits_BV).abs().max() / donor.logits_BV.abs().max().clamp_min(1e-12)).item()
    return gap if gap == gap else float("inf")


def _cannot(handle: ModelHandle, point: int) -> str:
    place = "the embedding" if point == EMBEDDING else f"block {point}"
    return (
        f"What follows {place} of model class {type(handle.module).__name__} takes more than the residual stream "
        "(such as shared keys and values, or embeddings by layer), so that another model's states cannot stand "
        f"in; {_OTHERS} work."
    )


def _last(handle: ModelHandle, ids_BT: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What the head is given, and the logits, at the last token of each row."""
    hidden_BD = _at_last(handle.final_hidden(ids_BT, lengths), lengths)
    if handle.transform is not None:
        return hidden_BD, handle.logits(hidden_BD)
    return hidden_BD, _at_last(handle.forward_logits(ids_BT, lengths), lengths)


def _at_last(values_BTX: Tensor, lengths: Sequence[int]) -> Tensor:
    device = values_BTX.device
    return values_BTX[torch.arange(len(lengths), device=device), torch.tensor(list(lengths), device=device) - 1]


def _head(receiver: ModelHandle, own: States, hidden_BD: Tensor, ids_BT: Tensor, lengths: Sequence[int]) -> Tensor:
    """The receiver's logits of hidden states that another model's head would be given."""
    hidden_BD = hidden_BD.to(own.hidden_BD.device, own.hidden_BD.dtype)
    if receiver.transform is not None:
        return receiver.logits(hidden_BD)

    def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
        old_BTD = args[0] if args else next(iter(kwargs.values()))
        new_BTD = hidden_BD[:, None].expand_as(old_BTD)
        return ((new_BTD, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): new_BTD})

    registered = receiver.sites.head.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        return _at_last(receiver.forward_logits(ids_BT, lengths), lengths)
    finally:
        registered.remove()


@contextmanager
def _resumed(handle: ModelHandle, own: States, point: int, stream_BTD: Tensor) -> Iterator[None]:
    """Within the block forward passes go on after `point` with a given stream; blocks up to there do not run."""
    stream_BTD = stream_BTD.to(own.stream(point).device, own.stream(point).dtype)
    with ExitStack() as stack:
        if point == EMBEDDING:
            stack.callback(
                handle.sites.layers[0].register_forward_pre_hook(_giving(stream_BTD), with_kwargs=True).remove
            )
        for block, output in zip(handle.sites.layers[: point + 1], own.outputs, strict=False):
            stack.enter_context(_skipped(block, with_stream(output, stream_BTD)))
        yield


def _giving(stream_BTD: Tensor) -> Any:
    """A hook that replaces the stream among what a block is given."""

    def replace(module: nn.Module, args: Any, kwargs: Any) -> Any:
        old = _streamed(args, kwargs, stream_BTD.shape[:2])
        new = stream_BTD.clone()
        return tuple(new if a is old else a for a in args), {k: new if v is old else v for k, v in kwargs.items()}

    return replace


def _streamed(args: Any, kwargs: Any, shape_BT: Sequence[int]) -> Tensor:
    """The residual stream among what a block is given: the first (B, T, D) of real numbers."""
    for value in (*args, *kwargs.values()):
        if (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dim() == 3
            and tuple(value.shape[:2]) == tuple(shape_BT)
        ):
            return value
    raise UserError("The first block is given no residual stream; choose another model.id.")


@contextmanager
def _skipped(block: nn.Module, output: Any) -> Iterator[None]:
    """Within the block the module gives `output` without computing anything."""
    before = vars(block).get("forward")
    vars(block)["forward"] = lambda *args, **kwargs: _cloned(output)
    try:
        yield
    finally:
        if before is None:
            del vars(block)["forward"]
        else:
            vars(block)["forward"] = before


def _cloned(output: Any) -> Any:
    """The output with a stream of its own: some models change theirs in place."""
    stream = first_tensor(output)
    assert stream is not None, "a block gives no tensor"
    return with_stream(output, stream.clone())
