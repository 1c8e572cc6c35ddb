"""Where control groups are, and what is read in them: against directories that look like them."""

from pathlib import Path

import pytest

from holdfast_agent import cgroups
from holdfast_agent.core import Key
from holdfast_agent.groups import Groups, GroupsError, name_of

KEY = Key("job1", 3, 2)
HYBRID = """\
36 25 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
37 25 0:31 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
38 25 0:32 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 25 0:33 / /proc rw - proc proc rw
"""


def proc(tmp_path, cgroup, mountinfo):
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text(mountinfo)
    return str(tmp_path)


class TestFind:
    def test_both_versions_at_once(self, tmp_path):
        found = cgroups.find(proc(tmp_path, "6:freezer:/\n4:memory:/a/b\n0::/\n", HYBRID))
        assert found == ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/memory/a/b")

    def test_version_2_alone(self, tmp_path):
        mounts = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
        found = cgroups.find(proc(tmp_path, "0::/system.slice/holdfast.service\n", mounts))
        assert found == ("/sys/fs/cgroup/system.slice/holdfast.service", "", "")

    def test_in_a_container_that_sees_a_part(self, tmp_path):
        mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
        assert cgroups.find(proc(tmp_path, "0::/docker/abc/x\n", mounts)).unified == "/sys/fs/cgroup/x"
        assert cgroups.find(proc(tmp_path, "0::/docker/abcd\n", mounts)).unified == ""
        assert cgroups.find(proc(tmp_path, "0::/../other\n", mounts)).unified == ""

    def test_nowhere(self, tmp_path):
        assert cgroups.find(str(tmp_path)) == ("", "", "")


def group(path, **files):
    """A directory that looks like a group."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in {"cgroup.procs": "", **files}.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


class TestMemory:
    def test_victims_by_version(self, tmp_path):
        v2 = group(tmp_path / "v2", memory__events="low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
        v1 = group(tmp_path / "v1", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
        assert [cgroups.oom_kills(str(path)) for path in (v2, v1, tmp_path)] == [2, 7, 0]

    def test_the_limit_is_the_least_on_the_way_up(self, tmp_path):
        group(tmp_path / "a", memory__max="2000\n")
        group(tmp_path / "a" / "b", memory__max="max\n")
        group(tmp_path / "a" / "b" / "c", memory__max="3000\n")
        assert cgroups.memory_limit(str(tmp_path / "a" / "b" / "c")) == 2000
        assert cgroups.memory_limit(str(tmp_path)) == 0

    def test_version_1_says_it_itself(self, tmp_path):
        there = group(tmp_path / "x", memory__stat="cache 1\nhierarchical_memory_limit 4096\n")
        assert cgroups.memory_limit(str(there)) == 4096
        group(tmp_path / "x", memory__stat="hierarchical_memory_limit 9223372036854771712\n")
        assert cgroups.memory_limit(str(there)) == 0


class TestGroups:
    def mounts(self, tmp_path, **more):
        """Of files that are there before: what the kernel makes in a new group is not."""
        unified = group(tmp_path / "unified")
        group(unified / "holdfast-0123456789ab", **more)
        return cgroups.Mounts(str(unified), "", "")

    def test_off_is_nowhere(self, tmp_path):
        assert Groups("0123456789abcdef", "off", limit_memory=False, mounts=cgroups.Mounts()).base == ""

    def test_below_the_agents_own(self, tmp_path):
        groups = Groups("0123456789abcdef", "auto", limit_memory=False, mounts=self.mounts(tmp_path))
        base = f"{tmp_path}/unified/holdfast-0123456789ab"
        assert groups.place(KEY, 2**30) == {
            "dirs": [f"{base}/job1/3-2"],
            "kill": f"{base}/job1/3-2",
            "memory": "",
            "own": False,
            "limit": 0,
        }

    def test_memory_is_counted_where_the_controller_is_delegated(self, tmp_path, monkeypatch):
        monkeypatch.setattr("holdfast_agent.groups._enable", lambda path, name: Path(path).write_text(name))
        files = {"cgroup__controllers": "cpu memory\n", "cgroup__subtree_control": ""}
        groups = Groups("0123456789abcdef", "auto", limit_memory=True, mounts=self.mounts(tmp_path, **files))
        place = groups.place(KEY, 2**30)
        assert (place["own"], place["memory"], place["limit"]) == (True, place["dirs"][0], 2**30)

    def test_else_the_nearest_group_that_counts_is_asked(self, tmp_path):
        mounts = self.mounts(tmp_path)
        (tmp_path / "unified" / "memory.events").write_text("oom_kill 0\n")
        place = Groups("0123456789abcdef", "auto", limit_memory=False, mounts=mounts).place(KEY, 0)
        assert (place["own"], place["memory"]) == (False, f"{tmp_path}/unified")

    def test_a_limit_that_can_not_be_is_refused(self, tmp_path):
        with pytest.raises(GroupsError, match="no memory controller"):
            Groups("0123456789abcdef", "auto", limit_memory=True, mounts=self.mounts(tmp_path))
        with pytest.raises(GroupsError, match="can't be limited without control groups"):
            Groups("0123456789abcdef", "off", limit_memory=True)

    def test_a_directory_that_is_no_group_is_refused(self, tmp_path):
        with pytest.raises(GroupsError, match="is no control group that this user may make others in"):
            Groups("0123456789abcdef", str(tmp_path), limit_memory=False)

    def test_where_there_are_none_workers_do_without(self):
        groups = Groups("0123456789abcdef", "auto", limit_memory=False, mounts=cgroups.Mounts())
        assert groups.place(KEY, 0) is None
        groups.sweep(())
        groups.close()

    def test_names(self):
        assert name_of(KEY) == "job1/3-2"
