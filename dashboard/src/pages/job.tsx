/** One job: its ranks, its timeline, its curves, where its time went, what happened and why, and what its workers write. */

import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { getMetrics, getSummary, restartJob, stopJob } from "../api.ts";
import { jobEnded, setParams, useAsked, useEvents, useJob, useNow } from "../hooks.ts";
import { Confirm, Failure, Figure, Panel, StateMark, type Question } from "../parts/basics.tsx";
import { Curve, MOST_POINTS } from "../parts/curves.tsx";
import { EventList, RoutineChoice } from "../parts/events.tsx";
import { memo } from "../parts/memo.tsx";
import { Goodput } from "../parts/goodput.tsx";
import { Logs } from "../parts/logs.tsx";
import { RankGrid } from "../parts/ranks.tsx";
import { RankTable } from "../parts/rank-table.tsx";
import { Timeline } from "../parts/timeline.tsx";
import { formatRanks, parseRanks } from "../ranks.ts";
import type { Route } from "../route.ts";
import { count, duration, figure, percent } from "../text.ts";
import type { Job, Series, Summary } from "../wire.ts";

const EVENTS = 1_000;
const CURVES = 8;

export function JobPage({ route }: { route: Route }): JSX.Element {
  const { id } = route;
  const [turn, setTurn] = useState(0);
  const { job, error } = useJob(id, turn);
  if (!job) {
    return (
      <>
        <h1>Job {id}</h1>
        <Failure text={error} />
        {error ? null : <p class="empty">Asking…</p>}
      </>
    );
  }
  return <Shown job={job} route={route} turn={turn} again={() => setTurn((before) => before + 1)} />;
}

interface ShownProps {
  job: Job;
  route: Route;
  /** How often its streams were opened anew. */
  turn: number;
  again: () => void;
}

function Shown({ job, route, turn, again }: ShownProps): JSX.Element {
  const { events, leftOut } = useEvents(job.id, EVENTS);
  const over = jobEnded(job);
  const now = useNow();
  const newest = events.at(-1)?.at ?? 0;
  useEffect(() => {
    // Something happened to a job that had ended: it was restarted, and its streams are worth opening again.
    if (over && newest > job.finishedAt) again();
  }, [newest]);
  const key = `${job.id} ${job.state} ${turn}`;
  const summary = useAsked(() => getSummary(job.id), 3_000, key, over);
  const picked = new Set(parseRanks(route.params["ranks"] ?? "", job.worldSize));
  const pick = (rank: number): void => {
    const next = new Set(picked);
    if (!next.delete(rank)) next.add(rank);
    setParams({ ranks: formatRanks(next) });
  };
  const brief = route.params["routine"] === "off";
  const asTable = route.params["view"] === "table";
  return (
    <>
      <div class="title">
        <h1>{job.name || job.id}</h1>
        <StateMark state={job.state} />
        <code>{job.id}</code>
        <Actions job={job} again={again} />
      </div>
      <p class="reason" role="status">
        {job.reason}
        {job.degraded ? " Degraded: files of the newest checkpoint lie on nodes alone." : ""}
      </p>
      <Failure text={summary.error} />
      <Figures job={job} summary={summary.value} now={now} />
      <Panel
        title="Ranks"
        aside={
          <button type="button" aria-pressed={asTable} onClick={() => setParams({ view: asTable ? "" : "table", at: "" })}>
            as a table
          </button>
        }
      >
        {asTable ? (
          <RankTable workers={job.workers} picked={picked} onPick={pick} page={Number(route.params["at"] ?? 1)} />
        ) : (
          <RankGrid workers={job.workers} picked={picked} onPick={pick} />
        )}
      </Panel>
      <Panel title="Timeline">
        <Timeline
          events={events}
          scope={job.scope}
          restarts={job.restarts}
          committed={job.committed}
          createdAt={job.createdAt}
          finishedAt={job.finishedAt}
          now={over ? 0 : now}
        />
      </Panel>
      <Panel title="Where the time went">
        <Goodput seconds={summary.value?.timeSeconds ?? {}} />
      </Panel>
      <Curves id={job.id} over={over} turn={turn} live={summary.value} />
      <div class="columns even">
        <Panel title="Events" aside={<RoutineChoice off={brief} usual={false} />}>
          <EventList events={events} leftOut={leftOut} withJob={false} brief={brief} />
        </Panel>
        <LogPanel job={job} route={route} turn={turn} />
      </div>
    </>
  );
}

function Figures({ job, summary, now }: { job: Job; summary: Summary | null; now: number }): JSX.Element {
  const steps = summary?.steps ?? null;
  const whole = [
    summary?.totalSteps ? `of ${count(summary.totalSteps)}` : "",
    summary && summary.timeLeft !== null ? `${duration(summary.timeLeft)} to go` : "",
  ];
  return (
    <dl class="figures">
      <Figure name="Step" value={count(steps)} note={whole.filter(Boolean).join(", ") || "every rank is that far"} />
      <Figure name="Committed" value={count(job.committed)} note={steps !== null && job.committed !== null ? `${count(Math.max(0, steps - job.committed))} steps ago` : ""} />
      <Figure name="Ranks" value={count(job.worldSize)} note={`restart by ${job.scope || "gang"}`} />
      <Figure name="Restarts" value={count(job.restarts)} note={`${count(summary?.stepsRedone ?? 0)} steps redone`} />
      <Figure name="Goodput" value={percent(summary?.goodput ?? null)} note="of the ranks' time" />
      <Figure name="Throughput" value={summary?.stepsPerSecond ? figure(summary.stepsPerSecond) : "–"} note="steps a second" />
      <Figure name={job.finishedAt ? "Took" : "Age"} value={duration(((job.finishedAt || now) - job.createdAt) / 1000)} />
    </dl>
  );
}

function Actions({ job, again }: { job: Job; again: () => void }): JSX.Element {
  const [question, setQuestion] = useState<Question | null>(null);
  const [said, setSaid] = useState({ text: "", bad: false });
  const over = jobEnded(job);
  const name = job.name || job.id;
  const did = (what: Promise<unknown>, text: string): Promise<void> =>
    what.then(
      () => {
        setSaid({ text, bad: false });
        again();
      },
      (error: Error) => setSaid({ text: error.message, bad: true }),
    );
  const stop: Question = {
    title: `Stop ${name}?`,
    text: `Its ${count(job.worldSize)} workers take a last checkpoint where the program can, and end. A stopped job can be restarted from its last commit.`,
    yes: "Stop it",
    danger: true,
    option: "At once, with SIGKILL and without a last checkpoint",
    act: (force) => did(stopJob(job.id, force), `Asked ${name} to stop.`),
  };
  const restart: Question = {
    title: `Restart ${name}?`,
    text: over
      ? "It goes on from its last commit, under the same id."
      : "All of its workers begin a new attempt from their last commit, after a checkpoint where the program can. It costs nothing of the restart budget.",
    yes: "Restart it",
    danger: false,
    ...(over ? {} : { option: "At once, without a checkpoint first" }),
    act: (force) => did(restartJob(job.id, force), `Asked ${name} to restart.`),
  };
  return (
    <div class="actions">
      <span role="status" class={said.bad ? "failure" : "note"}>
        {said.text}
      </span>
      <button type="button" disabled={job.state === "succeeded"} onClick={() => setQuestion(restart)}>
        Restart…
      </button>
      <button type="button" disabled={over || job.desired === "stopped"} onClick={() => setQuestion(stop)}>
        Stop…
      </button>
      {question ? <Confirm question={question} onClose={() => setQuestion(null)} /> : null}
    </div>
  );
}

/** The history from the coordinator, and what the summary says meanwhile. */
const Curves = memo(function Curves({ id, over, turn, live }: { id: string; over: boolean; turn: number; live: Summary | null }): JSX.Element | null {
  const asked = useAsked(() => getMetrics(id, MOST_POINTS), 5_000, `${id} ${over} ${turn}`, over);
  if (asked.error) return <Panel title="Curves"><Failure text={asked.error} /></Panel>;
  const series = (asked.value ?? []).filter((item) => item.points.length > 0).map((item) => (over ? item : extended(item, live)));
  if (series.length === 0) return null;
  const rank = (name: string): number => (name === "loss" ? 0 : name.includes("loss") ? 1 : OVER_TIME.has(name) ? 3 : 2);
  series.sort((a, b) => rank(a.name) - rank(b.name) || (a.name < b.name ? -1 : 1));
  return (
    <Panel title="Curves">
      <div class="curves">
        {series.slice(0, CURVES).map((item) => (
          <Curve key={item.name} title={TITLES[item.name] ?? item.name} series={item} over={OVER_TIME.has(item.name) ? "time" : "step"} />
        ))}
      </div>
      {series.length > CURVES ? <p class="note">{series.length - CURVES} more: `holdfast job metrics {id}`.</p> : null}
    </Panel>
  );
});

const OVER_TIME = new Set(["steps_per_second", "goodput"]);
const TITLES: Record<string, string> = { steps_per_second: "throughput, steps a second" };

function extended(series: Series, live: Summary | null): Series {
  const last = series.points.at(-1);
  const value = series.name === "steps_per_second" ? live?.stepsPerSecond : (live?.metrics[series.name] ?? undefined);
  if (!live || value === undefined || live.steps === null || !last || live.steps <= last.step) return series;
  return { name: series.name, points: [...series.points, { at: Date.now(), step: live.steps, value }] };
}

/** What is being typed is kept apart: the page is drawn again every second, and would put back what was there. */
function RanksField({ ranks, world }: { ranks: string; world: number }): JSX.Element {
  const [typed, setTyped] = useState(ranks);
  useEffect(() => setTyped(ranks), [ranks]);
  const take = (): void => {
    const read = formatRanks(parseRanks(typed, world));
    setTyped(read);
    setParams({ ranks: read });
  };
  return (
    <label class="inline">
      Ranks
      <input type="text" size={10} value={typed} placeholder="all" onInput={(event) => setTyped(event.currentTarget.value)} onChange={take} />
    </label>
  );
}

function LogPanel({ job, route, turn }: { job: Job; route: Route; turn: number }): JSX.Element {
  const open = route.params["logs"] !== "off";
  return (
    <Panel
      title="Logs"
      aside={
        <>
          <RanksField ranks={route.params["ranks"] ?? ""} world={job.worldSize} />
          <button type="button" aria-expanded={open} onClick={() => setParams({ logs: open ? "off" : "" })}>
            {open ? "hide" : "show"}
          </button>
        </>
      }
    >
      {open ? <Logs jobId={job.id} which={route.params["ranks"] ?? ""} world={job.worldSize} turn={turn} /> : <p class="empty">Hidden.</p>}
    </Panel>
  );
}
