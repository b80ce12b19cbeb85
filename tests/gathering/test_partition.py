"""Which shard gathers which link, and how the shards of a host share its requests."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlimages.gathering import partition
from mlimages.gathering.partition import MAX_SHARDS_PER_HOST, LinkCountsByHost, LinkPartition, choose_shard

texts = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=20)


def divide(urls: list[str], shards: int, per_host: int) -> list[LinkPartition]:
    counts = LinkCountsByHost()
    for url in urls:
        counts.add(url)
    parts = counts.count_shards_by_host(shards)
    return [LinkPartition(number, shards, parts, per_host) for number in range(1, shards + 1)]


@given(texts, st.integers(1, 9) | st.just(64), st.lists(st.integers(1, 60), max_size=4), st.integers(1, 9))
def test_each_link_is_in_one_shard_and_the_shards_of_a_host_share_its_requests(
    odd: list[str], shards: int, hosts: list[int], per_host: int
) -> None:
    large = [f"http://host{host}/{n}" for host, count in enumerate(hosts) for n in range(count)]
    urls = [f"http://small{n}/{text}" for n, text in enumerate(odd)] + odd + large
    divided = divide(urls, shards, per_host)
    assert divide(urls[::-1], shards, 1)[0].num_shards_by_host == divided[0].num_shards_by_host
    owners = {url: [one for one in divided if one.is_in_shard(url)] for url in urls}
    assert all(len(found) == 1 for found in owners.values())
    at_host = defaultdict(set)
    for url in large:
        at_host[url.split("/")[2]].add(owners[url][0].shard_number)
    for host, count in enumerate(hosts):
        url = f"http://host{host}/"
        parts = divided[0].count_shards_of_host(url)
        assert parts <= min(MAX_SHARDS_PER_HOST, shards)
        assert parts == 1 or count * shards > len(urls), "only a host with more than its share is spread"
        assert len(at_host[f"host{host}"]) <= parts
        if parts > 1:
            first = choose_shard(url, shards) - 1
            of_host = [divided[(first + part) % shards] for part in range(parts)]
            assert at_host[f"host{host}"] <= {one.shard_number for one in of_host}
            assert sum(one.max_concurrent_requests(url) for one in of_host) == per_host


def test_a_large_host_is_in_several_shards_whatever_its_spelling() -> None:
    urls = [f"http://a.example/{n}" for n in range(300)] + [f"http://{n}.example/" for n in range(100)]
    for spelling in ("http://{}/", "https://{}:443/", "http://u:p@{}:80/"):
        for host in ("a.example", "A.Example"):
            assert divide(urls, 8, 8)[0].count_shards_of_host(spelling.format(host)) == MAX_SHARDS_PER_HOST
    shards = [sum(one.is_in_shard(url) for url in urls[:300]) for one in divide(urls, 8, 8)]
    assert sorted(count > 50 for count in shards) == [False] * 4 + [True] * 4
    urls = [f"http://b\u00fccher.example/{n}" for n in range(30)]
    assert divide(urls, 2, 8)[0].count_shards_of_host("http://xn--bcher-kva.example/1") == 2


def test_large_hosts_are_found_among_more_hosts_than_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_MAX_COUNTED_HOSTS", 50)
    urls = [url for n in range(400) for url in (f"http://{n}.example/", f"http://large.example/{n}")]
    assert divide(urls, 4, 8)[0].num_shards_by_host == {"large.example": 2}
