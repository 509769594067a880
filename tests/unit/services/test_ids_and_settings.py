"""Ids are parsed once and settings come in their documented order."""

from pathlib import Path

import pytest
from pydantic import Field

from paceline_services.backoff import Backoff
from paceline_services.errors import ConfigurationError, InvalidRequestError
from paceline_services.ids import ModelId, make_instance_id, parse_instance_id, parse_model_id, parse_node_id
from paceline_services.settings import ServiceSettings, read_settings


class DemoSettings(ServiceSettings):
    port: int = Field(1, ge=1, description="A port.")


@pytest.mark.parametrize("text", ["a", "worker-1", "x" * 63])
def test_good_node_ids_pass(text: str) -> None:
    assert parse_node_id(text) == text


@pytest.mark.parametrize("text", ["", "A", "-a", "a-", "a_b", "x" * 64, "a/b", "a\n"])
def test_bad_node_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_node_id(text)


@pytest.mark.parametrize("text", ["", "../etc", "a//b", "/a", "a/..", "a b", "x" * 129])
def test_bad_model_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        parse_model_id(text)


@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "mlx-community/Llama-3.2-1B_4bit", "..", "x" * 128])
def test_made_instance_ids_are_valid_and_different(model: str) -> None:
    first, second = make_instance_id(ModelId(model)), make_instance_id(ModelId(model))
    assert parse_instance_id(first) != parse_instance_id(second)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path))
    assert read_settings(DemoSettings).port == 1
    (tmp_path / "paceline.toml").write_text("port = 2\nother = 5\n")
    assert read_settings(DemoSettings).port == 2
    monkeypatch.setenv("PACELINE_PORT", "3")
    assert read_settings(DemoSettings).port == 3
    assert read_settings(DemoSettings, port=4).port == 4
    assert read_settings(DemoSettings, port=None).port == 3
    assert read_settings(DemoSettings).home == tmp_path


def test_file_lies_in_the_home_that_a_flag_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "elsewhere"))
    (tmp_path / "paceline.toml").write_text("port = 2\n")
    assert read_settings(DemoSettings, home=str(tmp_path)).port == 2


def test_unusable_setting_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_PORT", "zero")
    with pytest.raises(ConfigurationError, match=r"^unusable settings: port: [^\n]+$"):
        read_settings(DemoSettings)


def test_pauses_grow_to_the_limit() -> None:
    backoff = Backoff(first_s=1, factor=2, limit_s=8)
    assert [backoff.pause_s(n, scatter=0.5) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 8, 8]
    assert backoff.pause_s(1, scatter=0.0) == 0.5
