"""The assistant's turns in samples with pictures; those in trajectories are tested with decisions."""

import numpy as np

from data.config import DataConfig
from data.pictures.drawn import draw
from data.rows.dataset import open_dataset
from data.rows.turns import turns_of
from maverick_jax.images import cut_tiles, image_tokens
from maverick_jax.images.tokens import ImageTokenIds
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Image, Message, Role, render
from tests.helpers.picture_samples import TILES

PICTURES, SIDE = 5, 56


def test_turns_of_samples_with_pictures_have_their_prompts_and_tiles(tmp_path):
    source = {"kind": "drawn_pictures", "pictures": PICTURES, "questions": 2, "side": SIDE}
    config = DataConfig.model_validate({"sources": {"drawn": source}, "tiles": TILES, "sequence_length": 512,
                                        "held_out_fraction": 0, "cache_dir": str(tmp_path)})  # fmt: skip
    found, images, tokenizer = (
        list(turns_of(open_dataset(config, "train", seed=0))),
        config.tiles.images,
        load_tokenizer("bytes"),
    )
    assert len(found) == 2 * PICTURES
    for number in range(PICTURES):
        picture = draw(0, number, ("charts", "scenes")[number % 2], SIDE)
        tiles, grid = cut_tiles(picture.image, images)
        shown = Image(image_tokens(grid, ImageTokenIds.of(tokenizer), images.patches_per_tile))
        (first, answer), (second, _) = picture.questions[:2]
        before = [Message(Role.USER, (shown, first)), Message(Role.ASSISTANT, answer), Message(Role.USER, second)]
        for turn, messages in zip(found[2 * number :], (before[:1], before), strict=False):
            prompt = render(Conversation(tuple(messages)), tokenizer, add_generation_prompt=True).ids.tolist()
            assert turn.prompt == prompt and turn.tiles is not None
            np.testing.assert_array_equal(turn.tiles, tiles)
