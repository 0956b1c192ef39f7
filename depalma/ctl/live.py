"""The picture of a cluster at one moment. `render` is pure: the same snapshot and size give the same picture.

Every line is cut or filled to the width it has, and every section to its share of the height, so nothing overflows;
what is not built costs nothing either.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.text import Text

from depalma.ctl.events import event_text
from depalma.ctl.output import STATE_STYLES
from depalma.ctl.wording import clean, duration
from depalma.ctl.wording import slots as slots_text

Row = Mapping[str, Any]
#: From this width on, machines stand beside jobs.
TWO_COLUMNS = 120
_GAP = 3
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LIVE = ("running", "assigned", "queued", "held", "blocked", "suspended")
HELP = ("q      leave", "space  hold the picture still, and go on", "?      this help, and back")


class Snapshot(NamedTuple):
    """What is known at `now` (seconds since the epoch). `overview` is None before the first answer."""

    overview: Row | None
    jobs: Sequence[Row]
    now: float
    without_leader_s: float | None = None  #: since when no leader has answered; None = all is well
    trouble: str = ""  #: what the last try said
    paused: bool = False
    help: bool = False


class Section(NamedTuple):
    """A heading and its rows; rows that do not fit are left out, and the heading says how many there are."""

    title: str
    rows: Sequence[Row]
    line: Any  #: (row, width) → Text
    note: str = ""


def render(snapshot: Snapshot, width: int, height: int) -> RenderableType:
    """Returns at most `height` lines of at most `width` cells."""
    width, height = max(width, 1), max(height, 1)
    lines = [_header(snapshot, width)]
    if snapshot.help:
        lines += [_plain(f"  {line}", width) for line in HELP]
    elif snapshot.overview is None:
        words = snapshot.trouble or "asking the masters …"
        lines += [_plain("", width), *_wrapped(words, width, max(1, height - 3))]
    else:
        lines += _body(snapshot, snapshot.overview, width, height - 2)
    lines = lines[: max(1, height - 1)]
    if height > 2:
        lines += [_plain("", width)] * (height - 1 - len(lines))
        lines.append(_footer(snapshot, width))
    return Group(*lines[:height])


# ---------------------------------------------------------------- lines


def fit(text: object, width: int, *, right: bool = False) -> str:
    """Returns the text in exactly `width` cells: filled with spaces, or cut with `…`."""
    shown = clean(str(text))
    if cell_len(shown) > width:
        return set_cell_size(shown, width - 1) + "…" if width > 1 else set_cell_size(shown, max(width, 0))
    fill = " " * (width - cell_len(shown))
    return fill + shown if right else shown + fill


def bar(done: float, total: float, width: int, style: str, *, bad: float = 0) -> Text:
    """Returns a bar of `width` cells; the part `bad` of `done` is red."""
    share = min(1.0, done / total) if total > 0 else 0.0
    eighths = int(share * width * 8 + 0.5)
    if share > 0 and eighths == 0:
        eighths = 1
    full, part = divmod(eighths, 8)
    drawn = "█" * full + (_EIGHTHS[part] if part else "")
    bad_cells = min(len(drawn), max(1, int(bad / total * width + 0.5))) if bad and total else 0
    text = Text(no_wrap=True)
    text.append(drawn[: len(drawn) - bad_cells], style)
    text.append(drawn[len(drawn) - bad_cells :], "red")
    text.append("·" * (width - len(drawn)), "bright_black")
    return text


def _plain(text: str, width: int, style: str = "") -> Text:
    return Text(fit(text, width), style=style, no_wrap=True, overflow="crop", end="\n")


def _cut(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.overflow = "crop"
    text.truncate(width, overflow="crop", pad=True)
    return text


def _wrapped(text: str, width: int, limit: int) -> list[Text]:
    words = clean(text)
    room = max(1, width - 2)
    pieces = [words[start : start + room] for start in range(0, len(words), room)]
    return [_plain(f" {piece}", width, "yellow") for piece in pieces[:limit]]


def _header(snapshot: Snapshot, width: int) -> Text:
    overview = snapshot.overview
    clock = time.strftime(" %H:%M:%S ", time.localtime(snapshot.now))
    left = " depalma"
    if overview is not None:
        leader = overview.get("leader") or "?"
        left += f" {overview['cluster']}  leader {leader}  term {overview['term']}  index {overview['index']:,}"
    style = "bold reverse"
    if snapshot.without_leader_s is not None:
        left = f" no leader since {snapshot.without_leader_s:.1f} s"
        if overview is not None:
            left += f" (last: {overview.get('leader') or '?'}, term {overview['term']}, index {overview['index']:,})"
        style = "bold white on red"
    if width <= len(clock) + 8:
        return _plain(left, width, style)
    return Text(fit(left, width - len(clock)) + clock, style=style, no_wrap=True, overflow="crop")


def _footer(snapshot: Snapshot, width: int) -> Text:
    keys = " q quit   space pause   ? help"
    if snapshot.paused:
        keys = " PAUSED: space goes on"
    if snapshot.trouble:
        keys += f"   {snapshot.trouble}"
    return _plain(keys, width, "yellow" if snapshot.trouble or snapshot.paused else "bright_black")


# ---------------------------------------------------------------- sections


def _body(snapshot: Snapshot, overview: Row, width: int, height: int) -> list[Text]:
    queue = [_queue(overview, width)]
    room = height - len(queue)
    machines = [_masters(overview), _hosts(overview)]
    work = [_jobs(snapshot), _events(overview)]
    if width < TWO_COLUMNS:
        return queue + _stack([*machines, *work], width, room)
    left_width = (width - _GAP) // 2
    left = _stack(machines, left_width, room)
    right = _stack(work, width - _GAP - left_width, room)
    empty_left, empty_right = Text(" " * left_width), Text(" " * (width - _GAP - left_width))
    lines = []
    for number in range(max(len(left), len(right))):
        line = Text(no_wrap=True, overflow="crop")
        line.append_text(left[number] if number < len(left) else empty_left)
        line.append(" " * _GAP)
        line.append_text(right[number] if number < len(right) else empty_right)
        lines.append(line)
    return queue + lines


def _stack(sections: Sequence[Section], width: int, room: int) -> list[Text]:
    """Returns the sections one below the other; each gets rows in turn until the room is used up."""
    shares = share_rows([len(section.rows) for section in sections], room - len(sections))
    lines = []
    for section, share in zip(sections, shares, strict=True):
        if share <= 0 and section.rows and room < 2 * len(sections):
            continue  # too low for everything: a heading alone says nothing
        hidden = f" {share} of {len(section.rows)}" if share < len(section.rows) else ""
        title = Text(no_wrap=True, overflow="crop")
        title.append(section.title, "bold cyan")
        title.append(f"{hidden}  {clean(section.note)}".rstrip(), "bright_black")
        lines.append(_cut(title, width))
        lines += [_cut(section.line(row, width), width) for row in section.rows[: max(0, share)]]
    return lines[: max(0, room)]


def share_rows(wanted: Sequence[int], room: int) -> list[int]:
    """Returns how many rows each section gets: in turn one each, until it has what it wants or the room is out."""
    shares = [0] * len(wanted)
    while room > 0 and any(share < want for share, want in zip(shares, wanted, strict=True)):
        for number, want in enumerate(wanted):
            if room > 0 and shares[number] < want:
                shares[number] += 1
                room -= 1
    return shares


def _queue(overview: Row, width: int) -> Text:
    tasks = overview["tasks"]
    rates = overview["rates"]
    text = Text(no_wrap=True, overflow="crop")
    text.append("QUEUE", "bold cyan")
    running = tasks.get("running", 0) + tasks.get("assigned", 0)
    parts = [("queued", tasks.get("queued", 0), "blue"), ("running", running, "cyan")]
    parts += [(state, tasks.get(state, 0), STATE_STYLES[state]) for state in ("held", "succeeded", "failed", "lost")]
    for state, number, style in parts:
        if number or state in ("queued", "running"):
            text.append(f"  {number:,} ", style if number else "")
            text.append(state)
    text.append(f"  {_rate(rates['finished_per_s'])} finished/s  {_rate(rates['submitted_per_s'])} submitted/s")
    return _cut(text, width)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _masters(overview: Row) -> Section:
    masters = overview["masters"]
    out = sum(master["role"] == "unreachable" for master in masters)
    return Section("MASTERS", masters, _master_line, f"{out} out of reach" if out else "")


def _master_line(master: Row, width: int) -> Text:
    text = Text()
    text.append(f" {fit(master['id'], 8)} ")
    text.append(fit(master["role"], 12), STATE_STYLES.get(master["role"], ""))
    if master["role"] != "unreachable":
        text.append(f"term {fit(master['term'], 5)} index {fit(format(master['applied_index'], ','), 11)}")
        if master["last_contact_s"] is not None and master["role"] != "leader":
            text.append(f" heard {duration(master['last_contact_s'])} ago", "bright_black")
    return text


def _hosts(overview: Row) -> Section:
    hosts = sorted(overview["hosts"], key=lambda host: (host["state"] == "up", host["name"]))
    up = [host for host in hosts if host["state"] == "up"]
    slots, used = sum(host["slots"] for host in up), sum(min(host["running"], host["slots"]) for host in up)
    # A host in trouble stands first, so that it is seen even when not all fit.
    return Section("HOSTS", hosts, _host_line, f"{len(up)} of {len(hosts)} up, {used}/{slots} slots busy")


def _host_line(host: Row, width: int) -> Text:
    text = Text()
    name_width = max(8, min(24, width - 62))
    bar_width = max(6, min(24, (width - name_width - 46) if width >= 60 else 6))
    load = host["load"]
    text.append(f" {fit(host['name'], name_width)} ")
    text.append(fit(host["state"], 9), STATE_STYLES.get(host["state"], ""))
    text.append_text(bar(host["running"], host["slots"], bar_width, "cyan"))
    text.append(f" {fit(slots_text(host['running'], host['slots']), 9)}")
    text.append(f"cpu {load['cpu_percent']:3.0f}%", _heat(load["cpu_percent"]))
    text.append(f" mem {load['memory_percent']:3.0f}%", _heat(load["memory_percent"]))
    gpus = [gpu["busy_percent"] for gpu in load.get("gpus", ())]
    if gpus:
        text.append(f" gpu {sum(gpus) / len(gpus):3.0f}%")
    text.append(f"  code {host['code_index']}", "bright_black")
    return text


def _heat(percent: float) -> str:
    return "red" if percent >= 90 else "yellow" if percent >= 70 else ""


def _jobs(snapshot: Snapshot) -> Section:
    order = {state: place for place, state in enumerate(_LIVE)}
    jobs = sorted(snapshot.jobs, key=lambda job: (order.get(job["state"], len(order)), -job["id"]))
    live = sum(job["state"] in _LIVE for job in jobs)

    def line(job: Row, width: int) -> Text:
        return _job_line(job, width, snapshot.now)

    return Section("JOBS", jobs, line, f"{live} live" if jobs else "none")


def _job_line(job: Row, width: int, now: float) -> Text:
    tasks = job["tasks"]
    over = tasks["total"] - tasks["queued"] - tasks["running"]
    bad = tasks["failed"] + tasks["lost"]
    name_width = max(8, min(32, width - 58))
    bar_width = max(6, min(24, (width - name_width - 42) if width >= 60 else 6))
    started = job["started_at"]
    took = None if started is None else (job["finished_at"] or now) - started
    text = Text()
    text.append(f"{fit(job['id'], 6, right=True)} ")
    text.append(fit(job["state"], 10), STATE_STYLES.get(job["state"], ""))
    text.append(f"{fit(job['name'], name_width)} ")
    text.append_text(bar(over, tasks["total"], bar_width, "green", bad=bad))
    text.append(f" {over:,}/{tasks['total']:,}")
    if bad:
        text.append(f" {bad:,} bad", "red")
    text.append(f" {duration(took)}", "bright_black")
    return text


def _events(overview: Row) -> Section:
    return Section("EVENTS", list(reversed(overview["events"])), _event_line)


def _event_line(event: Row, width: int) -> Text:
    text = Text(f" {time.strftime('%H:%M:%S', time.localtime(event['at']))} ", "bright_black")
    text.append(event_text(event), _event_style(event))
    return text


def _event_style(event: Row) -> str:
    words = f"{event['kind']} {event.get('detail', {}).get('state', '')}"
    if any(word in words for word in ("lost", "failed", "timed_out")):
        return "red"
    return "yellow" if any(word in words for word in ("suspect", "cancel", "lagging", "returned")) else "default"
