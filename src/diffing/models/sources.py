"""Where a model's, adapter's or tokenizer's files are: embedded, a local folder, a GGUF file, or a hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffing.core.errors import UserError
from diffing.core.specs import EMBEDDED, is_embedded, is_local
from diffing.models.embedded import embedded_model, embedded_organism
from diffing.models.hashing import content_hash

@dataclass(frozen=True)
class ResolvedSource:
    folder: Path
    id: str
    revision: str | None
    subfolder: str | None
    content_hash: str
    origin: Literal["hub", "local", "embedded", "gguf"]
    card: dict[str, Any] = field(default_factory=dict)

def resolve(spec_id, revision, subfolder, what="model", trust_remote_code=False):
    if is_embedded(spec_id):
        name = spec_id.removeprefix(EMBEDDED)
        try: folder = embedded_model(name)
        except UserError: folder = embedded_organism(name)
        return ResolvedSource(folder, spec_id, None, None, _hash(folder), "embedded")
    if is_local(spec_id):
        folder = Path(spec_id).expanduser() / (subfolder or "")
        return ResolvedSource(folder, spec_id, None, subfolder, _hash(folder), "local")
    raise UserError(f"hub {spec_id}")

def _hash(folder):
    return content_hash(folder, [p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".jinja", ".model")])
