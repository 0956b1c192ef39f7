"""The one stream of results a client has, and the thread that reads it.

The stream is opened with the cursors of all awaited jobs, and again whenever it breaks, falls silent, or cannot be
known to carry a job. Jobs submitted while it runs name its session, so that the leader adds them to it; this counts
only if the master that took the submission is the one that serves this very stream.
"""

from __future__ import annotations

import os
import threading
import time

from depalma.client import verbs
from depalma.client.book import Book, Gap, Sink
from depalma.client.connections import FAILURES, Connections, Stream
from depalma.client.transport import new_key
from depalma.client.wire import SILENCE_S, BadFrame, FrameReader
from depalma.errors import DepalmaError, NoLeader

#: The stream of a client that awaits nothing is closed after this time.
IDLE_S = 30.0
#: A job that was added by its session only, and of which nothing was heard for so long, is asked for by name, once.
DOUBT_S = 10.0
#: How long a first submission waits for the stream, which saves opening it twice.
_PREPARE_S = 0.25


class ResultStream:
    """Reads results in the background and hands them to those who wait for them."""

    def __init__(self, connections: Connections, *, patience_s: float) -> None:
        self.book = Book()
        self._connections = connections
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._id = new_key()
        self._generation = 0
        #: Of the stream that is open now; empty while there is none.
        self._session = ""
        self._master = ""
        self._stream: Stream | None = None
        self._reopen = False
        self._in_doubt: dict[int, float] = {}
        self._used_at = time.monotonic()
        self._closed = False

    # ------------------------------------------------------------ for those who wait

    @property
    def session(self) -> str:
        """The session of the stream that is open now; empty if there is none."""
        return self._session

    def prepare(self) -> str:
        """Returns the session to name in a submission; opens the stream if there is none."""
        with self._changed:
            self._used_at = time.monotonic()
            if not self._session and self._generation == 0:
                self._start()
                self._changed.wait_for(lambda: self._session or self._closed, _PREPARE_S)
            return self._session

    def watch(self, job: int, sink: Sink, session: str = "", master: str = "") -> None:
        """Gives the results of a job to `sink`, from its first on."""
        in_step = self.book.claim(job, sink)
        if job not in self.book:  # it ended before it was claimed
            return
        with self._changed:
            closed = self._closed
            self._used_at = time.monotonic()
            if in_step and session and session == self._session and master == self._master:
                self._in_doubt[job] = self._used_at
            else:
                self._ask_again()
            self._start()
            self._changed.notify_all()
        if closed:  # whoever waited was told before this one came
            self.book.fail(DepalmaError("the client is closed"))

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="depalma-results", daemon=True)
            self._thread.start()

    def _ask_again(self) -> None:
        self._reopen = True
        if self._stream is not None:
            self._stream.stop()

    def close(self) -> None:
        """Ends the thread; those who still wait get an error."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            if self._stream is not None:
                self._stream.stop()
            self._changed.notify_all()
        self.book.fail(DepalmaError("the client is closed"))
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def after_fork(self) -> None:
        """In a forked child: nothing runs, what is awaited is asked for anew as soon as the child waits or submits."""
        self._changed = threading.Condition()
        self.book.after_fork()
        self._thread, self._stream = None, None
        self._session, self._generation = "", 0
        self._id = new_key()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._go_on()
        except BaseException as error:
            # A defect must not leave those who wait to wait for ever; it is shown as any thread's is.
            with self._changed:
                self._thread = None
            self.book.fail(DepalmaError(f"the stream of results ended: {error!r}"))
            raise

    def _go_on(self) -> None:
        process = os.getpid()
        failing_since: float | None = None
        while self._await_need() and os.getpid() == process:
            began = time.monotonic()
            try:
                self._follow()
                failing_since = None
            except NoLeader as error:
                failing_since = failing_since or began
                if time.monotonic() - failing_since > self._patience_s:
                    self.book.fail(error)
                    failing_since = None
            except DepalmaError as error:
                if not self._closed:
                    self.book.fail(error)
            except (Gap, BadFrame, *FAILURES):
                failing_since = None
            # A master that ends each stream at once must not be asked in a tight loop.
            if not self._reopen and time.monotonic() - began < 0.02:
                time.sleep(0.02)

    def _await_need(self) -> bool:
        with self._changed:
            first = self._generation == 0
            self._changed.wait_for(lambda: self._closed or first or len(self.book) or self._reopen)
            return not self._closed

    def _follow(self) -> None:
        """Opens the stream and reads it to its end."""
        with self._changed:
            self._generation += 1
            session = f"{self._id}.{self._generation}"
            self._reopen = False
            self._in_doubt.clear()
        request = verbs.results_request(session, self.book.cursors())
        stream = self._connections.open_stream(request, deadline_s=self._connections.deadline_s)
        try:
            stream.read_timeout(SILENCE_S)
            with self._changed:
                if self._closed or self._reopen:
                    return
                self._session, self._master, self._stream = session, stream.answer.master, stream
                self._changed.notify_all()
            self._read(stream)
        except FAILURES:
            if not self._reopen:
                self._connections.endpoints.unreachable(stream.url, time.monotonic())
            raise
        finally:
            with self._changed:
                self._session, self._stream = "", None
            stream.close()

    def _read(self, stream: Stream) -> None:
        reader = FrameReader()
        while True:
            data = stream.read()
            if not data:
                return
            for batch in reader.feed(data):
                self.book.accept(batch)
            now = time.monotonic()
            with self._changed:
                if self._closed or self._reopen:
                    return
                if not len(self.book) and now - self._used_at > IDLE_S:
                    return
                if self._in_doubt and self._doubtful(now):
                    self._reopen = True
                    return

    def _doubtful(self, now: float) -> bool:
        """Returns whether a job that was only announced has been silent for long; forgets those that were not."""
        for job, since in list(self._in_doubt.items()):
            if job not in self.book or self.book.cursor(job):
                del self._in_doubt[job]
            elif now - since > DOUBT_S:
                return True
        return False
