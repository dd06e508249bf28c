"""The file of replies: what comes back, what several processes do to it, and what is not one."""

import sqlite3
import threading
from contextlib import closing

import pytest

from em.errors import JudgeError
from em.judges._cache import ReplyCache, key_of
from em.judges._reply import Reply, Usage

REPLY = Reply("90 \u00e9\U0001f600", "stop", (("90", -0.1), (" ", -9999.0)), usage=Usage(7, 1))


def test_a_reply_comes_back_whole_and_the_tokens_of_the_probe_do_not(tmp_path):
    with ReplyCache(tmp_path / "deep" / "c.sqlite") as cache:
        cache.put(b"a", REPLY)
        cache.put(b"b", Reply("", "content_filter", tokens=("x",)))
    with ReplyCache(tmp_path / "deep" / "c.sqlite") as cache:
        assert cache.get(b"a") == REPLY
        assert cache.get(b"b") == Reply("", "content_filter")
        assert cache.get(b"c") is None
        assert cache.missing([b"a", b"c", *[b"%d" % n for n in range(1200)]]) == {
            b"c", *[b"%d" % n for n in range(1200)]
        }  # fmt: skip


def test_a_reply_has_an_age(tmp_path):
    with ReplyCache(tmp_path / "c.sqlite") as cache:
        cache.put(b"a", REPLY)
        assert cache.get(b"a", newer_than=1e9) == REPLY and cache.get(b"a", newer_than=1e11) is None


def test_a_lone_surrogate_does_not_stop_it(tmp_path):
    with ReplyCache(tmp_path / "c.sqlite") as cache:
        cache.put(b"a", Reply("90\ud800", "stop", (("\ud800", -1.0),)))
        assert cache.get(b"a") == Reply("90?", "stop", (("\ud800", -1.0),))


def test_equal_calls_have_equal_keys_and_each_part_counts():
    call = {"endpoint": "h/v1", "body": {"model": "m", "temperature": 0.0}, "sample": 0}
    turned = {"sample": 0, "body": {"temperature": 0.0, "model": "m"}, "endpoint": "h/v1"}
    others = [{**call, "endpoint": "h/v2"}, {**call, "sample": 1}, {**call, "body": {"model": "m"}}]
    assert key_of(call) == key_of(turned) and len({key_of(c) for c in [call, *others]}) == 4
    known = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert key_of({}).hex() == known  # on every machine


def test_a_reply_is_in_the_file_before_the_call_returns(tmp_path):
    with ReplyCache(tmp_path / "c.sqlite") as cache:
        cache.put(b"a", REPLY)
        with closing(sqlite3.connect(tmp_path / "c.sqlite")) as other:
            assert other.execute("SELECT text FROM replies").fetchall() == [(REPLY.text,)]


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "c.sqlite").write_bytes(content)
    with pytest.raises(JudgeError, match=r"c\.sqlite: .*move it away, or set cache: .* another file"):
        ReplyCache(tmp_path / "c.sqlite")
    assert (tmp_path / "c.sqlite").read_bytes() == content


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as other:
        other.execute("CREATE TABLE replies (key, text)")
    with pytest.raises(JudgeError, match="another program's database"):
        ReplyCache(tmp_path / "c.sqlite")
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as other:
        assert other.execute("PRAGMA table_info(replies)").fetchall()[1][1] == "text"


def test_damage_that_shows_later_is_one_clear_error(tmp_path):
    with ReplyCache(tmp_path / "c.sqlite") as cache:
        cache.put(b"a", REPLY)
        with closing(sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)) as other:
            other.execute("UPDATE replies SET top = 'x'")
        with pytest.raises(JudgeError, match="damaged"):
            cache.get(b"a")
        with closing(sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)) as other:
            other.execute("DROP TABLE replies")
        with pytest.raises(JudgeError, match="no such table"):
            cache.put(b"a", REPLY)


@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_a_place_where_no_file_can_be_is_one_clear_error(tmp_path, kind):
    (tmp_path / "file").write_text("x")
    path = tmp_path if kind == "folder" else tmp_path / "file" / "c.sqlite"
    with pytest.raises(JudgeError, match="writable, or set cache:"):
        ReplyCache(path)


def write(path: str, start: int) -> None:
    with ReplyCache(path) as cache:
        for number in range(start, start + 50):
            cache.put(b"%d" % number, Reply(str(number), "stop"))


def test_several_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "c.sqlite"
    threads = [threading.Thread(target=write, args=(path, 50 * n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ReplyCache(path) as cache:
        assert cache.missing([b"%d" % n for n in range(400)]) == set()
        assert cache.get(b"399") == Reply("399", "stop")
