"""The cluster's values as JSON. Pure."""

from collections.abc import Sequence
from typing import Any

from paceline_api_gateway.federation.choice import BackendState, Health, list_models
from paceline_api_gateway.federation.settings import BackendSettings
from paceline_api_gateway.routing.choice import is_hopeless
from paceline_services.domain.instances import (
    Instance,
    InstanceSpec,
    PlacementPreview,
    Shard,
    ShardPlacement,
    first_ranks,
)
from paceline_services.domain.models import KnownModel, NodeModel
from paceline_services.domain.nodes import ClusterState, KernelInventory, Node
from paceline_services.domain.runners import GroupBackend, RunnerLoad

Json = dict[str, Any]


def view_state(state: ClusterState) -> Json:
    return {
        "namespace": state.namespace,
        "leader_id": state.leader_id,
        "revision": state.revision,
        "nodes": [view_node(node) for node in state.nodes],
        "instances": [view_instance(instance) for instance in state.instances],
        "models": [view_model(model) for model in state.models],
    }


def view_node(node: Node) -> Json:
    inventory = node.inventory
    return {
        "node_id": inventory.node_id,
        "state": node.state.value,
        "hostname": inventory.hostname,
        "os": inventory.os,
        "os_version": inventory.os_version,
        "architecture": inventory.architecture,
        "chip": inventory.chip,
        "num_cores": inventory.num_cores,
        "accelerator": inventory.accelerator,
        "kernels": view_kernels(inventory.kernels),
        "total_memory_bytes": inventory.total_memory_bytes,
        "available_memory_bytes": node.available_memory_bytes,
        "address": inventory.host_address,
        "version": inventory.version,
        "models": [view_node_model(model) for model in node.models],
        "links": [],
    }


def view_kernels(kernels: KernelInventory) -> Json:
    return {
        "instruction_set": kernels.instruction_set,
        "num_threads": kernels.num_threads,
        "absent_reason": kernels.absent_reason,
        "blas": kernels.blas,
    }


def view_node_model(model: NodeModel) -> Json:
    return {
        "model_id": model.model_id,
        "state": model.state.value,
        "fetch_progress": model.fetch_progress,
        "fetched_bytes": model.fetched_bytes,
        "total_bytes": model.total_bytes,
        "message": model.failure_message,
    }


def view_instance(instance: Instance) -> Json:
    return view_spec(instance.spec) | {
        "state": instance.state.value.upper(),
        "epoch": instance.epoch,
        "group_backend": view_group_backend(instance.group_backend, [shard.placement for shard in instance.shards]),
        "context_length": instance.context_length,
        "progress": instance.progress,
        "message": instance.message,
        "load": view_instance_load(instance),
        "shards": [view_shard(shard) for shard in instance.shards],
    }


def view_spec(spec: InstanceSpec) -> Json:
    return {
        "instance_id": spec.instance_id,
        "model_id": spec.source.model_id,
        "location": spec.source.location,
        "strategy": spec.strategy.value,
        "num_stages": spec.num_stages,
        "tensor_size": spec.tensor_size,
        "precision": spec.precision.value,
        "kv_bits": spec.kv_bits,
        "draft": spec.draft.model_id if spec.draft else "",
        "draft_location": spec.draft.location if spec.draft else "",
        "create_time": spec.create_time.isoformat() if spec.create_time else None,
    }


def view_shard(shard: Shard) -> Json:
    runner = shard.runner
    return view_placement(shard.placement) | {
        "pid": runner.pid if runner else None,
        "address": runner.address if runner else "",
        "runner_state": runner.state.value if runner else None,
        "load_progress": runner.load_progress if runner else 0.0,
        "loaded_bytes": runner.loaded_bytes if runner else 0,
        "read_bytes": runner.read_bytes if runner else 0,
        "resident_bytes": runner.resident_bytes if runner else 0,
        "message": runner.failure_message if runner else "",
        "load": view_load(runner.load) if runner and runner.load else None,
    }


def view_instance_load(instance: Instance) -> Json | None:
    """What only the head knows, and how idle rank 0 of each stage was (null where it has not said so); null before the head has told its
    load."""
    loads = [shard.runner.load if shard.runner else None for shard in first_ranks(instance.shards)]
    head = loads[-1] if loads else None
    if head is None:
        return None
    return {
        "num_running": head.num_running,
        "num_waiting": head.num_waiting,
        "kv_running_tokens": head.kv_running_tokens,
        "kv_kept_tokens": head.kv_kept_tokens,
        "kv_capacity_tokens": head.kv_capacity_tokens,
        "num_cached_tokens": head.num_cached_tokens,
        "num_drafted_tokens": head.num_drafted_tokens,
        "num_accepted_tokens": head.num_accepted_tokens,
        "num_answer_tokens": head.num_answer_tokens,
        "num_refused": head.num_refused,
        "idle_ratios": [load.idle_ratio if load else None for load in loads],
    }


def view_load(load: RunnerLoad) -> Json:
    """What every runner knows of itself."""
    return {
        "idle_ratio": load.idle_ratio,
        "num_steps": load.num_steps,
        "num_tokens": load.num_tokens,
        "kv_cache_bytes": load.kv_cache_bytes,
    }


def view_placement(placement: ShardPlacement) -> Json:
    return {
        "node_id": placement.node_id,
        "stage": placement.stage,
        "rank": placement.rank,
        "start_layer": placement.start_layer,
        "end_layer": placement.end_layer,
        "planned_bytes": placement.planned_bytes,
        "kv_cache_bytes": placement.kv_cache_bytes,
    }


def view_preview(preview: PlacementPreview) -> Json:
    shards = [view_placement(placement) for placement in preview.shards]
    return {
        "num_stages": preview.num_stages,
        "tensor_size": preview.tensor_size,
        "group_backend": view_group_backend(preview.group_backend, preview.shards),
        "shards": shards,
        "refusal": preview.refusal,
        "message": preview.message,
    }


def view_group_backend(backend: GroupBackend, placements: Sequence[ShardPlacement]) -> str:
    """What the ranks of a stage compute together with; empty where no stage has several."""
    return backend.value if any(placement.rank for placement in placements) else ""


def view_model(model: KnownModel) -> Json:
    card = model.card
    return {
        "model_id": model.source.model_id,
        "location": model.source.location,
        "model_type": card.model_type if card else None,
        "num_layers": card.num_layers if card else None,
        "total_bytes": card.total_bytes if card else None,
        "context_length": card.context_length if card else None,
        "quantization": card.quantization if card else None,
        "tensor_sizes": list(card.tensor_sizes) if card else None,
        "tensor_refusal": card.tensor_refusal if card else None,
        "pipeline_refusal": card.pipeline_refusal if card else None,
    }


def view_cluster_health(state: ClusterState | None) -> Json:
    """Unreachable when no control plane tells its state (None); unhealthy when it has an instance that cannot run."""
    if state is None:
        return {"status": Health.UNREACHABLE.value, "message": "no control plane answers"}
    hopeless = [one.spec.instance_id for one in state.instances if is_hopeless(one)]
    if hopeless:
        return {"status": Health.UNHEALTHY.value, "message": f"cannot run: {', '.join(hopeless)}"}
    return {"status": Health.HEALTHY.value, "message": ""}


def view_backend(backend: BackendSettings, state: BackendState) -> Json:
    return {
        "name": backend.name,
        "status": state.health.value,
        "message": state.message,
        "models": list_models(backend, state),
    }
