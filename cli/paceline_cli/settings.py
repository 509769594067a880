"""Settings of the command line tool and of `paceline up`."""

from pathlib import Path

from pydantic import Field

from paceline_services.domain.runners import Precision
from paceline_services.settings import ServiceSettings

DEFAULT_PORT = 52415


class CliSettings(ServiceSettings):
    url: str | None = Field(None, description="URL of the gateway; default: that of the cluster running in this home.")


class UpSettings(ServiceSettings):
    host: str = Field("127.0.0.1", description="Address on which the HTTP API listens.")
    port: int | None = Field(
        None, ge=0, le=65535, description=f"Port of the HTTP API; default {DEFAULT_PORT}, or a free one if taken."
    )
    workers: int = Field(2, ge=0, le=64, description="Agents started on this machine.")
    control_planes: int = Field(1, ge=1, le=5, description="Control plane replicas started on this machine.")
    etcd: str | None = Field(
        None, description="URLs of an existing etcd cluster, separated by commas; default: one is started here."
    )
    model: str | None = Field(None, description="Model to place: a known id, a folder, a GGUF file or a hub id.")
    model_id: str | None = Field(
        None, description="Id under which clients name the model; default: made from its name."
    )
    stages: int | None = Field(
        None, ge=1, description="Stages to divide the model into; default: the number of workers."
    )
    context_length: int = Field(
        0, ge=0, description="Longest sequence to admit, in tokens; 0: the model's own limit, at most 8192."
    )
    precision: Precision = Field(
        Precision.EXACT,
        description="How the model is computed on CPUs: exact (float32), or fast (activations of 8 bits).",
    )
    memory_per_worker_bytes: int | None = Field(
        None, gt=0, description="Memory in bytes that each worker may use; default: its share."
    )
    start_timeout_s: float = Field(60.0, gt=0, description="Seconds within which each process must serve.")
    place_timeout_s: float = Field(3600.0, gt=0, description="Seconds within which the model must become ACTIVE.")

    @property
    def run_folder(self) -> Path:
        return self.home / "run"
