"""The sets of tokens whose mean vectors are saved: all, by position, by template token; per dataset and over all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffing.data.token_table import TokenTable
from diffing.methods.normdiff.stream import Groups

ALL = "all"


@dataclass(frozen=True)
class Group:
    """A set of tokens.

    Args:
        dataset: A dataset's name, or `all`.
        kind: `all` (kept tokens), `position`, or `template` (a token that the chat template wrote).
        position: Of kind `position`.
        token_id: Of kind `template`.
    """

    dataset: str
    kind: str
    position: int | None = None
    token_id: int | None = None

    @property
    def key(self) -> str:
        """`all/all`, `chat/position_0`, `chat/template_198`."""
        tail = {"all": ALL, "position": f"position_{self.position}", "template": f"template_{self.token_id}"}[self.kind]
        return f"{self.dataset}/{tail}"


def template_tokens(tokens: TokenTable, written_N: np.ndarray, most: int) -> list[int]:
    """Ids among the tokens `written_N` that chat templates wrote, the most frequent first."""
    ids, counts = np.unique(tokens.ids_N[written_N], return_counts=True)
    return ids[np.lexsort((ids, -counts))][:most].tolist()


def make_groups(
    tokens: TokenTable, covered_N: np.ndarray, kept_N: np.ndarray, written_N: np.ndarray, n_positions: int,
    template_ids: Sequence[int],
) -> tuple[list[Group], Groups]:  # fmt: skip
    """All sets that have a token; some token must be kept.

    Args:
        tokens: The corpus.
        covered_N: Tokens that were read: sets of one position hold all of them.
        kept_N: Tokens that count in statistics: sets of all tokens hold these.
        written_N: Tokens that a chat template wrote, leading positions left out: sets of one template token.
        n_positions: Leading positions that have a set.
        template_ids: Tokens that have one.
    """
    found: list[Group] = []
    members: list[np.ndarray] = []

    def add(group: Group, mask_N: np.ndarray) -> None:
        rows = np.flatnonzero(mask_N & covered_N)
        if len(rows):
            found.append(group)
            members.append(rows)

    scopes = [(ALL, np.ones(len(tokens), dtype=bool))]
    scopes += [(name, tokens.dataset_N == i) for i, name in enumerate(tokens.datasets) if name != ALL]
    for name, in_scope in scopes:
        add(Group(name, "all"), in_scope & kept_N)
        for position in range(n_positions):
            add(Group(name, "position", position=position), in_scope & (tokens.position_N == position))
        for token_id in template_ids:
            mine = written_N & (tokens.ids_N == token_id)
            add(Group(name, "template", token_id=token_id), in_scope & mine)
    pairs = np.concatenate([np.stack([rows, np.full(len(rows), g)], 1) for g, rows in enumerate(members)])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    has_models = np.array([g.kind == "all" for g in found])
    return found, Groups(len(found), pairs[:, 0], pairs[:, 1], has_models)
