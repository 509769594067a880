"""The cluster's models as Ollama shows them, and how far a pull is."""

from dataclasses import replace

import pytest

from paceline_api_gateway.protocols.ollama.models import (
    PullProgress,
    list_running,
    list_tags,
    show_model,
    watch_pull,
    write_size,
)
from paceline_services.domain.instances import InstanceState
from paceline_services.domain.models import KnownModel, ModelCard, ModelSource, NodeModel, NodeModelState
from paceline_services.domain.nodes import ClusterState, Node, NodeInventory, NodeState
from paceline_services.ids import ModelId, NodeId
from support.head import make_instance, make_state

DEMO = ModelId("demo")
CARD = ModelCard(
    DEMO,
    "qwen3",
    2,
    (10, 10),
    5,
    5,
    1,
    4096,
    64,
    quantization="Q4",
    layer_values=(600_000, 600_000),
    head_values=300_000,
)
HERE = make_instance("demo-1", "127.0.0.1:1")


def with_card(state: ClusterState) -> ClusterState:
    return replace(state, models=(KnownModel(ModelSource(DEMO, "/models/demo.gguf"), CARD),))


def with_copies(state: ClusterState, *copies: NodeModel) -> ClusterState:
    nodes = [
        Node(NodeInventory(NodeId(f"n{number}"), "a"), NodeState.UP, models=(one,)) for number, one in enumerate(copies)
    ]
    return replace(state, nodes=tuple(nodes))


def test_models_are_listed_with_their_tag() -> None:
    (tag,) = list_tags(with_card(make_state(HERE)))
    assert tag["name"] == tag["model"] == "demo:latest" and tag["size"] == 30 and len(tag["digest"]) == 64
    assert tag["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "qwen3",
        "families": ["qwen3"],
        "parameter_size": "1.50M",
        "quantization_level": "Q4",
    }


def test_only_models_that_answer_are_running() -> None:
    assert list_running(make_state(make_instance("demo-1", state=InstanceState.LOADING))) == []
    (running,) = list_running(with_card(make_state(HERE)))
    assert running["name"] == "demo:latest" and running["context_length"] == 2048 and running["size"] == 30


def test_what_is_known_of_a_model_is_shown() -> None:
    shown = show_model(DEMO, with_card(make_state(HERE)))
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["general.architecture"] == "qwen3"
    assert shown["model_info"]["qwen3.context_length"] == 4096
    assert show_model(DEMO, make_state(HERE))["capabilities"] == ["completion", "tools"]


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, ""), (999, "999"), (1_500, "2K"), (134_515_008, "134.52M"), (8 * 10**9, "8B"), (1_540_000_000, "1.5B")],
)
def test_sizes_are_written_as_ollama_does(number: int, written: str) -> None:
    assert write_size(number) == written


def test_pull_is_done_when_a_node_has_it_and_none_fetches_it() -> None:
    state = make_state(make_instance("demo-1", state=InstanceState.LOADING))
    fetching = NodeModel(DEMO, NodeModelState.FETCHING, fetched_bytes=3, total_bytes=9)
    ready = NodeModel(DEMO, NodeModelState.READY)
    assert watch_pull(DEMO, with_copies(state, ready, fetching)) == PullProgress(3, 9)
    assert watch_pull(DEMO, with_copies(state, ready)).is_done
    assert watch_pull(DEMO, make_state()).is_done
    assert not watch_pull(DEMO, state).is_done


def test_pull_fails_as_its_nodes_and_instances_do() -> None:
    failed = NodeModel(DEMO, NodeModelState.FAILED, failure_message="no such repository")
    state = make_state(make_instance("demo-1", state=InstanceState.LOADING))
    assert watch_pull(DEMO, with_copies(state, failed)).failure == "no such repository"
    hopeless = make_instance("demo-1", state=InstanceState.UNPLACEABLE, message="3 GB short")
    assert watch_pull(DEMO, make_state(hopeless)).failure == "3 GB short"
