"""The pace of one key: kept by all threads and processes together, lowered by refusals, found
again, never lost."""

import functools
import json
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.embedding import limiter as limiter_module
from embedding_pipelines.embedding.limiter import (
    DECREASE,
    LONGEST_PAUSE_SECONDS,
    LOWEST_PACE,
    WINDOW_SECONDS,
    Cancelled,
    Limiter,
    State,
)
from embedding_pipelines.embedding.request import Request, Sender
from embedding_pipelines_tests.embedding.service import DIALECT, little
from embedding_pipelines_tests.providers.wire import Fault, WireServer, serve

pytestmark = pytest.mark.alone

NEVER = threading.Event()
NOW = 1_800_000_000.0
# Takes slot after slot for some seconds, and prints when they came.
SLOTS = """\
import json, sys, threading, time
from pathlib import Path
from embedding_pipelines.embedding.limiter import Limiter
path, requests, tokens, of_each, seconds = sys.argv[1], *map(float, sys.argv[2:])
limiter, stop, slots = Limiter(Path(path), requests or None, tokens or None), threading.Event(), []
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
while time.monotonic() < end:
    limiter.wait(int(of_each), stop)
    slots.append(time.time())
print(json.dumps(slots))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pace" / "key.json"


@pytest.fixture
def new_limiter(path: Path) -> Callable[..., Limiter]:
    """Makes limiters of one file."""
    return functools.partial(Limiter, path)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(DIALECT) as running:
        yield running


def processes(path: Path, count: int, *numbers: float) -> list["subprocess.Popen[str]"]:
    """Processes that take slots, all begun at once."""
    command = [sys.executable, "-c", SLOTS, str(path), *map(str, numbers)]
    begun = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in begun:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in begun:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return begun


def slots_of(begun: list["subprocess.Popen[str]"]) -> list[list[float]]:
    """When each process had its slots, in seconds since the epoch."""
    return [json.loads(process.communicate(timeout=60)[0]) for process in begun]


def most_within(times: list[float], seconds: float) -> int:
    """The largest number of times that lie within so many seconds."""
    return max(sum(start <= at < start + seconds for at in times) for start in times)


def test_two_processes_together_keep_the_stated_requests_per_minute_and_use_it(path: Path) -> None:
    pace, seconds = 40, 3
    found = slots_of(processes(path, 2, pace * 60, 0, 0, seconds))
    together = sorted(at for slots in found for at in slots)
    assert min(map(len, found)) > seconds  # none of them has it for itself
    assert 0.9 * pace <= (len(together) - 1) / (together[-1] - together[0]) <= 1.05 * pace
    assert most_within(together, 1.0) <= 1.15 * pace  # a process may wake up some milliseconds late


def test_two_processes_together_keep_the_stated_tokens_per_minute_and_use_it(path: Path) -> None:
    tokens_per_second, of_each, seconds = 3_000, 100, 3
    found = slots_of(processes(path, 2, 0, tokens_per_second * 60, of_each, seconds))
    together = sorted(at for slots in found for at in slots)
    sent = (len(together) - 1) * of_each
    assert (
        0.9 * tokens_per_second <= sent / (together[-1] - together[0]) <= 1.05 * tokens_per_second
    )


def test_a_refusal_that_one_process_meets_pauses_the_other(
    path: Path, new_limiter: Callable[..., Limiter]
) -> None:
    begun = processes(path, 1, 3_000, 0, 0, 3)
    time.sleep(1)
    refused_at, pause = time.time(), 1.0
    new_limiter().record_refusal(refused_at, pause)
    [slots] = slots_of(begun)
    assert not [at for at in slots if refused_at + 0.05 < at < refused_at + pause - 0.01]
    assert [at for at in slots if at < refused_at]
    assert [at for at in slots if at > refused_at + pause]


def test_a_refusal_never_lets_more_than_the_stated_pace_through(
    new_limiter: Callable[..., Limiter],
) -> None:
    """Those that had their slot given before the refusal take another one among those that come
    after it."""
    pace = 20
    limiter, times, end = new_limiter(pace * 60), [], time.monotonic() + 4

    def work() -> None:
        while time.monotonic() < end:
            limiter.wait(0, NEVER)
            times.append(time.time())
            limiter.record_success()

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(1.1)
        limiter.record_refusal(time.time(), 0.05)
    for thread in threads:
        thread.join()
    assert most_within(times, 0.5) <= pace * 0.5 * 1.3 + 1


def http_date(seconds: int) -> str:
    return format_datetime(
        datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds + 1), usegmt=True
    )


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        (lambda: {"retry-after": "2"}, 2.0, 3.0),
        (lambda: {"retry-after": "1.5"}, 1.5, 2.5),
        (lambda: {"retry-after": http_date(2)}, 1.5, 4.0),
        (lambda: {"retry-after": http_date(-30)}, 0.0, 1.6),
        (lambda: {"retry-after-ms": "700", "retry-after": "9"}, 0.7, 2.2),
        (lambda: {"retry-after": "soon"}, 1.0, 2.0),
        (dict, 1.0, 2.0),
    ],
    ids=["seconds", "fraction", "date", "past date", "milliseconds", "nonsense", "nothing"],
)
def test_a_refused_request_comes_again_when_the_service_said(
    headers: Callable[[], dict[str, str]], least: float, most: float, server: WireServer
) -> None:
    server.faults.append(Fault("status", 429, "Rate limit reached.", headers()))
    request = Request(["a fox"], "document", [2])
    Sender(little(server)).send(request)
    first, second = server.times
    assert least <= second - first <= most
    assert request.usage.retries == 1
    assert request.usage.wait_seconds == pytest.approx(second - first, abs=0.3)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 900)), max_size=200))
def test_the_pace_follows_what_the_service_says_and_keeps_its_bounds(
    events: list[tuple[bool, float, float]],
) -> None:
    """It never falls below the lowest, falls at most once per observed second, and only by a
    share."""
    state, now, lowerings = State(), NOW, [-1e9]
    for is_refusal, after, pause in events:
        now += after
        before = state.pace
        state.look(now)
        at = state.reserve(now, 0.0, 0.0)
        assert now <= at
        assert at >= state.paused_until
        if is_refusal:
            state.refuse(now, now, min(pause, LONGEST_PAUSE_SECONDS))
            assert state.paused_until >= now + min(pause, LONGEST_PAUSE_SECONDS)
        else:
            state.succeed(now)
            assert state.pace >= before
        if before and state.pace < before:
            assert state.pace == pytest.approx(max(LOWEST_PACE, DECREASE * before))
            lowerings.append(now)
        assert state.pace == 0 or state.pace >= LOWEST_PACE
        assert state.pace == 0 or any(refused for refused, _, _ in events)
    assert all(later - earlier >= WINDOW_SECONDS for earlier, later in pairwise(lowerings))


def test_a_refusal_before_any_answer_costs_its_pause_and_sets_no_pace() -> None:
    state = State()
    assert state.refuse(NOW, NOW, 0.2)
    assert (state.pace, state.paused_until) == (0, NOW + 0.2)
    assert not state.refuse(NOW + 0.1, NOW, 0.2)  # of another request of the same moment
    for n in range(1, 10):  # and if nothing else ever comes, it is asked ever more seldom
        now = state.paused_until
        assert state.refuse(now, now, 0.2)
        assert state.paused_until - now == pytest.approx(max(0.2, 0.5 * (2 ** min(n, 6) - 1)))


def test_an_old_pace_is_forgotten_and_a_low_one_is_left_within_two_minutes() -> None:
    state, now = State(pace=1.0, ceiling=1.0, lowered_at=NOW), NOW
    while state.pace < 50:
        now += 1 / state.pace
        state.succeed(now)
    assert now - NOW < 120
    state.look(NOW + 601)
    assert state.pace == 0


@given(st.floats(0.1, 500), st.floats(1, 500), st.floats(0, 1))
def test_after_a_refusal_the_pace_grows_again_with_success_and_ever_more_slowly(
    ceiling: float, stated: float, pause: float
) -> None:
    state = State(pace=ceiling, ceiling=ceiling)
    state.refuse(NOW, NOW, pause)
    assert state.pace == pytest.approx(max(LOWEST_PACE, DECREASE * ceiling))
    grown, now = [state.pace], NOW + pause
    for _ in range(5):  # seconds in which all that may go out does, and does well
        for _ in range(max(1, round(state.pace))):
            state.succeed(now)
        now += 1
        grown.append(state.pace)
    assert all(later > earlier for earlier, later in pairwise(grown))
    if ceiling >= 10:
        assert grown[1] == pytest.approx(ceiling, rel=0.15)
        assert grown[2] - grown[1] < 0.1 * ceiling


@given(
    st.floats(0.1, 100),
    st.just(0.0) | st.floats(LOWEST_PACE, 100),
    st.lists(st.floats(0, 3), min_size=2, max_size=100),
)
def test_slots_are_never_closer_than_the_stated_pace(
    stated: float, learned: float, gaps: list[float]
) -> None:
    state, now, slots = State(pace=learned), NOW, []
    for gap in gaps:
        now += gap
        slots.append(state.reserve(now, stated, 0.0))
    slowest = min(pace for pace in (stated, learned or stated))
    assert all(later - earlier >= 1 / slowest - 1e-5 for earlier, later in pairwise(slots))


@given(
    st.floats(1, 100),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 500)), min_size=2, max_size=100),
)
def test_tokens_never_go_out_faster_than_stated(
    pace: float, requests: list[tuple[float, int]]
) -> None:
    state, now, slots = State(), NOW, []
    for gap, tokens in requests:
        now += gap
        slots.append((state.reserve(now, 0.0, tokens / pace), tokens))
    for (earlier, tokens), (later, _) in pairwise(slots):
        assert (later - earlier) * pace >= tokens - 0.01


@pytest.mark.parametrize("seconds", [0.9, 1.0, 1.05, 1.3, 1.9, 2.5])
def test_the_first_refusal_finds_the_pace_that_was_answered_wherever_a_window_begins(
    seconds: float,
) -> None:
    state, pace = State(), 40
    for request in range(round(pace * seconds)):
        state.succeed(NOW + request / pace)
    state.refuse(NOW + seconds, NOW + seconds, 0.1)
    assert state.ceiling == pytest.approx(pace, rel=0.15)


@pytest.mark.parametrize("paused", [True, False])
def test_who_cancels_stops_waiting_at_once(
    new_limiter: Callable[..., Limiter], paused: bool
) -> None:
    limiter, stop = new_limiter(None if paused else 1), threading.Event()
    limiter.wait(0, NEVER)
    if paused:
        limiter.record_refusal(time.time(), 120)
    threading.Timer(0.2, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        limiter.wait(0, stop)
    assert 0.1 < time.monotonic() - started < 0.6


def test_a_pace_that_nobody_states_and_no_refusal_limits_is_none(
    new_limiter: Callable[..., Limiter],
) -> None:
    limiter, started = new_limiter(), time.monotonic()
    for _ in range(200):
        limiter.wait(1_000_000, NEVER)
        limiter.record_success()
    assert time.monotonic() - started < 2
    assert limiter.pace() == 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() * 9),
    "bytes": lambda path: path.write_bytes(b"\xff" * 200),
    "other JSON": lambda path: path.write_text("[1, 2]"),
    "other values": lambda path: path.write_text('{"next_at": "soon"}'),
    "its folder is lost": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_lost_or_damaged_file_is_started_anew_and_shared_again(
    path: Path, new_limiter: Callable[..., Limiter], damage: Callable[[Path], object]
) -> None:
    limiter, other = new_limiter(), new_limiter()
    limiter.record_success()
    limiter.record_refusal(time.time(), 0.01)
    assert other.pace() == limiter.pace() > 0
    damage(path)
    assert limiter.pace() == other.pace() == 0
    limiter.wait(1, NEVER)
    other.record_success()
    other.record_refusal(time.time(), 0.01)
    assert new_limiter().pace() == limiter.pace() == other.pace() > 0


def test_a_file_of_another_release_keeps_what_both_know(
    path: Path, new_limiter: Callable[..., Limiter]
) -> None:
    now = time.time()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pace": 2, "lowered_at": now, "seen_at": now, "mood": "calm"}))
    assert new_limiter().pace() == 2


def _file_for_folder(path: Path) -> None:
    path.parent.parent.mkdir()
    path.parent.write_text("a file where a folder belongs")


@pytest.mark.parametrize("obstacle", [_file_for_folder, lambda path: path.mkdir(parents=True)])
def test_where_nothing_can_be_written_a_process_keeps_its_own_pace(
    path: Path, obstacle: Callable[[Path], object]
) -> None:
    obstacle(path)
    limiter = Limiter(path, 600)
    started = time.monotonic()
    for _ in range(5):
        limiter.wait(1, NEVER)
    assert 0.4 <= time.monotonic() - started < 1


def test_a_full_disk_costs_only_the_shared_pace(new_limiter: Callable[..., Limiter]) -> None:
    limiter = new_limiter(600)
    limiter.wait(1, NEVER)
    started, limits = time.monotonic(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        for _ in range(5):
            limiter.wait(1, NEVER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0.4 <= time.monotonic() - started < 1


def test_processes_that_meet_a_damaged_file_together_share_the_new_one(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"This is no JSON. " * 1_000)
    pace, seconds = 40, 2
    together = sorted(
        at for slots in slots_of(processes(path, 3, pace * 60, 0, 0, seconds)) for at in slots
    )
    assert (len(together) - 1) / (together[-1] - together[0]) <= 1.05 * pace


def test_a_request_costs_a_few_milliseconds_at_most(new_limiter: Callable[..., Limiter]) -> None:
    limiter, costs = new_limiter(), []
    for _ in range(100):
        started = time.perf_counter()
        limiter.wait(1, NEVER)
        limiter.record_success()
        costs.append(time.perf_counter() - started)
    assert statistics.median(costs) < 0.005


def test_a_clock_that_is_set_back_an_hour_delays_nobody(
    new_limiter: Callable[..., Limiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        back = 0.0

        def time(self) -> float:
            return time.time() - self.back

        def monotonic(self) -> float:
            return time.monotonic()

    clock = Clock()
    monkeypatch.setattr(limiter_module, "time", clock)
    limiter = new_limiter(600, 60_000)
    for _ in range(3):
        limiter.wait(100, NEVER)
    limiter.record_success()
    limiter.record_refusal(clock.time(), 0.3)
    clock.back = 3_600
    waited = [limiter.wait(100, NEVER) for _ in range(3)]
    assert 0.2 < sum(waited) < 6
    assert limiter.pace() > 0


def test_the_clock_moves_what_is_waited_for_with_it() -> None:
    state = State(NOW + 5, NOW + 7, NOW + 9, 2.0, 3.0, NOW - 1, NOW - 2, 4, NOW)
    state.look(NOW - 0.5)  # within what clocks differ by
    assert (state.next_at, state.seen_at) == (NOW + 5, NOW - 0.5)
    state.look(NOW - 3_600.5)
    assert state == State(
        NOW - 3_595, NOW - 3_593, NOW - 3_591, 2.0, 3.0, NOW - 3_601, NOW - 3_602, 4, NOW - 3_600.5
    )
