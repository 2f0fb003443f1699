"""Decoder rows of the most telling latents, as directions to steer along."""

from diffing.core.probing import NamedVector
from diffing.core.result import Result
from diffing.display.numbers import number


def named_vectors(result: Result) -> tuple[NamedVector, ...]:
    """The saved rows, most telling first; one unit of a latent's activation is the row's own length.

    Only of the residual stream: elsewhere nothing is steered.
    """
    layer, _, site = result.manifest["facts"]["slot"].partition("/")
    if site != "residual" or not result.tensors():
        return ()
    names = set(result.tensors())
    found = []
    for row in result.table("latents").to_pylist():
        tensor = f"latent_{row['latent']:06d}"
        if tensor not in names:
            continue
        largest = row["maximum"] * row["norm_ft_raw"]
        label = f"latent {row['latent']} · {row['tag']} · layer {int(layer.removeprefix('layer_'))}"
        note = f"its own maximum adds {number(largest)}; promotes {row['promoted'] or 'unknown'}"
        found.append(NamedVector(tensor, label, int(layer.removeprefix("layer_")), row["norm_ft_raw"], note, largest))
    return tuple(found)
