"""Fields that change what a record means and that the normal form cannot hold. A record that has one is malformed:
kept in `extra` such a field would have no effect, and the record would be learned as something that it is not.

Other unknown fields are kept and counted (`data.trajectories.fields`).
"""

import re
from typing import Any

from maverick_jax.errors import InputError

MEDIA = ("image", "images", "image_path", "image_paths", "image_url", "image_urls", "image_file", "image_files",
         "video", "videos", "video_path", "video_url", "audio", "audios", "audio_path", "audio_url",
         "pixel_values")  # fmt: skip
CALLS = ("tool_calls", "tool_call", "function_call", "function_calls")
NUMBERS = ("weight", "loss_weight", "loss_scale")
"""Fields of a message with its loss weight."""
SWITCHES = ("train", "training", "trainable", "loss", "loss_mask")
"""Fields of a message that are true or 1 if it is learned, and false or 0 if not."""
UNCLEAR = ("mask", "train_detail", "training_detail")
"""Fields of a message that weigh parts of it, or mean opposite things in different programs."""
_PAIR = re.compile(r"rejected(_.+)?|dispreferred(_.+)?|chosen(_(response|messages|output|conversations|completion))?|"
                   r"(non_)?preferred_output|kto_tag")  # fmt: skip
_PLACE = re.compile(
    r"\A\s*(<(?:image|video|audio)>)|(<(?:image|video|audio)>)\s*\Z|^[ \t]*(<image>)[ \t]*$"
    r"|(<\|(?:image|video|audio|image_pad|video_pad|audio_pad|vision_start)\|>)",
    re.MULTILINE,
)


def refuse_record(record: Any) -> None:
    """Raises InputError for a record with media, with a weight of its own, or of preferences; `record` is any JSON
    value."""
    for name, value in record.items() if isinstance(record, dict) else ():
        _refuse_preference(name, value, f"{name:.80}")
        _refuse_media(name, value, name)
        if _weighs(name, value):
            raise InputError(f"{name}: {value!r:.40}: the weight of a whole record is not read; give its messages a "
                             "`weight`, or leave the field out")  # fmt: skip


def refuse_field(name: str, value: Any, path: str) -> None:
    """Raises InputError if the field `path` of a message, or of a part of one, changes what the message means and has
    not been read."""
    _refuse_preference(name, value, path)
    _refuse_media(name, value, path)
    if name in CALLS and not is_empty(value):
        raise InputError(f"{path}: calls in a place where this format has none")
    if name == "refusal" and not is_empty(value):
        raise InputError(f"{path}: the assistant's refusal is not read; put its text into the content")
    if name in (*NUMBERS, *SWITCHES, *UNCLEAR, "masked") and is_given(value):
        raise InputError(f"{path}: whether to learn a part of a message; only a whole message has a weight")


def _refuse_preference(name: str, value: Any, path: str) -> None:
    """Refuse a chosen or a rejected answer, and a verdict on an answer."""
    is_verdict = name == "label" and type(value) is bool
    if is_verdict or (_PAIR.fullmatch(name) and not is_empty(value)):
        raise InputError(f"{path}: preference data. Trajectories are demonstrations: read pairs with format: "
                         "preferences, or keep the answers to imitate, without this field")  # fmt: skip


def _refuse_media(name: str, value: Any, path: str) -> None:
    if name in MEDIA and not is_empty(value):
        raise InputError(f"{path}: a picture, video or sound, which trajectories cannot have; chats with pictures "
                         "are read by `kind: pictures`. Leave the field out if it means something else")  # fmt: skip


def refuse_placeholder(text: str) -> None:
    """Raises InputError if `text`, of a user, holds the place of a picture, video or sound."""
    if found := _PLACE.search(text):
        tag = next(filter(None, found.groups()))
        raise InputError(
            f"{tag}: the place of a picture, video or sound, which is not there: chats with pictures are "
            "read by `kind: pictures`"
        )


def is_given(value: Any) -> bool:
    """Whether a field has a value, false and zero included."""
    return value not in (None, "", [], {})


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, false, zero, an empty text, object or list, or a list of such values."""
    return not any(value) if isinstance(value, list) else not value


def _weighs(name: str, value: Any) -> bool:
    """Whether a field of the record weighs it other than by 1. A number called `loss` is a measurement."""
    if name in (*NUMBERS, "sample_weight"):
        return isinstance(value, int | float) and value != 1
    if name in ("loss_mask", *UNCLEAR):
        return is_given(value) and value is not False
    return (name in SWITCHES and value is False) or (name == "masked" and value is True)
