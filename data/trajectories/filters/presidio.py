"""Presidio as a rule for personal data: names, locations and other entities. An optional extra."""

import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data.trajectories.filters.draw import Seeds
from data.trajectories.filters.pii import Match
from maverick_jax.errors import InputError


class PresidioRule:
    """Entities found by Presidio's analyzer (English). A replacement looks like `<PERSON-1f2e3d4c>`, since entities
    have no common shape."""

    kind = "presidio"

    def __init__(self, entities: Sequence[str], model: str, score: float):
        self._entities, self._score = list(entities), score
        self._analyzer = _analyzer(model)
        self._replacement = re.compile(rf"<({'|'.join(map(re.escape, entities))})-[0-9a-f]{{8}}>")

    def find(self, text: str) -> Iterator[Match]:
        for found in self._replacement.finditer(text):
            yield Match(found.start(), found.end(), found[1].lower(), found[0], False)
        for found in self._analyzer.analyze(
            text=text, language="en", entities=self._entities, score_threshold=self._score
        ):
            value = " ".join(text[found.start : found.end].split()).lower()
            if value:
                yield Match(found.start, found.end, found.entity_type.lower(), value, True)

    def surrogate(self, value: str, seeds: Seeds) -> str:
        own = seeds.own()
        return f"<{seeds.kind.upper()}-{own.below(1 << 32):08x}>"

    def write(self, surrogate: str, original: str) -> str:
        return surrogate


def _analyzer(model: str) -> Any:
    """Presidio's analyzer. Raises InputError if Presidio or the model is not installed; nothing is downloaded."""
    try:
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError:
        raise InputError("scrub.presidio needs the package presidio-analyzer: pip install 'maverick-jax[presidio]', or "
                         "leave the list empty") from None  # fmt: skip
    try:
        importlib.metadata.distribution(model)  # otherwise Presidio would download the model
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"scrub.presidio_model: the spaCy model {model} is not installed") from None
    models = [{"lang_code": "en", "model_name": model}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
