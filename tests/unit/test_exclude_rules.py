"""Gitignore patterns: what git leaves out is left out, nothing else."""

from __future__ import annotations

import pytest

from holdfast_agent.sources.rules import Rules
from holdfast_contract.errors import InvalidInput

# (patterns, paths left out, paths kept); a path that ends with a slash is a directory.
# Every row was checked against git 2.39 (`git check-ignore --no-index`).
AS_GIT_HAS_IT = [
    (["*.log"], ["a.log", "d/e/b.log", ".log", "x.log/"], ["a.log2", "alog"]),
    (["build/"], ["build/", "x/build/"], ["build", "x/build"]),
    (["/build"], ["build", "build/"], ["x/build", "x/build/"]),
    (["a/b"], ["a/b", "a/b/"], ["x/a/b", "a/bb"]),
    (["doc/*.txt"], ["doc/a.txt"], ["doc/x/a.txt", "x/doc/a.txt"]),
    (["**/cache/*.tmp"], ["cache/a.tmp", "x/y/cache/a.tmp"], ["cache/x/a.tmp", "a.tmp"]),
    (["a/**/b"], ["a/b", "a/x/b", "a/x/y/b"], ["b", "x/a/b"]),
    (["a/**"], ["a/b", "a/x/"], ["a/", "a"]),
    (["**"], ["a", "a/"], []),
    (["a/**/**/b"], ["a/b", "a/x/y/b"], ["a/c"]),
    (["/*", "!/keep"], ["a", "b/"], ["keep", "keep/"]),
    (["a/**", "!a/keep"], ["a/b"], ["a/keep", "a/"]),
    (["*.log", "!keep/"], ["keep/x.log", "x.log"], ["keep/"]),
    (["*.log", "!/?"], ["d/b.log"], ["a"]),
    (["?.c"], ["a.c", "x/b.c"], ["ab.c", ".c"]),
    (["[abc].x"], ["a.x"], ["d.x", "ab.x"]),
    (["[!abc].x"], ["d.x"], ["a.x", "/.x"]),
    (["[^abc].x"], ["d.x"], ["a.x"]),
    (["[a-cx-z]"], ["b", "y"], ["d"]),
    (["[]a]"], ["]", "a"], ["b"]),
    (["[a-]"], ["-", "a"], ["b"]),
    (["[[:digit:]x]"], ["7", "x"], ["a"]),
    (["[![:alpha:]]"], ["7"], ["a"]),
    (["[\\]]"], ["]"], ["\\"]),
    (["\\*"], ["*"], ["a"]),
    (["\\#a", "#b"], ["#a"], ["b", "#b"]),
    (["\\!a"], ["!a"], ["a"]),
    (["a ", "b\\ "], ["a", "b "], ["a ", "b"]),
    (["b/*"], ["b/x", "b/y/"], ["b/", "b"]),
    (["a.b"], ["a.b"], ["axb"]),
    (["sp ace"], ["sp ace"], ["sp"]),
    (["", "# nothing"], [], ["a", "# nothing"]),
    (["a**b"], ["ab", "axyb"], ["a/b"]),
]


@pytest.mark.parametrize(("patterns", "left_out", "kept"), AS_GIT_HAS_IT)
def test_a_pattern_matches_what_it_matches_in_git(
    patterns: list[str], left_out: list[str], kept: list[str]
) -> None:
    rules = Rules(patterns)
    for path in left_out + kept:
        found = rules.match(path.rstrip("/").encode(), is_directory=path.endswith("/"))
        assert found == (path in left_out), path


def test_what_is_below_a_directory_that_is_left_out_is_not_brought_back() -> None:
    rules = Rules(["/a/", "!/a/keep"])
    assert rules.match_within(b"a/keep", is_directory=False)
    assert not rules.match_within(b"b/keep", is_directory=False)


def test_a_pattern_that_begins_with_the_backed_up_path_means_what_is_below_it() -> None:
    rules = Rules(["/data/cache", "!/data/cache2"], b"/data")
    assert rules.match(b"cache", is_directory=True)
    assert rules.match(b"data/cache", is_directory=True)
    assert not rules.match(b"x/cache", is_directory=True)
    assert not Rules(["/database/x"], b"/data").match(b"base/x", is_directory=False)
    assert not Rules(["/data/"], b"/data").match(b"x", is_directory=True)


def test_names_that_are_not_utf8_or_hold_newlines_are_matched() -> None:
    rules = Rules(["*.log"])
    assert rules.match(b"\xff\xfe.log", is_directory=False)
    assert rules.match(b"two\nlines/and\nmore.log", is_directory=False)
    assert not rules.match(b"a.log\n", is_directory=False)
    assert Rules(["two\\?"]).match(b"two?", is_directory=False)
    assert Rules(["?"]).match("\u2603".encode(), is_directory=False)


def test_without_patterns_nothing_is_left_out() -> None:
    assert not Rules([])
    assert not Rules(["", "#"])
    assert not Rules([]).match_within(b"a/b", is_directory=True)
    assert Rules(["a"])


@pytest.mark.parametrize("pattern", ["!", "/", "!/", "[abc", "a\\", "[a\\", "a\nb", "a\0b", "//"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        Rules([pattern])


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(InvalidInput):
        Rules(["a"] * 10_001)


def test_a_pattern_made_to_backtrack_takes_no_time() -> None:
    """Without atomic groups the first of these took eight minutes."""
    assert not Rules(["*a" * 40 + "b"]).match(b"a" * 255, is_directory=False)
    deep = b"/".join([b"a"] * 2000)
    assert not Rules(["**/a/" * 20 + "b"]).match(deep, is_directory=False)
    assert Rules(["**/a/" * 20 + "a"]).match(deep, is_directory=False)


def test_a_range_from_above_to_below_holds_nothing_and_compiles() -> None:
    assert not Rules(["[z-a]"]).match(b"m", is_directory=False)
    assert Rules(["[!z-a]"]).match(b"m", is_directory=False)


def test_a_class_never_matches_a_slash() -> None:
    assert not Rules(["/a[!x]b"]).match(b"a/b", is_directory=False)


def test_characters_that_mean_something_in_an_expression_mean_themselves() -> None:
    for character in "()+^$|{}.&~":
        name = f"a{character}b"
        assert Rules([name]).match(name.encode(), is_directory=False), name
        assert not Rules([name]).match(b"ab", is_directory=False), name
