"""Controls of how text is sampled; kept in the URL."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from diffing.ui.parts import one_of

if TYPE_CHECKING:
    from diffing.models.sampling import Sampling


@dataclass(frozen=True)
class SamplingChoice:
    """What the controls say; the engine's own type is made of it once PyTorch is loaded."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int

    def sampling(self, draw: int = 0) -> "Sampling":
        """Sampling of the n-th draw: further draws take further seeds."""
        from diffing.models.sampling import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.top_k, self.seed + draw)


def sampling_controls(max_new_tokens: int = 80) -> SamplingChoice:
    """Draw the controls."""
    with st.expander("Sampling", icon=":material/tune:"):
        one, two, three, four, five = st.columns(5)
        tokens = one.number_input("At most tokens", 1, 4096, max_new_tokens, key="tokens", bind="query-params")
        temperature = two.slider(
            "Temperature", 0.0, 2.0, 0.7, 0.05, key="temperature", bind="query-params",
            help="0 takes the likeliest token always.",
        )  # fmt: skip
        top_p = three.slider("Top p", 0.05, 1.0, 1.0, 0.05, key="top_p", bind="query-params")
        top_k = four.number_input("Top k", 0, None, 0, key="top_k", bind="query-params", help="0: all tokens.")
        seed = five.number_input("Seed", 0, None, 0, key="seed", bind="query-params")
    return SamplingChoice(int(tokens), float(temperature), float(top_p), int(top_k), int(seed))


def prompt_kind() -> str:
    """Whether prompts go through the chat template: `chat` or `plain text`."""
    return one_of("Prompt as", ["chat", "plain text"], "as")


def stop_button() -> None:
    """A button that ends the writing: any click makes the page draw anew, with what is there by then."""
    st.button("Stop", icon=":material/stop_circle:", key="stop")
