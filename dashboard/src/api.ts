/** Calls of the gateway, and what it says when they do not work. */

import { readJob, readSeries, readSummary, type Job, type Json, type Series, type Summary } from "./wire.ts";

/** A problem in a sentence that can be shown as it is. */
export class Problem extends Error {
  constructor(
    message: string,
    /** 0: the gateway did not answer. */
    readonly status: number,
  ) {
    super(message);
  }
}

const PATIENCE_MS = 20_000;
export const MOST_SUMMARIES = 200;

/** What a problem+json body says: the detail, what is wrong with which field, and what to do about it. */
export function sentence(body: Json, status: number): string {
  const violations = (Array.isArray(body["violations"]) ? body["violations"] : []).map((item: Json) =>
    [item["field"], item["description"]].filter(Boolean).join(": "),
  );
  const detail = typeof body["detail"] === "string" ? body["detail"] : "";
  const title = typeof body["title"] === "string" ? body["title"] : `the gateway answered with status ${status}`;
  const known = violations.filter((item) => !detail.includes(item));
  const remedy = typeof body["remedy"] === "string" && !detail.includes(body["remedy"]) ? body["remedy"] : "";
  return [detail || title, ...known, remedy].filter(Boolean).join("; ");
}

async function call(method: string, path: string): Promise<Json> {
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      headers: { Accept: "application/json" },
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
  } catch {
    throw new Problem("The gateway does not answer; is `holdfast gateway` running?", 0);
  }
  const text = await answer.text();
  let found: Json = {};
  try {
    found = text ? (JSON.parse(text) as Json) : {};
  } catch {
    if (answer.ok) throw new Problem(`The gateway's answer to ${method} ${path} can't be read.`, answer.status);
  }
  if (!answer.ok) throw new Problem(sentence(found, answer.status), answer.status);
  return found;
}

const job = (id: string): string => `/jobs/${encodeURIComponent(id)}`;
const node = (name: string): string => `/nodes/${encodeURIComponent(name)}`;

export const getJob = async (id: string): Promise<Job> => readJob(await call("GET", job(id)));

export const getSummary = async (id: string): Promise<Summary> => readSummary(await call("GET", `${job(id)}/summary`));

/** Of the newest jobs under way. */
export async function getSummaries(): Promise<Summary[]> {
  const states = ["pending", "starting", "running", "restarting", "stopping"].map((state) => `state=${state}`);
  const found = (await call("GET", `/summaries?page_size=${MOST_SUMMARIES}&${states.join("&")}`))["summaries"];
  return (Array.isArray(found) ? found : []).map(readSummary);
}

export const getMetrics = async (id: string, points: number): Promise<Series[]> =>
  readSeries(await call("GET", `${job(id)}/metrics?points=${points}`));

const ask = (path: string, params: Record<string, string>): Promise<Json> =>
  call("POST", `${path}?${new URLSearchParams(params).toString()}`);

export const stopJob = (id: string, force: boolean): Promise<Json> => ask(`${job(id)}/stop`, { force: String(force) });
export const restartJob = (id: string, force: boolean): Promise<Json> => ask(`${job(id)}/restart`, { force: String(force) });
export const cordonNode = (name: string, reason: string): Promise<Json> => ask(`${node(name)}/cordon`, { reason });
export const uncordonNode = (name: string): Promise<Json> => ask(`${node(name)}/uncordon`, {});
export const drainNode = (name: string, reason: string): Promise<Json> => ask(`${node(name)}/drain`, { reason });
