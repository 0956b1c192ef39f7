"""What a program sees when things go wrong: an exception over there, retries, a cancelled job, a time limit."""

import random
import time

from depalma import JobCancelled, JobFailed, JobTimeout, LocalCluster


def divide(number: int) -> float:
    return 10 / number


def flaky(_: int) -> str:
    if random.random() < 0.5:
        raise OSError("not this time")
    return "at last"


def main() -> None:
    with LocalCluster(masters=3, agents=2) as cluster, cluster.client() as client:
        # A task that fails raises JobFailed; what it raised is the cause, with the remote traceback in a note.
        for task in client.map(divide, [1, 0, 2]).as_completed():
            try:
                print(task.id, "=", task.result())
            except JobFailed as error:
                print(task.id, "failed:", repr(error.__cause__))

        # With retries a task is tried again, on whatever host has room.
        job = client.map(flaky, range(8), retries=20)
        print(set(job.results()), "after", max(task.attempt for task in job.tasks()), "attempts at most")

        # A time limit ends the whole process tree of a task.
        try:
            print(list(client.map(time.sleep, [60], timeout_s=0.5).results()))
        except JobTimeout as error:
            print(type(error).__name__, error)

        # Cancelling a job stops what runs; waiting for it then raises JobCancelled.
        job = client.map(divide, [1], hold=True)
        job.cancel()
        try:
            print(list(job.results()))
        except JobCancelled as error:
            print(type(error).__name__, error)


if __name__ == "__main__":
    main()
