"""Which tokenizer and chat template a pair uses."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffing.core.errors import UserError
from diffing.core.files import read_json
from diffing.core.specs import ModelSpec
from diffing.core.templates import TemplateRules
from diffing.models.folders import has_vocabulary


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder ships a tokenizer."""
    return has_vocabulary(p.name for p in folder.iterdir())


def template_rules(
    model: ModelSpec, base: PreTrainedTokenizerBase, finetuned: PreTrainedTokenizerBase, folder: Path | None
) -> tuple[TemplateRules, tuple[str, ...]]:
    """The pair's chat template rules, and a warning where the template is not the base's own.

    A base without a template takes the finetuned model's; both models must read the same tokens.

    Args:
        model: The base's spec; its `chat_template` (a file, or Jinja text) goes before everything.
        base: The base's tokenizer.
        finetuned: The finetuned model's tokenizer.
        folder: The finetuned model's files, which may hold a template beside an adapter.
    """
    template, warnings = None, ()
    if model.chat_template is not None:
        template = _read(model.chat_template)
    elif not base.chat_template:
        template = _default(finetuned.chat_template) or (_template_in(folder) if folder else None)
        warnings = ("The base has no chat template; the finetuned model's is used for both.",) if template else ()
    return TemplateRules(template, model.end_of_turn, model.has_thinking), warnings


def _default(template: Any) -> str | None:
    """The template itself; of several named ones the one called "default"."""
    return template.get("default") if isinstance(template, dict) else template


def _read(value: str) -> str:
    if "{" in value:
        return value
    path = Path(value).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"model.chat_template={value} is neither a readable file nor Jinja text.") from None


def _template_in(folder: Path) -> str | None:
    jinja, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    if not config.is_file():
        return None
    template = read_json(config, "check organism.finetuned").get("chat_template")
    return template if isinstance(template, str) else None
