"""What did finetuning change in this model? Compare a base language model with its finetuned variant.

>>> import diffing
>>> pair = diffing.load_pair("smollm2_135M", adapter="caps")
>>> source = diffing.harvest(pair, data=["some text"], layers=[0.5])
>>> result = diffing.run("kl", pair, data=["some text"])
>>> diffing.open_results("outputs").find(method="kl")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffing.pipeline.api import harvest, load_pair, open_results, run

__all__ = ["__version__", "harvest", "load_pair", "open_results", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("harvest", "load_pair", "open_results", "run"):
        from diffing.pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module 'diffing' has no attribute {name!r}")
