"""`python -m tests.helpers.picture_mixture`: fill and padding of rows for a mixture like LLaVA's instruction data, from
sizes and lengths alone."""

import numpy as np

from data.rows.tiles import TileBudgets
from data.rows.two_budgets import placed_in_two
from maverick_jax.images import ImageConfig, choose_grid, num_image_tokens

LENGTH, BATCH = 8192, 32


def samples(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64[count] twice: tokens and tiles of each sample. 6% are text alone; the others have one photograph of 480 x
    640 to 1080 x 1920 pixels. 3 turns of 20 to 120 tokens."""
    random, config = np.random.RandomState(seed), ImageConfig()
    lengths, tiles = [], []
    for _ in range(count):
        text = int(random.randint(20, 121, 3).sum())
        if random.rand() < 0.06:
            lengths.append(4 * text)
            tiles.append(0)
            continue
        grid = choose_grid((int(random.randint(480, 1081)), int(random.randint(640, 1921))), config)
        lengths.append(text + num_image_tokens(grid, config.patches_per_tile))
        tiles.append(grid[0] * grid[1] + (grid[0] * grid[1] > 1))
    return np.array(lengths), np.array(tiles)


def measured(seed: int = 0, count: int = 20_000) -> dict[str, float]:
    """The fraction of tokens that are no padding, and the padding of tiles at the median step."""
    lengths, tiles = samples(seed, count)
    rows, _ = placed_in_two(lengths, tiles, LENGTH, LENGTH // 145, True)
    of_rows = np.bincount(rows, tiles).astype(int)
    order = np.random.RandomState(seed).permutation(of_rows.size)
    budgets = TileBudgets(lambda row: int(of_rows[order[row % of_rows.size]]), BATCH, int(of_rows.max()), 4)
    padding = [1 - np.mean([of_rows[order[(step * BATCH + g) % of_rows.size]] for g in range(BATCH)]) / budgets(step)
               for step in range(of_rows.size // BATCH)]  # fmt: skip
    return {
        "fill": lengths.sum() / (of_rows.size * LENGTH),
        "median_padding": float(np.median(padding)),
        "rows": float(of_rows.size),
        "budgets": float(len(budgets.values)),
        "most": float(of_rows.max()),
    }


if __name__ == "__main__":
    print(measured())
