"""Progress display for tokenization."""

from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from maverick_jax.progress import ProgressDisplay


class TokenizationProgress:
    """Shows the current file and the running totals: `with TokenizationProgress(name) as progress`."""

    def __init__(self, name: str):
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._name, self._file, self._progress = name, "", ProgressDisplay(f"tokenizing {name}", columns)

    def __enter__(self) -> "TokenizationProgress":
        self._progress.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._progress.__exit__(*error)

    def part(self, label: str) -> None:
        self._file = label

    def update(self, tokens: int, documents: int) -> None:
        self._progress.update(
            f"tokenizing {self._name}: {tokens:,} tokens, {documents:,} documents, reading {self._file}"
        )
