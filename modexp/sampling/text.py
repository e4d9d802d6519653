"""Text out of tokens that arrive one by one."""

from __future__ import annotations

from modexp.data.tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """What can be said after each token: a character whose bytes are not all there yet waits for them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.said = 0  # characters

    def push(self, *ids: int) -> str:
        self.ids += ids
        text = self.tokenizer.decode(self.ids)
        return self._say("" if text.endswith(REPLACEMENT) else text)

    def rest(self) -> str:
        """What still waits when no more tokens come, unfinished characters replaced."""
        return self._say(self.tokenizer.decode(self.ids))

    def _say(self, text: str) -> str:
        new = text[self.said :]
        self.said += len(new)
        return new
