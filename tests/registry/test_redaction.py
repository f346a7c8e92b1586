"""What is taken out of errors, logs and rows, and what is left in."""

from __future__ import annotations

import string
import time
from typing import Any

import pytest
from reccocktail.registry.redaction import redacted, redacted_values

LETTERS = (string.ascii_letters + string.digits)[:34]
CLEAR = (
    "pip install hf_xet hf_transfer",
    "hf_hub_download() got an unexpected keyword argument",
    "huggingface_hub.file_download.hf_hub_url_to_path",
    "module hf_quantizer_bnb, hf_argparser.py and hf_olmo",
    "HF_HUB_OFFLINE is on, HF_HUB_DISABLE_XET=1",
    "no answer from http://127.0.0.1:8080/org/name@v1",
    "postgresql://ann@db.example/registry",
    "the bearer token is not accepted",
    "what? where?",
)
SECRETS = (
    (f"token hf_{LETTERS} is refused", LETTERS),
    (f"api_org_{LETTERS}", LETTERS),
    ("hf_" + "a" * 34, "a" * 34),
    (f"Authorization: Bearer {LETTERS}", LETTERS),
    ("postgresql://ann:p@ss/w0rd@db/registry", "ss/w0rd"),
    ("https://ann:hunter22@proxy.example:3128/x", "hunter22"),
    ("https://hunter22@proxy.example/x", "hunter22"),
    ("https://cdn.example/blob?X-Amz-Signature=abc123&Expires=9", "abc123"),
    ("s3://bucket/x?secret_key=abc123", "abc123"),
)


@pytest.mark.parametrize("text", CLEAR)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text, environ={}) == text


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_taken_out_of_texts_and_of_json(text: str, secret: str) -> None:
    assert secret not in redacted(text, environ={})
    assert redacted(redacted(text, environ={}), environ={}) == redacted(text, environ={})
    nested: dict[str, Any] = {"message": [text, {"hint": text}], "n": 1, "none": None}
    assert secret not in str(redacted_values(nested))


def test_the_values_of_variables_that_hold_secrets_are_taken_out() -> None:
    text = redacted("FATAL: correct-horse-battery", environ={"PGPASSWORD": "correct-horse-battery", "HF_TOKEN": "x"})
    assert text == "FATAL: [secret]"


@pytest.mark.parametrize("text", ["x" * 50_000, "x1" * 25_000])
def test_a_long_text_in_one_piece_is_looked_through_in_a_time_that_grows_with_its_length(text: str) -> None:
    began = time.process_time()
    assert redacted(f"{text} pg://ann:hunter22@db", environ={}) == f"{text} pg://ann:***@db"
    assert time.process_time() - began < 5  # with its square, half a minute
