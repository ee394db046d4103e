"""Runtimes of ours that live outside the agent: they stand on what no device needs, so they are named here and never imported.

They are found and made as a third party's plug-in is, by an entry point; written down rather than installed, so that a checkout
and an image, which have no package metadata, know them too.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint

from workers.agent.runtimes.names import GROUP, TORCH_RUNTIMES

OUTSIDE = tuple(
    EntryPoint(name, f"workers.torch_runtime:{name.replace('-', '_')}_runtime", GROUP) for name in TORCH_RUNTIMES
)
INSTALL = dict.fromkeys(TORCH_RUNTIMES, "this device holds the agent alone; pip install 'pruneloop[torch]'")
