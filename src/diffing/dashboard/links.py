"""Addresses: of this dashboard's own views, and of hub pages."""

import re
from urllib.parse import urlencode

from diffing.dashboard.catalog import Entry

_HUB = "https://huggingface.co"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def result_url(entry: Entry) -> str:
    """The Result page of a run, relative to any page."""
    return f"result?{urlencode({'run': entry.id})}"


def hub_model(source_id: str | None, origin: str | None) -> str | None:
    """A model's page on the hub; None for what is not there."""
    return f"{_HUB}/{source_id}" if source_id and origin == "hub" and _HUB_ID.fullmatch(source_id) else None


def hub_dataset(source_id: str | None) -> str | None:
    """A dataset's page on the hub; None for what is not there."""
    return f"{_HUB}/datasets/{source_id}" if source_id and _HUB_ID.fullmatch(source_id) else None


def outside(entry: Entry) -> tuple[tuple[str, str], ...]:
    """Links to the hub pages of a run's finetuned model and training text (url, text)."""
    found = (
        (hub_model(entry.finetuned_id, entry.origins[1]), "finetuned model"),
        (hub_dataset(entry.training_id), "training data"),
    )
    return tuple((url, text) for url, text in found if url)
