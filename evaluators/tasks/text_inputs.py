"""Texts as a sentence encoder reads them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from evaluators.evaluator import ModelInfo
from evaluators.sentences import SentenceModules
from evaluators.tasks.encoding import encoder_inputs


class SentenceInputs:
    """Tokenises every distinct text once, as sentence-transformers does.

    Attributes:
        modules: what the base's directory says of pooling and similarity; the mean of all tokens
            and their cosine where it says nothing.
    """

    def __init__(self, model: ModelInfo, task: str) -> None:
        if model.tokenizer is None:
            raise ValueError(f"{task} needs a tokenizer, and the base's directory has none")
        self._tokenizer: Any = model.tokenizer
        self.modules = (
            SentenceModules() if model.directory is None else SentenceModules.read(model.directory)
        )
        self._length = min(model.max_length, self.modules.max_length or model.max_length)
        self._known: dict[tuple[str, str], Mapping[str, Tensor]] = {}

    def of(self, text: str, *roles: str) -> Mapping[str, Tensor]:
        """Returns the inputs of a text, the same object for the same text and prompt.

        Args:
            roles: whose prompt stands in front of it, where the model has one; the first counts.
        """
        prompt = self.modules.prompt(*roles)
        found = self._known.get((prompt, text))
        if found is None:
            whole = prompt + text.strip()
            whole = whole.lower() if self.modules.lower_case else whole
            encoded = self._tokenizer(whole, truncation=True, max_length=self._length)
            found = self._known[prompt, text] = encoder_inputs(encoded)
        return found
