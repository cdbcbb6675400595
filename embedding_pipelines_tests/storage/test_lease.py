"""A lease: one holder at a time, whoever dies, sleeps or comes late."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from embedding_pipelines.errors import BucketError, BusyError
from embedding_pipelines.objects import Bucket, open_folder
from embedding_pipelines.storage import lease as leases
from embedding_pipelines.storage.lease import LEASE_SECONDS, Holder, Lease, this_process


@pytest.fixture
def folder(tmp_path: Path) -> Bucket:
    return open_folder(tmp_path / "bucket")


def lease_of(bucket: Bucket, host: str = "one") -> Lease:
    holder = Holder(host, "/home", host, 42, "2026-01-02T03:04:05+00:00")
    return Lease(bucket, "p/lease", "p", holder)


def age(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the store's clock go forward."""
    later = datetime.now(UTC) + timedelta(seconds=seconds)
    monkeypatch.setattr(Bucket, "touch", lambda *_: later)


def test_the_second_is_told_who_has_it_since_when(folder: Bucket) -> None:
    with lease_of(folder).hold():
        with pytest.raises(BusyError) as refusal, lease_of(folder, "two").hold():
            pass
        assert "process 42 on one (/home) since 2026-01-02T03:04:05+00:00" in str(refusal.value)
        assert "the lease is free in 600 s" in str(refusal.value)
    with lease_of(folder, "two").hold():  # it was given back
        pass


def test_a_dead_holder_is_followed_when_the_lease_has_ended(
    folder: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = lease_of(folder)
    dead._take()
    with pytest.raises(BusyError):
        lease_of(folder, "two")._take()
    age(folder, monkeypatch, LEASE_SECONDS + 1)
    heir = lease_of(folder, "two")
    with heir.hold():
        assert heir.is_takeover
        assert not dead.renew()  # it was asleep
        assert "process 42 on two" in dead.other_holder()
        assert heir.renew()


def test_a_process_of_the_same_home_need_not_wait(folder: Bucket) -> None:
    lease_of(folder)._take()
    with lease_of(folder).hold():
        pass


def test_one_of_many_at_once_gets_it(folder: Bucket) -> None:
    start, won, lost = threading.Barrier(8), list[int](), list[BusyError]()

    def take(number: int) -> None:
        lease = lease_of(folder, str(number))
        start.wait()
        try:
            lease._take()
            won.append(number)
        except BusyError as error:
            lost.append(error)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)


def test_it_is_renewed_while_it_is_held_and_old_records_go(
    folder: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 0.01)
    lease = lease_of(folder)
    with lease.hold():
        while lease._number < 25:
            threading.Event().wait(0.01)
    assert len(folder.list_after("p/lease")) <= 2 * leases.KEPT_RECORDS


def test_who_slept_through_other_leases_has_none(
    folder: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers that it would write next were deleted, and can be created again."""
    sleeper, other = lease_of(folder), lease_of(folder, "two")
    sleeper._take()
    age(folder, monkeypatch, LEASE_SECONDS + 1)
    other._take()
    for _ in range(20):
        assert other.renew()
    assert not sleeper.renew()
    assert other.renew()


def test_an_answer_that_is_lost_loses_no_lease(
    folder: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Bucket.create

    def create_and_deny(self: Bucket, key: str, content: bytes) -> bool:
        create(self, key, content)
        return False  # as where a client sends a request again that was taken

    lease = lease_of(folder)
    monkeypatch.setattr(Bucket, "create", create_and_deny)
    with lease.hold():
        assert lease.renew()


def test_a_store_that_fails_for_a_while_ends_no_lease(
    folder: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "RENEWED_SECONDS", 0.01)
    create, failures = Bucket.create, [BucketError("away")] * 3

    def fail_at_first(self: Bucket, key: str, content: bytes) -> bool:
        if failures and not key.endswith("01.json"):
            raise failures.pop()
        return create(self, key, content)

    monkeypatch.setattr(Bucket, "create", fail_at_first)
    lease = lease_of(folder)
    with lease.hold():
        while lease._number < 4:
            threading.Event().wait(0.01)
    assert "was not renewed: away" in caplog.text


def test_a_record_that_cannot_be_read_is_named(folder: Bucket) -> None:
    folder.create("p/lease/0000000001.json", b"{}")
    with pytest.raises(BucketError, match=r"0000000001.json is no record .* then delete it"):
        lease_of(folder)._take()


def test_a_home_is_told_from_others_by_a_number_of_its_own(tmp_path: Path) -> None:
    one, again = (this_process(tmp_path, tmp_path / "one") for _ in range(2))
    other = this_process(tmp_path, tmp_path / "two")
    assert one.is_same_home(again)
    assert not one.is_same_home(other)
