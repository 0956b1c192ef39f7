"""/metrics: Prometheus text of this master, whoever leads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

from aiohttp import web

from depalma.api.context import Api
from depalma.api.route import Mode, Route
from depalma.loopwatch import BOUNDS_S, LoopWatch


async def metrics(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives the numbers of this master."""
    services = api.services
    rates = services.rates
    replica, state = services.replica, api.state
    await api.totals.refresh(state)
    lines: list[str] = []
    _add(lines, "depalma_leader", "gauge", "1 if this master leads", int(replica.is_leader))
    _add(lines, "depalma_term", "gauge", "Newest term seen", replica.term)
    _add(lines, "depalma_commit_index", "gauge", "Last log index that a majority has", replica.commit_index)
    _add(lines, "depalma_applied_index", "gauge", "Last log index in the state", replica.applied_index)
    refused = replica.refused_connections()
    _add_many(lines, "depalma_raft_refused_total", "counter", "Connections refused by the Raft port", "reason", refused)
    refused = services.refused_requests()
    _add_many(lines, "depalma_api_refused_total", "counter", "Connections refused by the API's port", "reason", refused)
    left = round(replica.certificate_seconds_left())
    _add(lines, "depalma_raft_certificate_seconds_left", "gauge", "Until this master's certificate ends", left)
    _add(lines, "depalma_state_version", "gauge", "Commands applied", state.version)
    _add(lines, "depalma_code_index", "gauge", "Newest entry of the code log", state.code_index)
    _add_many(lines, "depalma_jobs", "gauge", "Jobs by state", "state", api.totals.jobs)
    _add_many(lines, "depalma_tasks", "gauge", "Tasks by state", "state", api.totals.tasks)
    hosts: Counter[str] = Counter(host.shown_state for host in state.hosts.values())
    _add_many(lines, "depalma_hosts", "gauge", "Hosts by state", "state", hosts)
    webhooks = state.webhooks
    waiting = {name: webhooks.undelivered(name) for name in webhooks.by_name}
    _add_many(lines, "depalma_webhook_waiting", "gauge", "Ids that wait to be delivered", "webhook", waiting)
    failing = {name: int(bool(webhook.error)) for name, webhook in webhooks.by_name.items()}
    _add_many(lines, "depalma_webhook_failing", "gauge", "1 if the next id was not taken", "webhook", failing)
    _add(lines, "depalma_tasks_finished_total", "counter", "Tasks reported to this leader", rates.finished_total)
    _add(lines, "depalma_tasks_submitted_total", "counter", "Tasks submitted here", rates.submitted_total)
    archive = services.archive.status()
    _add(lines, "depalma_archive_jobs", "gauge", "Finished jobs in this master's archive", archive.jobs)
    _add(lines, "depalma_archive_bytes", "gauge", "Size of this master's archive", archive.size_bytes)
    _add(lines, "depalma_archive_missing", "gauge", "Finished jobs that no archive has", archive.missing)
    _add(lines, "depalma_archive_paused", "gauge", "1 if the archive cannot be used", int(bool(archive.problem)))
    _add(lines, "depalma_result_streams", "gauge", "Open result streams", len(api.streams))
    _add(lines, "depalma_loop_stall_seconds_max", "gauge", "Longest time in which the loop stood still, last minute",
         round(services.loopwatch.worst_s(), 4))  # fmt: skip
    _add_stalls(lines, services.loopwatch)
    requests = {str(status): number for status, number in sorted(api.requests.items())}
    _add_many(lines, "depalma_http_requests_total", "counter", "Requests by status", "status", requests)
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body="".join(lines).encode(), headers=headers)


def _add(lines: list[str], name: str, kind: str, help_text: str, value: float) -> None:
    lines.append(f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n{name} {value}\n")


def _add_many(lines: list[str], name: str, kind: str, help_text: str, label: str, values: Mapping[str, int]) -> None:
    lines.append(f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n")
    lines.extend(f'{name}{{{label}="{key}"}} {value}\n' for key, value in values.items())


def _add_stalls(lines: list[str], watch: LoopWatch) -> None:
    name = "depalma_loop_stall_seconds"
    lines.append(f"# HELP {name} How late a heartbeat of the loop came\n# TYPE {name} histogram\n")
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), accumulate(watch.counts), strict=True):
        lines.append(f'{name}_bucket{{le="{bound}"}} {count}\n')
    lines.append(f"{name}_sum {watch.total_s:.4f}\n{name}_count {sum(watch.counts)}\n")


ROUTES = (Route("GET", "/metrics", metrics, Mode.LOCAL, "Prometheus metrics of this master"),)
