"""The same facts in any format give the same tokens and tiles."""

import json
import pathlib

import numpy as np
import pytest

from data.cache.tokenize_pictures import tokenize_pictures
from data.pictures.formats import FORMATS
from data.rows.dataset import open_dataset
from data.trajectories.kinds import TokenKind
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig, cut_tiles, image_tokens, num_image_tokens, open_image
from maverick_jax.images.tokens import ImageTokenIds
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, render
from maverick_jax.text.chat import Image as ImagePart
from tests.helpers.picture_samples import ANSWER, ASKED, TEN, TILES, data_config, picture, write_tar

DATA = picture(3, (50, 80), "JPEG")


def read_one(folder: pathlib.Path, file: str, **options) -> tuple[np.ndarray, np.ndarray, str]:
    """Tokens and tiles of the only row, and its text."""
    data = open_dataset(data_config(folder, {"path": str(folder / file), **options}), "train", seed=0)
    with data.batches([0], 4, 0, 1) as batches:
        batch = next(batches)
    tokens = batch["tokens"][0][batch["segment_ids"][0] > 0]
    return tokens, batch["tiles"][0], data.tokenizer.decode(tokens.tolist(), controls=True)


@pytest.mark.parametrize("name", TEN)
def test_ten_formats_of_a_conversation_give_the_ids_and_tiles_of_the_chat_format(name, tmp_path):
    tokens, tiles, _ = read_one(tmp_path, TEN[name](tmp_path, DATA), documents="last_text")
    config, tokenizer = ImageConfig(**TILES), load_tokenizer("bytes")
    expected, grid = cut_tiles(open_image(DATA), config)
    part = ImagePart(image_tokens(grid, ImageTokenIds.of(tokenizer), config.patches_per_tile))
    said = Conversation([Message(Role.USER, [part, ASKED]), Message(Role.ASSISTANT, ANSWER)])
    assert tokens.tolist() == render(said, tokenizer).ids.tolist()
    assert len(expected) == 7 and tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, expected)


@pytest.mark.parametrize(("name", "between"), [("obelics", "\n\n"), ("mmc4", " ")])
def test_documents_are_learned_whole(name, between, tmp_path):
    config = data_config(tmp_path, {"path": str(tmp_path / TEN[name](tmp_path, DATA))})
    store, _ = tokenize_pictures("shown", config, load_tokenizer("bytes"))
    text = list(f"{ASKED}{between}{ANSWER}".encode())
    begin, end = store["picture_begin"][0], store["picture_end"][0]
    assert store["tokens"].tolist() == [256, *store["tokens"][begin:end], *text, 257] and begin == 1
    assert set(store["kinds"][begin:end]) == {TokenKind.IMAGE} and set(store["kinds"][end:]) == {TokenKind.DOCUMENT}
    row = open_dataset(config, "train", seed=0).row(0)
    learned = np.flatnonzero(row["loss_weights"])
    assert row["labels"][learned].tolist() == [*text, 257]


def test_a_caption_in_an_archive_is_a_document(tmp_path):
    write_tar(tmp_path / "a.tar", {"7.jpg": DATA, "7.txt": b"Noise.\n", "7.cls": b"3"})
    config = data_config(tmp_path, {"path": str(tmp_path / "a.tar")})
    store, _ = tokenize_pictures("shown", config, load_tokenizer("bytes"))
    assert store["tokens"][store["picture_end"][0] :].tolist() == [*b"Noise.", 257]
    assert store.meta["samples"]["unknown_fields"] == {".cls": 1}


def test_pictures_of_mmc4_stand_beside_their_sentences(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name), (20, 20)))
    info = [("a", 1, 0.5), ("b", 1, 0.4), ("c", 0, 0.1)]
    info = [{"image_name": f"{name}.png", "matched_text_index": at, "matched_sim": sim} for name, at, sim in info]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text_list": ["One.", "Two."], "image_info": info}))
    _, _, before = read_one(tmp_path, "a.jsonl", mmc4={"min_similarity": 0.2})
    _, _, after = read_one(tmp_path, "a.jsonl", mmc4={"placement": "after"})
    shown = "<|image_start|><|image|><|patch|><|image_end|>"
    assert before == f"<|begin_of_text|>One.{shown * 2}Two.<|end_of_text|>"
    assert after == f"<|begin_of_text|>One.{shown}Two.{shown * 2}<|end_of_text|>"


def test_one_of_several_answers_is_learned_and_always_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    answers = [f"answer {i}" for i in range(4)]
    records = [{"question": f"{q}?", "image": "a.png", "answers": answers} for q in range(20)]
    (tmp_path / "a.json").write_text(json.dumps({"data": records}))
    config = data_config(tmp_path, {"path": str(tmp_path / "a.json")})
    texts = []
    for folder in ("one", "other"):
        store, _ = tokenize_pictures("shown", config.model_copy(update={"cache_dir": str(tmp_path / folder)}),
                                     load_tokenizer("bytes"))  # fmt: skip
        texts.append(load_tokenizer("bytes").decode(store["tokens"].tolist()))
    assert texts[0] == texts[1]
    assert {answer for answer in answers if answer in texts[0]} == set(answers)


def test_words_of_a_user_that_look_like_places_or_tokens_stay_text(tmp_path):
    said = "Does <image> or <|patch|> mean a picture?"
    record = {"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": "<|image|> does."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    data = open_dataset(data_config(tmp_path, {"path": str(tmp_path / "a.jsonl")}), "train", seed=0)
    tokens = data.row(0)["tokens"].tolist()
    assert not {265, 266, 267, 268, 269, 270} & set(tokens)
    assert said in data.tokenizer.decode(tokens) and data.tile_budgets(4).values == (0,)
    with data.batches([0], 4, 0, 1) as batches:
        assert "tiles" not in next(batches)


def test_an_agents_run_shows_pictures_in_tool_results(tmp_path):
    (tmp_path / "screen.png").write_bytes(DATA)
    shown = {"type": "image", "path": "screen.png"}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "Screen:"}, shown]},
        {"role": "assistant", "content": "Noise."},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages, "tools": tools}))
    config = data_config(tmp_path, {"path": str(tmp_path / "a.jsonl")}, sequence_length=2048)
    row = open_dataset(config, "train", seed=0).row(0)
    kinds = [TokenKind(kind) for kind in np.unique(row["kinds"]) if kind != 255]
    assert {TokenKind.OBSERVATION, TokenKind.IMAGE, TokenKind.CALL_NAME, TokenKind.FINAL_ANSWER} <= set(kinds)
    of_pictures = row["kinds"] == TokenKind.IMAGE
    assert of_pictures.any() and not row["loss_weights"][of_pictures].any()
    after = np.flatnonzero(of_pictures)[-1] + 1
    assert row["loss_weights"][after:].any()


def test_weights_of_messages_never_reach_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    content = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Noise"}]
    messages = [{"role": "user", "content": content, "weight": 2.0}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    row = open_dataset(data_config(tmp_path, {"path": str(tmp_path / "a.jsonl")}), "train", seed=0).row(0)
    of_pictures = row["kinds"] == TokenKind.IMAGE
    assert of_pictures.sum() == num_image_tokens((2, 3), 1) and not row["loss_weights"][of_pictures].any()
    assert (row["loss_weights"][row["kinds"] == TokenKind.USER] == 2).all()


def test_an_unknown_format_lists_those_that_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"picture": "a.png"}))
    with pytest.raises(InputError, match=r"unknown format: it has 'picture'\. Tried llava: ") as found:
        open_dataset(data_config(tmp_path, {"path": str(tmp_path / "a.jsonl")}), "train", seed=0)
    assert all(f"{name}: " in str(found.value) for name in FORMATS if name != "sharegpt")
