"""Tables for people. What --json prints is the API's own."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from paceline_cli.api import Json


def show_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def node_rows(state: Json) -> list[tuple[object, ...]]:
    return [
        (
            node["node_id"],
            node["state"],
            f"{size(node['available_memory_bytes'])} of {size(node['total_memory_bytes'])}",
            node["num_cores"],
            node["accelerator"],
            node["kernels"]["instruction_set"] or "-",
            node["chip"],
            node["os_version"],
        )
        for node in state["nodes"]
    ]


def instance_rows(state: Json) -> list[tuple[object, ...]]:
    return [
        (
            one["instance_id"],
            one["model_id"],
            one["state"] if one["state"] == "ACTIVE" else f"{one['state']} {one['progress']:.0%}",
            one["precision"],
            one["epoch"],
            " ".join(f"{shard['node_id']}[{shard['start_layer']},{shard['end_layer']})" for shard in one["shards"]),
            one["message"],
        )
        for one in state["instances"]
    ]


def model_rows(state: Json) -> list[tuple[object, ...]]:
    return [
        (
            model["model_id"],
            model["model_type"] or "",
            model["num_layers"] or "",
            size(model["total_bytes"]) if model["total_bytes"] else "",
            model["quantization"] or "",
            model["context_length"] or "",
        )
        for model in state["models"]
    ]


def size(num_bytes: int) -> str:
    """Bytes for people, in binary units."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
