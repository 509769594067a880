"""The codec's promises: a value survives its message, and what cannot be a value is refused."""

from datetime import UTC, datetime

import pytest

from paceline.cluster.v1 import cluster_pb2
from paceline.generation.v1 import generation_pb2
from paceline.placement.v1 import placement_pb2
from paceline.stage.v1 import stage_pb2
from paceline_services.clients import event_from_proto, event_to_proto, request_from_proto, request_to_proto
from paceline_services.codec import from_proto, to_proto
from paceline_services.domain.generation import (
    ChoiceDelta,
    ChoiceFinished,
    ChoiceProgress,
    Conversation,
    FinishReason,
    GenerateRequest,
    GenerationCompleted,
    GenerationStarted,
    Message,
    OutputFormat,
    PromptEchoed,
    Reasoning,
    Sampling,
    TokenIds,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
    ToolDefinition,
)
from paceline_services.domain.instances import InstanceSpec, Strategy
from paceline_services.domain.models import ModelSource
from paceline_services.domain.nodes import KernelInventory, NodeInventory, NodeReport
from paceline_services.domain.runners import Precision, RunnerReport, RunnerState, ShardAssignment, parse_precision
from paceline_services.errors import InternalError, InvalidRequestError, UnavailableError
from paceline_services.ids import Epoch, InstanceId, ModelId, NodeId, RequestId

SPEC = InstanceSpec(
    InstanceId("demo-1"),
    ModelSource(ModelId("demo"), "/models/demo"),
    Strategy.PIPELINE,
    num_stages=2,
    create_time=datetime(2026, 11, 21, 4, 19, tzinfo=UTC),
    precision=Precision.FAST,
)
REQUESTS = [
    GenerateRequest(ModelId("demo"), text=""),
    GenerateRequest(ModelId("demo"), token_ids=TokenIds((1, 2))),
    GenerateRequest(
        ModelId("demo"),
        conversation=Conversation((Message("user", "Hello"),)),
        sampling=Sampling(0.5, top_p=0.25, logit_bias={7: -1.5}, seed=0),
    ),
]
REQUESTS.append(
    GenerateRequest(
        ModelId("demo"),
        conversation=Conversation(
            (Message("assistant", "", reasoning_text="hm", tool_calls=(ToolCall("1", "look", "{}"),)),),
            (ToolDefinition("look", "Looks.", '{"type": "object"}', is_strict=True),),
            ToolChoice(ToolChoiceMode.REQUIRED, "look", is_single=True),
        ),
        output_format=OutputFormat(regex="a+"),
        reasoning=Reasoning(is_enabled=False, effort="low", max_tokens=3),
        progress=(ChoiceProgress((1, 2)),),
        echo=True,
    )
)
LOGPROB = TokenLogprob(5, "a", b"a", -0.5, (TokenLogprob(6, "b", b"b", -1.5),))
EVENTS = [
    GenerationStarted(RequestId("r"), 3, 2**63),
    PromptEchoed("Say", (LOGPROB,)),
    ChoiceDelta(1, (5,), "a", 0, (LOGPROB,)),
    ChoiceFinished(0, FinishReason.LENGTH, num_tokens=4),
    GenerationCompleted(3, 4),
]


def test_spec_survives_with_enum_and_time() -> None:
    assert from_proto(to_proto(SPEC, placement_pb2.InstanceSpec), InstanceSpec) == SPEC


@pytest.mark.parametrize("request_value", REQUESTS, ids=["text", "tokens", "conversation", "all fields"])
def test_request_survives(request_value: GenerateRequest) -> None:
    assert request_from_proto(request_to_proto(request_value)) == request_value


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_event_survives(event: GenerationStarted | ChoiceDelta | ChoiceFinished | GenerationCompleted) -> None:
    assert event_from_proto(event_to_proto(event)) == event


def test_request_that_asks_for_more_than_is_known_is_refused() -> None:
    message = request_to_proto(REQUESTS[-1])
    message.conversation.tools[0].MergeFromString(b"\xc8\x3e\x01")  # field 1001
    with pytest.raises(UnavailableError, match=r"ToolDefinition\.1001") as refusal:
        request_from_proto(message)
    assert refusal.value.reason == "HEAD_TOO_OLD"


def test_delta_has_the_same_fields_with_and_without_the_codec() -> None:
    calls = (ToolCallDelta(0, "call-1", "look", "{"), ToolCallDelta(1, arguments_json="}"))
    full = ChoiceDelta(1, (5, 6), "ab", 3, (LOGPROB, LOGPROB), "hm", calls)
    message = to_proto(full, generation_pb2.ChoiceDelta)
    assert {field.name for field, _ in message.ListFields()} == set(
        generation_pb2.ChoiceDelta.DESCRIPTOR.fields_by_name
    )
    for delta in (full, ChoiceDelta(0, (), "", 0)):
        event = event_to_proto(delta)
        assert event == generation_pb2.GenerateResponse(delta=to_proto(delta, generation_pb2.ChoiceDelta))
        assert event_from_proto(event) == from_proto(event.delta, ChoiceDelta) == delta


def test_absent_optional_message_is_none() -> None:
    report = NodeReport(runners=(RunnerReport(InstanceId("i"), Epoch(1), 0, 0, 4, RunnerState.READY),))
    assert from_proto(to_proto(report, cluster_pb2.JoinRequest), NodeReport) == report
    full = NodeReport(NodeInventory(NodeId("a"), "agent"))
    assert from_proto(to_proto(full, cluster_pb2.JoinRequest), NodeReport).inventory == full.inventory


@pytest.mark.parametrize("number", [0, 99])
def test_enum_without_meaning_is_refused(number: int) -> None:
    message = stage_pb2.RunnerReport(instance_id="i", state=number)
    with pytest.raises(InvalidRequestError, match="state"):
        from_proto(message, RunnerReport)


def test_absent_required_message_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="source"):
        from_proto(placement_pb2.InstanceSpec(instance_id="i"), InstanceSpec)


def test_event_without_content_is_a_defect_of_the_sender() -> None:
    with pytest.raises(InternalError):
        event_from_proto(generation_pb2.GenerateResponse())


def test_precision_that_nobody_chose_is_exact() -> None:
    source = placement_pb2.ModelSource(model_id="demo")
    assert from_proto(placement_pb2.InstanceSpec(source=source), InstanceSpec).precision is Precision.EXACT
    assert from_proto(stage_pb2.ShardAssignment(), ShardAssignment).precision is Precision.EXACT


@pytest.mark.parametrize("precision", Precision)
def test_precision_survives(precision: Precision) -> None:
    shard = ShardAssignment(InstanceId("i"), Epoch(1), ModelId("demo"), 0, 1, 0, 4, 512, precision=precision)
    assert from_proto(to_proto(shard, stage_pb2.ShardAssignment), ShardAssignment) == shard
    assert parse_precision(precision.value) is precision


def test_unknown_precision_is_refused() -> None:
    source = placement_pb2.ModelSource(model_id="demo")
    with pytest.raises(InvalidRequestError, match="precision"):
        from_proto(placement_pb2.InstanceSpec(source=source, precision=99), InstanceSpec)
    with pytest.raises(InvalidRequestError, match="precision 'odd' is unknown: use exact or fast"):
        parse_precision("odd")


def test_kernels_survive_and_are_empty_where_an_agent_knows_of_none() -> None:
    kernels = KernelInventory("avx2", 4, blas="openblas")
    inventory = NodeInventory(NodeId("a"), "agent", kernels=kernels)
    assert from_proto(to_proto(inventory, cluster_pb2.NodeInventory), NodeInventory) == inventory
    assert from_proto(cluster_pb2.NodeInventory(node_id="a"), NodeInventory).kernels == KernelInventory()
