"""What a job would do, as a person reads it: `submit --dry-run`."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from client.render import count, duration, table_of
from domain.plan import JobPlan, Network


def plan_block(plan: JobPlan) -> RenderableType:
    """Return a plan as a few lines: the network, the devices of each target, the cost."""
    parts: list[RenderableType] = [Text("This job is accepted as it stands; nothing was stored.", style="green")]
    if plan.network is None:
        parts.append(Text(f"network: not known before it runs. {plan.network_reason or ''}".strip(), style="dim"))
    else:
        parts += _network(plan.network)
    for one in plan.targets:
        names = ", ".join(device.name + ("" if device.is_online else " (offline)") for device in one.devices)
        line = Text(f"target {one.target}: {names or 'no device'}")
        if one.reason:
            line.append(f"\n  {one.reason}", style="yellow")
        parts.append(line)
    cost = plan.cost
    expected = "not known yet" if cost.expected_s is None else f"about {duration(cost.expected_s)}"
    parts.append(
        Text(
            f"cost: {expected}, {duration(cost.wall_budget_s)} at most; up to {cost.trials} trials, {cost.finals} finals, "
            f"{cost.measurements} measurements"
        )
    )
    if cost.queue.ahead:
        parts.append(Text(f"queue: {cost.queue.ahead} before it"))
    return Group(*parts)


def _network(network: Network) -> list[RenderableType]:
    head = f"network: {count(network.params)} parameters, {count(network.macs)} MACs, {len(network.groups)} groups"
    if network.blocks:
        head += f", {len(network.blocks)} blocks that can be dropped: {', '.join(network.blocks)}"
    rows = [(group.name, str(group.channels)) for group in network.groups]
    table = table_of(("group", ">channels"), rows, folding={"group"})
    return [Text(head), table, *(Text(f"{one.name} stays whole: {one.reason}") for one in network.unprunable)]
