"""A real one-node Kubernetes on this machine: no container engine, no registry, nothing outside it changed for good.

`lifecycle` starts and stops it, `images` builds what runs in it. What tests need is exported here.
"""

from .access import current_context, kubeconfig, tool, uses_current_context
from .errors import ClusterError, NotSupportedError

__all__ = ["ClusterError", "NotSupportedError", "current_context", "kubeconfig", "tool", "uses_current_context"]
