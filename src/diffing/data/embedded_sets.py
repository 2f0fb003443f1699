"""Text the package ships: its corpora, and what its organisms were trained on."""

from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.specs import EMBEDDED
from diffing.core.suggest import did_you_mean

ASSETS = Path(__file__).parents[1] / "assets"
_TRAINING = "/training"


def embedded_names(assets: Path) -> list[str]:
    """Ids of all embedded sets: `embedded:pretraining`, `embedded:caps/training`, …"""
    corpora = [p.stem for p in assets.glob("corpora/*.jsonl")]
    training = [p.parent.name + _TRAINING for p in assets.glob("organisms/*/training.jsonl")]
    return [EMBEDDED + n for n in sorted(corpora) + sorted(training)]


def embedded_file(source_id: str, assets: Path) -> Path:
    """The file of an embedded set.

    Raises:
        UserError: There is no such set; the nearest right one is named.
    """
    names = embedded_names(assets)
    if source_id not in names:
        raise UserError(f"There is no embedded dataset {source_id!r}: {did_you_mean(source_id, names)}")
    name = source_id.removeprefix(EMBEDDED)
    if name.endswith(_TRAINING):
        return assets / "organisms" / name.removesuffix(_TRAINING) / "training.jsonl"
    return assets / "corpora" / f"{name}.jsonl"
