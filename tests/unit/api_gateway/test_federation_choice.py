"""Who answers a request for a model: the cluster, or which backend."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from paceline_api_gateway.federation.choice import (
    BackendState,
    ClusterModels,
    Health,
    choose_backend,
    list_models,
    read_parameters_b,
)
from paceline_api_gateway.federation.health import read_state
from paceline_api_gateway.federation.settings import BackendSettings
from paceline_services.domain.instances import InstanceState
from support.head import make_instance, make_state

UP = BackendState(Health.HEALTHY, "")
DOWN = BackendState(Health.UNREACHABLE, "")


def make_backend(name: str, **fields: object) -> BackendSettings:
    return BackendSettings.model_validate({"name": name, "url": f"http://{name}:8000", **fields})


def choose(
    model: str, *backends: BackendSettings, served: tuple[str, ...] = (), state: BackendState = UP
) -> str | None:
    chosen = choose_backend(model, ClusterModels(served), [(one, state) for one in backends])
    return chosen.name if chosen else None


def test_cluster_keeps_its_own_models() -> None:
    assert choose("demo-70b", make_backend("a", models=["demo-70b"]), served=("demo-70b",)) is None


def test_exact_id_comes_before_pattern_before_size_class() -> None:
    by_size = make_backend("size", min_parameters_b=70)
    by_pattern = make_backend("pattern", models=["llama-*"])
    by_id = make_backend("id", models=["llama-3.1-70b"])
    assert choose("llama-3.1-70b", by_size, by_pattern, by_id) == "id"
    assert choose("llama-3.1-405b", by_size, by_pattern, by_id) == "pattern"
    assert choose("qwen2.5-72b", by_size, by_pattern, by_id) == "size"
    assert choose("qwen2.5-7b", by_size, by_pattern, by_id) is None
    assert choose("qwen", by_size, by_pattern, by_id) is None


def test_size_classes_of_the_founding_document() -> None:
    small, large = make_backend("vllm", max_parameters_b=32), make_backend("exo", min_parameters_b=70)
    assert choose("Qwen2.5-Coder-32B-Instruct", small, large) == "vllm"
    assert choose("llama-3.1-70b", small, large) == "exo"


def test_backend_without_claims_has_what_it_lists() -> None:
    backend = make_backend("ollama")
    assert choose("llama3.2:1b", backend, state=replace(UP, models=("llama3.2:1b",))) == "ollama"
    assert choose("llama3.2:1b", backend) is None


def test_backend_that_answers_is_preferred_to_an_equal_one_that_does_not() -> None:
    first, second = make_backend("first", models=["m"]), make_backend("second", models=["m"])
    cluster = ClusterModels()
    assert choose_backend("m", cluster, [(first, UP), (second, UP)]) == first
    assert choose_backend("m", cluster, [(first, DOWN), (second, UP)]) == second
    assert choose_backend("m", cluster, [(first, DOWN), (second, DOWN)]) == first


def test_size_of_a_known_model_is_read_from_its_card() -> None:
    backend = make_backend("a", min_parameters_b=70)
    assert choose_backend("big", ClusterModels((), {"big": 120.0}), [(backend, UP)]) == backend


def test_model_that_the_cluster_cannot_run_goes_to_a_backend() -> None:
    stuck = make_instance("stuck-1", model="stuck", state=InstanceState.UNPLACEABLE)
    state = make_state(make_instance("runs-1", model="runs"), stuck, models=("known",))
    assert set(ClusterModels.of(state, place_on_demand=True).served) == {"runs", "known"}
    assert set(ClusterModels.of(state, place_on_demand=False).served) == {"runs"}


@pytest.mark.parametrize(
    ("name", "size_b"),
    [
        ("llama-3.1-70b", 70),
        ("smollm2-135m-instruct", 0.135),
        ("Qwen2.5-Coder-32B", 32),
        ("qwen3:0.6b", 0.6),
        ("mixtral-8x7b-instruct", 56),
        ("qwen3-30b-a3b", 30),
        ("gpt-oss:120b", 120),
        ("gpt-4o", None),
        ("phi-4", None),
        ("model-4bit", None),
    ],
)
def test_size_is_read_from_the_id(name: str, size_b: float | None) -> None:
    assert read_parameters_b(name) == size_b


def test_listed_models_are_those_named_and_those_claimed() -> None:
    state = replace(UP, models=("llama-8b", "llama-70b", "other"))
    assert list_models(make_backend("a", models=["x", "llama-*"]), state) == ["x", "llama-8b", "llama-70b"]
    assert list_models(make_backend("a", min_parameters_b=70), state) == ["llama-70b"]
    assert list_models(make_backend("a"), state) == ["llama-8b", "llama-70b", "other"]


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (200, b'{"data": [{"id": "m"}]}', Health.HEALTHY),
        (200, b'{"data": null}', Health.HEALTHY),
        (200, b"<html>", Health.UNHEALTHY),
        (200, b"[1]", Health.UNHEALTHY),
        (200, b'{"data": [1]}', Health.UNHEALTHY),
        (401, b"{}", Health.UNHEALTHY),
        (500, b"", Health.UNHEALTHY),
    ],
)
def test_health_is_read_from_the_list_of_models(status: int, body: bytes, health: Health) -> None:
    assert read_state(status, body).health is health


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "ftp://x"},
        {"url": "http://user:secret@x"},
        {"name": "has space"},
        {"min_parameters_b": 70, "max_parameters_b": 7},
        {"model": ["typo"]},
    ],
)
def test_unusable_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BackendSettings.model_validate({"name": "a", "url": "http://x:1"} | fields)


def test_final_v1_of_an_url_is_left_out() -> None:
    assert make_backend("a", url="http://x:1/v1/").url == "http://x:1"
    assert make_backend("a", url="https://x/api/").url == "https://x/api"
