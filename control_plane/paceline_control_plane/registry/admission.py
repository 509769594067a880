"""Checks what agents send: remote input is refused with a reason before it reaches the store. Pure."""

from paceline_services.domain.models import ModelCard
from paceline_services.domain.nodes import PROTOCOL_VERSION, Node, NodeInventory, NodeReport
from paceline_services.errors import ConflictError, InvalidRequestError, PreconditionError
from paceline_services.ids import parse_instance_id, parse_model_id, parse_node_id


def check_inventory(report: NodeReport) -> NodeInventory:
    """The inventory of a first report.

    Raises InvalidRequestError when it is missing or unusable, PreconditionError PROTOCOL_MISMATCH for another protocol version.
    """
    inventory = report.inventory
    if inventory is None:
        raise InvalidRequestError("the first report of an agent must have an inventory")
    parse_node_id(inventory.node_id)
    if not inventory.agent_id:
        raise InvalidRequestError(f"the inventory of node {inventory.node_id} has no agent_id")
    if inventory.protocol_version != PROTOCOL_VERSION:
        raise PreconditionError(
            f"node {inventory.node_id} speaks protocol version {inventory.protocol_version}, this control plane "
            f"{PROTOCOL_VERSION}: run the same version of Paceline on every machine",
            reason="PROTOCOL_MISMATCH",
        )
    return inventory


def check_report(report: NodeReport, inventory: NodeInventory) -> None:
    """Raise InvalidRequestError for a report that cannot be stored: unusable ids or cards, or another node's inventory."""
    if report.inventory and report.inventory.node_id != inventory.node_id:
        raise InvalidRequestError(f"node {inventory.node_id} cannot become {report.inventory.node_id}: join anew")
    for runner in report.runners:
        parse_instance_id(runner.instance_id)
    for model in report.models:
        parse_model_id(model.model_id)
        if model.card:
            _check_card(model.card)


def check_takeover(holder: Node, inventory: NodeInventory) -> None:
    """Raise ConflictError NODE_ID_TAKEN unless the agent may take the node id over from its present holder.

    It may when it is the same agent on a new stream, or another start of the agent on the same machine.
    """
    held = holder.inventory
    if held.agent_id != inventory.agent_id and held.hostname != inventory.hostname:
        raise make_taken_error(holder)


def make_taken_error(holder: Node) -> ConflictError:
    """What an agent is told whose node id is another one's."""
    held = holder.inventory
    return ConflictError(
        f"node id {held.node_id!r} is held by another agent, on {held.hostname or 'an unnamed machine'}: "
        "give this one another --node-id",
        reason="NODE_ID_TAKEN",
        node_id=held.node_id,
        hostname=held.hostname,
    )


def _check_card(card: ModelCard) -> None:
    if card.num_layers < 1 or len(card.layer_bytes) != card.num_layers:
        raise InvalidRequestError(
            f"the card of model {card.model_id} has {len(card.layer_bytes)} layer sizes for {card.num_layers} layers"
        )
