"""Read the settings, serve probes, wait for the Lease, watch. Nothing of the behaviour is here."""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from mark_operator.certificates import ServerContext, load_authority
from mark_operator.cluster import Cluster
from mark_operator.health import Health
from mark_operator.lease import Lease
from mark_operator.logs import configure
from mark_operator.progress_server import ProgressServer
from mark_operator.reconcile import Reconciler
from mark_operator.settings import Settings, load_settings
from mark_operator.watch import watch

log = logging.getLogger(__name__)


def main() -> None:
    """The command `mark-operator`."""
    parser = argparse.ArgumentParser(
        prog="mark-operator", description="Watch runs, plan them, start what was confirmed."
    )
    parser.add_argument("--settings", type=Path, help="settings file, YAML or JSON")
    options = parser.parse_args()
    settings = load_settings(os.environ, options.settings)
    configure(settings.log_level)
    sys.exit(asyncio.run(serve(settings)))


async def serve(settings: Settings) -> int:
    """Run until told to stop; 0 after a signal, 1 when something broke and a fresh process should try again."""
    working = asyncio.create_task(_work(settings, lambda: working.cancel()))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
    try:
        await working
    except asyncio.CancelledError:
        log.info("told to stop")
    except Exception:
        log.exception("the operator ends, to be started afresh")
        return 1
    return 0


async def _work(settings: Settings, stop: Callable[[], object]) -> None:
    """Serve probes and progress, and watch while this replica leads. Whatever ends, ends all: a fresh process is better
    than one without its clock or its certificates."""
    async with AsyncExitStack() as closing:
        group = await closing.enter_async_context(asyncio.TaskGroup())
        health = Health(settings.timings.relist_seconds)
        cluster = await Cluster.connect(health.answered)
        closing.push_async_callback(cluster.close)
        probes = await health.serve(settings.health_port)
        closing.push_async_callback(probes.cleanup)
        closing.callback(group.create_task(health.tick()).cancel)
        authority = await _serve_progress(cluster, settings, closing, group)
        identity = f"{os.environ.get('POD_NAME', socket.gethostname())}_{secrets.token_hex(4)}"
        lease = Lease(cluster, lambda: Cluster.connect(health.answered), settings, identity)
        health.watch_lease(lambda: lease.held)
        health.ready()
        reconciler = Reconciler(cluster.writing_while(lambda: lease.held), settings, _now, authority, health)
        await lease.lead(lambda: watch(cluster, settings, reconciler, health, stop))


async def _serve_progress(
    cluster: Cluster, settings: Settings, closing: AsyncExitStack, group: asyncio.TaskGroup
) -> str | None:
    """Start the progress server; the certificate authority that Pods trust, or None when progress is off."""
    if settings.progress_url is None:
        return None
    authority = await load_authority(cluster, settings)
    tls = ServerContext(authority, settings.progress_url)
    closing.callback(group.create_task(tls.rotate()).cancel)
    server = await ProgressServer(cluster, _now, settings.timings.progress_seconds).serve(settings.progress_port, tls)
    closing.push_async_callback(server.cleanup)
    return authority.pem


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    main()
