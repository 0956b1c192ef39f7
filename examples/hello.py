"""The smallest program: a cluster of real processes on this machine, and four ways to give it work."""

from depalma import LocalCluster


def square(number: int) -> int:
    return number * number


if __name__ == "__main__":
    with LocalCluster(masters=3, agents=2) as cluster, cluster.client() as client:
        print(client.submit(square, 7).result())
        print(list(client.map(square, range(5), name="squares").results()))
        with client.executor() as executor:
            print(sum(executor.map(square, range(100))))
        job = client.command(["uname", "-s"]).wait()
        print(job.exit_code, job.logs().strip())
