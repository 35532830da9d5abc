"""Heartbeats: soon, often enough, in order, and none after the end."""

from __future__ import annotations

import json
import threading

from lookalike.retrieval.receipt import Progress, Stage
from lookalike.runtime.heartbeat import Heartbeat

SECONDS = 30.0


class Listener:
    def __init__(self) -> None:
        self.heard: list[dict[str, object]] = []
        self.changed = threading.Condition()
        self.inside = 0

    def __call__(self, message: bytes) -> None:
        with self.changed:
            assert self.inside == 0, "two at once"
            self.inside += 1
            self.heard.append(json.loads(message))
            self.inside -= 1
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.heard) >= count, SECONDS)


def test_the_first_comes_at_once_and_the_last_step_is_repeated_in_silence() -> None:
    listener = Listener()
    with Heartbeat(listener, interval=0.01) as heartbeat:
        assert listener.heard == [{"stage": "MATCHING", "done": 0, "total": 0}]
        heartbeat.report(Progress(Stage.ADAPTING, 2, 9))
        listener.wait_for(5)
    assert listener.heard[1:] == [{"stage": "ADAPTING", "done": 2, "total": 9}] * (len(listener.heard) - 1)


def test_a_new_stage_is_told_at_once_and_steps_within_it_are_not() -> None:
    listener = Listener()
    with Heartbeat(listener, interval=SECONDS) as heartbeat:
        for stage in Stage:
            for done in range(1000):
                heartbeat.report(Progress(stage, done, 1000))
    stages = [message["stage"] for message in listener.heard]
    assert stages == list(Stage)


def test_nothing_after_the_end() -> None:
    listener = Listener()
    with Heartbeat(listener, interval=0.001) as heartbeat:
        listener.wait_for(3)
    count = len(listener.heard)
    heartbeat.report(Progress(Stage.WRITING, 1, 1))
    assert len(listener.heard) == count
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_a_lost_listener_is_noted_once() -> None:
    calls = []

    def gone(message: bytes) -> None:
        calls.append(message)
        raise BrokenPipeError

    with Heartbeat(gone, interval=0.001) as heartbeat:
        assert heartbeat.lost
        heartbeat.report(Progress(Stage.WRITING, 1, 1))
    assert len(calls) == 1
