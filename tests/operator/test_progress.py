"""Posts in Kubeflow Trainer's protocol, the certificates under which they come, and the logs."""

import asyncio
import json
import logging
import math
import ssl
import tempfile
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from mark_operator import certificates
from mark_operator.certificates import LEAF_LASTS, Authority, ServerContext, new_authority, new_leaf
from mark_operator.logs import JsonFormatter
from mark_operator.progress import MalformedPostError, read_post
from run_builders import NOON

NOW = "2026-01-31T12:00:00Z"


def post(*metrics: tuple[str, Any], **status: Any) -> dict[str, Any]:
    listed = [{"name": name, "value": value} for name, value in metrics]
    return {"trainerStatus": {"lastUpdatedTime": NOW, "metrics": listed, **status}}


def test_our_trainers_post() -> None:
    metrics = (("step", "5"), ("steps", "10"), ("loss", "3.21"), ("epoch", "0.5"), ("tokensPerSecond", "120"))
    progress = read_post(post(*metrics, progressPercentage=50, estimatedRemainingSeconds=12), "lora", NOW).to_dict()
    assert progress == {
        "stage": "lora",
        "percent": 50,
        "step": 5,
        "steps": 10,
        "loss": "3.21",
        "epoch": "0.5",
        "tokensPerSecond": "120",
        "etaSeconds": 12,
        "updated": NOW,
    }


def test_the_post_of_transformers_own_callback() -> None:
    metrics = (
        ("loss", "2.5"),
        ("learning_rate", "1e-05"),
        ("current_step", "3"),
        ("total_steps", "4"),
        ("current_epoch", "0.75"),
    )
    progress = read_post(post(*metrics), "lora", NOW)
    assert (progress.step, progress.steps, progress.percent, progress.epoch) == (3, 4, 75, "0.75")


@pytest.mark.parametrize("body", [None, [], {}, {"trainerStatus": 1}, {"trainerStatus": {"metrics": "x"}}])
def test_other_bodies_are_refused(body: Any) -> None:
    with pytest.raises(MalformedPostError):
        read_post(body, "lora", NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.dictionaries(st.sampled_from(["step", "loss", "steps", "epoch"]), json_values))
def test_no_post_breaks_the_reader_or_the_schema(percent: Any, metrics: dict[str, Any]) -> None:
    progress = read_post(
        post(*metrics.items(), progressPercentage=percent, estimatedRemainingSeconds=percent), "lora", NOW
    )
    assert 0 <= progress.percent <= 100
    json.dumps(progress.to_dict(), allow_nan=False)


def test_a_loss_that_is_no_number_is_shown_as_such() -> None:
    assert read_post(post(("loss", "nan")), "lora", NOW).loss == "nan"
    assert read_post(post(("loss", "<script>")), "lora", NOW).loss is None


@pytest.mark.parametrize("value", ["0.5\r\n", " 1_0 ", "1_0", "", ".", "1e", "\u0661", "0x10", True, [1], {"a": 1}])
def test_what_only_looks_like_a_number_is_left_out(value: Any) -> None:
    progress = read_post(post(("loss", value), ("step", value)), "lora", NOW)
    assert (progress.loss, progress.step) == (None, None)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((value, value) for value in ("0.5", "-1.", ".5", "+1E-05", "NaN", "-Infinity", "inf")),
        *((value, str(value)) for value in (3, 2.5, math.nan)),
        ("1.234567890123456789012e-05", "1.2345678901234568e-05"),  # not 1.23…, which a cut would leave
    ],
)
def test_numbers_are_shown_as_they_were_written(value: Any, shown: str) -> None:
    assert read_post(post(("loss", value)), "lora", NOW).loss == shown


@pytest.mark.parametrize("name", ["loss", "step", "progressPercentage"])
def test_a_number_beyond_all_measure_is_refused(name: str) -> None:
    huge = 10**400
    with pytest.raises(MalformedPostError):
        read_post(post(progressPercentage=huge) if name == "progressPercentage" else post((name, huge)), "lora", NOW)


@pytest.mark.parametrize("host", ["mark-operator.mark-system.svc", "10.0.0.1"])
def test_leaves_are_signed_for_one_host_and_end_soon(host: str) -> None:
    authority = new_authority(NOON)
    certificate = x509.load_pem_x509_certificate(new_leaf(authority, host, NOON)[0])
    certificate.verify_directly_issued_by(authority.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert host in [str(name.value) for name in names]
    assert certificate.not_valid_after_utc - NOON <= LEAF_LASTS
    assert authority.certificate.not_valid_after_utc - NOON > timedelta(days=3649)


def test_an_authority_survives_being_stored_and_is_trusted_by_strict_clients() -> None:
    made = new_authority(NOON)
    key = made.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert Authority.from_pem(made.pem.encode(), key).pem == made.pem
    context = ssl.create_default_context(cadata=made.pem)
    assert context.cert_store_stats()["x509_ca"] == 1


def test_a_renewal_that_finds_no_room_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificates, "ROTATE_SECONDS", 0.1)
    monkeypatch.setattr(certificates, "RETRY_SECONDS", 0.1)
    caplog.set_level(logging.INFO)

    async def until_told(words: str) -> None:
        while words not in caplog.text:
            await asyncio.sleep(0.02)

    async def story() -> None:
        context = ServerContext(new_authority(NOON), "https://mark-operator.mark-system.svc:8443")
        rotating = asyncio.create_task(context.rotate())
        with monkeypatch.context() as full:
            full.setattr(tempfile, "tempdir", "/proc/no-room")
            await until_told("was not renewed")
            assert "renewed the certificate" not in caplog.text
        await until_told("renewed the certificate")
        rotating.cancel()

    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_log_line_is_json_and_names_the_run() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "created %s", ("Job a",), None)
    record.run = "TrainingRun legal/contracts"
    line = json.loads(JsonFormatter().format(record))
    assert (line["message"], line["run"], line["level"]) == ("created Job a", "TrainingRun legal/contracts", "INFO")
