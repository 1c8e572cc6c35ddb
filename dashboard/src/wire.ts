/** Reads the gateway's JSON, which is that of the proto messages, into what the pages work with. */

export type Json = Record<string, unknown>;

export interface Exit {
  message: string;
  line: string;
}

export interface Worker {
  rank: number;
  node: string;
  pid: number;
  state: string;
  attempt: number;
  /** The last step it reported; null before the first. */
  step: number | null;
  section: string;
  metrics: Record<string, number>;
  lastExit: Exit | null;
  restarts: number;
  /** How it hangs, in words; empty while it does not. */
  hang: string;
  /** How far it is from its peers, while it is a straggler. */
  straggler: number | null;
}

export interface Job {
  id: string;
  name: string;
  command: string[];
  worldSize: number;
  scope: string;
  state: string;
  desired: string;
  reason: string;
  attempt: number;
  restarts: number;
  committed: number | null;
  /** Milliseconds since 1970; 0: not yet. */
  createdAt: number;
  startedAt: number;
  finishedAt: number;
  degraded: boolean;
  workers: Worker[];
}

export interface Node {
  name: string;
  state: string;
  reason: string;
  address: string;
  slots: number;
  slotsUsed: number;
  cpus: number;
  memoryBytes: number;
  gpus: number;
  spares: number;
  lastHeardAt: number;
  version: string;
  cordoned: boolean;
  cordonReason: string;
  draining: boolean;
  drained: boolean;
  labels: Record<string, string>;
}

export interface Entry {
  seq: number;
  at: number;
  jobId: string;
  node: string;
  rank: number | null;
  attempt: number;
  kind: string;
  message: string;
  outcome: string;
  evidence: string;
}

export interface Summary {
  jobId: string;
  state: string;
  goodput: number | null;
  stepsPerSecond: number;
  steps: number | null;
  stepsRedone: number;
  totalSteps: number;
  elapsed: number;
  /** Seconds; null: not known. */
  timeLeft: number | null;
  timeSeconds: Record<string, number>;
  metrics: Record<string, number>;
}

export interface Point {
  at: number;
  step: number;
  value: number;
}

export interface Series {
  name: string;
  points: Point[];
}

export interface Line {
  rank: number;
  attempt: number;
  stream: string;
  at: string;
  text: string;
}

const object = (value: unknown): Json => (value !== null && typeof value === "object" ? (value as Json) : {});
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const yes = (value: unknown): boolean => value === true;

/** A number; proto's JSON has 64-bit integers, NaN and the infinities as strings. */
export function number(value: unknown): number {
  return typeof value === "number" ? value : typeof value === "string" ? Number(value) : 0;
}

const maybe = (value: unknown): number | null => (value === undefined || value === null ? null : number(value));

/** A name of an enum without its prefix: "JOB_STATE_RUNNING" is "running". */
export function word(value: unknown, prefix: string): string {
  const found = text(value);
  return (found.startsWith(prefix) ? found.slice(prefix.length) : found).toLowerCase();
}

/** Milliseconds since 1970 of a timestamp; 0 where there is none. */
export function time(value: unknown): number {
  const found = Date.parse(text(value));
  return Number.isNaN(found) ? 0 : found;
}

/** Seconds of a duration such as "1.5s". */
export const seconds = (value: unknown): number => Number.parseFloat(text(value)) || 0;

function numbers(value: unknown): Record<string, number> {
  return Object.fromEntries(Object.entries(object(value)).map(([key, item]) => [key, number(item)]));
}

function words(value: unknown): Record<string, string> {
  return Object.fromEntries(Object.entries(object(value)).map(([key, item]) => [key, String(item)]));
}

function readHang(value: unknown): string {
  if (value === undefined || value === null) return "";
  const hang = object(value);
  const where = text(hang["where"]);
  const stopped = yes(hang["stopped"]) ? ", stopped by a signal" : "";
  return `hangs in ${text(hang["section"])}${where ? `, at ${where}` : ""}${stopped}`;
}

function readWorker(raw: unknown): Worker {
  const worker = object(raw);
  const exit = worker["last_exit"];
  return {
    rank: number(worker["rank"]),
    node: text(worker["node"]),
    pid: number(worker["pid"]),
    state: word(worker["state"], "WORKER_STATE_"),
    attempt: number(worker["attempt"]),
    step: maybe(worker["step"]),
    section: text(worker["section"]),
    metrics: numbers(worker["metrics"]),
    lastExit: exit ? { message: text(object(exit)["message"]), line: text(object(exit)["line"]) } : null,
    restarts: number(worker["restarts"]),
    hang: readHang(worker["hang"]),
    straggler: maybe(worker["straggler_score"]),
  };
}

export function readJob(raw: unknown): Job {
  const job = object(raw);
  const spec = object(job["spec"]);
  return {
    id: text(job["id"]),
    name: text(spec["name"]),
    command: list(spec["command"]).map(String),
    worldSize: number(spec["world_size"]),
    scope: word(object(spec["restart"])["scope"], "RESTART_SCOPE_"),
    state: word(job["state"], "JOB_STATE_"),
    desired: word(job["desired"], "DESIRED_STATE_"),
    reason: text(job["reason"]),
    attempt: number(job["attempt"]),
    restarts: number(job["restarts"]),
    committed: maybe(job["last_committed_step"]),
    createdAt: time(job["created_at"]),
    startedAt: time(job["started_at"]),
    finishedAt: time(job["finished_at"]),
    degraded: yes(job["degraded"]),
    workers: list(job["workers"]).map(readWorker),
  };
}

export function readNode(raw: unknown): Node {
  const node = object(raw);
  const capacity = object(node["capacity"]);
  const waiting = list(node["preloads"]).map((preload) => list(object(preload)["pids"]).length);
  return {
    name: text(node["name"]),
    state: word(node["state"], "NODE_STATE_"),
    reason: text(node["reason"]),
    address: text(node["address"]),
    slots: number(capacity["slots"]),
    slotsUsed: number(node["slots_used"]),
    cpus: number(capacity["cpus"]),
    memoryBytes: number(capacity["memory_bytes"]),
    gpus: number(capacity["gpus"]),
    spares: waiting.reduce((sum, count) => sum + count, 0),
    lastHeardAt: time(node["last_heard_at"]),
    version: text(node["agent_version"]),
    cordoned: yes(node["cordoned"]),
    cordonReason: text(node["cordon_reason"]),
    draining: yes(node["draining"]),
    drained: yes(node["drained"]),
    labels: words(node["labels"]),
  };
}

export function readEntry(raw: unknown): Entry {
  const event = object(raw);
  return {
    seq: number(event["seq"]),
    at: time(event["at"]),
    jobId: text(event["job_id"]),
    node: text(event["node"]),
    rank: maybe(event["rank"]),
    attempt: number(event["attempt"]),
    kind: text(event["kind"]),
    message: text(event["message"]),
    outcome: text(event["outcome"]),
    evidence: text(event["evidence"]),
  };
}

export function readSummary(raw: unknown): Summary {
  const summary = object(raw);
  const left = summary["time_left"];
  return {
    jobId: text(summary["job_id"]),
    state: word(summary["state"], "JOB_STATE_"),
    goodput: maybe(summary["goodput"]),
    stepsPerSecond: number(summary["steps_per_second"]),
    steps: maybe(summary["steps"]),
    stepsRedone: number(summary["steps_redone"]),
    totalSteps: number(summary["total_steps"]),
    elapsed: seconds(summary["elapsed"]),
    timeLeft: left === undefined || left === null ? null : seconds(left),
    timeSeconds: numbers(summary["time_seconds"]),
    metrics: numbers(summary["metrics"]),
  };
}

export function readSeries(raw: unknown): Series[] {
  return list(object(raw)["series"]).map((item) => ({
    name: text(object(item)["name"]),
    points: list(object(item)["points"]).map((point) => ({
      at: time(object(point)["at"]),
      step: number(object(point)["step"]),
      value: number(object(point)["value"]),
    })),
  }));
}

export function readLine(raw: unknown): Line {
  const line = object(raw);
  return {
    rank: number(line["rank"]),
    attempt: number(line["attempt"]),
    stream: word(line["stream"], "LOG_STREAM_"),
    at: text(line["at"]),
    text: text(line["text"]),
  };
}

const ENDED = new Set(["succeeded", "failed", "stopped"]);
/** Whether a job in this state is over. */
export const ended = (state: string): boolean => ENDED.has(state);
