"""Rows of a dataset on the Hugging Face hub, streamed; needs the extra `hub-data`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from diffing.core.errors import UserError, one_line
from diffing.core.specs import DatasetSpec
from diffing.data.local_files import READERS
from diffing.data.rows import Row

SHUFFLE_BUFFER = 10_000
ROW_LIMIT = 1_000_000
CONNECT_SECONDS = 20
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def hub_rows(spec: DatasetSpec, max_samples: int | None) -> Iterator[Row]:
    """The first rows of the split, as many as a seeded choice of `max_samples` needs to draw from.

    A shuffle buffer of `SHUFFLE_BUFFER` rows from which `max_samples` are drawn reads their sum and no
    more; reading those in order keeps each row's number. Without `max_samples` the whole split is read.

    Raises:
        UserError: The set cannot be had; the sentence says whether it is missing, gated or out of reach.
    """
    _check_id(spec)
    with _hub_errors(spec):
        rows = iter(_stream(spec))
        limit = ROW_LIMIT + 1 if max_samples is None else max_samples + SHUFFLE_BUFFER
        for index, values in enumerate(islice(rows, limit)):
            if index == ROW_LIMIT and max_samples is None:
                raise UserError(f"Dataset {spec.id} has more than {ROW_LIMIT:,} rows; set data.max_samples=N.")
            yield Row(index, f"{spec.id} row {index + 1}", values)


def _check_id(spec: DatasetSpec) -> None:
    is_file_like = any(spec.id.lower().endswith(s) for s in READERS)
    if is_file_like or not _HUB_ID.fullmatch(spec.id):
        raise UserError(f"There is no file or folder {spec.id}, and it is no hub id (org/name); check the path.")


def _stream(spec: DatasetSpec) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"Reading {spec.id} from the hub needs datasets; pip install 'diffing[hub-data]'.") from None
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(spec.id, revision=spec.revision, timeout=CONNECT_SECONDS)
    return datasets.load_dataset(spec.id, name=spec.config, split=spec.split, revision=info.sha, streaming=True)


@contextmanager
def _hub_errors(spec: DatasetSpec) -> Iterator[None]:
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(_sentence(spec, error)) from error


def _sentence(spec: DatasetSpec, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    text = one_line(error)
    offline = "data=embedded runs offline"
    if isinstance(error, GatedRepoError) or "gated dataset" in text:
        page = f"https://huggingface.co/datasets/{spec.id}"
        return f"Dataset {spec.id} is gated: ask for access at {page} and log in with `hf auth login`; {offline}."
    if isinstance(error, RevisionNotFoundError):
        return f"Dataset {spec.id} has no revision {spec.revision!r}; check it on the hub."
    if isinstance(error, RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError":
        return f"There is no public dataset {spec.id} on the hub; check the id, or log in with `hf auth login`."
    if isinstance(error, ConnectionError) or (isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)):
        return f"Dataset {spec.id} cannot be had: the hub is out of reach ({one_line(error, 100)}); {offline}."
    if "split" in text.lower() and isinstance(error, ValueError):
        return f"Dataset {spec.id} has no split {spec.split!r} ({text}); set another split in data.datasets."
    if "config" in text.lower() and isinstance(error, ValueError):
        return f"Dataset {spec.id} does not know config {spec.config!r} ({text}); set another config in data.datasets."
    return f"Dataset {spec.id} cannot be read from the hub ({text}); {offline}."
