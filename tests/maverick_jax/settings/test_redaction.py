"""Secrets are recognized by name, place, form and value, and nothing else is."""

import json

import pytest

from maverick_jax.settings.redaction import HIDDEN, is_secret_name, redact, redacted, secret_keys, secret_values

CANARY = "c4n4ry-Secret-Value"


@pytest.mark.parametrize(
    "name",
    [
        *("password", "db_password", "API_KEY", "apiKey", "HF_TOKEN", "hf_token", "GITHUB_TOKEN", "token", "authToken"),
        *("AWS_SECRET_ACCESS_KEY", "private-key", "client_secret", "WANDB_API_KEY", "credentials", "logging.api_key"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("use_cls_token", "max_tokens", "tokens", "tokens_per_second", "tokenizer", "eos_token", "pad_token_id"),
        *("flops_per_token", "key", "num_key_value_heads", "secretary", "monkey", "passes", "TOKENIZERS_PARALLELISM"),
        *("bos_token", "token_kind", "", "_"),
    ],
)
def test_other_names(name):
    assert not is_secret_name(name)


def test_no_key_of_the_config_is_taken_for_a_secret():
    from train.config_files import schema

    names = set()

    def collect(found):
        if isinstance(found, dict):
            names.update(found.get("properties", {}))
            for inner in found.values():
                collect(inner)
        elif isinstance(found, list):
            for inner in found:
                collect(inner)

    collect(schema())
    assert len(names) > 100 and [name for name in names if is_secret_name(name)] == []


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{CANARY}@host/path",
        f"reading s3://{CANARY}@bucket/x failed",
        f"https://host/x?sig={CANARY}&a=1",
        f"https://host/x?X-Amz-Signature={CANARY}",
        f"maverick train tiny logging.api_key={CANARY}",
        f"{{kind: wandb, api_key: {CANARY}}}",
        f'{{"password": "{CANARY} with blanks"}}',
        f"password='{CANARY}'",
        f"HF_TOKEN={CANARY} token={CANARY}",
        f"token: {CANARY}",
    ],
)
def test_a_secret_in_a_text_is_hidden(text):
    assert CANARY not in redact(text) and HIDDEN in redact(text)


@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 12, "ghp_" + "x1" * 18, "AKIA" + "Z9" * 8, "sk-" + "q8" * 20])
def test_tokens_of_well_known_services_are_hidden(secret):
    assert secret not in redact(f"the header was {secret}, which is refused")


@pytest.mark.parametrize(
    "text",
    [
        "model.use_cls_token=true max_tokens=100 tokens: 5 data.tokenizer: bytes",
        "W train.notices: step 2: the teacher is behind the student, by 0.40 nats per token on average: its targets",
        "see https://example.org/a@b and mail me@example.org at 10:30; ratio 3:2",
        '{"password": null, "api_key": 12, "token": ""}',
        "package:tinyshakespeare gs://bucket/folder s3://bucket/key",
        "a key: value; the secret: none; no control token: <|eot|>",
    ],
)
def test_other_texts_stay(text):
    assert redact(text) == text


def test_values_of_the_environment_are_hidden_everywhere(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", CANARY)
    assert redacted({"a": [f"x {CANARY} y"], CANARY: 1}) == {"a": [f"x {HIDDEN} y"], HIDDEN: 1}
    assert CANARY not in redact(f"error: {CANARY}")


def test_common_words_and_short_values_of_the_environment_stay():
    """Or a config with `kind: pretrain` would be unreadable where a password is `pretrain`."""
    environment = {"A_PASSWORD": "pretrain", "B_TOKEN": "1", "C_SECRET": "true", "PATH": "/bin", "D_KEY": CANARY}
    assert secret_values(environment) == (CANARY,)


def test_only_texts_under_names_of_secrets_are_hidden():
    found = {"token": CANARY, "api_key": 3, "password": None, "max_tokens": "7", "nested": ({"secret": "abc"},)}
    expected = {"token": HIDDEN, "api_key": 3, "password": None, "max_tokens": "7", "nested": ({"secret": HIDDEN},)}
    assert redacted(found) == expected


def test_a_hidden_json_text_is_still_json():
    text = json.dumps({"api_key": CANARY, "token": 5, "n": [1, 2], "url": f"https://u:{CANARY}@h"})
    found = json.loads(redact(text))
    assert found == {"api_key": HIDDEN, "token": 5, "n": [1, 2], "url": f"https://{HIDDEN}@h"}


def test_keys_of_secrets_are_named():
    found = {"run": {"name": "a", "dir": f"https://u:{CANARY}@h"}, "sinks": [{"api_key": "abcdef"}], "max_tokens": "7"}
    assert secret_keys(found) == ["run.dir", "sinks"]
    assert secret_keys({"nested": {"password": "abcdef"}}) == ["nested.password"]
    assert secret_keys({"a": 1, "b": ["c"]}) == []
