import assert from "node:assert/strict";
import { test } from "node:test";
import { sentence } from "../src/api.ts";
import { formatRanks, parseRanks } from "../src/ranks.ts";
import { formatRoute, parseRoute } from "../src/route.ts";
import { matching, paged, sorted, turned } from "../src/sort.ts";
import { spread, told } from "../src/story.ts";
import { bytes, duration, figure, printable } from "../src/text.ts";
import { bySteps, thinned } from "../src/thin.ts";
import { number, readEntry, readJob, type Entry, type Point } from "../src/wire.ts";

test("an address is read as it was written", () => {
  const route = { page: "job", id: "c7mk2xq9pd", params: { ranks: "0-3,7", view: "table" } };
  assert.equal(formatRoute(route), "#/jobs/c7mk2xq9pd?ranks=0-3,7&view=table");
  assert.deepEqual(parseRoute(formatRoute(route)), route);
  const searched = { page: "jobs", id: "", params: { q: "a b&c=d#%", sort: "-created", state: "failed" } };
  assert.deepEqual(parseRoute(formatRoute(searched)), searched);
});

test("one state has one address, and what is no page is the overview", () => {
  assert.equal(formatRoute({ page: "jobs", id: "", params: { state: "", q: "x", page: "" } }), "#/jobs?q=x");
  assert.equal(formatRoute(parseRoute("#/jobs?sort=name&q=x")), formatRoute(parseRoute("#/jobs?q=x&sort=name")));
  assert.deepEqual(parseRoute("#/elsewhere?q=1"), { page: "", id: "", params: {} });
  assert.deepEqual(parseRoute("#/jobs/%E0%A4%A"), { page: "job", id: "%E0%A4%A", params: {} });
});

test("lists of ranks are read, bounded by the world, and written short", () => {
  assert.deepEqual(parseRanks("3, 0-2,2,x,9-7", 8), [0, 1, 2, 3]);
  assert.deepEqual(parseRanks("0-4000000000", 3), [0, 1, 2]);
  assert.deepEqual(parseRanks("7,8", 8), [7]);
  assert.equal(formatRanks([7, 2, 1, 0]), "0-2,7");
  assert.equal(formatRanks([]), "");
});

test("rows are sorted by column, as numbers and as names, and equal ones keep their order", () => {
  const rows = [
    { name: "run-10", step: 2 },
    { name: "run-9", step: 2 },
    { name: "run-1", step: 30 },
  ];
  const keys = { name: (row: { name: string }) => row.name, step: (row: { step: number }) => row.step };
  assert.deepEqual(sorted(rows, "name", keys).map((row) => row.name), ["run-1", "run-9", "run-10"]);
  assert.deepEqual(sorted(rows, "-step", keys).map((row) => row.name), ["run-1", "run-10", "run-9"]);
  assert.deepEqual(sorted(rows, "none", keys), rows);
  assert.equal(turned("name", "name"), "-name");
  assert.equal(turned("-name", "name"), "name");
});

test("every word of a search counts, and a page that is not there is the nearest", () => {
  const rows = ["digits failed", "digits running", "gpt running"];
  assert.deepEqual(matching(rows, "  DIG run ", (row) => [row]), ["digits running"]);
  const many = Array.from({ length: 101 }, (_, index) => index);
  assert.deepEqual(paged(many, 99, 50), { rows: [100], page: 3, pages: 3 });
  assert.deepEqual(paged([], Number.NaN, 50), { rows: [], page: 1, pages: 1 });
});

const point = (step: number, value: number, at = step): Point => ({ at, step, value });

test("a thinned curve is bounded and in order, and keeps its ends and its spikes", () => {
  for (const [size, most] of [[5, 4], [1000, 10], [1001, 600], [7, 6]] as const) {
    const points = Array.from({ length: size }, (_, index) => point(index, index === 3 ? 99 : (index * 37) % 11));
    const kept = thinned(points, most);
    assert.ok(kept.length <= most, `${kept.length} of ${most}`);
    assert.deepEqual([kept[0], kept.at(-1)], [points[0], points.at(-1)]);
    assert.ok(kept.some((item) => item.value === 99));
    assert.deepEqual(kept, [...new Set(kept)].sort((a, b) => a.step - b.step));
  }
  assert.deepEqual(thinned([point(1, 1)], 4), [point(1, 1)]);
});

test("of a step that was done again the last report counts", () => {
  const points = [point(10, 1, 100), point(20, 2, 200), point(10, 3, 300), point(15, 4, 310)];
  assert.deepEqual(bySteps(points).map((item) => [item.step, item.value]), [[10, 3], [15, 4], [20, 2]]);
});

const entry = (kind: string, at: number, attempt: number, message = ""): Entry =>
  readEntry({ seq: String(at), at: new Date(at).toISOString(), kind, attempt, message, rank: 1 });

test("a timeline has its attempts one after the other, its commits and its incidents", () => {
  const events = [
    entry("JobCreated", 0, 0),
    entry("WorkerStarted", 10, 1),
    entry("CheckpointCommitted", 20, 1),
    entry("WorkerExited", 30, 1, "killed by SIGKILL at step 13"),
    { ...entry("RestartDecided", 31, 2, "killed by SIGKILL at step 13"), outcome: "restarts from step 10" },
    entry("WorkerStarted", 40, 2),
    entry("WorkerExited", 50, 2, "exit code 0 at step 50"),
  ];
  const story = told(events, "gang");
  assert.deepEqual(story.attempts, [
    { number: 1, from: 10, to: 31 },
    { number: 2, from: 31, to: null },
  ]);
  assert.equal(story.commits.length, 1);
  assert.deepEqual(story.incidents.map((mark) => mark.text), ["rank 1: killed by SIGKILL at step 13; restarts from step 10"]);
  assert.deepEqual(told(events, "rank").attempts, []);
  const marks = Array.from({ length: 1000 }, (_, index) => index);
  assert.ok(spread(marks, 300).length <= 301);
  assert.equal(spread(marks, 300).at(-1), 999);
});

test("proto's JSON is read: 64-bit integers and NaN are strings, what is absent is told from nought", () => {
  const job = readJob({
    id: "c7mk2xq9pd",
    state: "JOB_STATE_RUNNING",
    spec: { name: "digits", world_size: 2, restart: { scope: "RESTART_SCOPE_RANK" } },
    last_committed_step: "9007199254740991",
    created_at: "2026-01-02T03:04:05.678901Z",
    workers: [
      { rank: 0, state: "WORKER_STATE_RUNNING", step: "0", metrics: { loss: "NaN" } },
      { rank: 1, state: "WORKER_STATE_WAITING", hang: { section: "step", where: "train.py:7" } },
    ],
  });
  assert.equal(job.committed, Number.MAX_SAFE_INTEGER);
  assert.equal(job.createdAt, Date.UTC(2026, 0, 2, 3, 4, 5, 678));
  assert.deepEqual([job.state, job.scope, job.finishedAt], ["running", "rank", 0]);
  assert.deepEqual([job.workers[0]?.step, job.workers[1]?.step], [0, null]);
  assert.ok(Number.isNaN(job.workers[0]?.metrics["loss"]));
  assert.equal(job.workers[1]?.hang, "hangs in step, at train.py:7");
  assert.equal(number("Infinity"), Number.POSITIVE_INFINITY);
});

test("a problem is a sentence with its remedy", () => {
  const body = { title: "Not found", detail: "there is no job x", remedy: "see holdfast job list" };
  assert.equal(sentence(body, 404), "there is no job x; see holdfast job list");
  assert.equal(sentence({}, 502), "the gateway answered with status 502");
  const violations = [{ field: "rank", description: "its ranks are 0 to 3" }];
  assert.equal(sentence({ detail: "no rank 9", violations }, 400), "no rank 9; rank: its ranks are 0 to 3");
});

test("figures are short, and logs lose what a terminal would obey", () => {
  assert.deepEqual([0.012345, 1.23456, 123456.7, 0, 0.00001234, Number.NaN].map(figure), ["0.01235", "1.235", "123,457", "0", "1.23e-5", "–"]);
  assert.deepEqual([59, 61, 3700, 90000].map(duration), ["59 s", "1 min 01", "1 h 01", "1 d 1 h"]);
  assert.deepEqual([512, 1536, 2 ** 34].map(bytes), ["512 B", "1.5 KiB", "16 GiB"]);
  assert.equal(printable("\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 \u202eback"), "red bell back");
});
