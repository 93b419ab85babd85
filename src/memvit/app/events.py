"""What happens to a job, as server-sent events: a visitor whose connection breaks misses nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from memvit.app.board import Board
from memvit.app.job import Job

# Jobs run in threads and connections in an event loop. A look this often costs nothing beside a model, and no wake-up is lost.
POLL_PERIOD_S = 0.1
PROGRESS_PERIOD_S = 1.0
PING_PERIOD_S = 15.0
RETRY_MS = 1000  # after a break; browsers wait three seconds by themselves


async def events(job: Job, board: Board, last_id: int) -> AsyncIterator[str]:
    """The clips after event `last_id` and all to come, with the state whenever it changes, until the job has ended.

    The event of clip i has the id i + 1, so that a browser that reconnects says what it has seen.
    """
    job.watchers += 1
    try:
        yield f"retry: {RETRY_MS}\n\n"
        seen, state, told_s, sent_s = max(last_id, 0), "", 0.0, time.monotonic()
        while not board.closed:
            has_ended = job.has_ended  # before the clips: none comes after it
            description = job.describe(board.position(job), board.limits.keep_s)
            now_s = time.monotonic()
            sent = []
            for clip in job.clips(seen):
                seen += 1
                sent.append(f"event: clip\nid: {seen}\ndata: {clip}\n\n")
            what = f"{description['state']} {description['position']} {description['trouble']}"
            if what != state or (sent and now_s - told_s >= PROGRESS_PERIOD_S):
                state, told_s = what, now_s
                # Clips first: who is told of the end has everything.
                sent.append(f"event: state\ndata: {json.dumps(description, ensure_ascii=False)}\n\n")
            if not sent and now_s - sent_s >= PING_PERIOD_S:
                sent.append(": ping\n\n")
            if sent:
                sent_s = now_s
                yield "".join(sent)
            if has_ended:
                return
            await asyncio.sleep(POLL_PERIOD_S)
    finally:
        job.watchers -= 1
        job.watched_s = time.monotonic()
